package hostnet

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// inNamespace gives the test a network namespace of its own with the interfaces lo and eth0, both up.
func inNamespace(t *testing.T) {
	t.Helper()
	netlab.InNamespace(t)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"eth0", "peer0"} {
		if err := netlink.LinkSetUp(link(t, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func addAddr(t *testing.T, iface, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	a.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(link(t, iface), a); err != nil {
		t.Fatalf("%s: %v", cidr, err)
	}
}

func addDefault(t *testing.T, gateway string) {
	t.Helper()
	gw := netip.MustParseAddr(gateway)
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link(t, "eth0").Attrs().Index, Gw: gw.AsSlice()}); err != nil {
		t.Fatal(err)
	}
}

func address(s, iface string) Address {
	a := netip.MustParseAddr(s)
	return Address{Addr: a, Interface: iface, Loopback: a.IsLoopback()}
}

func addrs(list ...string) []netip.Addr {
	out := []netip.Addr{}
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var compareAddrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestAddresses(t *testing.T) {
	inNamespace(t)
	ipvs := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "weir-ipvs0"}, PeerName: "p1"}
	if err := netlink.LinkAdd(ipvs); err != nil {
		t.Fatal(err)
	}
	addAddr(t, "weir-ipvs0", "10.96.0.1/32")
	addAddr(t, "eth0", "192.0.2.7/24")
	addAddr(t, "eth0", "192.0.2.5/24")
	addAddr(t, "peer0", "192.0.2.5/32")
	addAddr(t, "eth0", "2001:db8:1::7/64")
	addAddr(t, "eth0", "fe80::7/64")
	addAddr(t, "lo", "127.0.0.2/32")

	got, err := Addresses()
	if err != nil {
		t.Fatal(err)
	}
	want := []Address{
		address("127.0.0.1", "lo"), address("127.0.0.2", "lo"),
		address("192.0.2.5", "eth0"), address("192.0.2.7", "eth0"),
		address("::1", "lo"), address("2001:db8:1::7", "eth0"),
	}
	if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(addrs("192.0.2.5", "192.0.2.7", "2001:db8:1::7"), Outward(got), compareAddrs); diff != "" {
		t.Errorf("outward (-want +got):\n%s", diff)
	}
}

func TestPrimary(t *testing.T) {
	inNamespace(t)
	addAddr(t, "eth0", "198.51.100.9/24")
	addAddr(t, "peer0", "10.0.0.1/24")
	addAddr(t, "peer0", "2001:db8:1::1/64")
	addAddr(t, "eth0", "2001:db8:2::9/64")
	check := func(state string, want ...string) {
		t.Helper()
		list, err := Addresses()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(addrs(want...), Primary(list), compareAddrs); diff != "" {
			t.Errorf("%s (-want +got):\n%s", state, diff)
		}
	}
	check("no default route", "10.0.0.1", "2001:db8:1::1")
	addDefault(t, "198.51.100.1")
	addDefault(t, "2001:db8:2::1")
	check("default route", "198.51.100.9", "2001:db8:2::9")
	if got := Primary([]Address{address("127.0.0.1", "lo")}); got != nil {
		t.Errorf("only loopback: %v", got)
	}
}

func TestResolveNodePorts(t *testing.T) {
	node := []Address{
		address("127.0.0.1", "lo"), address("192.0.2.7", "eth0"), address("198.51.100.7", "eth1"),
		address("::1", "lo"), address("2001:db8:1::7", "eth0"),
	}
	tests := []struct {
		name      string
		want      []string
		primary   []netip.Addr
		addrs     []netip.Addr
		localhost bool
	}{
		{"unset", nil, nil, nil, true},
		{"all", []string{"all"}, nil, nil, true},
		{"all by number", []string{"0.0.0.0/0", "::/0"}, nil, nil, true},
		{"all of one family", []string{"0.0.0.0/0"}, nil, nil, true},
		{"one network, the other family is free", []string{"192.0.2.0/24"}, nil, addrs("192.0.2.7", "2001:db8:1::7"), false},
		{"both families", []string{"192.0.2.0/24", "2001:db8:1::/64"}, nil, addrs("192.0.2.7", "2001:db8:1::7"), false},
		{"a network that the node is not in", []string{"203.0.113.0/24", "fd00::/8"}, nil, addrs(), false},
		{"IPv6 only limited", []string{"fd00::/8"}, nil, addrs("127.0.0.1", "192.0.2.7", "198.51.100.7"), true},
		{"localhost", []string{"localhost"}, nil, addrs("127.0.0.1"), true},
		{"primary", []string{"primary"}, addrs("198.51.100.7", "2001:db8:1::7"), addrs("198.51.100.7", "2001:db8:1::7"), false},
		{"primary of one family", []string{"primary"}, addrs("198.51.100.7"), addrs("198.51.100.7", "2001:db8:1::7"), false},
		{"primary and localhost", []string{"primary", "localhost"}, addrs("192.0.2.7", "2001:db8:1::7"), addrs("127.0.0.1", "192.0.2.7", "2001:db8:1::7"), true},
		{"primary that the node does not have", []string{"primary", "::/128"}, addrs("203.0.113.1"), addrs(), false},
		{"everything wins", []string{"192.0.2.0/24", "0.0.0.0/0"}, nil, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ResolveNodePorts(tt.want, tt.primary, node)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(NodePorts{tt.addrs, tt.localhost}, got, compareAddrs); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if _, err := ResolveNodePorts([]string{"192.0.2.1"}, nil, node); err == nil || !strings.Contains(err.Error(), `"192.0.2.1"`) {
		t.Errorf("not a CIDR: error %v", err)
	}
}

// sawAddr waits until the addresses that were found on some report include one.
func sawAddr(t *testing.T, seen <-chan []Address, want string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case list := <-seen:
			if slices.ContainsFunc(list, func(a Address) bool { return a.Addr.String() == want }) {
				return
			}
		case <-deadline:
			t.Fatalf("%s was not reported", want)
		}
	}
}

func TestWatch(t *testing.T) {
	inNamespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan []Address, 64)
	done := make(chan error, 1)
	inThisNamespace(t, func() {
		done <- Watch(ctx, func() {
			list, err := Addresses()
			if err != nil {
				t.Error(err)
			}
			seen <- list
		})
	})
	sawAddr(t, seen, "127.0.0.1")
	addAddr(t, "eth0", "192.0.2.7/24")
	sawAddr(t, seen, "192.0.2.7")
	addAddr(t, "eth0", "2001:db8:1::7/64")
	sawAddr(t, seen, "2001:db8:1::7")
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}

// TestWatchSurvivesLostNotifications lets the socket overflow while the receiver is busy.
func TestWatchSurvivesLostNotifications(t *testing.T) {
	inNamespace(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan []Address, 64)
	entered, leave := make(chan bool), make(chan bool)
	done := make(chan bool)
	inThisNamespace(t, func() {
		defer close(done)
		follow(ctx, 1, func() {
			entered <- true
			<-leave
			list, err := Addresses()
			if err != nil {
				t.Error(err)
			}
			seen <- list
		})
	})
	<-entered
	const many = 200
	for i := range many {
		addAddr(t, "eth0", netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}).String()+"/32")
	}
	leave <- true
	<-seen
	reports := make(chan int, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-entered:
				leave <- true
			case <-done:
				reports <- n
				return
			}
		}
	}()
	// The overflow is reported as a change, and what comes after it is seen.
	sawAddr(t, seen, "10.0.0.200")
	addAddr(t, "eth0", "10.0.1.1/32")
	sawAddr(t, seen, "10.0.1.1")
	cancel()
	<-done
	if n := <-reports; n >= many {
		t.Errorf("%d reports: nothing was lost, so that the test proves nothing", n)
	}
}

// inThisNamespace runs f in a goroutine that is in the test's namespace, and returns at once.
func inThisNamespace(t *testing.T, f func()) {
	t.Helper()
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		runtime.LockOSThread()
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
}

func TestSysctl(t *testing.T) {
	root := t.TempDir()
	write := func(name, value string, mode fs.FileMode) {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("net/ipv4/ip_forward", "0\n", 0o644)
	write("net/ipv4/range", "1\t2\n", 0o444)
	write("net/conf/eth0.1/x", "1\n", 0o644)
	s := Sysctl{Root: root}
	tests := []struct {
		name, value string
		changed     bool
		err         string
	}{
		{"net.ipv4.ip_forward", "1", true, ""},
		{"net.ipv4.ip_forward", "1", false, ""},
		{"net.ipv4.range", "1 2", false, ""},
		{"net/conf/eth0.1/x", "2", true, ""},
		{"net.absent", "1", false, "no such file"},
		{"../../etc/passwd", "1", false, "not a name"},
		{"/etc/passwd", "1", false, "not a name"},
		{"", "1", false, "not a name"},
		{"net.ipv4", "1", false, "sysctl net.ipv4"},
	}
	for _, tt := range tests {
		changed, err := s.Ensure(tt.name, tt.value)
		if changed != tt.changed || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("Ensure(%q, %q): %v, %v", tt.name, tt.value, changed, err)
		}
	}
	if v, err := s.Get("net.ipv4.ip_forward"); v != "1" || err != nil {
		t.Errorf("got %q, %v", v, err)
	}
}

func TestForwarding(t *testing.T) {
	inNamespace(t)
	s := Sysctl{}
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv4.conf.all.route_localnet"} {
		if _, err := s.Ensure(name, "0"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Ensure("net.ipv6.conf.all.forwarding", "0"); err != nil {
		t.Fatal(err)
	}
	f := Forwarding{IPv4: true, IPv6: true, Localhost: true}
	changed, err := f.Ensure(s)
	if want := []string{"net.ipv4.ip_forward", "net.ipv4.conf.all.route_localnet"}; !slices.Equal(changed, want) {
		t.Errorf("changed %v, want %v", changed, want)
	}
	if err == nil || !strings.Contains(err.Error(), "net.ipv6.conf.all.forwarding is 0") {
		t.Errorf("error %v", err)
	}
	if changed, _ := f.Ensure(s); len(changed) > 0 {
		t.Errorf("again: changed %v", changed)
	}
	if changed, err := (Forwarding{}).Ensure(s); len(changed) > 0 || err != nil {
		t.Errorf("nothing to do: %v, %v", changed, err)
	}
}

func TestForwardingWithReadOnlySysctls(t *testing.T) {
	netlab.Require(t)
	root := t.TempDir()
	for name, value := range map[string]string{
		"net/ipv4/ip_forward": "0\n", "net/ipv4/conf/all/route_localnet": "1\n", "net/bridge/bridge-nf-call-iptables": "0\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	readOnly(t, root)
	changed, err := Forwarding{IPv4: true, Localhost: true}.Ensure(Sysctl{Root: root})
	if err == nil || len(changed) > 0 {
		t.Fatalf("changed %v, error %v", changed, err)
	}
	want := "sysctl net.ipv4.ip_forward is 0 and cannot be set to 1: read-only file system\n" +
		"sysctl net.bridge.bridge-nf-call-iptables is 0: Services do not work between pods on one Linux bridge; set it to 1 if that matters"
	if err.Error() != want {
		t.Errorf("error:\n%v\nwant:\n%s", err, want)
	}
}

// readOnly remounts a directory so that nobody, not even root, writes there, in a mount namespace of the test's own.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	for _, m := range []struct {
		source, target string
		flags          uintptr
	}{
		{"", "/", unix.MS_REC | unix.MS_PRIVATE},
		{dir, dir, unix.MS_BIND},
		{"", dir, unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY},
	} {
		if err := unix.Mount(m.source, m.target, "", m.flags, ""); err != nil {
			t.Fatalf("mount %s: %v", m.target, err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
