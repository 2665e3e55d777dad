package hostnet

import (
	"fmt"
	"net/netip"
	"slices"

	"weir/backends"
)

// keywords are what nodePortAddresses may say instead of a CIDR, apart from "primary".
var keywords = map[string][]netip.Prefix{
	"all":       {netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
	"localhost": {netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
}

// NodePorts says where node ports are served.
type NodePorts struct {
	// Addrs are the node's addresses that serve node ports, sorted, as backends.Config.NodePortAddresses holds them: nil
	// means all, and empty means none.
	Addrs []netip.Addr
	// Localhost says that the loopback addresses of IPv4 are among them. They serve node ports only if the configuration
	// has localhostNodePorts as well.
	Localhost bool
}

// ResolveNodePorts finds the addresses that nodePortAddresses means: CIDRs, "primary" (the addresses in primary), "localhost"
// and "all". As with kube-proxy, a family that nothing is said of serves node ports on all its addresses, and the loopback
// address of IPv6 never does. The result must be found anew when the node's addresses change.
func ResolveNodePorts(want []string, primary []netip.Addr, node []Address) (NodePorts, error) {
	prefixes, err := expand(want, primary)
	if err != nil {
		return NodePorts{}, err
	}
	everywhere := map[backends.Family]bool{}
	for _, f := range []backends.Family{backends.IPv4, backends.IPv6} {
		everywhere[f] = !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return backends.FamilyOf(p.Addr()) == f }) ||
			slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return backends.FamilyOf(p.Addr()) == f && p.Bits() == 0 })
	}
	if everywhere[backends.IPv4] && everywhere[backends.IPv6] {
		return NodePorts{Localhost: true}, nil
	}
	np := NodePorts{Addrs: []netip.Addr{}, Localhost: everywhere[backends.IPv4]}
	for _, a := range node {
		in := everywhere[backends.FamilyOf(a.Addr)] || slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a.Addr) })
		if !in || a.Loopback && a.Addr.Is6() {
			continue
		}
		np.Addrs = append(np.Addrs, a.Addr)
		np.Localhost = np.Localhost || a.Loopback
	}
	return np, nil
}

func expand(want []string, primary []netip.Addr) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, w := range want {
		if w == "primary" {
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
