package ipvs

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/netlab"
)

// sizes are the numbers of Services of the benchmarks, each with five endpoints.
var sizes = []int{1_000, 10_000}

func benchEntry(n int) *dataplane.ServicePort {
	e := &dataplane.ServicePort{
		Key: dataplane.ServicePortName{
			Service: dataplane.ServiceName{Namespace: "bench", Name: fmt.Sprintf("service-%d", n)},
			Port:    "http", Protocol: dataplane.TCP, Family: dataplane.IPv4,
		},
		ClusterIP: netip.AddrFrom4([4]byte{10, byte(96 + n>>16), byte(n >> 8), byte(n)}), Port: 80, HasEndpoints: true,
	}
	for i := range 5 {
		m := n*5 + i
		e.Endpoints = append(e.Endpoints, dataplane.Endpoint{
			Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(128 + m>>16), byte(m >> 8), byte(m)}), 8080), Cluster: true, Remote: true, Weight: 1,
		})
	}
	return e
}

// benchNode returns a backend on an empty node, with the Items of Base in place.
func benchNode(b *testing.B) *inside {
	b.Helper()
	cfg := testConfig()
	cfg.Families = []dataplane.Family{dataplane.IPv4}
	node := realRig(b, netlab.New(b, netlab.Topology{Pods: 1}).Node()).with(cfg, testSettings())
	node.converge(b)
	return node
}

// creation returns the plan for n Services on a node that has the Items of Base.
func creation(b *testing.B, node *inside, n int) backends.Plan {
	b.Helper()
	items := map[backends.ID]backends.Item{}
	for s := range n {
		rendered, err := node.Render(benchEntry(s))
		if err != nil {
			b.Fatal(err)
		}
		for _, i := range rendered {
			items[i.ID()] = i
		}
	}
	var p backends.Plan
	for id, i := range items {
		p.Changes = append(p.Changes, backends.Change{Op: backends.Create, ID: id, New: i})
	}
	slices.SortFunc(p.Changes, func(a, b backends.Change) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return p
}

// bare makes the objects of a plan with nothing but the kernel's own requests, as few as possible, in a valid order.
func bare(b *testing.B, node *inside, p backends.Plan) {
	b.Helper()
	k := node.kernel.(*Linux)
	members := map[string][]Member{}
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	for _, c := range p.Changes {
		switch i := c.New.(type) {
		case Address:
			must(k.route.AddrAdd(k.link, address(i.Addr)))
		case Server:
			must(k.ipvs.NewService(service(i)))
		case Member:
			members[i.Set] = append(members[i.Set], i)
		}
	}
	for _, c := range p.Changes {
		if i, ok := c.New.(Destination); ok {
			must(k.ipvs.NewDestination(service(Server{ServerKey: i.Server}), destination(i)))
		}
	}
	for _, all := range members {
		for some := range slices.Chunk(all, membersAtOnce) {
			must(k.sets.add(some))
		}
	}
}

// mustApply applies a plan without chains. It needs no thread in the namespace, because the sockets are open. Go's
// netlink sockets are far slower on a locked thread.
func (b *inside) mustApply(t testing.TB, p backends.Plan) {
	t.Helper()
	if r := b.Backend.Apply(t.Context(), p); r.Err != nil || len(r.Refused) > 0 {
		t.Fatalf("apply: %v, refused %v", r.Err, r.Refused)
	}
}

// BenchmarkProgram programs all Services on an empty node, makes the same objects with bare requests on another one,
// and reads it all back. On an emulated machine only the ratios mean something.
func BenchmarkProgram(b *testing.B) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var least, took, readBack time.Duration
			for b.Loop() {
				node, floor := benchNode(b), benchNode(b)
				plan := creation(b, node, n)
				least += timed(func() { bare(b, floor, plan) })
				took += timed(func() { node.mustApply(b, plan) })
				readBack += timed(func() {
					read := 0
					for _, err := range node.Backend.Observe(b.Context()) {
						if err != nil {
							b.Fatal(err)
						}
						read++
					}
					if read < len(plan.Changes) {
						b.Fatalf("read %d of %d items", read, len(plan.Changes))
					}
				})
			}
			per := func(d time.Duration) float64 { return d.Seconds() / float64(b.N) }
			b.ReportMetric(per(took), "apply-s")
			b.ReportMetric(per(least), "bare-s")
			b.ReportMetric(took.Seconds()/least.Seconds(), "apply/bare")
			b.ReportMetric(per(readBack), "readback-s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func timed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

// BenchmarkOneChange removes an endpoint of one of n Services and adds it again.
func BenchmarkOneChange(b *testing.B) {
	for _, n := range append([]int{10}, sizes...) {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			node := benchNode(b)
			node.mustApply(b, creation(b, node, n))
			rendered, err := node.Render(benchEntry(n / 2))
			if err != nil {
				b.Fatal(err)
			}
			i := slices.IndexFunc(rendered, func(i backends.Item) bool { _, ok := i.(Destination); return ok })
			gone := backends.Plan{Changes: []backends.Change{{Op: backends.Delete, ID: rendered[i].ID(), Old: rendered[i]}}}
			back := backends.Plan{Changes: []backends.Change{{Op: backends.Create, ID: rendered[i].ID(), New: rendered[i]}}}
			for b.Loop() {
				node.mustApply(b, gone)
				node.mustApply(b, back)
			}
		})
	}
}
