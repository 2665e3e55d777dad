package ipvs

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// Render implements backends.Backend.
func (b *Backend) Render(e *dataplane.ServicePort) ([]backends.Item, error) {
	if err := b.check(e); err != nil {
		return nil, err
	}
	r := &rendering{b: b, e: e, f: e.Key.Family}
	if e.Answered {
		r.answered()
		return r.items, nil
	}
	r.front(e.ClusterIP, e.Port, clusterSet, e.InternalEndpoints(), e.InternalLocal)
	if e.External() {
		r.external()
	}
	for _, ep := range e.Endpoints {
		if !ep.Remote {
			a := ep.Addr.Addr()
			r.add(Member{Set: named(loopSet, r.f), Addr: a, Protocol: e.Key.Protocol, Port: ep.Addr.Port(), Other: netip.PrefixFrom(a, a.BitLen())})
		}
	}
	if e.HealthCheckNodePort != 0 {
		r.add(Member{Set: healthSet, Port: e.HealthCheckNodePort})
	}
	return r.items, nil
}

func (b *Backend) check(e *dataplane.ServicePort) error {
	switch {
	case !slices.Contains(b.cfg.Families, e.Key.Family):
		return fmt.Errorf("this node has no %s", e.Key.Family)
	case e.ProxyProtocol:
		return errors.New("IPVS cannot send a PROXY protocol header; use the userspace mode, or drop the annotation")
	}
	return cmp.Or(e.Check(), xtables.CheckDetector(b.cfg.LocalDetector))
}

// rendering is the work on one ServicePort.
type rendering struct {
	b     *Backend
	e     *dataplane.ServicePort
	f     dataplane.Family
	items []backends.Item
}

func (r *rendering) add(i backends.Item) { r.items = append(r.items, i) }

// answered renders a ServicePort that weir answers itself. The ClusterIP is an address of this node, and without a virtual server
// IPVS leaves its packets alone.
func (r *rendering) answered() {
	r.address(r.e.ClusterIP)
	r.items = append(r.items, xtables.Answered(r.e, answeredChain)...)
}

// address renders an address of a Service, unless the node has it.
func (r *rendering) address(a netip.Addr) {
	if !slices.Contains(r.b.cfg.NodeAddresses, a) {
		r.add(Address{Addr: a})
		r.add(Member{Set: named(addrSet, r.f), Addr: a})
	}
}

// front renders one address and port. The endpoints serve it, or it is refused.
func (r *rendering) front(a netip.Addr, port uint16, set string, endpoints []dataplane.Endpoint, local bool) {
	r.address(a)
	key := ServerKey{Family: r.f, Protocol: r.e.Key.Protocol, Addr: netip.AddrPortFrom(a, port)}
	switch {
	case served(endpoints):
		r.server(key, endpoints)
	case r.e.HasEndpoints && local:
		set = dropSet
	default:
		set = rejectSet
	}
	r.add(r.member(set, key.Addr))
}

func (r *rendering) member(set string, at netip.AddrPort) Member {
	return Member{Set: named(set, r.f), Addr: at.Addr(), Protocol: r.e.Key.Protocol, Port: at.Port()}
}

func (r *rendering) server(key ServerKey, endpoints []dataplane.Endpoint) {
	s := Server{ServerKey: key, Scheduler: r.b.scheduler(r.e)}
	s.Fallback = s.Scheduler == "sh" || s.Scheduler == "mh"
	if r.e.Affinity > 0 {
		s.Affinity = uint32(max(1, r.e.Affinity/time.Second))
	}
	r.add(s)
	for _, ep := range endpoints {
		if ep.Weight == 0 && s.ignoresZeroWeight() {
			continue
		}
		r.add(Destination{Server: key, Addr: ep.Addr, Weight: ep.Weight})
	}
}

// ignoresZeroWeight reports whether the scheduler sends a share of connections also to a destination with weight 0,
// where they are refused. Such a virtual server cannot have a destination with weight 0, so none of its destinations
// can leave gracefully.
func (s Server) ignoresZeroWeight() bool { return s.Scheduler == "dh" }

// scheduler returns the scheduler that the Service asks for, or the node's. If it ignores weights and the Service has
// unequal ones, scheduler returns the most similar one that knows weights.
func (b *Backend) scheduler(e *dataplane.ServicePort) string {
	if e.Scheduler != "" {
		return e.Scheduler
	}
	weighted := map[string]string{"rr": "wrr", "lc": "wlc"}[b.set.Scheduler]
	if weighted == "" {
		return b.set.Scheduler
	}
	usual := uint16(0)
	for _, ep := range e.Endpoints {
		switch {
		case ep.Weight == 0 || ep.Weight == usual:
		case usual != 0:
			return weighted
		default:
			usual = ep.Weight
		}
	}
	return b.set.Scheduler
}

// external renders all addresses except the ClusterIP.
func (r *rendering) external() {
	e := r.e
	set := externalSet
	if e.ExternalLocal {
		set = localSet
	}
	endpoints := e.ExternalEndpoints()
	var fronts []netip.AddrPort
	for _, a := range slices.Concat(e.ExternalIPs, e.LoadBalancerIPs) {
		fronts = append(fronts, netip.AddrPortFrom(a, e.Port))
	}
	for _, a := range r.b.nodePortAddresses(r.f) {
		if e.ServesNodePortAt(a) {
			fronts = append(fronts, netip.AddrPortFrom(a, e.NodePort))
		}
	}
	for _, at := range fronts {
		r.front(at.Addr(), at.Port(), set, endpoints, e.ExternalLocal)
	}
	if all := e.ClusterEndpoints(); e.ExternalLocal && served(all) {
		mark := r.b.serverMark(e.Key)
		r.server(ServerKey{Family: r.f, Mark: mark}, all)
		for _, at := range fronts {
			m := r.member(insideSet, at)
			m.Mark = mark
			r.add(m)
		}
	}
	r.sourceRanges()
}

// serverMark returns the packet mark of a Service port's traffic from inside.
func (b *Backend) serverMark(k dataplane.ServicePortName) uint32 {
	sum := sha256.Sum256([]byte(k.String()))
	mark := binary.BigEndian.Uint32(sum[:])&^(b.cfg.MasqueradeMark|b.datagrams) | b.inside
	if k.Protocol == dataplane.UDP {
		mark |= b.datagrams
	}
	return mark
}

// sourceRanges renders which sources may use the load balancer's addresses.
func (r *rendering) sourceRanges() {
	e := r.e
	everybody := slices.ContainsFunc(e.SourceRanges, func(p netip.Prefix) bool { return p.Bits() == 0 })
	if len(e.SourceRanges) == 0 || everybody {
		return
	}
	nodeAllowed := slices.ContainsFunc(r.b.cfg.NodeAddresses, func(a netip.Addr) bool {
		return slices.ContainsFunc(e.SourceRanges, func(p netip.Prefix) bool { return p.Contains(a) })
	})
	for _, a := range e.LoadBalancerIPs {
		m := r.member(guardSet, netip.AddrPortFrom(a, e.Port))
		r.add(m)
		m.Set = named(allowSet, r.f)
		ranges := e.SourceRanges
		if nodeAllowed {
			// The address is on this node, so it is the source of the node's own traffic to it.
			ranges = append(slices.Clone(ranges), netip.PrefixFrom(a, a.BitLen()))
		}
		for _, p := range ranges {
			m.Other = p.Masked()
			r.add(m)
		}
	}
}

// served reports whether any endpoint takes new connections.
func served(endpoints []dataplane.Endpoint) bool {
	return slices.ContainsFunc(endpoints, func(ep dataplane.Endpoint) bool { return ep.Weight > 0 })
}
