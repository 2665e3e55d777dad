package hostnet

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Bridged returns the networks of the bridges whose frames do not pass through the packet filter, because the module
// br_netfilter is not there or bridge-nf-call-iptables is 0. An answer from one host of such a network to another is not
// translated back, since it does not pass through the node.
func Bridged(s Sysctl) ([]netip.Prefix, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var all []netip.Prefix
	for _, l := range links {
		if l.Type() != "bridge" {
			continue
		}
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			p := netip.PrefixFrom(ip.Unmap(), bits).Masked()
			if p.IsValid() && !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() && !s.filtersBridges(p.Addr().Is4()) {
				all = append(all, p)
			}
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	return slices.Compact(all), nil
}

// filtersBridges reports whether bridged packets of a family pass through the packet filter.
func (s Sysctl) filtersBridges(v4 bool) bool {
	name := "net.bridge.bridge-nf-call-ip6tables"
	if v4 {
		name = "net.bridge.bridge-nf-call-iptables"
	}
	value, err := s.Get(name)
	return err == nil && value != "0"
}
