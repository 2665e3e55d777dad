package reconcile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weir/backends"
	"weir/spec"
)

// Labels and annotations that change how a Service is resolved.
const (
	// LabelServiceProxyName hands a Service to another proxy, whatever its value.
	LabelServiceProxyName = "service.kubernetes.io/service-proxy-name"
	// AnnotationWeights gives endpoints a share other than 1: "10.0.0.1=3,10.0.0.2=0". Weights are 0 to 65535, and 0 means
	// no new connections. Endpoints that are not named keep 1.
	AnnotationWeights = "weir/weights"
	// AnnotationScheduler names the IPVS scheduler to use for the Service.
	AnnotationScheduler = "weir/ipvs-scheduler"
	// AnnotationProxyProtocol says that the TCP endpoints expect a PROXY protocol header. Its only value is "v2".
	AnnotationProxyProtocol = "weir/proxy-protocol"
)

// Resolve works out what this node should do for a Service: one Entry for each port and address family, sorted by key,
// and notices for whoever wrote it. It is pure, and does what kube-proxy does for a node (pkg/proxy in
// kubernetes/kubernetes), from what was written alone.
func Resolve(svc *spec.Service, node *Node) ([]*backends.Entry, []spec.Problem) {
	r := resolver{svc: svc, node: node, notices: slices.Clone(svc.Notices)}
	if !r.proxied() {
		return nil, r.notices
	}
	r.weights = r.parseWeights()
	scheduler, proxyProtocol := r.parseScheduler(), r.parseProxyProtocol()

	var entries []*backends.Entry
	for _, family := range node.Families {
		clusterIP := r.clusterIP(family)
		if !clusterIP.IsValid() {
			continue
		}
		for i := range svc.Object.Spec.Ports {
			if e := r.entry(family, clusterIP, i); e != nil {
				e.Scheduler = scheduler
				e.ProxyProtocol = proxyProtocol && e.Key.Protocol == backends.TCP
				entries = append(entries, e)
			}
		}
	}
	slices.SortFunc(entries, func(a, b *backends.Entry) int { return a.Key.Compare(b.Key) })
	return slices.CompactFunc(entries, func(a, b *backends.Entry) bool { return a.Key == b.Key }), r.notices
}

type resolver struct {
	svc     *spec.Service
	node    *Node
	weights map[netip.Addr]uint16
	notices []spec.Problem
}

func (r *resolver) notice(field, format string, args ...any) {
	n := spec.Problem{
		Origin: r.svc.Origin,
		Object: "Service " + r.svc.Name.String(),
		Field:  field,
		Detail: fmt.Sprintf(format, args...),
	}
	if !slices.Contains(r.notices, n) { // an endpoint may be looked at once for each port
		r.notices = append(r.notices, n)
	}
}

// proxied says whether a proxy has anything to do for the Service.
func (r *resolver) proxied() bool {
	o := r.svc.Object
	if _, ok := o.Labels[LabelServiceProxyName]; ok {
		r.notice("metadata.labels", "not programmed: the label %s hands it to another proxy", LabelServiceProxyName)
		return false
	}
	return o.Spec.Type != corev1.ServiceTypeExternalName && o.Spec.ClusterIP != corev1.ClusterIPNone
}

// clusterIP returns the Service's ClusterIP of the family, or the zero Addr.
func (r *resolver) clusterIP(f backends.Family) netip.Addr {
	ips := r.svc.Object.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{r.svc.Object.Spec.ClusterIP}
	}
	for _, s := range ips {
		if a, ok := parseAddr(s); ok && backends.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// entry resolves the i-th port of the Service, or returns nil if it cannot be served.
func (r *resolver) entry(f backends.Family, clusterIP netip.Addr, i int) *backends.Entry {
	s := &r.svc.Object.Spec
	port := &s.Ports[i]
	protocol, ok := parseProtocol(port.Protocol)
	if !ok {
		r.notice(fmt.Sprintf("spec.ports[%d].protocol", i), "%q is not served: it must be TCP, UDP or SCTP", port.Protocol)
		return nil
	}
	if port.Port < 1 || port.Port > 65535 {
		r.notice(fmt.Sprintf("spec.ports[%d].port", i), "%d is not served: it must be 1 to 65535", port.Port)
		return nil
	}
	e := &backends.Entry{
		Key: backends.PortKey{
			Service:  backends.ServiceName(r.svc.Name),
			Port:     port.Name,
			Protocol: protocol,
			Family:   f,
		},
		Origin:          r.svc.Origin.String(),
		ClusterIP:       clusterIP,
		Port:            uint16(port.Port),
		ExternalIPs:     addrsOf(f, slices.Values(s.ExternalIPs)),
		LoadBalancerIPs: addrsOf(f, r.ingressIPs),
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
	candidates := r.candidates(f, port.Name, protocol)
	e.Endpoints, e.HasEndpoints = selectEndpoints(candidates, policies{
		// Even if both policies are Local, traffic of this node's own pods to an external address may go anywhere.
		cluster: !e.InternalLocal || e.External(),
		local:   e.InternalLocal || e.ExternalLocal && e.External(),
	}, r.node)
	if protocol == backends.UDP {
		e.Serving = servingAddrs(candidates)
	}
	if td := s.TrafficDistribution; td != nil && len(candidates) > 0 && !slices.ContainsFunc(candidates, candidate.hinted) {
		r.notice("spec.trafficDistribution", "%s has no effect: no endpoint carries hints, which the EndpointSlice controller of a "+
			"control plane would have set; write endpoints[].hints.forZones or forNodes", *td)
	}
	return e
}

// ingressIPs yields the load balancer's addresses that this node has to serve: with ipMode Proxy the balancer sends
// traffic to the node under another address, and its own must be left alone.
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

// parseWeights reads the annotation weir/weights. What is wrong with it is a notice, and the rest of it counts.
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
			r.notice(field, "%q is ignored: it must be address=weight, with a weight from 0 to 65535", part)
		case contains(weights, addr):
			r.notice(field, "%q is ignored: %s has a weight already", part, addr)
		default:
			weights[addr] = n
		}
	}
	return weights
}

// parseScheduler reads the annotation weir/ipvs-scheduler. The kernel knows schedulers by names of at most 15 letters.
func (r *resolver) parseScheduler() string {
	name := r.svc.Object.Annotations[AnnotationScheduler]
	valid := len(name) <= 15 && !strings.ContainsFunc(name, func(c rune) bool { return (c < 'a' || c > 'z') && (c < '0' || c > '9') })
	if !valid {
		r.notice("metadata.annotations["+AnnotationScheduler+"]", "%q is ignored: it must be the name of an IPVS scheduler, such as rr, wrr or sh", name)
		return ""
	}
	return name
}

// parseProxyProtocol reads the annotation weir/proxy-protocol.
func (r *resolver) parseProxyProtocol() bool {
	version, ok := r.svc.Object.Annotations[AnnotationProxyProtocol]
	if ok && version != "v2" {
		r.notice("metadata.annotations["+AnnotationProxyProtocol+"]", "%q is ignored: it must be v2", version)
	}
	return version == "v2"
}

func nodePortType(t corev1.ServiceType) bool {
	return t == corev1.ServiceTypeNodePort || t == corev1.ServiceTypeLoadBalancer
}

func externallyAccessible(s *corev1.ServiceSpec) bool {
	return nodePortType(s.Type) || len(s.ExternalIPs) > 0
}

// affinity returns how long a client stays with its endpoint; 0 is for ever another one.
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

func parseProtocol(p corev1.Protocol) (backends.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return backends.TCP, true
	case corev1.ProtocolUDP:
		return backends.UDP, true
	case corev1.ProtocolSCTP:
		return backends.SCTP, true
	}
	return 0, false
}

// addrsOf returns the addresses of the family, sorted and unique.
func addrsOf(f backends.Family, texts func(func(string) bool)) []netip.Addr {
	var addrs []netip.Addr
	for text := range texts {
		if a, ok := parseAddr(text); ok && backends.FamilyOf(a) == f {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// rangesOf returns the prefixes of the family, masked, sorted and unique; none if one of them admits everybody.
func rangesOf(f backends.Family, texts []string) []netip.Prefix {
	var ranges []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(strings.TrimSpace(text)) // the API accepts blanks around a range
		if err != nil || backends.FamilyOf(p.Addr()) != f {
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
