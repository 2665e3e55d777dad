// Package nodeconfig computes what a KubeProxyConfiguration means for one node: the node's name, its primary addresses,
// the addresses that serve node ports, how the traffic of its pods is recognised, and the settings of each proxy mode.
//
// The package is pure: it reads nothing from the machine. Facts about the node come in as a value (Node), so that the
// same configuration and the same node always give the same result. The modes in cmd/weir use it.
package nodeconfig

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends/dataplane"
)

// Node holds the facts about the node.
type Node struct {
	// Families lists the address families that the kernel supports.
	Families []dataplane.Family
	// Addresses are the node's addresses of both families, sorted, loopback included.
	Addresses []netip.Addr
	// Routed holds the source address that the routes choose for a distant peer, one per family. It is used if there is
	// no Node object.
	Routed []netip.Addr
	// Bridged are the networks of bridges that bypass the packet filter, and BridgedThrough of those that do not.
	Bridged, BridgedThrough []netip.Prefix
	// Object is the node's Node object, or nil.
	Object *corev1.Node
	// LastPodCIDRs are the ranges that Object had before. They stay in force if it has none any more.
	LastPodCIDRs []netip.Prefix
}

// Name returns the name of this node in endpoints. As in kube-proxy, the flag wins over hostnameOverride, which wins
// over the host name.
func Name(flag, override, hostname string) (string, error) {
	name := strings.ToLower(strings.TrimSpace(cmp.Or(flag, override, hostname)))
	if name == "" {
		return "", errors.New("the name of this node is empty; give --hostname-override")
	}
	return name, nil
}

// DataPath returns the settings that every backend needs. The section is that of the proxy mode.
func DataPath(c *kubeproxyconfig.KubeProxyConfiguration, s Section, n Node) (dataplane.Config, error) {
	ports, err := resolveNodePorts(s.NodePortAddresses, Primary(c.BindAddress, n), n.Addresses)
	if err != nil {
		return dataplane.Config{}, err
	}
	detector, err := localDetector(c, n.Object, n.LastPodCIDRs)
	if err != nil {
		return dataplane.Config{}, err
	}
	return dataplane.Config{
		Families:               n.Families,
		MasqueradeAll:          s.MasqueradeAll,
		MasqueradeMark:         s.MasqueradeMark,
		LocalDetector:          detector,
		LocalhostNodePorts:     s.LocalhostNodePorts && ports.localhost[dataplane.IPv4],
		LocalhostNodePortsIPv6: s.LocalhostNodePorts && ports.localhost[dataplane.IPv6],
		NodePortAddresses:      ports.addrs,
		NodeAddresses:          outward(n.Addresses),
		Bridged:                n.Bridged,
		BridgedThrough:         n.BridgedThrough,
		TCPBeLiberal:           c.Conntrack.TCPBeLiberal,
	}, nil
}

// Primary returns the node's primary address of each family. bindAddress comes first, then the Node object, as in
// kube-proxy (detectNodeIPs in cmd/kube-proxy), then the routes.
func Primary(bindAddress string, n Node) []netip.Addr {
	var found []netip.Addr
	add := func(a netip.Addr) {
		sameFamily := func(b netip.Addr) bool { return a.Is4() == b.Is4() }
		if a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !slices.ContainsFunc(found, sameFamily) {
			found = append(found, a)
		}
	}
	bind, _ := netip.ParseAddr(bindAddress)
	add(bind)
	own := objectAddresses(n.Object)
	if len(own) == 0 {
		own = n.Routed
	}
	for _, a := range own {
		add(a)
	}
	return found
}

// objectAddresses returns the addresses of a Node object, which may be nil, internal ones first.
func objectAddresses(node *corev1.Node) []netip.Addr {
	if node == nil {
		return nil
	}
	var found []netip.Addr
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, na := range node.Status.Addresses {
			if a, err := netip.ParseAddr(na.Address); err == nil && na.Type == kind {
				found = append(found, a)
			}
		}
	}
	return found
}

// outward returns the addresses that are not loopback.
func outward(list []netip.Addr) []netip.Addr {
	out := []netip.Addr{}
	for _, a := range list {
		if !a.IsLoopback() {
			out = append(out, a)
		}
	}
	return out
}
