package dataplane

import "net/netip"

// Config is the input of every backend besides the Services: the node-wide settings of the data path, taken from the
// KubeProxyConfiguration and the node's own addresses.
type Config struct {
	// Families lists the address families to program.
	Families []Family

	// MasqueradeAll masquerades all traffic to ClusterIPs.
	MasqueradeAll bool
	// MasqueradeMark is the packet mark bit, as a mask, that stands for "masquerade this": 1 << masqueradeBit.
	MasqueradeMark uint32
	// LocalDetector tells traffic of this node's pods from all other traffic.
	LocalDetector LocalDetector

	// LocalhostNodePorts serves node ports on loopback addresses of IPv4 (127.0.0.0/8), LocalhostNodePortsIPv6 on ::1.
	LocalhostNodePorts, LocalhostNodePortsIPv6 bool
	// ProxiesLoopbackIPv6 has weir itself carry the connections to node ports on ::1, because the kernel cannot.
	ProxiesLoopbackIPv6 bool
	// NodePortAddresses are the node's addresses that serve node ports, sorted; nil means all local addresses.
	NodePortAddresses []netip.Addr
	// NodeAddresses are the addresses that the node has, sorted.
	NodeAddresses []netip.Addr

	// Bridged are the networks of bridges whose frames do not pass through the packet filter. Between two hosts in one of
	// them, connections to Services are masqueraded, because answers would not come back through the node. Userspace mode
	// does not use them.
	Bridged []netip.Prefix

	// BridgedThrough are the networks of bridges whose frames pass through the packet filter. A pod in one of them reaches
	// itself through a Service only if its bridge port has hairpin mode, in the modes that translate packets before they are
	// routed.
	BridgedThrough []netip.Prefix

	// ServiceCIDRs are the ranges that hold nothing but ClusterIPs, if they are known. Only nftables mode uses them:
	// like kube-proxy, it drops traffic to a ClusterIP that belongs to no Service.
	ServiceCIDRs []netip.Prefix

	// TCPBeLiberal reports whether conntrack accepts out-of-window packets as valid, so that they need not be dropped.
	TCPBeLiberal bool
}

// ServesLocalhost reports whether the loopback addresses of a family serve node ports.
func (c *Config) ServesLocalhost(f Family) bool {
	if f == IPv6 {
		return c.LocalhostNodePortsIPv6
	}
	return c.LocalhostNodePorts
}

// Loopback returns the loopback addresses of a family.
func Loopback(f Family) netip.Prefix {
	if f == IPv6 {
		return netip.PrefixFrom(netip.IPv6Loopback(), 128)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)
}

// ConnectionLabel is the connection label that iptables and nftables mode set on the connections that they masquerade.
// The mark alone does not tell whose connection it is, because other programs set marks too. kube-proxy and the usual
// networks use no labels.
const (
	ConnectionLabel     = 119
	ConnectionLabelText = "119"
)

// ProbeMark is the packet mark of a probe of an endpoint. The modes whose rules translate the node's own connections let those
// with exactly this mark pass, so that a probe meets the endpoint and not what weir would send it on to. The value has none of
// the bits that Kubernetes, container networks and VPNs give a meaning.
const ProbeMark = 0x1070

// LocalDetector recognises traffic that starts in a pod of this node. The zero value recognises none, and then no
// traffic is masqueraded because of its source.
type LocalDetector struct {
	// PodCIDRs match on the source address (detectLocalMode ClusterCIDR and NodeCIDR).
	PodCIDRs []netip.Prefix
	// Interface matches on the incoming interface (BridgeInterface). With Prefix set, it matches every interface whose
	// name begins with it (InterfaceNamePrefix).
	Interface string
	Prefix    bool
}

// PodCIDR returns the source prefix of the family, or false if the detector has none.
func (d LocalDetector) PodCIDR(f Family) (netip.Prefix, bool) {
	for _, p := range d.PodCIDRs {
		if FamilyOf(p.Addr()) == f {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
