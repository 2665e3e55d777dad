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
	"weir/backends/dataplane"
	"weir/backends/netlab"
	"weir/backends/xtables"
)

func TestMain(m *testing.M) { netlab.Main(m) }

var both = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}

// realKernel returns the iptables of a new, empty network namespace.
func realKernel(t testing.TB, mode xtables.Mode) xtables.Kernel {
	t.Helper()
	netlab.InNamespace(t)
	k, err := Probe(t.Context(), hclog.NewNullLogger(), both, mode)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// eachKernel runs a test on the real kernel in both modes, with and without xt_bpf, and on the fake.
func eachKernel(t *testing.T, test func(t *testing.T, k xtables.Kernel)) {
	for _, mode := range []xtables.Mode{xtables.NFT, xtables.Legacy} {
		t.Run(string(mode), func(t *testing.T) { test(t, realKernel(t, mode)) })
		t.Run(string(mode)+"-nobpf", func(t *testing.T) { test(t, withoutBPF{realKernel(t, mode)}) })
	}
	t.Run("fake", func(t *testing.T) { test(t, xtables.NewFake()) })
}

type withoutBPF struct{ xtables.Kernel }

func (k withoutBPF) Features() xtables.Features { return xtables.Features{RandomFully: true} }

func testConfig() dataplane.Config {
	return dataplane.Config{
		Families: both, MasqueradeMark: 0x4000,
		LocalDetector: dataplane.LocalDetector{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")}},
		NodeAddresses: []netip.Addr{netip.MustParseAddr("192.168.77.1")},
	}
}

// configs returns a Config for each way in which the configuration changes the rules.
func configs() map[string]dataplane.Config {
	all := map[string]func(*dataplane.Config){
		"default": func(*dataplane.Config) {},
		"all": func(c *dataplane.Config) {
			c.MasqueradeAll = true
			c.TCPBeLiberal = true
			c.LocalhostNodePorts, c.LocalhostNodePortsIPv6 = true, true
		},
		"bridge":      func(c *dataplane.Config) { c.LocalDetector = dataplane.LocalDetector{Interface: "br0"} },
		"prefix":      func(c *dataplane.Config) { c.LocalDetector = dataplane.LocalDetector{Interface: "veth", Prefix: true} },
		"no detector": func(c *dataplane.Config) { c.LocalDetector = dataplane.LocalDetector{} },
		"addresses": func(c *dataplane.Config) {
			c.NodePortAddresses = addrs("127.0.0.1", "192.168.77.1", "::1", "fd00:77::1")
			c.LocalhostNodePorts = true
		},
		"no addresses": func(c *dataplane.Config) { c.NodePortAddresses = []netip.Addr{}; c.MasqueradeMark = 1 << 31 },
	}
	out := make(map[string]dataplane.Config)
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

// service makes a ServicePort with n endpoints, the first of which is local.
func service(name string, f dataplane.Family, proto dataplane.Protocol, index, n int) *dataplane.ServicePort {
	e := &dataplane.ServicePort{
		Key:  dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: name}, Port: "p", Protocol: proto, Family: f},
		Port: 80, HasEndpoints: n > 0,
	}
	e.ClusterIP = netip.AddrFrom4([4]byte{10, 96, byte(index >> 8), byte(index)})
	if f == dataplane.IPv6 {
		e.ClusterIP = netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%x", index+1))
	}
	for i := range n {
		a := netip.AddrFrom4([4]byte{10, 244, byte(1 + (index*n+i)>>8), byte(index*n + i)})
		if f == dataplane.IPv6 {
			a = netip.MustParseAddr(fmt.Sprintf("fd00:244:1::%x", index*n+i+1))
		}
		e.Endpoints = append(e.Endpoints, dataplane.Endpoint{Addr: netip.AddrPortFrom(a, 8080), Cluster: true, Local: i == 0, Remote: i > 1, Weight: 1})
	}
	return e
}

// entries returns all kinds of Services.
func entries() []*dataplane.ServicePort {
	var out []*dataplane.ServicePort
	index := 0
	for _, f := range both {
		for _, proto := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
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

func external(e *dataplane.ServicePort, index int) {
	e.NodePort = uint16(30000 + index)
	if e.Key.Protocol == dataplane.TCP {
		e.HealthCheckNodePort = uint16(10000 + index)
	}
	e.ExternalIPs = []netip.Addr{netip.AddrFrom4([4]byte{203, 0, byte(index >> 8), byte(index)})}
	e.LoadBalancerIPs = []netip.Addr{netip.AddrFrom4([4]byte{198, 51, byte(index >> 8), byte(index)})}
	if e.Key.Family == dataplane.IPv6 {
		e.ExternalIPs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8:1234:5678:9abc:def0:%x:1", index+1))}
		e.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("::1:%x", index+1))}
	}
}

func ranges(f dataplane.Family) []netip.Prefix {
	if f == dataplane.IPv6 {
		return []netip.Prefix{netip.MustParsePrefix("::/0"), netip.MustParsePrefix("2001:db8::/32")}
	}
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("192.168.0.0/16")}
}

// desired returns the Items that should exist for the ServicePorts.
func desired(t testing.TB, b *Backend, entries []*dataplane.ServicePort) map[backends.ID]backends.Item {
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
	return backendtest.Observe(t, b)
}

// converge applies the difference, and demands that no difference remains.
func converge(t testing.TB, b *Backend, want map[backends.ID]backends.Item) {
	t.Helper()
	convergeBy(t, b, backendtest.Diff(observed(t, b), want), want)
}

// convergeBy applies a plan, and demands that the wanted Items exist afterwards.
func convergeBy(t testing.TB, b *Backend, p backends.Plan, want map[backends.ID]backends.Item) {
	t.Helper()
	if r := b.Apply(context.Background(), p); r.Err != nil || len(r.Refused) > 0 {
		t.Fatalf("Apply: %+v", r)
	}
	if d := cmp.Diff(texts(want), texts(observed(t, b))); d != "" {
		t.Fatalf("what was applied (-) is not what is read back (+):\n%s", d)
	}
}

// setOwners sets the owners of each Change of the plan, and returns the owners of all Items.
func setOwners(t testing.TB, b *Backend, entries []*dataplane.ServicePort, p backends.Plan) map[backends.ID][]dataplane.ServicePortName {
	t.Helper()
	owners := map[backends.ID][]dataplane.ServicePortName{}
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
		slices.SortFunc(keys, dataplane.ServicePortName.Compare)
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

// TestRoundTrip demands that every kind of rule is read back byte for byte as it was rendered, and that applying every
// configuration in turn leaves nothing behind.
func TestRoundTrip(t *testing.T) {
	eachKernel(t, func(t *testing.T, k xtables.Kernel) {
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
