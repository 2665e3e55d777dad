package nftables

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

var both = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}

func testConfig() dataplane.Config {
	return dataplane.Config{
		Families:       both,
		MasqueradeMark: 1 << 14,
		LocalDetector:  dataplane.LocalDetector{PodCIDRs: []netip.Prefix{netlab.PodCIDR4, netlab.PodCIDR6}},
		NodeAddresses:  []netip.Addr{netlab.NodeIPv4, netlab.NodeIPv6, netlab.SecondNodeIPv4, netlab.SecondNodeIPv6},
	}
}

// rig is a backend on the node of a lab.
type rig struct {
	t    testing.TB
	lab  *netlab.Lab
	node *netlab.Host
	b    *Backend
}

func newRig(t testing.TB, cfg dataplane.Config, topo netlab.Topology) *rig {
	lab := netlab.New(t, topo)
	r := &rig{t: t, lab: lab, node: lab.Node()}
	r.use(cfg)
	return r
}

// use replaces the backend with one of another configuration.
func (r *rig) use(cfg dataplane.Config) {
	r.t.Helper()
	r.b = New(cfg)
	b := r.b
	r.t.Cleanup(func() { _ = b.Close() })
	r.in(func() error { _, err := b.open(); return err })
	r.in(func() error { _, err := b.Moved(context.Background()); return err })
}

func (r *rig) in(f func() error) {
	r.t.Helper()
	if err := r.node.Do(f); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) exec(name string, args ...string) string {
	r.t.Helper()
	out, err := r.node.Exec(context.Background(), name, args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) nft(args ...string) string { r.t.Helper(); return r.exec("nft", args...) }

func needNFT(t testing.TB) {
	t.Helper()
	netlab.RequireProgram(t, "nft")
}

func (r *rig) desired(entries ...*dataplane.ServicePort) map[backends.ID]backends.Item {
	r.t.Helper()
	want := map[backends.ID]backends.Item{}
	for _, i := range r.b.Base() {
		want[i.ID()] = i
	}
	for _, e := range entries {
		items, err := r.b.Render(e)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, i := range items {
			if was, ok := want[i.ID()]; ok && was.String() != i.String() {
				r.t.Fatalf("%s is wanted twice:\n%s\n%s", i.ID(), was, i)
			}
			want[i.ID()] = i
		}
	}
	return want
}

func (r *rig) observed() map[backends.ID]backends.Item {
	r.t.Helper()
	return backendtest.Observe(r.t, r.b)
}

// reread returns what the kernel holds, given that it held h. It reads only what was touched since.
func (r *rig) reread(h backendtest.LastObserved) (map[backends.ID]backends.Item, bool) {
	r.t.Helper()
	items, ok, err := r.b.Reread(context.Background(), h)
	if err != nil {
		r.t.Fatal(err)
	}
	return h.After(items), ok
}

func (r *rig) apply(p backends.Plan) {
	r.t.Helper()
	if res := r.b.Apply(context.Background(), p); res.Err != nil || len(res.Refused) > 0 {
		r.t.Fatalf("apply: %v, refused: %v\n%s", res.Err, res.Refused, p)
	}
}

// sync makes the kernel match the entries after a full read, and checks that a second plan is empty.
func (r *rig) sync(entries ...*dataplane.ServicePort) backends.Plan {
	r.t.Helper()
	want := r.desired(entries...)
	p := backendtest.Diff(r.observed(), want)
	r.apply(p)
	r.settled(want)
	return p
}

func (r *rig) settled(want map[backends.ID]backends.Item) {
	r.t.Helper()
	if again := backendtest.Diff(r.observed(), want); !again.Empty() {
		r.t.Fatalf("the second plan is not empty:\n%s", again)
	}
}

// moved reports whether another process may have written since the last read.
func (r *rig) moved() bool {
	r.t.Helper()
	moved, err := r.b.Moved(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return moved
}

// endpoint returns a local endpoint that both policies may use.
func endpoint(addr netip.Addr, port uint16) dataplane.Endpoint {
	return dataplane.Endpoint{Addr: netip.AddrPortFrom(addr, port), Cluster: true, Local: true, Weight: 1}
}

func remote(addr netip.Addr, port uint16) dataplane.Endpoint {
	return dataplane.Endpoint{Addr: netip.AddrPortFrom(addr, port), Cluster: true, Remote: true, Weight: 1}
}

// entry returns a Service port with a ClusterIP that ends in n.
func entry(f dataplane.Family, n int, proto dataplane.Protocol, eps ...dataplane.Endpoint) *dataplane.ServicePort {
	ip := netip.AddrFrom4([4]byte{10, 96, byte(n >> 8), byte(n)})
	if f == dataplane.IPv6 {
		a := netip.MustParseAddr("fd00:10:96::").As16()
		a[14], a[15] = byte(n>>8), byte(n)
		ip = netip.AddrFrom16(a)
	}
	return &dataplane.ServicePort{
		Key:       dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: "s" + ip.String()}, Port: "http", Protocol: proto, Family: f},
		ClusterIP: ip, Port: 80, Endpoints: eps, HasEndpoints: len(eps) > 0,
	}
}

const patience = 5 * time.Second
