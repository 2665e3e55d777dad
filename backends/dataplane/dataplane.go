// Package dataplane is the vocabulary of a node's data path. A ServicePort is the desired state of one port of a
// Service on this node. A Frontend is an address that clients use, an Endpoint is an address that serves them, and a
// Config holds the settings of the node.
//
// The package holds plain values and no behaviour of a backend. It is a leaf: it knows no Kubernetes types and imports
// nothing else of weir, so that every package may import it.
package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Protocol is the transport protocol of a Service port.
type Protocol uint8

// The protocols a Service port can have. Their values are the IP protocol numbers.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String returns the name that the Kubernetes API uses, such as "TCP".
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "TCP"
	case UDP:
		return "UDP"
	case SCTP:
		return "SCTP"
	}
	return fmt.Sprintf("Protocol(%d)", uint8(p))
}

// Family is an IP address family.
type Family uint8

// The two address families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// String returns "IPv4" or "IPv6", as the Kubernetes API does.
func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// FamilyOf returns the family of an address. An IPv4-mapped IPv6 address counts as IPv6; unmap it first.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// ServiceName is a namespaced name.
type ServiceName struct {
	Namespace, Name string
}

// String returns "namespace/name".
func (n ServiceName) String() string { return n.Namespace + "/" + n.Name }

// Compare orders by namespace, then by name.
func (n ServiceName) Compare(o ServiceName) int {
	return cmp.Or(cmp.Compare(n.Namespace, o.Namespace), cmp.Compare(n.Name, o.Name))
}

// ServicePortName identifies one port of one Service in one address family.
type ServicePortName struct {
	Service  ServiceName
	Port     string // the port's name, "" if it has none
	Protocol Protocol
	Family   Family
}

// String returns "namespace/name:port/TCP/IPv4", without ":port" for a port that has no name.
func (k ServicePortName) String() string {
	s := k.Service.String()
	if k.Port != "" {
		s += ":" + k.Port
	}
	return s + "/" + k.Protocol.String() + "/" + k.Family.String()
}

// Compare orders by Service, port, protocol and family.
func (k ServicePortName) Compare(o ServicePortName) int {
	return cmp.Or(k.Service.Compare(o.Service), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Protocol, o.Protocol), cmp.Compare(k.Family, o.Family))
}

// ServicePort is the desired state of one Service port in one address family on this node. It is immutable, and
// reconcile.Resolve makes it. All addresses are of its family.
type ServicePort struct {
	Key ServicePortName `json:"-"`
	// Origin is the place where the Service was written ("services/web.yaml:14"). It is for people only, and must not
	// influence Render.
	Origin string `json:"source,omitempty"`

	ClusterIP netip.Addr `json:"clusterIP"`
	Port      uint16     `json:"portNumber"`
	// NodePort is 0 if the Service has none.
	NodePort uint16 `json:"nodePort,omitempty"`
	// NodePortExcept are the addresses of the node at which another Service owns the node port. Sorted.
	NodePortExcept []netip.Addr `json:"nodePortExcept,omitempty"`
	// ExternalIPs and LoadBalancerIPs are sorted and unique. LoadBalancerIPs holds only those with ipMode VIP.
	ExternalIPs     []netip.Addr `json:"externalIPs,omitempty"`
	LoadBalancerIPs []netip.Addr `json:"loadBalancerIPs,omitempty"`
	// SourceRanges limits who may use the LoadBalancerIPs; empty means every client. Sorted, unique, masked.
	SourceRanges []netip.Prefix `json:"sourceRanges,omitempty"`

	// InternalLocal reports whether the traffic policy for the ClusterIP is Local, and ExternalLocal whether the policy
	// for all other addresses is.
	InternalLocal bool `json:"internalLocal,omitempty"`
	ExternalLocal bool `json:"externalLocal,omitempty"`

	// Affinity is how long a client stays with the endpoint it was given; 0 means that there is no session affinity.
	Affinity time.Duration `json:"-"`

	// Endpoints holds every endpoint that any policy may choose, sorted by address and unique.
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	// Serving holds every endpoint that may keep its existing flows, because it is ready, or terminating and still
	// serving. Topology does not matter here, since it chooses for new flows only. It is sorted and unique.
	// Only UDP ports and those with Reset have it, because it matters only to connection tracking. Endpoints count as serving
	// in any case.
	Serving []netip.AddrPort `json:"serving,omitempty"`
	// ServingLocal holds those of Serving that are on this node, if a policy is Local. When a policy turns to Local, UDP flows
	// to other endpoints move.
	ServingLocal []netip.AddrPort `json:"servingLocal,omitempty"`
	// Reset reports whether open TCP connections to an endpoint that does not serve any more are ended.
	Reset bool `json:"reset,omitempty"`
	// HasEndpoints reports whether the Service port has a usable endpoint on any node. If policy Local lets this node
	// use none of them, traffic is dropped, not rejected.
	HasEndpoints bool `json:"hasEndpoints,omitempty"`

	// HealthCheckNodePort is the port on which the node reports whether it has endpoints of a Service with policy
	// Local, or 0. It must be reachable from outside.
	HealthCheckNodePort uint16 `json:"healthCheckNodePort,omitempty"`

	// ProxyProtocol reports whether the Service's endpoints expect a PROXY protocol version 2 header. Only a proxy can
	// send one.
	ProxyProtocol bool `json:"proxyProtocol,omitempty"`

	// Probe says what tells whether the endpoints work, or "". It is for people only, and must not influence Render.
	Probe string `json:"probe,omitempty"`

	// Answered reports whether weir itself answers at the ClusterIP. Its packets are delivered to this node as they are, with
	// neither translation nor connection tracking, and Endpoints only says where weir answers besides. Such a ServicePort
	// has no other address.
	Answered bool `json:"answered,omitempty"`

	// Scheduler is the IPVS scheduler that the Service asked for, or "".
	Scheduler string `json:"scheduler,omitempty"`
}

// Endpoint is an address that serves connections.
type Endpoint struct {
	Addr netip.AddrPort `json:"address"`
	// Cluster and Local report which policies may choose the endpoint now. Cluster takes readiness and topology into
	// account. Local requires that the endpoint is on this node.
	Cluster bool `json:"cluster,omitempty"`
	Local   bool `json:"local,omitempty"`
	// Remote reports whether the endpoint is known to be on another node. A Remote endpoint can never be the source of
	// traffic that starts here. An endpoint whose node is unknown is neither Local nor Remote.
	Remote bool `json:"remote,omitempty"`
	// Weight is the endpoint's share of connections: 1 unless the Service sets another, 0 for no new connections.
	Weight uint16 `json:"weight"`
}

// Equal reports whether both mean the same to a backend. Origin does not count, because it is for people only.
func (p *ServicePort) Equal(o *ServicePort) bool {
	return p.Key == o.Key && p.ClusterIP == o.ClusterIP && p.Port == o.Port && p.NodePort == o.NodePort &&
		slices.Equal(p.NodePortExcept, o.NodePortExcept) && slices.Equal(p.ExternalIPs, o.ExternalIPs) && slices.Equal(p.LoadBalancerIPs, o.LoadBalancerIPs) &&
		slices.Equal(p.SourceRanges, o.SourceRanges) && p.InternalLocal == o.InternalLocal && p.ExternalLocal == o.ExternalLocal &&
		p.Affinity == o.Affinity && slices.Equal(p.Endpoints, o.Endpoints) &&
		slices.Equal(p.Serving, o.Serving) && slices.Equal(p.ServingLocal, o.ServingLocal) && p.HasEndpoints == o.HasEndpoints &&
		p.HealthCheckNodePort == o.HealthCheckNodePort && p.Scheduler == o.Scheduler &&
		p.ProxyProtocol == o.ProxyProtocol && p.Reset == o.Reset && p.Probe == o.Probe && p.Answered == o.Answered
}

// InternalEndpoints returns the endpoints for traffic to the ClusterIP.
func (p *ServicePort) InternalEndpoints() []Endpoint { return p.choose(p.InternalLocal) }

// ExternalEndpoints returns the endpoints for traffic that comes from outside to any other address of the Service.
func (p *ServicePort) ExternalEndpoints() []Endpoint { return p.choose(p.ExternalLocal) }

// ClusterEndpoints returns the endpoints that policy Cluster may choose.
func (p *ServicePort) ClusterEndpoints() []Endpoint { return p.choose(false) }

// LocalEndpoints returns the endpoints that policy Local may choose.
func (p *ServicePort) LocalEndpoints() []Endpoint { return p.choose(true) }

func (p *ServicePort) choose(local bool) []Endpoint {
	chosen := make([]Endpoint, 0, len(p.Endpoints))
	for _, ep := range p.Endpoints {
		if local && ep.Local || !local && ep.Cluster {
			chosen = append(chosen, ep)
		}
	}
	return chosen
}

// ServesNodePortAt reports whether the ServicePort owns its node port at an address of the node.
func (p *ServicePort) ServesNodePortAt(a netip.Addr) bool {
	return p.NodePort != 0 && !slices.Contains(p.NodePortExcept, a)
}

// External reports whether the ServicePort has any address besides its ClusterIP.
func (p *ServicePort) External() bool {
	return p.NodePort != 0 || len(p.ExternalIPs) > 0 || len(p.LoadBalancerIPs) > 0
}

// Check returns an error if no backend can render the ServicePort, so that the kernel does not have to refuse it.
// Addresses must be plain ones of the port's family, and ports must not be 0.
func (p *ServicePort) Check() error {
	f := p.Key.Family
	wrong := func(a netip.Addr) bool {
		return !a.IsValid() || a.Is4In6() || a.Zone() != "" || FamilyOf(a) != f
	}
	switch {
	case p.Key.Protocol != TCP && p.Key.Protocol != UDP && p.Key.Protocol != SCTP:
		return fmt.Errorf("protocol %s is not supported: must be TCP, UDP or SCTP", p.Key.Protocol)
	case wrong(p.ClusterIP):
		return fmt.Errorf("clusterIP %q is not an %s address", p.ClusterIP, f)
	case p.Port == 0:
		return errors.New("port 0 cannot be served")
	}
	for _, list := range [][]netip.Addr{p.ExternalIPs, p.LoadBalancerIPs} {
		for _, a := range list {
			if wrong(a) {
				return fmt.Errorf("external address %q is not an %s address", a, f)
			}
		}
	}
	for _, r := range p.SourceRanges {
		if !r.IsValid() || wrong(r.Addr()) {
			return fmt.Errorf("source range %q is not an %s prefix", r, f)
		}
	}
	for _, ep := range p.Endpoints {
		if wrong(ep.Addr.Addr()) || ep.Addr.Port() == 0 {
			return fmt.Errorf("endpoint %q is not an %s address with a port", ep.Addr, f)
		}
	}
	return nil
}
