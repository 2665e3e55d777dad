package dataplane

import "net/netip"

// Names is the content of the DNS zone for one Service, as the Kubernetes DNS specification 1.1.0 has it.
type Names struct {
	Service ServiceName
	// ClusterIPs are the addresses of the Service's own name. A headless Service has none: its name leads to its
	// endpoints.
	ClusterIPs []netip.Addr
	// ExternalName is the name that the Service's name stands for. A Service that has one has nothing else.
	ExternalName string
	// Ports are those of the Service, as it declares them.
	Ports []NamedPort
	// Endpoints are the ready ones.
	Endpoints []NamedEndpoint
}

// NamedPort is a port with its name, "" if it has none.
type NamedPort struct {
	Name string
	// Protocol is 0 if no port is known. Such a port matches a question for no port, and is in no SRV record.
	Protocol Protocol
	Port     uint16
}

// NamedEndpoint is an endpoint with its own name below that of its Service.
type NamedEndpoint struct {
	// Host is one label: the hostname, or the address with dashes.
	Host string
	Addr netip.Addr
	// Ports are shared between endpoints.
	Ports []NamedPort
}

// Headless reports whether the name of the Service leads to its endpoints.
func (n *Names) Headless() bool { return len(n.ClusterIPs) == 0 && n.ExternalName == "" }
