package hostnet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Network is a range of addresses that the node reaches by a route of its own, or in which it has an address.
type Network struct {
	Prefix netip.Prefix
	// Interface is the name of the interface.
	Interface string
	// Routed reports whether a route leads there. Otherwise, the node has an address in it.
	Routed bool
}

// Networks returns the networks of the current network namespace, sorted and unique: those of the addresses, and those of
// the routes in the main table. It leaves out default routes, loopback and link-local networks, routes by lo, which lead
// nowhere, and what is on interfaces that hold the addresses of Services.
func Networks() ([]Network, error) {
	addrs, names, err := listAddresses()
	if err != nil {
		return nil, err
	}
	var out []Network
	add := func(ip []byte, bits, link int, routed bool) {
		a, ok := netip.AddrFromSlice(ip)
		a = a.Unmap()
		name := names[link]
		if !ok || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || name == "" || slices.Contains(serviceInterfaces, name) {
			return
		}
		out = append(out, Network{netip.PrefixFrom(a, bits).Masked(), name, routed})
	}
	for _, a := range addrs {
		bits, _ := a.Mask.Size()
		add(a.IP, bits, a.LinkIndex, false)
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil || r.Type != unix.RTN_UNICAST || r.Protocol == unix.RTPROT_KERNEL {
				continue
			}
			link := r.LinkIndex
			if link == 0 && len(r.MultiPath) > 0 {
				link = r.MultiPath[0].LinkIndex
			}
			if bits, _ := r.Dst.Mask.Size(); bits > 0 && names[link] != "lo" {
				add(r.Dst.IP, bits, link, true)
			}
		}
	}
	slices.SortFunc(out, func(a, b Network) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), a.Prefix.Bits()-b.Prefix.Bits(), cmp.Compare(a.Interface, b.Interface))
	})
	return slices.Compact(out), nil
}

// Sources returns an address of the node for each family that it has, to name as the source of a route: the first of its first
// interface, because bridges and tunnels come later, and go.
func Sources() ([]netip.Addr, error) {
	addrs, names, err := listAddresses()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(addrs, func(a, b netlink.Addr) int { return cmp.Compare(a.LinkIndex, b.LinkIndex) })
	var out []netip.Addr
	for _, found := range addrs {
		a, ok := netip.AddrFromSlice(found.IP)
		a = a.Unmap()
		unusable := found.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED|unix.IFA_F_TEMPORARY) != 0
		known := slices.ContainsFunc(out, func(o netip.Addr) bool { return o.Is4() == a.Is4() })
		if ok && a.IsGlobalUnicast() && !unusable && !known && !slices.Contains(serviceInterfaces, names[found.LinkIndex]) {
			out = append(out, a)
		}
	}
	return out, nil
}

// Reaches reports whether the kernel would let a process of this node send to an address. It sends nothing.
func Reaches(dst netip.Addr) bool {
	routes, err := netlink.RouteGet(dst.AsSlice())
	return err == nil && len(routes) > 0
}
