package spec

import "net/netip"

// DNS says how weir answers for the names of Services.
type DNS struct {
	// Serve reports whether it answers at all. Default: false.
	Serve bool
	// Listen are the addresses at which it answers, over UDP and TCP. Default: 127.0.0.1:53.
	Listen []netip.AddrPort
	// ClusterDomain is the domain of all names, in lower case and without a dot at its end. Default: cluster.local.
	ClusterDomain string
	// Pods says which names of pods there are: disabled, insecure or verified, as in CoreDNS. Default: insecure.
	Pods string
	// NodeResolver is how the processes of the node find names: auto, none, or one of config.NodeResolvers. Default: auto.
	NodeResolver string
	// ClusterIPs are those of kube-dns if it is not declared, as a KubeletConfiguration in the input has them (clusterDNS). Default,
	// nil: the tenth address of each service CIDR.
	ClusterIPs []netip.Addr
	// Upstreams are the resolvers for all other names. Default, nil: those of the node.
	Upstreams []netip.AddrPort
	// Forward has the resolvers for the names of other domains. Its keys are like ClusterDomain.
	Forward map[string][]netip.AddrPort
	// Allow are ranges whose addresses may ask, besides the node itself and its pods.
	Allow []netip.Prefix
	// Transfer are ranges whose addresses may copy the whole zone. Default, nil: none.
	Transfer []netip.Prefix
	// Hosts has the addresses of further names. Its keys are like ClusterDomain.
	Hosts map[string][]netip.Addr
	// Rewrite has the names that are asked for in the place of others. Keys and values are like ClusterDomain. If both begin
	// with "*.", they stand for all names below a domain.
	Rewrite map[string]string
	// Search has a pod's question for a name in its first search domain, which does not exist, answered with the name that its
	// resolver would find after it. Default: false.
	Search bool
}

// over returns o with what c sets in place.
func (c DNS) over(o DNS) DNS {
	if len(c.Listen) > 0 {
		o.Listen = c.Listen
	}
	if c.ClusterDomain != "" {
		o.ClusterDomain = c.ClusterDomain
	}
	if c.Pods != "" {
		o.Pods = c.Pods
	}
	if c.NodeResolver != "" {
		o.NodeResolver = c.NodeResolver
	}
	if len(c.Upstreams) > 0 {
		o.Upstreams = c.Upstreams
	}
	if len(c.Forward) > 0 {
		o.Forward = c.Forward
	}
	if len(c.Allow) > 0 {
		o.Allow = c.Allow
	}
	if len(c.Transfer) > 0 {
		o.Transfer = c.Transfer
	}
	if len(c.Hosts) > 0 {
		o.Hosts = c.Hosts
	}
	if len(c.Rewrite) > 0 {
		o.Rewrite = c.Rewrite
	}
	o.Search = o.Search || c.Search
	return o
}
