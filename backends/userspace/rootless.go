package userspace

import (
	"fmt"
	"net/netip"

	"weir/backends"
	"weir/backends/dataplane"
)

// renderRootless returns a listener for every address of the ServicePort on which this process can listen.
func (b *Backend) renderRootless(e *dataplane.ServicePort) []backends.Item {
	var items []backends.Item
	seen := map[netip.AddrPort]bool{}
	add := func(addr netip.Addr, port uint16, internal bool, sources []netip.Prefix) {
		l := b.listen(e, netip.AddrPortFrom(addr, port), e.ExternalEndpoints())
		switch {
		case internal:
			l.endpoints = e.InternalEndpoints()
		case e.ExternalLocal:
			l.localClients, l.localClientEndpoints = b.localClients(e.Key.Family), e.ClusterEndpoints()
		}
		// Without endpoints there is no listener, so that the kernel refuses connections at once.
		if seen[l.bind] || !usable(l.endpoints) && !usable(l.localClientEndpoints) {
			return
		}
		seen[l.bind] = true
		serving := e.Serving
		if internal && e.InternalLocal || !internal && e.ExternalLocal {
			serving = e.ServingLocal
		}
		l.sources, l.draining = sources, draining(serving, l)
		items = append(items, l)
	}
	serve := func(what string, addr netip.Addr, internal bool, sources []netip.Prefix) {
		if !b.local(addr) {
			b.Warn(e.Key, fmt.Sprintf("%s %s is not an address of this node, and without kernel rules only those can be served; add it to an interface, or use --bind-address", what, addr))
			return
		}
		add(addr, e.Port, internal, sources)
	}
	if b.BindAddress.IsValid() {
		if dataplane.FamilyOf(b.BindAddress) != e.Key.Family {
			b.Warn(e.Key, fmt.Sprintf("the bind address %s is not of family %s", b.BindAddress, e.Key.Family))
			return nil
		}
		for _, a := range b.nodePortAddresses(e.Key.Family) {
			add(a, e.Port, true, nil)
		}
	} else {
		serve("ClusterIP", e.ClusterIP, true, nil)
		for _, a := range e.ExternalIPs {
			serve("external IP", a, false, nil)
		}
		for _, a := range e.LoadBalancerIPs {
			serve("load balancer IP", a, false, e.SourceRanges)
		}
	}
	for _, a := range b.nodePortAddresses(e.Key.Family) {
		if e.ServesNodePortAt(a) {
			add(a, e.NodePort, false, nil)
		}
	}
	return items
}

// localClients returns the addresses of this node and of its pods. Pods that are known only by their interface are not
// recognised, because a process does not see the interface of a packet.
func (b *Backend) localClients(f dataplane.Family) []netip.Prefix {
	near := []netip.Prefix{dataplane.Loopback(f)}
	for _, a := range b.cfg.NodeAddresses {
		if dataplane.FamilyOf(a) == f {
			near = append(near, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, p := range b.cfg.LocalDetector.PodCIDRs {
		if dataplane.FamilyOf(p.Addr()) == f {
			near = append(near, p)
		}
	}
	return near
}

func (b *Backend) local(addr netip.Addr) bool {
	if addr.IsLoopback() {
		return true
	}
	for _, a := range b.cfg.NodeAddresses {
		if a == addr {
			return true
		}
	}
	return false
}

func (b *Backend) nodePortAddresses(f dataplane.Family) []netip.Addr {
	if b.BindAddress.IsValid() && !b.BindAddress.IsUnspecified() {
		return []netip.Addr{b.BindAddress}
	}
	candidates := b.cfg.NodePortAddresses
	if candidates == nil || b.BindAddress.IsValid() {
		// The unspecified address is not used, because a UDP answer must come from the address that was asked.
		candidates = b.cfg.NodeAddresses
		candidates = append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}, candidates...)
	}
	var addrs []netip.Addr
	for _, a := range candidates {
		if dataplane.FamilyOf(a) == f && (!a.IsLoopback() || b.cfg.ServesLocalhost(f) || b.BindAddress.IsValid()) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
