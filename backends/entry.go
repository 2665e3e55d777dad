package backends

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
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

// PortKey identifies one port of one Service in one address family.
type PortKey struct {
	Service  ServiceName
	Port     string // the port's name, "" if it has none
	Protocol Protocol
	Family   Family
}

// String returns "namespace/name:port/TCP/IPv4", without ":port" for a port that has no name.
func (k PortKey) String() string {
	s := k.Service.String()
	if k.Port != "" {
		s += ":" + k.Port
	}
	return s + "/" + k.Protocol.String() + "/" + k.Family.String()
}

// Compare orders by Service, port, protocol and family.
func (k PortKey) Compare(o PortKey) int {
	return cmp.Or(k.Service.Compare(o.Service), cmp.Compare(k.Port, o.Port), cmp.Compare(k.Protocol, o.Protocol), cmp.Compare(k.Family, o.Family))
}

// Entry is everything that a backend needs to know of one Service port in one address family on this node. It is made by
// reconcile.Resolve and is immutable. All addresses are of the Entry's family.
type Entry struct {
	Key PortKey
	// Origin says where the Service was written ("services/web.yaml:14"), for people only: it must not influence what is
	// rendered.
	Origin string

	ClusterIP netip.Addr
	Port      uint16
	// NodePort is 0 if the Service has none.
	NodePort uint16
	// ExternalIPs and LoadBalancerIPs are sorted and unique. LoadBalancerIPs holds only those with ipMode VIP.
	ExternalIPs     []netip.Addr
	LoadBalancerIPs []netip.Addr
	// SourceRanges limits who may use the LoadBalancerIPs; empty means everybody. Sorted, unique, masked.
	SourceRanges []netip.Prefix

	// InternalLocal and ExternalLocal say that the traffic policy for traffic to the ClusterIP, and to all other
	// addresses, is Local.
	InternalLocal bool
	ExternalLocal bool

	// Affinity is how long a client stays with the endpoint it was given; 0 means that there is no session affinity.
	Affinity time.Duration

	// Endpoints holds every endpoint that any policy may choose, sorted by address and unique.
	Endpoints []Endpoint
	// Serving holds every endpoint that may keep the flows it has: it is ready, or terminating and still serving, whatever
	// policies and topology choose for new flows. Sorted and unique. It matters to connection tracking, so only UDP has it;
	// Endpoints count as serving in any case.
	Serving []netip.AddrPort
	// HasEndpoints says that the Service port has at least one usable endpoint somewhere, though this node may be allowed
	// to use none of them (policy Local): traffic is then dropped, not rejected.
	HasEndpoints bool

	// HealthCheckNodePort is the port on which the node says whether it has endpoints of a Service with policy Local, or
	// 0. It must be reachable from outside.
	HealthCheckNodePort uint16

	// ProxyProtocol says that the Service's endpoints expect a PROXY protocol version 2 header. Only a proxy can send one.
	ProxyProtocol bool

	// Scheduler is the IPVS scheduler the Service asked for, or "".
	Scheduler string
}

// Endpoint is a place to send traffic to.
type Endpoint struct {
	Addr netip.AddrPort
	// Cluster and Local say which policies may choose the endpoint now: Cluster after readiness and topology were taken
	// into account; Local if it is on this node.
	Cluster, Local bool
	// Remote says that the endpoint is known to be on another node, so that it can never be the source of traffic that
	// starts here. An endpoint of which the node is not known is neither Local nor Remote.
	Remote bool
	// Weight is the endpoint's share, 1 unless the Service says otherwise, 0 for no new connections.
	Weight uint16
}

// InternalEndpoints returns the endpoints for traffic to the ClusterIP.
func (e *Entry) InternalEndpoints() []Endpoint { return e.choose(e.InternalLocal) }

// ExternalEndpoints returns the endpoints for traffic that comes from outside to any other address of the Service.
func (e *Entry) ExternalEndpoints() []Endpoint { return e.choose(e.ExternalLocal) }

// ClusterEndpoints returns the endpoints that policy Cluster may choose.
func (e *Entry) ClusterEndpoints() []Endpoint { return e.choose(false) }

// LocalEndpoints returns the endpoints that policy Local may choose.
func (e *Entry) LocalEndpoints() []Endpoint { return e.choose(true) }

func (e *Entry) choose(local bool) []Endpoint {
	chosen := make([]Endpoint, 0, len(e.Endpoints))
	for _, ep := range e.Endpoints {
		if local && ep.Local || !local && ep.Cluster {
			chosen = append(chosen, ep)
		}
	}
	return chosen
}

// External says whether the Entry has any address besides its ClusterIP.
func (e *Entry) External() bool {
	return e.NodePort != 0 || len(e.ExternalIPs) > 0 || len(e.LoadBalancerIPs) > 0
}

// Check says why the Entry cannot be rendered by any backend, so that it is not the kernel that refuses it: addresses have
// to be plain ones of its family, ports not 0.
func (e *Entry) Check() error {
	f := e.Key.Family
	wrong := func(a netip.Addr) bool {
		return !a.IsValid() || a.Is4In6() || a.Zone() != "" || FamilyOf(a) != f
	}
	switch {
	case e.Key.Protocol != TCP && e.Key.Protocol != UDP && e.Key.Protocol != SCTP:
		return fmt.Errorf("protocol %s cannot be balanced", e.Key.Protocol)
	case wrong(e.ClusterIP):
		return fmt.Errorf("clusterIP %q is not an %s address", e.ClusterIP, f)
	case e.Port == 0:
		return errors.New("port 0 cannot be served")
	}
	for _, list := range [][]netip.Addr{e.ExternalIPs, e.LoadBalancerIPs} {
		for _, a := range list {
			if wrong(a) {
				return fmt.Errorf("external address %q is not an %s address", a, f)
			}
		}
	}
	for _, p := range e.SourceRanges {
		if !p.IsValid() || wrong(p.Addr()) {
			return fmt.Errorf("source range %q is not an %s prefix", p, f)
		}
	}
	for _, ep := range e.Endpoints {
		if wrong(ep.Addr.Addr()) || ep.Addr.Port() == 0 {
			return fmt.Errorf("endpoint %q is not an %s address with a port", ep.Addr, f)
		}
	}
	return nil
}
