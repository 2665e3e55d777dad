package reconcile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/probe"
)

// Labels and annotations that change how a Service is resolved.
const (
	// LabelServiceProxyName hands a Service to another proxy, whatever its value.
	LabelServiceProxyName = spec.LabelServiceProxyName
	// AnnotationWeights gives endpoints a share other than 1: "10.0.0.1=3,10.0.0.2=0". Weights are 0 to 65535, and 0
	// means no new connections. Endpoints that are not named have weight 1.
	AnnotationWeights = "weir/weights"
	// AnnotationScheduler names the IPVS scheduler to use for the Service.
	AnnotationScheduler = "weir/ipvs-scheduler"
	// AnnotationProxyProtocol makes weir send a PROXY protocol header to the TCP endpoints. Its only value is "v2".
	AnnotationProxyProtocol = "weir/proxy-protocol"
	// AnnotationOnUnhealthy says what becomes of open TCP connections to an endpoint that does not serve any more. Its only value
	// is "reset"; without it they stay.
	AnnotationOnUnhealthy = "weir/on-unhealthy"
)

// Resolve computes the desired state of a Service on this node. It returns one ServicePort for each port and address
// family, sorted by key, and notices for the Service's author. It is pure, and does what kube-proxy does for a node
// (pkg/proxy in kubernetes/kubernetes).
func Resolve(svc *spec.Service, node *Node) ([]*dataplane.ServicePort, []spec.Notice) {
	r := resolver{svc: svc, node: node, notices: slices.Clone(svc.Notices)}
	if !r.proxied() {
		return nil, r.notices
	}
	r.weights = r.parseWeights()
	scheduler, proxyProtocol, reset := r.parseScheduler(), r.parseProxyProtocol(), r.parseOnUnhealthy()

	var servicePorts []*dataplane.ServicePort
	for _, family := range node.Families {
		clusterIP := r.clusterIP(family)
		if !clusterIP.IsValid() {
			continue
		}
		for i := range svc.Object.Spec.Ports {
			if e := r.entry(family, clusterIP, i, reset); e != nil {
				e.Scheduler = scheduler
				e.ProxyProtocol = proxyProtocol && e.Key.Protocol == dataplane.TCP
				servicePorts = append(servicePorts, e)
			}
		}
	}
	slices.SortFunc(servicePorts, func(a, b *dataplane.ServicePort) int { return a.Key.Compare(b.Key) })
	return slices.CompactFunc(servicePorts, func(a, b *dataplane.ServicePort) bool { return a.Key == b.Key }), r.notices
}

// namesPort is where a Service that weir answers for is asked for names.
const namesPort = 53

type resolver struct {
	svc     *spec.Service
	node    *Node
	weights map[netip.Addr]uint16
	notices []spec.Notice
}

func (r *resolver) notice(id spec.NoticeID, field, format string, args ...any) {
	n := id.Notice(r.svc.Origin, spec.ServiceObject(r.svc.Name), field, fmt.Sprintf(format, args...))
	if !slices.Contains(r.notices, n) { // several ports may look at the same endpoint
		r.notices = append(r.notices, n)
	}
}

// proxied reports whether a proxy has anything to do for the Service.
func (r *resolver) proxied() bool {
	o := r.svc.Object
	if _, ok := o.Labels[LabelServiceProxyName]; ok {
		r.notice(spec.OtherProxy, "metadata.labels", "not programmed: the label %s hands it to another proxy", LabelServiceProxyName)
		return false
	}
	if r.svc.Answered && len(r.svc.Slices) == 0 && !r.node.Answers { // this mode or kernel cannot leave it to weir
		return false
	}
	if o.Spec.Type != corev1.ServiceTypeExternalName && o.Spec.ClusterIP != corev1.ClusterIPNone {
		return true
	}
	if len(o.Spec.ExternalIPs) > 0 {
		r.notice(spec.SettingIgnored, "spec.externalIPs", "has no effect: a Service without a ClusterIP is not proxied; give it one, or remove them")
	}
	return false
}

// clusterIP returns the Service's ClusterIP of the family, or the zero Addr.
func (r *resolver) clusterIP(f dataplane.Family) netip.Addr {
	ips := r.svc.Object.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{r.svc.Object.Spec.ClusterIP}
	}
	for _, s := range ips {
		if a, ok := parseAddr(s); ok && dataplane.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// entry resolves the i-th port of the Service, or returns nil if it cannot be served.
func (r *resolver) entry(f dataplane.Family, clusterIP netip.Addr, i int, reset bool) *dataplane.ServicePort {
	s := &r.svc.Object.Spec
	port := &s.Ports[i]
	protocol, ok := parseProtocol(port.Protocol)
	if !ok {
		r.notice(spec.PortNotServed, fmt.Sprintf("spec.ports[%d].protocol", i), "%q is not served: it must be TCP, UDP or SCTP", port.Protocol)
		return nil
	}
	if port.Port < 1 || port.Port > 65535 {
		r.notice(spec.PortNotServed, fmt.Sprintf("spec.ports[%d].port", i), "%d is not served: it must be 1 to 65535", port.Port)
		return nil
	}
	e := &dataplane.ServicePort{
		Key: dataplane.ServicePortName{
			Service:  r.svc.Name,
			Port:     port.Name,
			Protocol: protocol,
			Family:   f,
		},
		Origin:          r.svc.Origin.String(),
		ClusterIP:       clusterIP,
		Port:            uint16(port.Port),
		ExternalIPs:     r.externalIPs(f),
		LoadBalancerIPs: r.loadBalancerIPs(f),
		SourceRanges:    rangesOf(f, s.LoadBalancerSourceRanges),
		InternalLocal:   s.InternalTrafficPolicy != nil && *s.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
		Affinity:        affinity(s),
	}
	if nodePortType(s.Type) && port.NodePort > 0 && port.NodePort <= 65535 {
		e.NodePort = uint16(port.NodePort)
	}
	if externallyAccessible(s) && s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		e.ExternalLocal = true
		if n := s.HealthCheckNodePort; s.Type == corev1.ServiceTypeLoadBalancer && n > 0 && n <= 65535 {
			e.HealthCheckNodePort = uint16(n)
		}
	}
	r.tellShadowed(e)
	candidates := r.candidates(f, port.Name, protocol)
	e.Endpoints, e.HasEndpoints = selectEndpoints(candidates, policies{
		// Even if both policies are Local, traffic of this node's own pods to an external address may go anywhere.
		cluster: !e.InternalLocal || e.External(),
		local:   e.InternalLocal || e.ExternalLocal && e.External(),
	}, r.node)
	e.Answered = r.svc.Answered && r.node.Answers && port.Port == namesPort && protocol != dataplane.SCTP
	e.Reset = reset && protocol == dataplane.TCP
	e.Probe = r.probe(port.Name)
	if protocol == dataplane.UDP || e.Reset {
		e.Serving = servingAddrs(candidates, false)
		if e.InternalLocal || e.ExternalLocal {
			e.ServingLocal = servingAddrs(candidates, true)
		}
	}
	if td := s.TrafficDistribution; td != nil && len(candidates) > 0 && !slices.ContainsFunc(candidates, candidate.hinted) {
		r.notice(spec.NoTopologyHints, "spec.trafficDistribution", "%s has no effect: no endpoint carries hints, which the EndpointSlice controller of a "+
			"control plane would have set; write endpoints[].hints.forZones or forNodes", *td)
	}
	return e
}

// externalIPs returns the external IPs of the family that the node allows, sorted and unique.
func (r *resolver) externalIPs(f dataplane.Family) []netip.Addr {
	return slices.DeleteFunc(addrsOf(f, slices.Values(r.svc.Object.Spec.ExternalIPs)), func(a netip.Addr) bool {
		refusal := r.node.External.Refusal(a)
		if refusal != "" {
			r.notice(spec.ExternalIPRefused, "spec.externalIPs", "%s is not served: it %s; allow it with externalAddresses in the WeirConfiguration, or remove it", a, refusal)
		}
		return refusal != ""
	})
}

// loadBalancerIPs returns the load balancer's addresses of the family, sorted and unique, without reserved ones.
func (r *resolver) loadBalancerIPs(f dataplane.Family) []netip.Addr {
	return slices.DeleteFunc(addrsOf(f, r.ingressIPs), func(a netip.Addr) bool {
		refused := r.node.External.reserved(a)
		if refused {
			r.notice(spec.ExternalIPRefused, "status.loadBalancer.ingress", "%s is not served: it %s; allow it with externalAddresses in the WeirConfiguration, or remove it", a, inReserved)
		}
		return refused
	})
}

// tellShadowed notices that an address of the ServicePort is one that the node has. An external IP of that kind is refused. A
// ClusterIP or a load balancer's address is served, because a load balancer may well have the nodes' addresses.
func (r *resolver) tellShadowed(e *dataplane.ServicePort) {
	tell := func(ro role, a netip.Addr) {
		if slices.Contains(r.node.External.Own, a) {
			r.notice(spec.SharedAddress, ro.field(), "%s is an address of this node too: the Service is reached there, and the node's own server on that port is not", frontendKey{a, e.Port, e.Key.Protocol})
		}
	}
	tell(roleClusterIP, e.ClusterIP)
	for _, a := range e.LoadBalancerIPs {
		if a != e.ClusterIP {
			tell(roleLoadBalancerIP, a)
		}
	}
}

// ingressIPs yields the load balancer's addresses that this node must serve. With ipMode Proxy the balancer sends
// traffic to another address of the node, and its own address must be left alone.
func (r *resolver) ingressIPs(yield func(string) bool) {
	if r.svc.Object.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	for _, in := range r.svc.Object.Status.LoadBalancer.Ingress {
		if in.IP == "" || in.IPMode != nil && *in.IPMode != corev1.LoadBalancerIPModeVIP {
			continue
		}
		if !yield(in.IP) {
			return
		}
	}
}

// parseWeights reads the annotation weir/weights. Each fault is a notice, and the rest of the value counts.
func (r *resolver) parseWeights() map[netip.Addr]uint16 {
	text, ok := r.svc.Object.Annotations[AnnotationWeights]
	if !ok {
		return nil
	}
	const field = "metadata.annotations[" + AnnotationWeights + "]"
	weights := map[netip.Addr]uint16{}
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		address, weight, _ := strings.Cut(part, "=")
		addr, ok := parseAddr(strings.TrimSpace(address))
		n, err := parseUint16(strings.TrimSpace(weight))
		switch {
		case !ok || err != nil:
			r.notice(spec.AnnotationIgnored, field, "%q is ignored: it must be address=weight, with a weight from 0 to 65535", part)
		case contains(weights, addr):
			r.notice(spec.AnnotationIgnored, field, "%q is ignored: %s has a weight already", part, addr)
		default:
			weights[addr] = n
		}
	}
	return weights
}

// parseScheduler reads the annotation weir/ipvs-scheduler. The kernel limits scheduler names to 15 letters.
func (r *resolver) parseScheduler() string {
	name := r.svc.Object.Annotations[AnnotationScheduler]
	valid := len(name) <= 15 && !strings.ContainsFunc(name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') })
	if !valid {
		r.notice(spec.AnnotationIgnored, "metadata.annotations["+AnnotationScheduler+"]", "%q is ignored: it must be the name of an IPVS scheduler, such as rr, wrr or sh", name)
		return ""
	}
	return name
}

// parseProxyProtocol reads the annotation weir/proxy-protocol.
func (r *resolver) parseProxyProtocol() bool {
	version, ok := r.svc.Object.Annotations[AnnotationProxyProtocol]
	if ok && version != "v2" {
		r.notice(spec.AnnotationIgnored, "metadata.annotations["+AnnotationProxyProtocol+"]", "%q is ignored: it must be v2", version)
	}
	return version == "v2"
}

// maxProbes is how many different probes of pods are told of a Service port.
const maxProbes = 3

// probe returns what tells whether the endpoints of the port of that name work, or "".
func (r *resolver) probe(port string) string {
	if r.svc.Probes.Empty() {
		return ""
	}
	var texts []string
	add := func(p *probe.Probe) {
		if text := p.String(); !slices.Contains(texts, text) {
			texts = append(texts, text)
		}
	}
	for _, p := range r.svc.Probes.Template {
		add(p)
	}
	var last *probe.Probe
	for _, of := range r.svc.Probes.Pods {
		for _, p := range of.Probes {
			if p != last && len(texts) < maxProbes { // the pods of one template have the same
				add(p)
			}
			last = p
		}
	}
	for _, of := range r.svc.Probes.Ports {
		if of.Port == port {
			add(of.Probe)
		}
	}
	if least := r.svc.Probes.MinHealthy; len(texts) > 0 && least != (probe.MinHealthy{}) {
		texts = append(texts, "min-healthy "+least.String())
	}
	return strings.Join(texts, "; ")
}

// parseOnUnhealthy reads the annotation weir/on-unhealthy.
func (r *resolver) parseOnUnhealthy() bool {
	what, ok := r.svc.Object.Annotations[AnnotationOnUnhealthy]
	if ok && what != "reset" {
		r.notice(spec.AnnotationIgnored, "metadata.annotations["+AnnotationOnUnhealthy+"]", "%q is ignored: it must be reset", what)
	}
	return what == "reset"
}

func nodePortType(t corev1.ServiceType) bool {
	return t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer
}

func externallyAccessible(s *corev1.ServiceSpec) bool {
	return nodePortType(s.Type) || len(s.ExternalIPs) > 0
}

// affinity returns how long a client stays with its endpoint. 0 means no session affinity.
func affinity(s *corev1.ServiceSpec) time.Duration {
	if s.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := s.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil && *c.ClientIP.TimeoutSeconds > 0 {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

func parseProtocol(p corev1.Protocol) (dataplane.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return dataplane.TCP, true
	case corev1.ProtocolUDP:
		return dataplane.UDP, true
	case corev1.ProtocolSCTP:
		return dataplane.SCTP, true
	}
	return 0, false
}

// addrsOf returns the addresses of the family, sorted, without duplicates.
func addrsOf(f dataplane.Family, texts func(func(string) bool)) []netip.Addr {
	var addrs []netip.Addr
	for text := range texts {
		if a, ok := parseAddr(text); ok && dataplane.FamilyOf(a) == f {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// rangesOf returns the prefixes of the family, masked, sorted, without duplicates. It returns none if one of them
// admits every address.
func rangesOf(f dataplane.Family, texts []string) []netip.Prefix {
	var ranges []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(strings.TrimSpace(text)) // the API accepts blanks around a range
		if err != nil || dataplane.FamilyOf(p.Addr()) != f {
			continue
		}
		if p.Bits() == 0 {
			return nil
		}
		ranges = append(ranges, p.Masked())
	}
	slices.SortFunc(ranges, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(ranges)
}
