package reconcile

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// Names returns what the zone says of a Service. Not ready endpoints are left out; of a Service with
// publishNotReadyAddresses, the author of the slices calls all of them ready.
//
// Source: the Kubernetes DNS specification 1.1.0, and plugin/kubernetes of CoreDNS 1.15 for what it leaves open.
func Names(svc *spec.Service) *dataplane.Names {
	sp := &svc.Object.Spec
	n := &dataplane.Names{Service: svc.Name}
	if sp.Type == corev1.ServiceTypeExternalName {
		n.ExternalName = sp.ExternalName
		return n
	}
	for _, ip := range sp.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil { // "None" is not an address
			n.ClusterIPs = append(n.ClusterIPs, a)
		}
	}
	for _, p := range sp.Ports {
		n.Ports = append(n.Ports, dataplane.NamedPort{Name: p.Name, Protocol: protocolOf(p.Protocol), Port: uint16(p.Port)})
	}
	if len(n.Ports) == 0 {
		n.Ports = noPorts
	}
	for _, slice := range svc.Slices {
		n.Endpoints = appendEndpoints(n.Endpoints, slice)
	}
	return n
}

// noPorts stands for the ports of a slice or headless Service without any.
var noPorts = []dataplane.NamedPort{{}}

func appendEndpoints(out []dataplane.NamedEndpoint, slice *discoveryv1.EndpointSlice) []dataplane.NamedEndpoint {
	if slice.AddressType == discoveryv1.AddressTypeFQDN {
		return out
	}
	ports := noPorts
	if len(slice.Ports) > 0 {
		ports = make([]dataplane.NamedPort, len(slice.Ports))
	}
	for i, p := range slice.Ports {
		if p.Port == nil {
			continue // all ports of the endpoint
		}
		ports[i] = dataplane.NamedPort{Protocol: dataplane.TCP, Port: uint16(*p.Port)}
		if p.Name != nil {
			ports[i].Name = *p.Name
		}
		if p.Protocol != nil {
			ports[i].Protocol = protocolOf(*p.Protocol)
		}
	}
	for i := range slice.Endpoints {
		e := &slice.Endpoints[i]
		if ready := e.Conditions.Ready; ready != nil && !*ready {
			continue
		}
		for _, text := range e.Addresses {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			host := dashed(addr)
			if e.Hostname != nil && *e.Hostname != "" {
				host = *e.Hostname
			}
			out = append(out, dataplane.NamedEndpoint{Host: host, Addr: addr, Ports: ports})
		}
	}
	return out
}

// LeftOut returns the endpoints of a Service that have no name, with the reasons.
func LeftOut(svc *spec.Service) (out []string) {
	for _, slice := range svc.Slices {
		for i := range slice.Endpoints {
			e := &slice.Endpoints[i]
			text := strings.Join(e.Addresses, ", ")
			if e.Hostname != nil && *e.Hostname != "" {
				text += " (" + *e.Hostname + ")"
			}
			switch ready := e.Conditions.Ready; {
			case slice.AddressType == discoveryv1.AddressTypeFQDN:
				out = append(out, text+": a name is not an address")
			case ready != nil && !*ready:
				out = append(out, text+": not ready")
			}
		}
	}
	return out
}

// dashed returns the label of an endpoint without a hostname, which is CoreDNS's.
func dashed(a netip.Addr) string {
	s := strings.NewReplacer(".", "-", ":", "-").Replace(a.String())
	if strings.HasSuffix(s, "-") {
		s += "0"
	}
	return s
}

func protocolOf(p corev1.Protocol) dataplane.Protocol {
	protocol, _ := parseProtocol(p)
	return cmp.Or(protocol, dataplane.TCP)
}

// AddressesOf returns every address that names lead to, each once, ClusterIPs first.
func AddressesOf(n *dataplane.Names) []netip.Addr {
	all := slices.Clone(n.ClusterIPs)
	for _, e := range n.Endpoints {
		all = append(all, e.Addr)
	}
	rest := all[len(n.ClusterIPs):]
	slices.SortFunc(rest, netip.Addr.Compare)
	return slices.Compact(all)
}
