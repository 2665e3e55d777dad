package conntrack

import (
	"context"
	"maps"
	"net/netip"
	"slices"

	"weir/backends/dataplane"
)

// maxFiltered is how many endpoints the kernel is asked for one by one. For more, one pass over all TCP flows costs less.
const maxFiltered = 8

// Leave removes the TCP flows of endpoints that have left their Service: those that the endpoint never answered, those that were
// reset, and all of a Service that wants its connections reset. Each ServicePort has its frontend addresses as they were, and as
// Endpoints those that left. It must be called after the kernel has the new endpoints.
//
// It returns how many flows it removed. After an error some may be left, and calling it again is safe.
func (c *Cleaner) Leave(ctx context.Context, left []*dataplane.ServicePort) (deleted int, err error) {
	var sweeps []sweep
	for _, f := range families {
		d := departed{cleaner: c, fronts: map[netip.AddrPort]leavers{}, nodePorts: map[uint16]leavers{}, all: map[netip.AddrPort]struct{}{}}
		for _, p := range left {
			if p.Key.Family == f && p.Key.Protocol == dataplane.TCP {
				d.add(p)
			}
		}
		if len(d.all) > maxFiltered {
			sweeps = append(sweeps, sweep{family: f, protocol: dataplane.TCP, stale: d.stale})
			continue
		}
		for _, at := range slices.SortedFunc(maps.Keys(d.all), netip.AddrPort.Compare) {
			sweeps = append(sweeps, sweep{family: f, protocol: dataplane.TCP, from: at, stale: d.stale})
		}
	}
	return c.sweep(ctx, sweeps)
}

// leavers are the endpoints that have left a frontend. The value reports whether all of their flows go.
type leavers map[netip.AddrPort]bool

// departed are the endpoints that have left, by the addresses of their Services.
type departed struct {
	cleaner   *Cleaner
	fronts    map[netip.AddrPort]leavers
	nodePorts map[uint16]leavers
	all       map[netip.AddrPort]struct{}
}

func (d departed) add(p *dataplane.ServicePort) {
	addrs := slices.Concat([]netip.Addr{p.ClusterIP}, p.ExternalIPs, p.LoadBalancerIPs)
	for _, e := range p.Endpoints {
		reset := p.Reset && !slices.Contains(p.Serving, e.Addr)
		d.all[e.Addr] = struct{}{}
		for _, a := range addrs {
			note(d.fronts, netip.AddrPortFrom(a, p.Port), e.Addr, reset)
		}
		if p.NodePort != 0 {
			note(d.nodePorts, p.NodePort, e.Addr, reset)
		}
	}
}

func note[K comparable](m map[K]leavers, at K, e netip.AddrPort, reset bool) {
	if m[at] == nil {
		m[at] = leavers{}
	}
	m[at][e] = m[at][e] || reset
}

// stale reports whether a flow is one of a Service to an endpoint that left it, and goes.
func (d departed) stale(flow Flow) bool {
	from, ok := d.fronts[flow.Dst]
	if !ok && d.cleaner.isNode(flow.Dst.Addr()) {
		from = d.nodePorts[flow.Dst.Port()]
	}
	reset, left := from[flow.ReplySrc]
	return left && flow.Dst != flow.ReplySrc && (flow.Unanswered || flow.Closed || reset)
}
