package nodeconfig

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/spec"
)

// Network is a range of addresses that a node reaches by a route other than the default one, or has an address in.
type Network struct {
	Prefix    netip.Prefix
	Interface string
	// Routed reports whether a route leads there. Otherwise, the node has an address in it.
	Routed bool
}

func (n Network) String() string {
	if n.Routed {
		return fmt.Sprintf("%s, to which a route by %s leads", n.Prefix, n.Interface)
	}
	return fmt.Sprintf("%s, the network of %s", n.Prefix, n.Interface)
}

// ClusterIPs are the addresses of the Services of a Snapshot, and the ranges that they are from.
type ClusterIPs struct {
	// Ranges are the ranges that are known to hold ClusterIPs: those that a user set, else those that one was allocated from.
	Ranges []netip.Prefix
	// Addrs are all ClusterIPs, in the order of their Services' names.
	Addrs []netip.Addr
	// Answered are those at which weir itself may answer, to which it makes routes.
	Answered []netip.Addr
}

// ClusterIPsOf returns the ClusterIPs of a Snapshot. Its time is in proportion to the number of Services.
func ClusterIPsOf(snap *spec.Snapshot) ClusterIPs {
	var c ClusterIPs
	used := map[netip.Prefix]bool{}
	for svc := range snap.Services.All() {
		for i, text := range svc.Object.Spec.ClusterIPs {
			a, err := netip.ParseAddr(text)
			if err != nil {
				continue // a headless Service
			}
			c.Addrs = append(c.Addrs, a)
			if svc.Answered {
				c.Answered = append(c.Answered, a)
			}
			if slices.ContainsFunc(svc.Allocated, func(v spec.Allocation) bool { return v.What == spec.AllocatedClusterIP && v.Index == i }) {
				used[rangeOf(a, snap.Weir.ServiceCIDRs)] = true
			}
		}
	}
	for _, p := range snap.Weir.ServiceCIDRs {
		if snap.Weir.ServiceCIDRsGiven || used[p] {
			c.Ranges = append(c.Ranges, p)
		}
	}
	return c
}

// rangeOf returns the range that contains an address. If none does, it returns the range of the address alone.
func rangeOf(a netip.Addr, ranges []netip.Prefix) netip.Prefix {
	if i := slices.IndexFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }); i >= 0 {
		return ranges[i]
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// Overlap returns the first network that shares addresses with a range of ClusterIPs. A route of exactly the range does
// not count, because it was made for the ClusterIPs.
func Overlap(p netip.Prefix, networks []Network) (Network, bool) {
	i := slices.IndexFunc(networks, func(n Network) bool { return n.Prefix.Overlaps(p) && (!n.Routed || n.Prefix != p) })
	if i < 0 {
		return Network{}, false
	}
	return networks[i], true
}

// OverlapNotices returns a notice for each range that overlaps a network of the node, and one for each network that
// contains ClusterIPs of no known range.
func (c ClusterIPs) OverlapNotices(networks []Network) []spec.Notice {
	var out []spec.Notice
	for _, p := range c.Ranges {
		if n, ok := Overlap(p, networks); ok {
			out = append(out, spec.ServiceRangeOverlaps.Notice(spec.Origin{}, "", "serviceCIDRs", fmt.Sprintf(
				"%s overlaps %s: where a Service has the address of a host, the node cannot reach the host; choose a range that nothing else uses", p, n)))
		}
	}
	in := map[Network][]netip.Addr{}
	var found []Network
	for _, a := range c.Addrs {
		p := rangeOf(a, c.Ranges)
		if slices.Contains(c.Ranges, p) {
			continue
		}
		if n, ok := Overlap(p, networks); ok {
			if in[n] == nil {
				found = append(found, n)
			}
			in[n] = append(in[n], a)
		}
	}
	for _, n := range found {
		out = append(out, spec.ServiceRangeOverlaps.Notice(spec.Origin{}, "", "spec.clusterIP", fmt.Sprintf(
			"%s in %s: where a Service has the address of a host, the node cannot reach the host; choose ClusterIPs that nothing else uses", count(in[n]), n)))
	}
	return out
}

// maxReached bounds how many ClusterIPs of each family are looked up. With more, a route is for all of them.
const maxReached = 64

// RouteNotices returns a notice for each range, and for the ClusterIPs of no known range, that the node has no route to.
// reaches reports whether it has one to an address, and sources are those that RouteRemedy takes.
func (c ClusterIPs) RouteNotices(networks []Network, sources []netip.Addr, reaches func(netip.Addr) bool) []spec.Notice {
	lost := map[netip.Prefix][]netip.Addr{}
	var ranges []netip.Prefix
	var looked [2]int
	for _, a := range c.Addrs {
		family := a.BitLen() / 128
		if looked[family]++; looked[family] > maxReached || slices.Contains(c.Answered, a) || reaches(a) {
			continue
		}
		p := rangeOf(a, c.Ranges)
		if !slices.Contains(c.Ranges, p) {
			p = netip.PrefixFrom(a, 0).Masked() // all of the family together
		}
		if lost[p] == nil {
			ranges = append(ranges, p)
		}
		lost[p] = append(lost[p], a)
	}
	var out []spec.Notice
	for _, p := range ranges {
		field, what, to := "serviceCIDRs", p.String(), p
		if p.Bits() == 0 {
			field, what, to = "spec.clusterIP", count(lost[p]), covering(lost[p])
		}
		out = append(out, spec.NoRouteToServices.Notice(spec.Origin{}, "", field, fmt.Sprintf("%s: %s; %s", what, NoRoute, RouteRemedy(to, networks, sources))))
	}
	return out
}

// Examination is what weir doctor finds about one range of ClusterIPs.
type Examination struct {
	Range  netip.Prefix
	Fault  bool
	Detail string
	Remedy string // a command, or ""
}

// ExamineRanges examines ranges of ClusterIPs on a node with these networks. Without ranges, it examines the default ones
// of the families in which the node has an address or a route. sources are those that RouteRemedy takes.
func ExamineRanges(ranges []netip.Prefix, networks []Network, sources []netip.Addr, reaches func(netip.Addr) bool) []Examination {
	given := len(ranges) > 0
	if !given {
		ranges = spec.DefaultWeirConfiguration().ServiceCIDRs
	}
	var out []Examination
	for _, p := range ranges {
		sameFamily := func(n Network) bool { return n.Prefix.Addr().Is4() == p.Addr().Is4() }
		if !given && p.Addr().Is6() && !slices.ContainsFunc(networks, sameFamily) {
			continue
		}
		e := Examination{Range: p, Detail: "the node has a route there, and no network of its own"}
		if n, ok := Overlap(p, networks); ok {
			e.Fault, e.Detail = true, fmt.Sprintf("overlaps %s: where a Service has the address of a host, the node cannot reach the host; give another range as --service-cidrs or serviceCIDRs", n)
		} else if !reaches(p.Addr().Next()) {
			e.Fault, e.Detail, e.Remedy = true, NoRoute, RouteRemedy(p, networks, sources)
		}
		out = append(out, e)
	}
	return out
}

// NoRoute is what it means that a node has no route to ClusterIPs.
const NoRoute = "the node has no route there, so connections of its own processes fail before any rule sees them"

// RouteRemedy returns the command that gives the node a route to a range. Rules then lead its packets elsewhere. sources are
// addresses of the node, at most one per family: without the source, the kernel may choose an address of the bridge or tunnel that
// was made last. For IPv6, lo does not do, because older kernels refuse what is sent there.
func RouteRemedy(p netip.Prefix, networks []Network, sources []netip.Addr) string {
	source := "NODE-ADDRESS"
	if i := slices.IndexFunc(sources, func(a netip.Addr) bool { return a.Is4() == p.Addr().Is4() }); i >= 0 {
		source = sources[i].String()
	}
	if p.Addr().Is4() {
		return fmt.Sprintf("ip route add %s dev lo src %s", p, source)
	}
	name := "IFACE"
	if i := slices.IndexFunc(networks, func(n Network) bool { return !n.Routed && n.Prefix.Addr().Is6() && n.Interface != "lo" }); i >= 0 {
		name = networks[i].Interface
	}
	return fmt.Sprintf("ip -6 route add %s dev %s src %s", p, name, source)
}

// covering returns the smallest range with all the addresses, which are of one family.
func covering(addrs []netip.Addr) netip.Prefix {
	p := netip.PrefixFrom(addrs[0], addrs[0].BitLen())
	for _, a := range addrs {
		for !p.Contains(a) {
			p = netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
		}
	}
	return p
}

// maxNamed is how many addresses a notice names.
const maxNamed = 3

// count names the first addresses and counts the others.
func count(addrs []netip.Addr) string {
	var texts []string
	for _, a := range addrs[:min(maxNamed, len(addrs))] {
		texts = append(texts, a.String())
	}
	text := strings.Join(texts, ", ")
	if more := len(addrs) - maxNamed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}
