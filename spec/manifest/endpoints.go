// Endpoints are deprecated, and what many people have.
//
//lint:file-ignore SA1019 see above

package manifest

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/document"
)

// The API server's limits.
const (
	maxEndpoints     = 1000
	maxAddresses     = 100
	maxEndpointPorts = 20_000
	maxHints         = 8
)

// slice takes an EndpointSlice.
func (d *decoding) slice(at *document.Document) {
	var s discoveryv1.EndpointSlice
	shape := at.Decode(&s)
	v := &validator{namespace: d.namespace}
	v.meta(&s.ObjectMeta, true, utilvalidation.IsDNS1123Subdomain)
	if name, ok := s.Labels[discoveryv1.LabelServiceName]; !ok {
		v.notice(spec.UnusedEndpoints, "is missing, so that the slice belongs to no Service", "metadata.labels[%s]", discoveryv1.LabelServiceName)
	} else {
		v.addAll(utilvalidation.IsDNS1123Label(name), name, "metadata.labels[%s]", discoveryv1.LabelServiceName)
	}
	v.slice(&s)
	id := objectID{kindSlice, dataplane.ServiceName{Namespace: d.intern.string(s.Namespace), Name: s.Name}}
	if d.accept(id, at, shape, v) {
		service := d.intern.string(s.Labels[discoveryv1.LabelServiceName])
		d.out.objects = append(d.out.objects, &object{id: id, line: at.Start(), slice: d.trimSlice(&s), sliceOf: service})
	}
}

func (v *validator) slice(s *discoveryv1.EndpointSlice) {
	switch s.AddressType {
	case "":
		v.add("is missing: IPv4 or IPv6", "addressType")
	case discoveryv1.AddressTypeFQDN:
		v.notice(spec.EndpointsSkipped, "is FQDN; endpoints that are names are not programmed", "addressType")
	default:
		v.oneOf(string(s.AddressType), []string{"IPv4", "IPv6", "FQDN"}, "addressType")
	}
	if len(s.Endpoints) > maxEndpoints {
		v.add(fmt.Sprintf("has %d endpoints, more than %d; spread them over several slices", len(s.Endpoints), maxEndpoints), "endpoints")
		return
	}
	for i := range s.Endpoints {
		v.endpoint(&s.Endpoints[i], s.AddressType, i)
	}
	if len(s.Ports) > maxEndpointPorts {
		v.add(fmt.Sprintf("has %d ports, more than %d", len(s.Ports), maxEndpointPorts), "ports")
		return
	}
	seen := map[string]int{}
	for i, p := range s.Ports {
		name := ""
		if p.Name != nil {
			name = *p.Name
		}
		v.portName(name, seen, "ports[%d].name", i)
		v.appProtocol(p.AppProtocol, "ports[%d].appProtocol", i)
		if p.Protocol != nil {
			v.protocol(*p.Protocol, "ports[%d].protocol", i)
		}
		if p.Port != nil {
			v.port(*p.Port, "ports[%d].port", i)
		}
	}
}

// portName validates the name of one endpoint port. Service ports find endpoint ports by it.
func (v *validator) portName(name string, seen map[string]int, path string, args ...any) {
	if name != "" {
		v.addAll(utilvalidation.IsDNS1123Label(name), name, path, args...)
	}
	if first, ok := seen[name]; ok {
		v.add(fmt.Sprintf("%s is also the name of the port at index %d", document.Quote(name), first), path, args...)
	}
	seen[name] = len(seen)
}

// appProtocol validates a field that a proxy does not use.
func (v *validator) appProtocol(name *string, path string, args ...any) {
	if name != nil {
		v.addAll(utilvalidation.IsQualifiedName(*name), *name, path, args...)
	}
}

func (v *validator) endpoint(e *discoveryv1.Endpoint, family discoveryv1.AddressType, i int) {
	v.sliceAddresses(e, family, i)
	if e.Hostname != nil {
		v.addAll(utilvalidation.IsDNS1123Label(*e.Hostname), *e.Hostname, "endpoints[%d].hostname", i)
	}
	if e.NodeName != nil {
		v.addAll(apivalidation.NameIsDNSSubdomain(*e.NodeName, false), *e.NodeName, "endpoints[%d].nodeName", i)
	}
	if e.Zone != nil {
		v.addAll(utilvalidation.IsValidLabelValue(*e.Zone), *e.Zone, "endpoints[%d].zone", i)
	}
	if e.Hints != nil {
		v.hints(e.Hints, i)
	}
}

func (v *validator) sliceAddresses(e *discoveryv1.Endpoint, family discoveryv1.AddressType, i int) {
	switch n := len(e.Addresses); {
	case n == 0:
		v.add("is missing: an endpoint needs an address", "endpoints[%d].addresses", i)
	case n > maxAddresses:
		v.add(fmt.Sprintf("has %d addresses, more than %d", n, maxAddresses), "endpoints[%d].addresses", i)
		return
	case n > 1 && family != discoveryv1.AddressTypeFQDN:
		v.notice(spec.EndpointsSkipped, "has several addresses, of which only the first is used; give each an endpoint of its own", "endpoints[%d].addresses", i)
	}
	for j, s := range e.Addresses {
		if family == discoveryv1.AddressTypeFQDN {
			v.addAll(utilvalidation.IsDNS1123Subdomain(s), s, "endpoints[%d].addresses[%d]", i, j)
			continue
		}
		a, ok := v.plainAddress(s, "endpoints[%d].addresses[%d]", i, j)
		if known := family == discoveryv1.AddressTypeIPv4 || family == discoveryv1.AddressTypeIPv6; ok && known && string(familyOf(a)) != string(family) {
			v.add(fmt.Sprintf("%s is an %s address in a slice of addressType %s", a, familyOf(a), family), "endpoints[%d].addresses[%d]", i, j)
		}
	}
}

func (v *validator) hints(h *discoveryv1.EndpointHints, i int) {
	if len(h.ForZones) > maxHints {
		v.add(fmt.Sprintf("has %d zones, more than %d", len(h.ForZones), maxHints), "endpoints[%d].hints.forZones", i)
	}
	if len(h.ForNodes) > maxHints {
		v.add(fmt.Sprintf("has %d nodes, more than %d", len(h.ForNodes), maxHints), "endpoints[%d].hints.forNodes", i)
	}
	zones := map[string]bool{}
	for j, z := range h.ForZones {
		switch {
		case z.Name == "":
			v.add("is missing", "endpoints[%d].hints.forZones[%d].name", i, j)
		case zones[z.Name]:
			v.add(document.Quote(z.Name)+" is given twice", "endpoints[%d].hints.forZones[%d].name", i, j)
		default:
			v.addAll(utilvalidation.IsValidLabelValue(z.Name), z.Name, "endpoints[%d].hints.forZones[%d].name", i, j)
		}
		zones[z.Name] = true
	}
	nodes := map[string]bool{}
	for j, n := range h.ForNodes {
		if nodes[n.Name] {
			v.add(document.Quote(n.Name)+" is given twice", "endpoints[%d].hints.forNodes[%d].name", i, j)
		} else {
			v.addAll(apivalidation.NameIsDNSSubdomain(n.Name, false), n.Name, "endpoints[%d].hints.forNodes[%d].name", i, j)
		}
		nodes[n.Name] = true
	}
}

// trimSlice returns a slice with only the fields that resolving needs.
func (d *decoding) trimSlice(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice {
	out := &discoveryv1.EndpointSlice{
		ObjectMeta:  d.intern.trimMeta(&s.ObjectMeta),
		AddressType: discoveryv1.AddressType(d.intern.string(string(s.AddressType))),
		Endpoints:   slices.Clone(s.Endpoints), // Clone releases the spare capacity that decoding left
		Ports:       slices.Clone(s.Ports),
	}
	out.Labels = withMaker(out.Labels, spec.OfControlPlane(s))
	for i := range out.Endpoints {
		e := &out.Endpoints[i]
		e.Addresses = slices.Clone(e.Addresses)
		e.Conditions = discoveryv1.EndpointConditions{
			Ready: sharedBool(e.Conditions.Ready), Serving: sharedBool(e.Conditions.Serving), Terminating: sharedBool(e.Conditions.Terminating),
		}
		e.Hostname, e.TargetRef, e.DeprecatedTopology = d.intern.pointer(e.Hostname), nil, nil
		e.NodeName, e.Zone = d.intern.pointer(e.NodeName), d.intern.pointer(e.Zone)
		if e.Hints != nil {
			for j := range e.Hints.ForZones {
				e.Hints.ForZones[j].Name = d.intern.string(e.Hints.ForZones[j].Name)
			}
		}
	}
	for i := range out.Ports {
		p := &out.Ports[i]
		if p.Name == nil {
			p.Name = new(string)
		}
		p.Name, p.Protocol, p.AppProtocol = d.intern.pointer(p.Name), sharedProtocol(p.Protocol), nil
	}
	return out
}

// endpoints takes an Endpoints object.
func (d *decoding) endpoints(at *document.Document) {
	var e corev1.Endpoints
	shape := at.Decode(&e)
	v := &validator{namespace: d.namespace}
	v.meta(&e.ObjectMeta, true, utilvalidation.IsDNS1123Subdomain)
	for i := range e.Subsets {
		v.subset(&e.Subsets[i], i)
	}
	v.notice(spec.Deprecated, "is deprecated since Kubernetes 1.33 (KEP-4974): an EndpointSlice says the same", "kind")
	id := objectID{kindEndpoints, dataplane.ServiceName{Namespace: d.intern.string(e.Namespace), Name: e.Name}}
	if d.accept(id, at, shape, v) {
		out := &corev1.Endpoints{ObjectMeta: d.intern.trimMeta(&e.ObjectMeta), Subsets: e.Subsets}
		_, triggered := e.Annotations[corev1.EndpointsLastChangeTriggerTime]
		out.Labels = withMaker(out.Labels, triggered || e.Labels["endpoints.kubernetes.io/managed-by"] == "endpoint-controller")
		d.out.objects = append(d.out.objects, &object{id: id, line: at.Start(), endpoints: out})
	}
}

func (v *validator) subset(s *corev1.EndpointSubset, i int) {
	if len(s.Addresses)+len(s.NotReadyAddresses) == 0 {
		v.add("must have addresses or notReadyAddresses", "subsets[%d]", i)
	}
	v.endpointAddresses(s.Addresses, "addresses", i)
	v.endpointAddresses(s.NotReadyAddresses, "notReadyAddresses", i)
	seen := map[string]int{}
	for j := range s.Ports {
		p := &s.Ports[j]
		if p.Name == "" && len(s.Ports) > 1 {
			v.add("is missing: several ports need a name each", "subsets[%d].ports[%d].name", i, j)
		} else {
			v.portName(p.Name, seen, "subsets[%d].ports[%d].name", i, j)
			v.appProtocol(p.AppProtocol, "subsets[%d].ports[%d].appProtocol", i, j)
		}
		if p.Protocol == "" {
			p.Protocol = tcp
		}
		v.protocol(p.Protocol, "subsets[%d].ports[%d].protocol", i, j)
		v.port(p.Port, "subsets[%d].ports[%d].port", i, j)
	}
}

func (v *validator) endpointAddresses(addresses []corev1.EndpointAddress, list string, i int) {
	for j, a := range addresses {
		v.plainAddress(a.IP, "subsets[%d].%s[%d].ip", i, list, j)
		if a.Hostname != "" {
			v.addAll(utilvalidation.IsDNS1123Label(a.Hostname), a.Hostname, "subsets[%d].%s[%d].hostname", i, list, j)
		}
		if a.NodeName != nil {
			v.addAll(apivalidation.NameIsDNSSubdomain(*a.NodeName, false), *a.NodeName, "subsets[%d].%s[%d].nodeName", i, list, j)
		}
	}
}

// toSlices converts Endpoints as the API server's mirroring does: one slice for each subset and family.
func (in *interner) toSlices(e *corev1.Endpoints) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for i := range e.Subsets {
		subset := &e.Subsets[i]
		ports := make([]discoveryv1.EndpointPort, len(subset.Ports))
		for j := range subset.Ports {
			p := &subset.Ports[j]
			ports[j] = discoveryv1.EndpointPort{Name: in.pointer(&p.Name), Protocol: sharedProtocol(&p.Protocol), Port: &p.Port}
		}
		for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
			endpoints := in.toEndpoints(nil, subset.Addresses, family, true)
			endpoints = in.toEndpoints(endpoints, subset.NotReadyAddresses, family, false)
			if len(endpoints) == 0 {
				continue
			}
			out = append(out, &discoveryv1.EndpointSlice{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: e.Namespace, Name: fmt.Sprintf("%s-%04d-%s", e.Name, i, map[bool]string{true: "ipv4", false: "ipv6"}[family == discoveryv1.AddressTypeIPv4]),
					Annotations: e.Annotations, Labels: withMaker(nil, e.Labels[discoveryv1.LabelManagedBy] != ""),
				},
				AddressType: family, Endpoints: endpoints, Ports: ports,
			})
		}
	}
	return out
}

func (in *interner) toEndpoints(out []discoveryv1.Endpoint, addresses []corev1.EndpointAddress, family discoveryv1.AddressType, ready bool) []discoveryv1.Endpoint {
	for _, a := range addresses {
		addr, err := netip.ParseAddr(a.IP)
		if err != nil || string(familyOf(addr)) != string(family) {
			continue
		}
		out = append(out, discoveryv1.Endpoint{
			Addresses: []string{a.IP}, Conditions: discoveryv1.EndpointConditions{Ready: sharedBool(&ready)}, NodeName: in.pointer(a.NodeName),
		})
		if a.Hostname != "" {
			out[len(out)-1].Hostname = in.pointer(&a.Hostname)
		}
	}
	return out
}

// node takes a Node.
func (d *decoding) node(at *document.Document) {
	var n corev1.Node
	shape := at.Decode(&n)
	v := &validator{namespace: d.namespace}
	v.meta(&n.ObjectMeta, false, utilvalidation.IsDNS1123Subdomain)
	v.nodeSpec(&n)
	id := objectID{kindNode, dataplane.ServiceName{Name: n.Name}}
	if !d.accept(id, at, shape, v) {
		return
	}
	out := &corev1.Node{ObjectMeta: d.intern.trimMeta(&n.ObjectMeta)}
	out.Spec.PodCIDR, out.Spec.PodCIDRs = n.Spec.PodCIDR, n.Spec.PodCIDRs
	out.Status.Addresses = n.Status.Addresses
	d.out.objects = append(d.out.objects, &object{id: id, line: at.Start(), node: out})
}

func (v *validator) nodeSpec(n *corev1.Node) {
	s := &n.Spec
	switch {
	case len(s.PodCIDRs) == 0 && s.PodCIDR != "":
		s.PodCIDRs = []string{s.PodCIDR}
	case len(s.PodCIDRs) > 0 && s.PodCIDR == "":
		s.PodCIDR = s.PodCIDRs[0]
	case len(s.PodCIDRs) > 0 && s.PodCIDRs[0] != s.PodCIDR:
		v.add(fmt.Sprintf("%s must be the same as spec.podCIDR, which is %s", document.Quote(s.PodCIDRs[0]), document.Quote(s.PodCIDR)), "spec.podCIDRs[0]")
	}
	if len(s.PodCIDRs) > 2 {
		v.add("has more than two CIDRs; at most one of each family is possible", "spec.podCIDRs")
	}
	families := map[bool]bool{}
	for i, cidr := range s.PodCIDRs {
		v.prefix(cidr, "spec.podCIDRs[%d]", i)
		if p, err := netip.ParsePrefix(cidr); err == nil {
			if families[p.Addr().Is4()] {
				v.add(document.Quote(cidr)+" is the second of its family", "spec.podCIDRs[%d]", i)
			}
			families[p.Addr().Is4()] = true
		}
	}
	for i, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP || a.Type == corev1.NodeExternalIP {
			v.address(a.Address, "status.addresses[%d].address", i)
		}
	}
}
