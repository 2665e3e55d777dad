package userspace

import (
	"fmt"
	"net/netip"

	"weir/backends"
)

// renderRootless returns a listener for every address of the Entry that this process can have.
func (b *Backend) renderRootless(e *backends.Entry) []backends.Item {
	var items []backends.Item
	seen := map[netip.AddrPort]bool{}
	add := func(addr netip.Addr, port uint16, endpoints []backends.Endpoint, sources []netip.Prefix) {
		bind := netip.AddrPortFrom(addr, port)
		// Without endpoints, not to listen is how connections are refused at once.
		if seen[bind] || !usable(endpoints) {
			return
		}
		seen[bind] = true
		l := b.listen(e, bind, endpoints)
		l.sources = sources
		items = append(items, l)
	}
	serve := func(what string, addr netip.Addr, endpoints []backends.Endpoint, sources []netip.Prefix) {
		if !b.local(addr) {
			b.Warn(e.Key, fmt.Sprintf("%s %s is not an address of this node, and without kernel rules only those can be served; add it to an interface, or use --bind-address", what, addr))
			return
		}
		add(addr, e.Port, endpoints, sources)
	}
	if b.BindAddress.IsValid() {
		if backends.FamilyOf(b.BindAddress) != e.Key.Family {
			b.Warn(e.Key, fmt.Sprintf("the bind address %s is not of family %s", b.BindAddress, e.Key.Family))
			return nil
		}
		for _, a := range b.nodePortAddresses(e.Key.Family) {
			add(a, e.Port, e.InternalEndpoints(), nil)
		}
	} else {
		serve("ClusterIP", e.ClusterIP, e.InternalEndpoints(), nil)
		for _, a := range e.ExternalIPs {
			serve("external IP", a, e.ExternalEndpoints(), nil)
		}
		for _, a := range e.LoadBalancerIPs {
			serve("load balancer IP", a, e.ExternalEndpoints(), e.SourceRanges)
		}
	}
	if e.NodePort != 0 {
		for _, a := range b.nodePortAddresses(e.Key.Family) {
			add(a, e.NodePort, e.ExternalEndpoints(), nil)
		}
	}
	return items
}

func (b *Backend) local(addr netip.Addr) bool {
	if addr.Is4() && addr.IsLoopback() {
		return true
	}
	for _, a := range b.cfg.NodeAddresses {
		if a == addr {
			return true
		}
	}
	return false
}

func (b *Backend) nodePortAddresses(f backends.Family) []netip.Addr {
	if b.BindAddress.IsValid() && !b.BindAddress.IsUnspecified() {
		return []netip.Addr{b.BindAddress}
	}
	candidates := b.cfg.NodePortAddresses
	if candidates == nil || b.BindAddress.IsValid() {
		// Not the unspecified address: a UDP answer must come from the address that was asked.
		candidates = b.cfg.NodeAddresses
		if (b.cfg.LocalhostNodePorts || b.BindAddress.IsValid()) && f == backends.IPv4 {
			candidates = append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, candidates...)
		}
	}
	var addrs []netip.Addr
	for _, a := range candidates {
		if backends.FamilyOf(a) == f {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
