package nodeconfig

import (
	"fmt"
	"net/netip"
	"slices"

	"weir/backends/dataplane"
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
	// localhost reports whether the loopback addresses of IPv4 are among them.
	localhost bool
}

// resolveNodePorts finds the addresses that nodePortAddresses means: CIDRs, "primary" (the addresses in primary),
// "localhost" and "all". As with kube-proxy, a family without any entry serves node ports on all its addresses, and the
// loopback address of IPv6 never does. The result must be computed again when the node's addresses change.
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
		return nodePorts{localhost: true}, nil
	}
	np := nodePorts{addrs: []netip.Addr{}, localhost: everywhere[dataplane.IPv4]}
	for _, a := range node {
		in := everywhere[dataplane.FamilyOf(a)] || slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
		if !in || a.IsLoopback() && a.Is6() {
			continue
		}
		np.addrs = append(np.addrs, a)
		np.localhost = np.localhost || a.IsLoopback()
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
