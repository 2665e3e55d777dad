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

	"weir/backends"
)

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func endpoints(list ...string) (out []backends.Endpoint) {
	for _, s := range list {
		out = append(out, backends.Endpoint{Addr: netip.MustParseAddrPort(s), Cluster: true})
	}
	return out
}

// dns is a Service with every kind of address.
func dns(eps ...string) *backends.Entry {
	return &backends.Entry{
		Key:             backends.PortKey{Protocol: backends.UDP, Family: backends.IPv4},
		ClusterIP:       netip.MustParseAddr("10.96.0.10"),
		Port:            53,
		NodePort:        30053,
		ExternalIPs:     addrs("198.51.100.1"),
		LoadBalancerIPs: addrs("198.51.100.2"),
		Endpoints:       endpoints(eps...),
	}
}

func flow(dst, replySrc string) Flow {
	return Flow{Protocol: backends.UDP, Dst: netip.MustParseAddrPort(dst), ReplySrc: netip.MustParseAddrPort(replySrc)}
}

func TestStale(t *testing.T) {
	const a, b = "10.244.0.1:5353", "10.244.0.2:5353"
	config := backends.Config{NodeAddresses: addrs("192.0.2.1")}
	only := backends.Config{NodeAddresses: addrs("192.0.2.1", "192.0.2.2"), NodePortAddresses: addrs("192.0.2.2")}
	with := func(f func(*backends.Entry), eps ...string) *backends.Entry {
		e := dns(eps...)
		f(e)
		return e
	}
	tests := []struct {
		name   string
		config backends.Config
		entry  *backends.Entry
		gone   *backends.Entry
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
		{"node ports served nowhere", backends.Config{NodeAddresses: addrs("192.0.2.1"), NodePortAddresses: []netip.Addr{}}, dns(b), nil, flow("192.0.2.1:30053", a), false},
		{"node's addresses unknown", backends.Config{}, dns(b), nil, flow("192.0.2.9:30053", a), true},
		{"another port of the ClusterIP", config, dns(b), nil, flow("10.96.0.10:54", a), false},
		{"another Service", config, dns(b), nil, flow("10.96.0.11:53", a), false},
		{"TCP flow", config, dns(b), nil, Flow{Protocol: backends.TCP, Dst: netip.MustParseAddrPort("10.96.0.10:53"), ReplySrc: netip.MustParseAddrPort(a)}, false},
		{"no endpoint is left", config, dns(), nil, flow("10.96.0.10:53", a), true},
		{"no endpoint yet", config, dns(), nil, flow("10.96.0.10:53", "10.96.0.10:53"), false},
		{"Service gone", config, nil, dns(a), flow("10.96.0.10:53", a), true},
		{"Service gone, flow of its own", config, nil, dns(a), flow("10.96.0.10:53", "10.96.0.10:53"), false},
		{"address passed to another Service", config, dns(a), dns(b), flow("10.96.0.10:53", a), false},
		{"terminating and serving", config, with(func(e *backends.Entry) {
			e.Serving = []netip.AddrPort{netip.MustParseAddrPort(a)}
		}, b), nil, flow("10.96.0.10:53", a), false},
		{"endpoint that the policy no longer chooses", config, with(func(e *backends.Entry) {
			e.InternalLocal, e.ExternalLocal = true, true
		}, a), nil, flow("192.0.2.1:30053", a), false},
		{"TCP Service", config, with(func(e *backends.Entry) { e.Key.Protocol = backends.TCP }, b), nil, flow("10.96.0.10:53", a), false},
		{"other family", config, with(func(e *backends.Entry) { e.Key.Family = backends.IPv6 }, b), nil, flow("10.96.0.10:53", a), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := New(tt.config).wanted(backends.IPv4, list(tt.entry), list(tt.gone))
			if got := w.stale(tt.flow); got != tt.want {
				t.Errorf("stale: %v", got)
			}
		})
	}
}

// TestStaleAfterIPVS: what IPVS gave to an endpoint is nobody's once another mode is in force.
func TestStaleAfterIPVS(t *testing.T) {
	const a = "10.244.0.1:5353"
	f := flow("10.96.0.10:53", a)
	f.ByIPVS = true
	entries := []*backends.Entry{dns(a)}
	if !New(backends.Config{}).wanted(backends.IPv4, entries, nil).stale(f) {
		t.Error("not stale to another mode")
	}
	if ForIPVS(backends.Config{}).wanted(backends.IPv4, entries, nil).stale(f) {
		t.Error("stale to ipvs mode")
	}
}

func list(e *backends.Entry) []*backends.Entry {
	if e == nil {
		return nil
	}
	return []*backends.Entry{e}
}

// fakeTable holds IPv4 flows and fails as it is told.
type fakeTable struct {
	flows     map[string]Flow // by handle
	dumpErrs  []error         // one for each dump, then none
	removeErr error
	dumps     int
	closed    bool
}

func (k *fakeTable) dump(f backends.Family, _ backends.Protocol, yield func(Flow, []byte)) error {
	k.dumps++
	if f == backends.IPv4 {
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

func (k *fakeTable) remove(_ backends.Family, handle []byte) (bool, error) {
	if k.removeErr != nil {
		return false, k.removeErr
	}
	_, ok := k.flows[string(handle)]
	delete(k.flows, string(handle))
	return ok, nil
}

func (k *fakeTable) close() { k.closed = true }

func cleanerOf(k *fakeTable) *Cleaner {
	c := New(backends.Config{})
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
	e.Key.Protocol = backends.TCP
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

// sysctls records what is set and refuses what it is told to.
type sysctls struct {
	set    map[string]string
	refuse string
	size   int
}

func (s *sysctls) Ensure(name, value string) (bool, error) {
	if s.refuse != "" && strings.HasSuffix(name, s.refuse) {
		return false, unix.EROFS
	}
	s.set[strings.TrimPrefix(name, "net.netfilter.nf_conntrack_")] = value
	return true, nil
}

func (s *sysctls) EnsureHashSize(buckets int) error {
	s.size = buckets
	return nil
}

func TestApplyLimits(t *testing.T) {
	all := Limits{
		MaxPerCore: 32768, Min: 131072, TCPEstablished: 24 * 3600e9, TCPCloseWait: 3600e9,
		UDP: 1500e6, UDPStream: 180e9, TCPBeLiberal: true,
	}
	tests := []struct {
		name   string
		limits Limits
		cpus   int
		refuse string
		want   map[string]string
		size   int
	}{
		{"nothing", Limits{}, 2, "", map[string]string{}, 0},
		{"the minimum counts", all, 2, "", map[string]string{
			"max": "131072", "tcp_timeout_established": "86400", "tcp_timeout_close_wait": "3600",
			"udp_timeout": "2", "udp_timeout_stream": "180", "tcp_be_liberal": "1",
		}, 32768},
		{"many CPUs", Limits{MaxPerCore: 32768, Min: 131072}, 8, "", map[string]string{"max": "262144"}, 65536},
		{"the minimum alone does nothing", Limits{Min: 131072}, 8, "", map[string]string{}, 0},
		{"one is refused", all, 8, "nf_conntrack_max", map[string]string{
			"tcp_timeout_established": "86400", "tcp_timeout_close_wait": "3600",
			"udp_timeout": "2", "udp_timeout_stream": "180", "tcp_be_liberal": "1",
		}, 65536},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &sysctls{set: map[string]string{}, refuse: tt.refuse}
			err := ApplyLimits(s, s, tt.cpus, tt.limits)
			if (err != nil) != (tt.refuse != "") {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(tt.want, s.set); diff != "" || s.size != tt.size {
				t.Errorf("hash size %d, set (-want +got):\n%s", s.size, diff)
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
		// The old newline stays where it was.
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
