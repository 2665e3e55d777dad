package conntrack

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
	"weir/backends/hostnet"
	"weir/backends/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// create adds a flow to the kernel's table: client to dst, to be answered by replySrc. It records no NAT, as IPVS does.
func create(t *testing.T, protocol uint8, client, dst, replySrc string) {
	t.Helper()
	c, d, r := netip.MustParseAddrPort(client), netip.MustParseAddrPort(dst), netip.MustParseAddrPort(replySrc)
	family := uint8(unix.AF_INET)
	if c.Addr().Is6() {
		family = unix.AF_INET6
	}
	f := &netlink.ConntrackFlow{
		FamilyType: family,
		Forward:    netlink.IPTuple{Protocol: protocol, SrcIP: c.Addr().AsSlice(), SrcPort: c.Port(), DstIP: d.Addr().AsSlice(), DstPort: d.Port()},
		Reverse:    netlink.IPTuple{Protocol: protocol, SrcIP: r.Addr().AsSlice(), SrcPort: r.Port(), DstIP: c.Addr().AsSlice(), DstPort: c.Port()},
		TimeOut:    300,
	}
	if protocol == unix.IPPROTO_TCP {
		f.ProtoInfo = &netlink.ProtoInfoTCP{State: tcpEstablished}
	}
	if err := netlink.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(family), f); err != nil {
		t.Fatalf("create %s -> %s: %v", client, dst, err)
	}
}

const tcpEstablished = 3

// answered adds a TCP flow over IPv4 that was answered, in a state of the kernel's.
func answered(t *testing.T, client, dst, replySrc string, state uint8) {
	t.Helper()
	create(t, unix.IPPROTO_TCP, client, dst, replySrc)
	k, err := openKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	c, d := netip.MustParseAddrPort(client), netip.MustParseAddrPort(dst)
	ip := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil)
	ip.AddRtAttr(nl.CTA_IP_V4_SRC, c.Addr().AsSlice())
	ip.AddRtAttr(nl.CTA_IP_V4_DST, d.Addr().AsSlice())
	proto := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, nl.Uint8Attr(unix.IPPROTO_TCP))
	proto.AddRtAttr(nl.CTA_PROTO_SRC_PORT, nl.BEUint16Attr(c.Port()))
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, nl.BEUint16Attr(d.Port()))
	orig := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	orig.AddChild(ip)
	orig.AddChild(proto)
	req := k.(*kernel).request(dataplane.IPv4, nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK)
	req.AddData(orig)
	const confirmed = 1 << 3
	req.AddData(nl.NewRtAttr(nl.CTA_STATUS, nl.BEUint32Attr(confirmed|seenReply)))
	inTCP := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_PROTOINFO_TCP, nil)
	inTCP.AddRtAttr(nl.CTA_PROTOINFO_TCP_STATE, nl.Uint8Attr(state))
	info := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_PROTOINFO, nil)
	info.AddChild(inTCP)
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_NETFILTER, 0); err != nil {
		t.Fatalf("answer %s: %v", client, err)
	}
}

// clients returns the client addresses of all flows in the kernel's table, sorted.
func clients(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			src, _ := netip.AddrFromSlice(f.Forward.SrcIP)
			out = append(out, netip.AddrPortFrom(src.Unmap(), f.Forward.SrcPort).String())
		}
	}
	slices.Sort(out)
	return out
}

func TestClean(t *testing.T) {
	netlab.InNamespace(t)
	const a, b = "10.244.0.1:5353", "10.244.0.2:5353"
	// The client's port is the number of the flow. Flows of clients that end in .1 must stay, and those of clients that
	// end in .2 must be removed.
	create(t, unix.IPPROTO_UDP, "192.0.2.1:1", "10.96.0.10:53", b)
	create(t, unix.IPPROTO_UDP, "192.0.2.2:2", "10.96.0.10:53", a)
	create(t, unix.IPPROTO_UDP, "192.0.2.2:3", "10.96.0.10:53", "10.96.0.10:53")
	create(t, unix.IPPROTO_UDP, "192.0.2.2:4", "198.51.100.1:53", a)
	create(t, unix.IPPROTO_UDP, "192.0.2.2:5", "192.0.2.9:30053", a)
	create(t, unix.IPPROTO_UDP, "192.0.2.1:6", "203.0.113.9:30053", "203.0.113.9:30053")
	create(t, unix.IPPROTO_TCP, "192.0.2.1:7", "10.96.0.10:53", a)
	create(t, unix.IPPROTO_UDP, "192.0.2.1:8", "10.96.0.99:53", a)
	create(t, unix.IPPROTO_UDP, "[2001:db8::1]:9", "[fd00:96::10]:53", "[fd00:244::2]:53")
	create(t, unix.IPPROTO_UDP, "[2001:db8::2]:10", "[fd00:96::10]:53", "[fd00:244::1]:53")
	create(t, unix.IPPROTO_UDP, "192.0.2.2:11", "10.96.0.20:53", a)

	six := &dataplane.ServicePort{
		Key:       dataplane.ServicePortName{Protocol: dataplane.UDP, Family: dataplane.IPv6},
		ClusterIP: netip.MustParseAddr("fd00:96::10"), Port: 53,
		Endpoints: endpoints("[fd00:244::2]:53"),
	}
	gone := dns(a)
	gone.ClusterIP, gone.NodePort = netip.MustParseAddr("10.96.0.20"), 0
	cleaner := ForIPVS(dataplane.Config{NodeAddresses: addrs("192.0.2.9")})
	n, err := cleaner.Clean(t.Context(), []*dataplane.ServicePort{dns(b), six}, []*dataplane.ServicePort{gone})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"192.0.2.1:1", "192.0.2.1:6", "192.0.2.1:7", "192.0.2.1:8", "[2001:db8::1]:9"}
	if diff := cmp.Diff(want, clients(t)); diff != "" || n != 6 {
		t.Errorf("%d deleted, left (-want +got):\n%s", n, diff)
	}
	if n, err := cleaner.Clean(t.Context(), []*dataplane.ServicePort{dns(b), six}, []*dataplane.ServicePort{gone}); n != 0 || err != nil {
		t.Errorf("again: %d deleted, error %v", n, err)
	}
}

func TestDumpHasOneProtocolOnly(t *testing.T) {
	netlab.InNamespace(t)
	create(t, unix.IPPROTO_TCP, "192.0.2.1:1", "10.96.0.10:53", "10.244.0.1:53")
	create(t, unix.IPPROTO_UDP, "192.0.2.1:2", "10.96.0.10:53", "10.244.0.1:5353")
	k, err := openKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer k.close()
	var got []Flow
	if err := k.dump(dataplane.IPv4, dataplane.UDP, netip.AddrPort{}, func(f Flow, _ []byte) { got = append(got, f) }); err != nil {
		t.Fatal(err)
	}
	want := []Flow{flow("10.96.0.10:53", "10.244.0.1:5353")}
	want[0].Src, want[0].ByIPVS, want[0].Unanswered = netip.MustParseAddr("192.0.2.1"), true, true
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestPain11_RestartKeepsHealthyFlows(t *testing.T) {
	netlab.InNamespace(t)
	const flows = 3000 // more than one netlink message holds
	for i := range flows {
		create(t, unix.IPPROTO_UDP, fmt.Sprintf("192.0.2.1:%d", i+1), "10.96.0.10:53", fmt.Sprintf("10.244.0.%d:53", i%2+1))
	}
	n, err := ForIPVS(dataplane.Config{}).Clean(t.Context(), list(dns("10.244.0.1:53", "10.244.0.2:53")), nil)
	if n != 0 || err != nil || len(clients(t)) != flows {
		t.Errorf("%d deleted, %d left, error %v", n, len(clients(t)), err)
	}
	n, err = ForIPVS(dataplane.Config{}).Clean(t.Context(), list(dns("10.244.0.1:53")), nil)
	if n != flows/2 || err != nil || len(clients(t)) != flows/2 {
		t.Errorf("one endpoint gone: %d deleted, %d left, error %v", n, len(clients(t)), err)
	}
}

func TestCleanWithoutPrivileges(t *testing.T) {
	netlab.InNamespace(t)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		t.Fatal(err)
	}
	_, err := ForIPVS(dataplane.Config{}).Clean(t.Context(), list(dns("10.244.0.1:53")), nil)
	if err == nil || !strings.Contains(err.Error(), "needs CAP_NET_ADMIN") {
		t.Errorf("error %v", err)
	}
}

// TestLimitsInKernel sets parameters of a network namespace, and expects errors for parameters of the host.
func TestLimitsInKernel(t *testing.T) {
	netlab.InNamespace(t)
	// The kernel shows the parameters only if a rule needs connection tracking.
	natTo(t, "")
	s := hostnet.Sysctl{}
	l := Limits{MaxPerCore: 1000, TCPEstablished: 7777 * time.Second, UDPStream: 66 * time.Second, TCPBeLiberal: true}
	var err error
	for _, p := range l.Parameters(2) {
		_, failed := s.Ensure(p.Name, p.Value)
		err = errors.Join(err, failed)
	}
	if err == nil || !strings.Contains(err.Error(), "nf_conntrack_max") || strings.Contains(err.Error(), "timeout") {
		t.Errorf("error %v, want one about nf_conntrack_max", err)
	}
	for name, want := range map[string]string{"tcp_timeout_established": "7777", "udp_timeout_stream": "66", "tcp_be_liberal": "1"} {
		if got, err := s.Get("net.netfilter.nf_conntrack_" + name); got != want || err != nil {
			t.Errorf("%s is %q, error %v", name, got, err)
		}
	}
}

// TestPain10_StaleFlowFollowsTheEndpoint sends real packets. A client that keeps its socket gets no answer, first
// without an endpoint and then with a deleted one, until its flow is removed.
func TestPain10_StaleFlowFollowsTheEndpoint(t *testing.T) {
	netlab.InNamespace(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	service := &net.IPNet{IP: net.IPv4(10, 96, 0, 0), Mask: net.CIDRMask(16, 32)}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: service, Scope: netlink.SCOPE_LINK, Src: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	answer(t, "127.0.0.1:5301", "A")
	answer(t, "127.0.0.1:5302", "B")
	client, err := net.Dial("udp", "10.96.0.10:53")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()

	states := []struct{ endpoint, stuck, want string }{
		{"", "", ""},
		{"127.0.0.1:5301", "", "A"},
		{"127.0.0.1:5302", "A", "B"},
	}
	for _, s := range states {
		natTo(t, s.endpoint)
		if got := ask(client, s.stuck != ""); got != s.stuck {
			t.Errorf("endpoint %q: %q answered before the flow was removed, want %q", s.endpoint, got, s.stuck)
		}
		e := dns()
		if s.endpoint != "" {
			e = dns(s.endpoint)
		}
		if _, err := ForIPVS(dataplane.Config{}).Clean(t.Context(), list(e), nil); err != nil {
			t.Fatal(err)
		}
		if got := ask(client, s.want != ""); got != s.want {
			t.Errorf("endpoint %q: %q answered, want %q", s.endpoint, got, s.want)
		}
	}
}

// natTo programs the Service's only endpoint, or none.
func natTo(t *testing.T, endpoint string) {
	t.Helper()
	// The kernel tracks flows only as long as a rule needs it.
	rules := "udp dport 9 dnat to 127.0.0.1:9\n"
	if endpoint != "" {
		rules += "ip daddr 10.96.0.10 udp dport 53 dnat to " + endpoint + "\n"
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader("table ip t {\nchain out {\ntype nat hook output priority -100;\n}\n}\n" +
		"flush chain ip t out\ntable ip t {\nchain out {\n" + rules + "}\n}\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

func answer(t *testing.T, addr, name string) {
	t.Helper()
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 16)
		for {
			_, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if _, err := conn.WriteTo([]byte(name), from); err != nil {
				return
			}
		}
	}()
}

// ask returns who answers, or "" if there is no answer. With expect set it waits longer.
func ask(conn net.Conn, expect bool) string {
	patience := 100 * time.Millisecond
	if expect {
		patience = 5 * time.Second
	}
	deadline := time.Now().Add(patience)
	buf := make([]byte, 16)
	for time.Now().Before(deadline) {
		if _, err := conn.Write([]byte("who")); err != nil {
			continue // an ICMP error for an earlier packet
		}
		if err := conn.SetReadDeadline(deadline); err != nil {
			return err.Error()
		}
		if n, err := conn.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	return ""
}
