package nodeconfig

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/config"
)

// localDetector returns how traffic of this node's pods is recognised. Missing information is no error, as in
// kube-proxy: then no traffic is masqueraded because of its source.
func localDetector(c *kubeproxyconfig.KubeProxyConfiguration, node *corev1.Node, last []netip.Prefix) (dataplane.LocalDetector, error) {
	switch c.DetectLocalMode {
	case config.LocalModeClusterCIDR, "":
		return cidrDetector("clusterCIDR", strings.Split(c.ClusterCIDR, ","))
	case config.LocalModeNodeCIDR:
		cidrs := podCIDRs(node)
		if len(cidrs) == 0 {
			return dataplane.LocalDetector{PodCIDRs: last}, nil
		}
		return cidrDetector("Node "+node.Name+": spec.podCIDRs", cidrs)
	case config.LocalModeBridgeInterface:
		return dataplane.LocalDetector{Interface: c.DetectLocal.BridgeInterface}, nil
	case config.LocalModeInterfaceNamePrefix:
		return dataplane.LocalDetector{Interface: c.DetectLocal.InterfaceNamePrefix, Prefix: true}, nil
	}
	return dataplane.LocalDetector{}, fmt.Errorf("detectLocalMode %q is not known", c.DetectLocalMode)
}

// podCIDRs returns the ranges of a Node's pods. The Node may be nil.
func podCIDRs(node *corev1.Node) []string {
	switch {
	case node == nil:
		return nil
	case len(node.Spec.PodCIDRs) > 0:
		return node.Spec.PodCIDRs
	case node.Spec.PodCIDR != "":
		return []string{node.Spec.PodCIDR}
	}
	return nil
}

// DetectionNotices returns a notice if detectLocalMode NodeCIDR finds no range of the pods of a node. The node's object may
// be nil, its name "" if it is not known, and last the ranges that stay in force instead.
func DetectionNotices(c *kubeproxyconfig.KubeProxyConfiguration, at spec.Origin, name string, node *corev1.Node, last []netip.Prefix) []spec.Notice {
	if c.DetectLocalMode != config.LocalModeNodeCIDR || len(podCIDRs(node)) > 0 || config.MasqueradesAll(c) {
		return nil
	}
	missing := "there is no Node in the input"
	switch {
	case node != nil:
		missing = fmt.Sprintf("Node %s has no podCIDR", node.Name)
	case name != "":
		missing = fmt.Sprintf("there is no Node %s in the input", name)
	}
	effect := "nothing is masqueraded because it comes from elsewhere; write the Node with its spec.podCIDRs, or choose another detectLocalMode"
	if len(last) > 0 {
		effect = fmt.Sprintf("the last range that was found stays in force (%s); bring the Node back", joinPrefixes(last))
	}
	return []spec.Notice{spec.NoLocalDetection.Notice(at, config.KubeProxyKind, "detectLocalMode", fmt.Sprintf("is NodeCIDR, and %s: %s", missing, effect))}
}

func joinPrefixes(all []netip.Prefix) string {
	texts := make([]string, len(all))
	for i, p := range all {
		texts[i] = p.String()
	}
	return strings.Join(texts, ", ")
}

func cidrDetector(what string, cidrs []string) (dataplane.LocalDetector, error) {
	var d dataplane.LocalDetector
	for _, s := range cidrs {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return d, fmt.Errorf("%s: %q is not a CIDR", what, s)
		}
		if p = p.Masked(); !slices.Contains(d.PodCIDRs, p) {
			d.PodCIDRs = append(d.PodCIDRs, p)
		}
	}
	return d, nil
}
