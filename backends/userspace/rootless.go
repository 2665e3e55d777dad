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
	add := func(addr netip.Addr, port uint16, internal bool, sources []netip.Prefix) {
		l := b.listen(e, netip.AddrPortFrom(addr, port), e.ExternalEndpoints())
		switch {
		case internal:
			l.endpoints = e.InternalEndpoints()
		case e.ExternalLocal:
			l.near, l.nearEndpoints = b.near(e.Key.Family), e.ClusterEndpoints()
		}
		// Without endpoints, not to listen is how connections are refused at once.
		if seen[l.bind] || !usable(l.endpoints) && !usable(l.nearEndpoints) {
			return
		}
		seen[l.bind] = true
		l.sources, l.keeping = sources, keeping(e, l)
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
		if backends.FamilyOf(b.BindAddress) != e.Key.Family {
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
	if e.NodePort != 0 {
		for _, a := range b.nodePortAddresses(e.Key.Family) {
			add(a, e.NodePort, false, nil)
		}
	}
	return items
}

// near are the addresses of this node and of its pods. Pods that are known by their interface only are not told from others:
// a process does not see where a packet came in.
func (b *Backend) near(f backends.Family) []netip.Prefix {
	var near []netip.Prefix
	if f == backends.IPv4 {
		near = append(near, loopback)
	}
	for _, a := range b.cfg.NodeAddresses {
		if backends.FamilyOf(a) == f {
			near = append(near, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	for _, p := range b.cfg.LocalDetector.PodCIDRs {
		if backends.FamilyOf(p.Addr()) == f {
			near = append(near, p)
		}
	}
	return near
}

var loopback = netip.MustParsePrefix("127.0.0.0/8")

func (b *Backend) local(addr netip.Addr) bool {
	if loopback.Contains(addr) {
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
