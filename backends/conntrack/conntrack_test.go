package conntrack

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func endpoints(list ...string) (out []dataplane.Endpoint) {
	for _, s := range list {
		out = append(out, dataplane.Endpoint{Addr: netip.MustParseAddrPort(s), Cluster: true})
	}
	return out
}

// dns returns a Service with every kind of address.
func dns(eps ...string) *dataplane.ServicePort {
	return &dataplane.ServicePort{
		Key:             dataplane.ServicePortName{Protocol: dataplane.UDP, Family: dataplane.IPv4},
		ClusterIP:       netip.MustParseAddr("10.96.0.10"),
		Port:            53,
		NodePort:        30053,
		ExternalIPs:     addrs("198.51.100.1"),
		LoadBalancerIPs: addrs("198.51.100.2"),
		Endpoints:       endpoints(eps...),
	}
}

func flow(dst, replySrc string) Flow {
	return Flow{Protocol: dataplane.UDP, Dst: netip.MustParseAddrPort(dst), ReplySrc: netip.MustParseAddrPort(replySrc)}
}

func TestStale(t *testing.T) {
	const a, b = "10.244.0.1:5353", "10.244.0.2:5353"
	config := dataplane.Config{NodeAddresses: addrs("192.0.2.1")}
	only := dataplane.Config{NodeAddresses: addrs("192.0.2.1", "192.0.2.2"), NodePortAddresses: addrs("192.0.2.2")}
	with := func(f func(*dataplane.ServicePort), eps ...string) *dataplane.ServicePort {
		e := dns(eps...)
		f(e)
		return e
	}
	// The policy turned to Local: a is on this node, b is not.
	turned := with(func(e *dataplane.ServicePort) {
		e.ExternalLocal, e.Endpoints[0].Local = true, true
		e.Serving, e.ServingLocal = []netip.AddrPort{netip.MustParseAddrPort(a), netip.MustParseAddrPort(b)}, []netip.AddrPort{netip.MustParseAddrPort(a)}
	}, a, b)
	shut := with(func(e *dataplane.ServicePort) {
		e.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	}, a)
	internal := with(func(e *dataplane.ServicePort) { e.InternalLocal, e.Endpoints[0].Local = true, true }, a, b)
	pods := config
	pods.LocalDetector.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")}
	veth := config
	veth.LocalDetector = dataplane.LocalDetector{Interface: "veth", Prefix: true}
	from := func(src string, masqueraded bool, f Flow) Flow {
		f.Src, f.Masqueraded = netip.MustParseAddr(src), masqueraded
		return f
	}
	const client, pod, node = "203.0.113.1", "10.244.0.9", "192.0.2.1"
	tests := []struct {
		name   string
		config dataplane.Config
		entry  *dataplane.ServicePort
		gone   *dataplane.ServicePort
		flow   Flow
		want   bool
	}{
		{"endpoint serves", config, dns(a, b), nil, flow("10.96.0.10:53", a), false},
		{"endpoint gone", config, dns(b), nil, flow("10.96.0.10:53", a), true},
		{"target port changed", config, dns("10.244.0.1:53"), nil, flow("10.96.0.10:53", a), true},
		{"began before the first endpoint", config, dns(a), nil, flow("10.96.0.10:53", "10.96.0.10:53"), true},
		{"external IP", config, dns(b), nil, flow("198.51.100.1:53", a), true},
		{"load balancer IP", config, dns(b), nil, flow("198.51.100.2:53", a), true},
		{"node port", config, dns(b), nil, flow("192.0.2.1:30053", a), true},
		{"node port on localhost", config, dns(b), nil, flow("127.0.0.1:30053", a), true},
		{"node port, endpoint serves", config, dns(a), nil, flow("192.0.2.1:30053", a), false},
		{"same port elsewhere in the world", config, dns(b), nil, flow("203.0.113.9:30053", "203.0.113.9:30053"), false},
		{"node port not served on the address", only, dns(b), nil, flow("192.0.2.1:30053", a), false},
		{"node port served on the address", only, dns(b), nil, flow("192.0.2.2:30053", a), true},
		{"node ports served nowhere", dataplane.Config{NodeAddresses: addrs("192.0.2.1"), NodePortAddresses: []netip.Addr{}}, dns(b), nil, flow("192.0.2.1:30053", a), false},
		{"node's addresses unknown", dataplane.Config{}, dns(b), nil, flow("192.0.2.9:30053", a), true},
		{"another port of the ClusterIP", config, dns(b), nil, flow("10.96.0.10:54", a), false},
		{"another Service", config, dns(b), nil, flow("10.96.0.11:53", a), false},
		{"policy Local, endpoint here", pods, turned, nil, from(client, true, flow("192.0.2.1:30053", a)), false},
		{"policy Local, endpoint elsewhere", pods, turned, nil, from(client, true, flow("192.0.2.1:30053", b)), true},
		{"policy Local, external IP", pods, turned, nil, from(client, true, flow("198.51.100.1:53", b)), true},
		{"policy Local, ClusterIP", pods, turned, nil, from(client, true, flow("10.96.0.10:53", b)), false},
		{"policy Local, from a pod", pods, turned, nil, from(pod, false, flow("192.0.2.1:30053", b)), false},
		{"policy Local, from the node", pods, turned, nil, from(node, true, flow("192.0.2.1:30053", b)), false},
		{"policy Local, from a pod by its interface", veth, turned, nil, from(pod, false, flow("192.0.2.1:30053", b)), false},
		{"policy Local, not from a pod by its interface", veth, turned, nil, from(client, true, flow("192.0.2.1:30053", b)), true},
		{"internal policy Local", pods, internal, nil, from(pod, false, flow("10.96.0.10:53", b)), true},
		{"internal policy Local, endpoint here", pods, internal, nil, from(pod, false, flow("10.96.0.10:53", a)), false},
		{"internal policy Local, node port", pods, internal, nil, from(client, true, flow("192.0.2.1:30053", b)), false},
		{"source excluded", config, shut, nil, from("198.51.100.77", true, flow("198.51.100.2:53", a)), true},
		{"source allowed", config, shut, nil, from(client, true, flow("198.51.100.2:53", a)), false},
		{"source excluded elsewhere only", config, shut, nil, from("198.51.100.77", true, flow("198.51.100.1:53", a)), false},
		{"source excluded, ClusterIP", config, shut, nil, from("198.51.100.77", true, flow("10.96.0.10:53", a)), false},
		{"the address is the node's", config, shut, nil, from("198.51.100.2", false, flow("198.51.100.2:53", a)), false},
		{"TCP flow", config, dns(b), nil, Flow{Protocol: dataplane.TCP, Dst: netip.MustParseAddrPort("10.96.0.10:53"), ReplySrc: netip.MustParseAddrPort(a)}, false},
		{"no endpoint is left", config, dns(), nil, flow("10.96.0.10:53", a), true},
		{"no endpoint yet", config, dns(), nil, flow("10.96.0.10:53", "10.96.0.10:53"), false},
		{"Service gone", config, nil, dns(a), flow("10.96.0.10:53", a), true},
		{"Service gone, flow of its own", config, nil, dns(a), flow("10.96.0.10:53", "10.96.0.10:53"), false},
		{"address passed to another Service", config, dns(a), dns(b), flow("10.96.0.10:53", a), false},
		{"terminating and serving", config, with(func(e *dataplane.ServicePort) {
			e.Serving = []netip.AddrPort{netip.MustParseAddrPort(a)}
		}, b), nil, flow("10.96.0.10:53", a), false},
		{"TCP Service", config, with(func(e *dataplane.ServicePort) { e.Key.Protocol = dataplane.TCP }, b), nil, flow("10.96.0.10:53", a), false},
		{"other family", config, with(func(e *dataplane.ServicePort) { e.Key.Family = dataplane.IPv6 }, b), nil, flow("10.96.0.10:53", a), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := New(tt.config).wanted(dataplane.IPv4, list(tt.entry), list(tt.gone))
			if got := w.stale(tt.flow); got != tt.want {
				t.Errorf("stale: %v", got)
			}
		})
	}
}

// TestStaleAfterIPVS expects that flows created by IPVS are stale once another mode is in force.
func TestStaleAfterIPVS(t *testing.T) {
	const a = "10.244.0.1:5353"
	f := flow("10.96.0.10:53", a)
	f.ByIPVS = true
	entries := []*dataplane.ServicePort{dns(a)}
	if !New(dataplane.Config{}).wanted(dataplane.IPv4, entries, nil).stale(f) {
		t.Error("not stale to another mode")
	}
	if ForIPVS(dataplane.Config{}).wanted(dataplane.IPv4, entries, nil).stale(f) {
		t.Error("stale to ipvs mode")
	}
}

func list(e *dataplane.ServicePort) []*dataplane.ServicePort {
	if e == nil {
		return nil
	}
	return []*dataplane.ServicePort{e}
}

// fakeTable holds IPv4 flows and fails as the test says.
type fakeTable struct {
	flows     map[string]Flow // by handle
	dumpErrs  []error         // one for each dump, then none
	removeErr error
	dumps     int
	closed    bool
}

func (k *fakeTable) dump(f dataplane.Family, _ dataplane.Protocol, _ netip.AddrPort, yield func(Flow, []byte)) error {
	k.dumps++
	if f == dataplane.IPv4 {
		for handle, flow := range k.flows {
			yield(flow, []byte(handle))
		}
	}
	if len(k.dumpErrs) == 0 {
		return nil
	}
	err := k.dumpErrs[0]
	k.dumpErrs = k.dumpErrs[1:]
	return err
}

func (k *fakeTable) remove(_ dataplane.Family, handle []byte) (bool, error) {
	if k.removeErr != nil {
		return false, k.removeErr
	}
	_, ok := k.flows[string(handle)]
	delete(k.flows, string(handle))
	return ok, nil
}

func (k *fakeTable) close() { k.closed = true }

func cleanerOf(k *fakeTable) *Cleaner {
	c := New(dataplane.Config{})
	c.open = func() (table, error) { return k, nil }
	return c
}

func TestCleanUnderFailure(t *testing.T) {
	many := make([]error, dumpAttempts)
	for i := range many {
		many[i] = netlink.ErrDumpInterrupted
	}
	tests := []struct {
		name      string
		dumpErrs  []error
		removeErr error
		deleted   int
		dumps     int
		err       string
	}{
		{"none", nil, nil, 1, 1, ""},
		{"interrupted dump", []error{netlink.ErrDumpInterrupted}, nil, 1, 2, ""},
		{"signal", []error{unix.EINTR, unix.EINTR}, nil, 1, 3, ""},
		{"overrun", []error{unix.ENOBUFS}, nil, 1, 2, ""},
		{"interrupted for ever", many, nil, 1, dumpAttempts, "incomplete"},
		{"not allowed to dump", []error{unix.EPERM}, nil, 1, 1, "needs CAP_NET_ADMIN"},
		{"not allowed to remove", nil, unix.EPERM, 0, 1, "needs CAP_NET_ADMIN"},
		{"no such thing", []error{unix.EOPNOTSUPP}, nil, 1, 1, "IPv4 flows"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := &fakeTable{
				flows:    map[string]Flow{"stale": flow("10.96.0.10:53", "10.244.0.1:53"), "good": flow("10.96.0.10:53", "10.244.0.2:53")},
				dumpErrs: tt.dumpErrs, removeErr: tt.removeErr,
			}
			n, err := cleanerOf(k).Clean(t.Context(), list(dns("10.244.0.2:53")), nil)
			if n != tt.deleted || k.dumps != tt.dumps {
				t.Errorf("%d deleted in %d dumps, want %d in %d", n, k.dumps, tt.deleted, tt.dumps)
			}
			if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if _, ok := k.flows["good"]; !ok {
				t.Error("the good flow is gone")
			}
			if !k.closed {
				t.Error("left open")
			}
		})
	}
}

func TestCleanWithoutUDPReadsNothing(t *testing.T) {
	e := dns("10.244.0.2:53")
	e.Key.Protocol = dataplane.TCP
	k := &fakeTable{}
	if _, err := cleanerOf(k).Clean(t.Context(), list(e), list(e)); err != nil || k.dumps != 0 {
		t.Errorf("%d dumps, error %v", k.dumps, err)
	}
}

func TestCleanStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	k := &fakeTable{}
	if _, err := cleanerOf(k).Clean(ctx, list(dns()), nil); !errors.Is(err, context.Canceled) || k.dumps != 0 {
		t.Errorf("%d dumps, error %v", k.dumps, err)
	}
}

// hashSize is a HashSizer that records the size.
type hashSize int

func (h *hashSize) EnsureHashSize(buckets int) error {
	*h = hashSize(buckets)
	return nil
}

func TestLimits(t *testing.T) {
	all := Limits{
		MaxPerCore: 32768, Min: 131072, TCPEstablished: 24 * 3600e9, TCPCloseWait: 3600e9,
		UDP: 1500e6, UDPStream: 180e9, TCPBeLiberal: true,
	}
	tests := []struct {
		name   string
		limits Limits
		cpus   int
		want   map[string]string
		size   int
	}{
		{"nothing", Limits{}, 2, map[string]string{}, 0},
		{"the minimum counts", all, 2, map[string]string{
			"max": "131072", "tcp_timeout_established": "86400", "tcp_timeout_close_wait": "3600",
			"udp_timeout": "2", "udp_timeout_stream": "180", "tcp_be_liberal": "1",
		}, 32768},
		{"many CPUs", Limits{MaxPerCore: 32768, Min: 131072}, 8, map[string]string{"max": "262144"}, 65536},
		{"the minimum alone does nothing", Limits{Min: 131072}, 8, map[string]string{}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set, size := map[string]string{}, new(hashSize)
			for _, p := range tt.limits.Parameters(tt.cpus) {
				set[strings.TrimPrefix(p.Name, "net.netfilter.nf_conntrack_")] = p.Value
			}
			if err := tt.limits.GrowTable(size, tt.cpus); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(tt.want, set); diff != "" || int(*size) != tt.size {
				t.Errorf("hash size %d, set (-want +got):\n%s", *size, diff)
			}
		})
	}
}

func TestHashTable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "hashsize")
	tests := []struct {
		is      string
		buckets int
		want    string
		failed  bool
	}{
		{"16384\n", 32768, "32768", false},
		{"65536\n", 32768, "65536\n", false},
		{"many\n", 1, "many\n", true},
	}
	for _, tt := range tests {
		if err := os.WriteFile(file, []byte(tt.is), 0o600); err != nil {
			t.Fatal(err)
		}
		err := HashTable{File: file}.EnsureHashSize(tt.buckets)
		got, readErr := os.ReadFile(file)
		if readErr != nil {
			t.Fatal(readErr)
		}
		// The old newline stays in its place.
		if !strings.HasPrefix(string(got), tt.want) || (err != nil) != tt.failed {
			t.Errorf("%q to %d: %q, error %v", tt.is, tt.buckets, got, err)
		}
	}
	if err := (HashTable{File: file + ".absent"}).EnsureHashSize(1); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: error %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 0, 0x34, 0, 1, 0x80, 0x14, 0, 1, 0x80, 8, 0, 1, 0, 10, 0, 0, 1, 8, 0, 2, 0, 10, 0, 0, 2})
	f.Fuzz(func(_ *testing.T, msg []byte) { _, _, _ = parse(msg) })
}
