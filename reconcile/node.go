package reconcile

import (
	"net/netip"
	"slices"

	"weir/backends/dataplane"
	"weir/spec"
)

// Node holds the facts about the node that Resolve needs.
type Node struct {
	// Name is compared with the nodeName of endpoints.
	Name string
	// Zone is the value of the node's topology.kubernetes.io/zone label, or "".
	Zone string
	// Families lists the address families that the node serves.
	Families []dataplane.Family
	// NodePortAddresses lists the node's addresses that serve node ports, sorted.
	NodePortAddresses []netip.Addr
	// External decides which external IPs a Service may have.
	External ExternalPolicy
	// Answers reports whether the data path can deliver the packets for a ClusterIP to weir itself, without connection
	// tracking.
	Answers bool
}

// ExternalPolicy decides which external IPs a Service may have. An external IP captures all traffic of the node to it, so the
// author of a Service could have the node's own services, or those of others, under a name of theirs (CVE-2020-8554).
type ExternalPolicy struct {
	// Allowed lists the ranges that are allowed, and nothing else then is. Nil stands for the default: all but loopback,
	// link-local, multicast and reserved addresses, and what Own and Reserved list.
	Allowed []netip.Prefix
	// Own lists the node's addresses, sorted, of which Resolve also notices those that a Service takes; Reserved the ranges of ClusterIPs.
	Own      []netip.Addr
	Reserved []netip.Prefix
}

// ExternalPolicyOf returns the policy of a configuration for a node with the given addresses.
func ExternalPolicyOf(w *spec.WeirConfiguration, own []netip.Addr) ExternalPolicy {
	p := ExternalPolicy{Allowed: w.ExternalAddresses, Own: own}
	if w.ServiceCIDRsGiven { // the default range may well be used for something else
		p.Reserved = w.ServiceCIDRs
	}
	return p
}

// notOfHosts are the reserved ranges whose addresses are no destinations: "this network" and class E of IPv4, and those of
// IPv6 that stand for IPv4 addresses or for nothing.
var notOfHosts = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("240.0.0.0/4"), netip.MustParsePrefix("::/64")}

// Refusal returns why an address must not be an external IP, or "".
func (p ExternalPolicy) Refusal(a netip.Addr) string {
	within := func(prefix netip.Prefix) bool { return prefix.Contains(a) }
	switch {
	case p.Allowed != nil && slices.ContainsFunc(p.Allowed, within):
		return ""
	case p.Allowed != nil:
		return "is in none of externalAddresses"
	case a.IsUnspecified(), a.IsLoopback():
		return "is a loopback address"
	case a.IsLinkLocalUnicast():
		return "is a link-local address"
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "is a multicast address"
	case p.reserved(a):
		return inReserved
	case slices.Contains(p.Own, a):
		return "is an address of this node"
	case slices.ContainsFunc(p.Reserved, within):
		return "is in the range of ClusterIPs"
	}
	return ""
}

const inReserved = "is in a reserved range, of which no host should have an address"

// reserved reports whether an address is in a reserved range, and not allowed.
func (p ExternalPolicy) reserved(a netip.Addr) bool {
	within := func(prefix netip.Prefix) bool { return prefix.Contains(a) }
	return slices.ContainsFunc(notOfHosts, within) && !slices.ContainsFunc(p.Allowed, within)
}

func (p ExternalPolicy) equal(o ExternalPolicy) bool {
	return (p.Allowed == nil) == (o.Allowed == nil) && slices.Equal(p.Allowed, o.Allowed) &&
		slices.Equal(p.Own, o.Own) && slices.Equal(p.Reserved, o.Reserved)
}

// Equal reports whether both nodes resolve to the same result.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && n.Zone == o.Zone && slices.Equal(n.Families, o.Families) &&
		slices.Equal(n.NodePortAddresses, o.NodePortAddresses) && n.External.equal(o.External) && n.Answers == o.Answers
}
