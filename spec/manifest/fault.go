package manifest

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// ServiceFault returns why a Service of an API server cannot be used, or "". It checks addresses and their number
// alone, as in files: an API server has validated the rest, perhaps by newer rules than those known here.
func ServiceFault(svc *corev1.Service) string {
	v := &validator{}
	if s := &svc.Spec; s.Type != corev1.ServiceTypeExternalName && !headless(s) {
		v.clusterIPs(s)
	}
	for i, ip := range svc.Spec.ExternalIPs {
		v.plainAddress(ip, "spec.externalIPs[%d]", i)
	}
	for i, in := range svc.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			v.plainAddress(in.IP, "status.loadBalancer.ingress[%d].ip", i)
		}
	}
	v.frontends(svc)
	return v.first()
}

// SliceFault returns why an EndpointSlice of an API server cannot be used, or "". See ServiceFault.
func SliceFault(s *discoveryv1.EndpointSlice) string {
	v := &validator{}
	switch {
	case len(s.Endpoints) > maxEndpoints:
		v.add(fmt.Sprintf("has %d endpoints, more than %d", len(s.Endpoints), maxEndpoints), "endpoints")
	case len(s.Ports) > maxEndpointPorts:
		v.add(fmt.Sprintf("has %d ports, more than %d", len(s.Ports), maxEndpointPorts), "ports")
	case s.AddressType != discoveryv1.AddressTypeFQDN: // names are not programmed
		for i := range s.Endpoints {
			if len(s.Endpoints[i].Addresses) > 0 {
				v.sliceAddresses(&s.Endpoints[i], s.AddressType, i)
			}
		}
	}
	return v.first()
}

// first returns the first problem and how many there are, or "".
func (v *validator) first() string {
	switch n := len(v.problems); n {
	case 0:
		return ""
	case 1:
		return v.problems[0].field + ": " + v.problems[0].detail
	default:
		return fmt.Sprintf("%s: %s; and %d more problems", v.problems[0].field, v.problems[0].detail, n-1)
	}
}
