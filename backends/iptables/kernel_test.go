package iptables

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	hclog "github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

var both = []backends.Family{backends.IPv4, backends.IPv6}

// realKernel returns the iptables of an empty network namespace that is the test's own.
func realKernel(t testing.TB, mode Mode) Kernel {
	t.Helper()
	netlab.InNamespace(t)
	k, err := Probe(t.Context(), hclog.NewNullLogger(), both, mode)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// eachKernel runs a test on the real kernel in both modes, with and without xt_bpf, and on the fake.
func eachKernel(t *testing.T, test func(t *testing.T, k Kernel)) {
	for _, mode := range []Mode{NFT, Legacy} {
		t.Run(string(mode), func(t *testing.T) { test(t, realKernel(t, mode)) })
		t.Run(string(mode)+"-nobpf", func(t *testing.T) { test(t, withoutBPF{realKernel(t, mode)}) })
	}
	t.Run("fake", func(t *testing.T) { test(t, NewFake()) })
}

type withoutBPF struct{ Kernel }

func (k withoutBPF) Features() Features { return Features{RandomFully: true} }

func testConfig() backends.Config {
	return backends.Config{
		Families: both, MasqueradeMark: 0x4000,
		LocalDetector: backends.LocalDetector{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")}},
		NodeAddresses: []netip.Addr{netip.MustParseAddr("192.168.77.1")},
	}
}

// configs are the shapes that the configuration gives to the rules.
func configs() map[string]backends.Config {
	all := map[string]func(*backends.Config){
		"default":     func(*backends.Config) {},
		"all":         func(c *backends.Config) { c.MasqueradeAll = true; c.TCPBeLiberal = true; c.LocalhostNodePorts = true },
		"bridge":      func(c *backends.Config) { c.LocalDetector = backends.LocalDetector{Interface: "br0"} },
		"prefix":      func(c *backends.Config) { c.LocalDetector = backends.LocalDetector{Interface: "veth", Prefix: true} },
		"no detector": func(c *backends.Config) { c.LocalDetector = backends.LocalDetector{} },
		"addresses": func(c *backends.Config) {
			c.NodePortAddresses = addrs("127.0.0.1", "192.168.77.1", "::1", "fd00:77::1")
			c.LocalhostNodePorts = true
		},
		"no addresses": func(c *backends.Config) { c.NodePortAddresses = []netip.Addr{}; c.MasqueradeMark = 1 << 31 },
	}
	out := make(map[string]backends.Config)
	for name, change := range all {
		c := testConfig()
		change(&c)
		out[name] = c
	}
	return out
}

func addrs(texts ...string) []netip.Addr {
	out := make([]netip.Addr, len(texts))
	for i, t := range texts {
		out[i] = netip.MustParseAddr(t)
	}
	return out
}

// service makes an Entry with n endpoints, the first of which is local.
func service(name string, f backends.Family, proto backends.Protocol, index, n int) *backends.Entry {
	e := &backends.Entry{
		Key:  backends.PortKey{Service: backends.ServiceName{Namespace: "default", Name: name}, Port: "p", Protocol: proto, Family: f},
		Port: 80, HasEndpoints: n > 0,
	}
	e.ClusterIP = netip.AddrFrom4([4]byte{10, 96, byte(index >> 8), byte(index)})
	if f == backends.IPv6 {
		e.ClusterIP = netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%x", index+1))
	}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 244, byte(1 + (index*n+i)>>8), byte(index*n + i)})
		if f == backends.IPv6 {
			a = netip.MustParseAddr(fmt.Sprintf("fd00:244:1::%x", index*n+i+1))
		}
		e.Endpoints = append(e.Endpoints, backends.Endpoint{Addr: netip.AddrPortFrom(a, 8080), Cluster: true, Local: i == 0, Remote: i > 1, Weight: 1})
	}
	return e
}

// entries are all shapes of Services.
func entries() []*backends.Entry {
	var out []*backends.Entry
	index := 0
	for _, f := range both {
		for _, proto := range []backends.Protocol{backends.TCP, backends.UDP, backends.SCTP} {
			for shape := range 64 {
				for _, n := range []int{0, 1, 3} {
					index++
					e := service(fmt.Sprint("s", index), f, proto, index, n)
					e.InternalLocal, e.ExternalLocal = shape&1 != 0, shape&2 != 0
					if shape&4 != 0 {
						e.Affinity = 3 * time.Hour
					}
					if shape&8 != 0 {
						external(e, index)
					}
					if shape&16 != 0 {
						e.SourceRanges = ranges(f)
					}
					if shape&32 != 0 {
						for i := range e.Endpoints {
							e.Endpoints[i].Local = false
							e.Endpoints[i].Weight = uint16(i)
						}
					}
					out = append(out, e)
				}
			}
		}
	}
	return out
}

func external(e *backends.Entry, index int) {
	e.NodePort = uint16(30000 + index)
	if e.Key.Protocol == backends.TCP {
		e.HealthCheckNodePort = uint16(10000 + index)
	}
	e.ExternalIPs = []netip.Addr{netip.AddrFrom4([4]byte{203, 0, byte(index >> 8), byte(index)})}
	e.LoadBalancerIPs = []netip.Addr{netip.AddrFrom4([4]byte{198, 51, byte(index >> 8), byte(index)})}
	if e.Key.Family == backends.IPv6 {
		e.ExternalIPs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8:1234:5678:9abc:def0:%x:1", index+1))}
		e.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("::1:%x", index+1))}
	}
}

func ranges(f backends.Family) []netip.Prefix {
	if f == backends.IPv6 {
		return []netip.Prefix{netip.MustParsePrefix("::/0"), netip.MustParsePrefix("2001:db8::/32")}
	}
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.168.0.0/16")}
}

// desired is what should be there for the Entries.
func desired(t testing.TB, b *Backend, entries []*backends.Entry) map[backends.ID]backends.Item {
	t.Helper()
	items := make(map[backends.ID]backends.Item)
	add := func(more []backends.Item) {
		for _, i := range more {
			items[i.ID()] = i
		}
	}
	add(b.Base())
	for _, e := range entries {
		more, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		add(more)
	}
	return items
}

func observed(t testing.TB, b *Backend) map[backends.ID]backends.Item {
	t.Helper()
	items := make(map[backends.ID]backends.Item)
	for i, err := range b.Observe(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if items[i.ID()] != nil {
			t.Fatalf("%q was observed twice", i.ID())
		}
		items[i.ID()] = i
	}
	return items
}

// converge applies what differs, and demands that nothing differs then.
func converge(t testing.TB, b *Backend, want map[backends.ID]backends.Item) {
	t.Helper()
	convergeBy(t, b, backendtest.Diff(observed(t, b), want), want)
}

// convergeBy applies a plan, and demands that what is wanted is there then.
func convergeBy(t testing.TB, b *Backend, p backends.Plan, want map[backends.ID]backends.Item) {
	t.Helper()
	if r := b.Apply(context.Background(), p); r.Err != nil || len(r.Refused) > 0 {
		t.Fatalf("Apply: %+v", r)
	}
	if d := cmp.Diff(texts(want), texts(observed(t, b))); d != "" {
		t.Fatalf("what was applied (-) is not what is read back (+):\n%s", d)
	}
}

// setOwners has each Change of the plan say who wants the Item, and returns that for all Items.
func setOwners(t testing.TB, b *Backend, entries []*backends.Entry, p backends.Plan) map[backends.ID][]backends.PortKey {
	t.Helper()
	owners := map[backends.ID][]backends.PortKey{}
	for _, e := range entries {
		items, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			owners[i.ID()] = append(owners[i.ID()], e.Key)
		}
	}
	for id, keys := range owners {
		slices.SortFunc(keys, backends.PortKey.Compare)
		owners[id] = slices.Compact(keys)
	}
	for i := range p.Changes {
		p.Changes[i].Owners = owners[p.Changes[i].ID]
	}
	return owners
}

func texts(items map[backends.ID]backends.Item) map[string]string {
	out := make(map[string]string, len(items))
	for id, i := range items {
		out[string(id)] = i.String()
	}
	return out
}

// TestRoundTrip demands that every shape of rule is read back byte for byte as it was rendered, and that going through
// every configuration leaves nothing behind.
func TestRoundTrip(t *testing.T) {
	eachKernel(t, func(t *testing.T, k Kernel) {
		all := configs()
		for _, name := range slices.Sorted(maps.Keys(all)) {
			b := New(all[name], k)
			some := entries()
			if name != "default" {
				some = some[:len(some)/6]
			}
			want := desired(t, b, some)
			p := backendtest.Diff(observed(t, b), want)
			setOwners(t, b, some, p)
			convergeBy(t, b, p, want)
		}
		b := New(testConfig(), k)
		converge(t, b, nil)
	})
}
