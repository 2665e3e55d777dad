package dataplane

import (
	"net/netip"
	"time"
)

// Frontend is an address and port of a Service, and what happens to connections to it.
type Frontend struct {
	Family   Family
	Protocol Protocol
	// Addr is zero for a node port.
	Addr netip.Addr
	Port uint16
	// Service is "namespace/name" or "namespace/name:port" if it is known, or "".
	Service string

	// Endpoints serve all clients for which FromNode has none. FromNode serves traffic of this node and its pods, if
	// they are treated differently.
	Endpoints, FromNode []EndpointShare
	Affinity            time.Duration
	// Sources lists the prefixes or ranges that may connect; none means every client.
	Sources []string
	// Refusal is "reject" or "drop" if connections are not served.
	Refusal string
}

// EndpointShare is the fraction of the connections, from 0 to 1, that an endpoint gets.
type EndpointShare struct {
	Addr     netip.AddrPort
	Fraction float64
}

// Frontends returns the addresses that clients of a ServicePort use. The one of a node port has no Addr. Only Family,
// Protocol, Addr and Port are set.
func (p *ServicePort) Frontends() []Frontend {
	front := Frontend{Family: p.Key.Family, Protocol: p.Key.Protocol, Addr: p.ClusterIP, Port: p.Port}
	all := []Frontend{front}
	for _, a := range p.ExternalIPs {
		front.Addr = a
		all = append(all, front)
	}
	for _, a := range p.LoadBalancerIPs {
		front.Addr = a
		all = append(all, front)
	}
	if p.NodePort != 0 {
		all = append(all, Frontend{Family: p.Key.Family, Protocol: p.Key.Protocol, Port: p.NodePort})
	}
	return all
}
