package nodeconfig

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/config"
)

// keywords are the values that nodePortAddresses may hold besides CIDRs and "primary".
var keywords = map[string][]netip.Prefix{
	config.NodePortsAll:       {netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
	config.NodePortsLocalhost: {netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
}

// nodePorts holds where node ports are served.
type nodePorts struct {
	// addrs are the node's addresses that serve node ports, sorted, as dataplane.Config.NodePortAddresses holds them: nil
	// means all, and empty means none.
	addrs []netip.Addr
	// localhost are the families whose loopback addresses are among them.
	localhost map[dataplane.Family]bool
}

// resolveNodePorts finds the addresses that nodePortAddresses means: CIDRs, "primary" (the addresses in primary),
// "localhost" and "all". As with kube-proxy, a family without any entry serves node ports on all its addresses. The result
// must be computed again when the node's addresses change.
func resolveNodePorts(want []string, primary, node []netip.Addr) (nodePorts, error) {
	prefixes, err := expand(want, primary)
	if err != nil {
		return nodePorts{}, err
	}
	everywhere := map[dataplane.Family]bool{}
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		everywhere[f] = !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return dataplane.FamilyOf(p.Addr()) == f }) ||
			slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return dataplane.FamilyOf(p.Addr()) == f && p.Bits() == 0 })
	}
	if everywhere[dataplane.IPv4] && everywhere[dataplane.IPv6] {
		return nodePorts{localhost: everywhere}, nil
	}
	np := nodePorts{addrs: []netip.Addr{}, localhost: maps.Clone(everywhere)}
	for _, a := range node {
		f := dataplane.FamilyOf(a)
		if everywhere[f] || slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) }) {
			np.addrs = append(np.addrs, a)
			np.localhost[f] = np.localhost[f] || a.IsLoopback()
		}
	}
	return np, nil
}

func expand(want []string, primary []netip.Addr) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, w := range want {
		if w == config.NodePortsPrimary {
			for _, a := range primary {
				out = append(out, netip.PrefixFrom(a, a.BitLen()))
			}
			continue
		}
		if known, ok := keywords[w]; ok {
			out = append(out, known...)
			continue
		}
		p, err := netip.ParsePrefix(w)
		if err != nil {
			return nil, fmt.Errorf("nodePortAddresses: %q is neither a CIDR nor one of all, primary, localhost", w)
		}
		out = append(out, p)
	}
	return out, nil
}

// ProxiedLoopback has weir itself serve node ports on ::1, and returns a notice of that, if a bridge passes frames of IPv6 through
// the packet filter. There an answer is translated back to ::1 before the bridge hands it to the node, and the kernel drops all
// packets for ::1 that come from outside. It is for modes that leave the translation to the kernel.
func ProxiedLoopback(c *dataplane.Config, at spec.Origin) []spec.Notice {
	ofIPv6 := func(p netip.Prefix) bool { return dataplane.FamilyOf(p.Addr()) == dataplane.IPv6 }
	i := slices.IndexFunc(c.BridgedThrough, ofIPv6)
	if i < 0 || !c.LocalhostNodePortsIPv6 || !slices.Contains(c.Families, dataplane.IPv6) {
		return nil
	}
	c.LocalhostNodePortsIPv6, c.ProxiesLoopbackIPv6 = false, true
	return []spec.Notice{spec.LoopbackProxied.Notice(at, config.KubeProxyKind, "nodePortAddresses", fmt.Sprintf(
		"weir itself carries connections to node ports at ::1, TCP and UDP only, as long as it runs: frames on the bridge of %s pass through the packet filter, "+
			"and the kernel drops answers that are translated to ::1 there; set net.bridge.bridge-nf-call-ip6tables to 0 if nothing else needs it", c.BridgedThrough[i]))}
}
