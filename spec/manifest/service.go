package manifest

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/document"
)

// service is a Service as it was written. An API server would complete some fields. Their written values are kept
// apart, so that they can be completed again when other objects of the Set change.
type service struct {
	// base has all other fields. Completing replaces it by its result, so that only one of them stays in memory.
	base *corev1.Service

	families   []corev1.IPFamily
	policy     corev1.IPFamilyPolicy
	clusterIPs []netip.Addr
	headless   bool
	nodePorts  []int32 // by port; nil if none is set
	healthPort int32
	// annotated is what its annotations say about probes; nil if nothing.
	annotated *annotated
}

// proxied reports whether the Service needs anything to be programmed.
func (s *service) proxied() bool {
	return !s.headless && s.base.Spec.Type != corev1.ServiceTypeExternalName
}

// hasNodePorts reports whether weir allocates node ports for ports that have none.
func (s *service) hasNodePorts() bool {
	switch sp := &s.base.Spec; sp.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return sp.AllocateLoadBalancerNodePorts == nil || *sp.AllocateLoadBalancerNodePorts
	}
	return false
}

// hasHealthPort reports whether the Service has a health check node port.
func (s *service) hasHealthPort() bool {
	return s.base.Spec.Type == corev1.ServiceTypeLoadBalancer && s.base.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// annotationOnUnhealthy is reconcile's AnnotationOnUnhealthy.
const annotationOnUnhealthy = "weir/on-unhealthy"

// ownAnnotations tells of annotations that weir would read, were they spelled as one of its own.
func (v *validator) ownAnnotations(all map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !strings.HasPrefix(name, ownPrefix) || slices.Contains(spec.Annotations, name) {
			continue
		}
		near, least := "", 4
		for _, known := range spec.Annotations {
			if d := document.Distance(strings.ToLower(name), known, least); d < least {
				near, least = "; did you mean "+known+"?", d
			}
		}
		v.notice(spec.AnnotationIgnored, "is no annotation of weir, and is ignored"+near, "metadata.annotations[%s]", document.Printable(name))
	}
}

// service takes a Service.
func (d *decoding) service(at *document.Document) {
	var svc corev1.Service
	shape := at.Decode(&svc)
	v := &validator{namespace: d.namespace}
	v.meta(&svc.ObjectMeta, true, utilvalidation.IsDNS1123Label)
	setServiceDefaults(&svc.Spec)
	addrs := v.serviceSpec(&svc.Spec)
	v.loadBalancer(&svc)
	v.frontends(&svc)
	about := v.annotatedProbes(&svc, at)
	v.ownAnnotations(svc.Annotations)
	if what, ok := svc.Annotations[annotationOnUnhealthy]; ok && what != "reset" {
		v.add(document.Quote(what)+" is not reset, the only value", "metadata.annotations[%s]", annotationOnUnhealthy)
	}
	id := objectID{kindService, dataplane.ServiceName{Namespace: d.intern.string(svc.Namespace), Name: d.intern.string(svc.Name)}}
	if !d.accept(id, at, shape, v) {
		return
	}
	trimmed := d.trimService(&svc, addrs)
	trimmed.annotated = about
	d.out.objects = append(d.out.objects, &object{id: id, line: at.Start(), service: trimmed})
}

func setServiceDefaults(s *corev1.ServiceSpec) {
	if s.Type == "" {
		s.Type = corev1.ServiceTypeClusterIP
	}
	if s.SessionAffinity == "" {
		s.SessionAffinity = corev1.ServiceAffinityNone
	}
	if s.SessionAffinity == corev1.ServiceAffinityClientIP {
		if s.SessionAffinityConfig == nil {
			s.SessionAffinityConfig = &corev1.SessionAffinityConfig{}
		}
		if s.SessionAffinityConfig.ClientIP == nil {
			s.SessionAffinityConfig.ClientIP = &corev1.ClientIPConfig{}
		}
		if s.SessionAffinityConfig.ClientIP.TimeoutSeconds == nil {
			timeout := corev1.DefaultClientIPServiceAffinitySeconds
			s.SessionAffinityConfig.ClientIP.TimeoutSeconds = &timeout
		}
	}
	if s.ExternalTrafficPolicy == "" && external(s) {
		s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
	if s.InternalTrafficPolicy == nil && s.Type != corev1.ServiceTypeExternalName {
		s.InternalTrafficPolicy = &internalCluster
	}
	if len(s.ClusterIPs) == 0 && s.ClusterIP != "" {
		s.ClusterIPs = []string{s.ClusterIP}
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		if p.Protocol == "" {
			p.Protocol = tcp
		}
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	if s.Type == corev1.ServiceTypeLoadBalancer && s.AllocateLoadBalancerNodePorts == nil {
		s.AllocateLoadBalancerNodePorts = &yes
	}
}

var internalCluster = corev1.ServiceInternalTrafficPolicyCluster

// external reports whether a Service can be reached from outside the cluster.
func external(s *corev1.ServiceSpec) bool {
	return s.Type == corev1.ServiceTypeNodePort || s.Type == corev1.ServiceTypeLoadBalancer ||
		s.Type == corev1.ServiceTypeClusterIP && len(s.ExternalIPs) > 0
}

// serviceSpec validates a ServiceSpec and returns its ClusterIPs.
func (v *validator) serviceSpec(s *corev1.ServiceSpec) []netip.Addr {
	v.oneOf(string(s.Type), []string{"ClusterIP", "NodePort", "LoadBalancer", "ExternalName"}, "spec.type")
	addrs := v.clusterIPs(s)
	v.families(s, addrs)
	v.servicePorts(s)
	v.affinity(s)
	v.trafficPolicies(s)
	v.byType(s)
	for i, ip := range s.ExternalIPs {
		v.plainAddress(ip, "spec.externalIPs[%d]", i)
	}
	if len(s.ExternalIPs) > 0 {
		v.notice(spec.Deprecated, "is deprecated in Kubernetes (KEP-5707): a Service of type LoadBalancer with the addresses in its status says the same", "spec.externalIPs")
	}
	for i, cidr := range s.LoadBalancerSourceRanges {
		v.prefix(cidr, "spec.loadBalancerSourceRanges[%d]", i)
	}
	v.addErrors(metav1validation.ValidateLabels(s.Selector, field.NewPath("spec", "selector")))
	return addrs
}

func headless(s *corev1.ServiceSpec) bool { return s.ClusterIP == corev1.ClusterIPNone }

func (v *validator) clusterIPs(s *corev1.ServiceSpec) []netip.Addr {
	if len(s.ClusterIPs) > 0 && s.ClusterIPs[0] != s.ClusterIP {
		v.add(fmt.Sprintf("%s must be the same as spec.clusterIP, which is %s", document.Quote(s.ClusterIPs[0]), document.Quote(s.ClusterIP)), "spec.clusterIPs[0]")
	}
	if len(s.ClusterIPs) > 2 {
		v.add(fmt.Sprintf("has %d addresses; at most one of each family is possible", len(s.ClusterIPs)), "spec.clusterIPs")
	}
	if headless(s) {
		if len(s.ClusterIPs) > 1 {
			v.add("must have no other address besides None", "spec.clusterIPs")
		}
		if s.Type != corev1.ServiceTypeClusterIP {
			v.add("must not be None for a Service of type "+document.Printable(string(s.Type)), "spec.clusterIP")
		}
		return nil
	}
	var addrs []netip.Addr
	for i, ip := range s.ClusterIPs {
		path, args := "spec.clusterIPs[%d]", []any{i}
		if i == 0 && ip == s.ClusterIP {
			path, args = "spec.clusterIP", nil
		}
		a, ok := v.plainAddress(ip, path, args...)
		if ok && len(addrs) > 0 && addrs[0].Is4() == a.Is4() {
			v.add(fmt.Sprintf("%s is of the same family as %s; dual stack needs one of each", a, addrs[0]), path, args...)
		}
		if ok {
			addrs = append(addrs, a)
		}
	}
	if s.Type == corev1.ServiceTypeExternalName && s.ClusterIP != "" {
		v.add("must not be set for a Service of type ExternalName", "spec.clusterIP")
	}
	return addrs
}

func familyOf(a netip.Addr) corev1.IPFamily {
	if a.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func (v *validator) families(s *corev1.ServiceSpec, addrs []netip.Addr) {
	policy := familyPolicy(s)
	if s.Type == corev1.ServiceTypeExternalName {
		if len(s.IPFamilies) > 0 {
			v.add("must not be set for a Service of type ExternalName", "spec.ipFamilies")
		}
		if policy != "" {
			v.add("must not be set for a Service of type ExternalName", "spec.ipFamilyPolicy")
		}
		return
	}
	if policy != "" {
		v.oneOf(string(policy), []string{"SingleStack", "PreferDualStack", "RequireDualStack"}, "spec.ipFamilyPolicy")
	}
	for i, f := range s.IPFamilies {
		v.oneOf(string(f), []string{"IPv4", "IPv6"}, "spec.ipFamilies[%d]", i)
		if slices.Contains(s.IPFamilies[:i], f) {
			v.add(document.Quote(string(f))+" is given twice", "spec.ipFamilies[%d]", i)
		}
		if i < len(addrs) && len(addrs) == len(s.ClusterIPs) && familyOf(addrs[i]) != f {
			v.add(fmt.Sprintf("%s does not match %s, the ClusterIP at the same place", document.Printable(string(f)), addrs[i]), "spec.ipFamilies[%d]", i)
		}
	}
	if len(s.IPFamilies) > 2 {
		v.add("has more than two families", "spec.ipFamilies")
	}
	// An API server treats a headless Service without a selector as dual-stack unless ipFamilyPolicy is set.
	unset := policy == "" && !(headless(s) && len(s.Selector) == 0)
	if unset || policy == corev1.IPFamilyPolicySingleStack {
		if len(s.IPFamilies) == 2 {
			v.add("must be PreferDualStack or RequireDualStack for a Service of two families", "spec.ipFamilyPolicy")
		} else if len(addrs) == 2 {
			v.add("must be PreferDualStack or RequireDualStack for a Service of two ClusterIPs", "spec.ipFamilyPolicy")
		}
	}
}

func familyPolicy(s *corev1.ServiceSpec) corev1.IPFamilyPolicy {
	if s.IPFamilyPolicy == nil {
		return ""
	}
	return *s.IPFamilyPolicy
}

func (v *validator) servicePorts(s *corev1.ServiceSpec) {
	if len(s.Ports) == 0 && !headless(s) && s.Type != corev1.ServiceTypeExternalName {
		v.add("is missing: a Service needs at least one port", "spec.ports")
	}
	names, ports, nodePorts := map[string]int{}, map[string]int{}, map[string]int{}
	unique := func(seen map[string]int, key string, i int, detail, path string) {
		if first, ok := seen[key]; ok {
			v.add(fmt.Sprintf("%s is also used by spec.ports[%d]", detail, first), path, i)
			return
		}
		seen[key] = i
	}
	for i, p := range s.Ports {
		switch {
		case p.Name != "":
			v.addAll(utilvalidation.IsDNS1123Label(p.Name), p.Name, "spec.ports[%d].name", i)
			unique(names, p.Name, i, document.Quote(p.Name), "spec.ports[%d].name")
		case len(s.Ports) > 1:
			v.add("is missing: a Service with several ports needs a name for each", "spec.ports[%d].name", i)
		}
		v.protocol(p.Protocol, "spec.ports[%d].protocol", i)
		v.port(p.Port, "spec.ports[%d].port", i)
		unique(ports, fmt.Sprint(p.Protocol, p.Port), i, fmt.Sprintf("%d/%s", p.Port, document.Printable(string(p.Protocol))), "spec.ports[%d].port")
		if p.TargetPort.Type == intstr.String {
			v.addAll(utilvalidation.IsValidPortName(p.TargetPort.StrVal), p.TargetPort.StrVal, "spec.ports[%d].targetPort", i)
		} else if p.TargetPort.IntVal != p.Port {
			v.port(p.TargetPort.IntVal, "spec.ports[%d].targetPort", i)
		}
		v.appProtocol(p.AppProtocol, "spec.ports[%d].appProtocol", i)
		if p.NodePort == 0 {
			continue
		}
		if s.Type != corev1.ServiceTypeNodePort && s.Type != corev1.ServiceTypeLoadBalancer {
			v.add("must not be set for a Service of type "+document.Printable(string(s.Type)), "spec.ports[%d].nodePort", i)
		}
		v.port(p.NodePort, "spec.ports[%d].nodePort", i)
		unique(nodePorts, fmt.Sprint(p.Protocol, p.NodePort), i, fmt.Sprintf("%d/%s", p.NodePort, document.Printable(string(p.Protocol))), "spec.ports[%d].nodePort")
		if p.NodePort == s.HealthCheckNodePort {
			v.add(fmt.Sprintf("%d is also spec.healthCheckNodePort", p.NodePort), "spec.ports[%d].nodePort", i)
		}
	}
}

func (v *validator) affinity(s *corev1.ServiceSpec) {
	v.oneOf(string(s.SessionAffinity), []string{"None", "ClientIP"}, "spec.sessionAffinity")
	c := s.SessionAffinityConfig
	if c == nil {
		return
	}
	if s.SessionAffinity == corev1.ServiceAffinityNone {
		v.add("must not be set when spec.sessionAffinity is None", "spec.sessionAffinityConfig")
		return
	}
	if c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		if t := *c.ClientIP.TimeoutSeconds; t < 1 || t > 86400 {
			v.add(fmt.Sprintf("%d is not between 1 and 86400", t), "spec.sessionAffinityConfig.clientIP.timeoutSeconds")
		}
	}
}

func (v *validator) trafficPolicies(s *corev1.ServiceSpec) {
	policies := []string{"Cluster", "Local"}
	if s.ExternalTrafficPolicy != "" {
		if external(s) {
			v.oneOf(string(s.ExternalTrafficPolicy), policies, "spec.externalTrafficPolicy")
		} else {
			v.add("must not be set for a Service that cannot be reached from outside: type NodePort or LoadBalancer, or externalIPs", "spec.externalTrafficPolicy")
		}
	}
	if s.InternalTrafficPolicy != nil {
		v.oneOf(string(*s.InternalTrafficPolicy), policies, "spec.internalTrafficPolicy")
	}
	if s.TrafficDistribution != nil {
		v.oneOf(*s.TrafficDistribution, []string{"PreferClose", "PreferSameZone", "PreferSameNode"}, "spec.trafficDistribution")
	}
	if s.HealthCheckNodePort == 0 {
		return
	}
	if s.Type != corev1.ServiceTypeLoadBalancer || s.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		v.add("must be set only for a Service of type LoadBalancer with externalTrafficPolicy Local", "spec.healthCheckNodePort")
	}
	v.port(s.HealthCheckNodePort, "spec.healthCheckNodePort")
}

// byType refuses fields that belong to another type of Service.
func (v *validator) byType(s *corev1.ServiceSpec) {
	if s.Type == corev1.ServiceTypeExternalName {
		if s.ExternalName == "" {
			v.add("is missing", "spec.externalName")
		} else {
			v.addAll(utilvalidation.IsDNS1123Subdomain(strings.TrimSuffix(s.ExternalName, ".")), s.ExternalName, "spec.externalName")
		}
	}
	if s.Type == corev1.ServiceTypeLoadBalancer {
		if c := s.LoadBalancerClass; c != nil {
			v.addAll(utilvalidation.IsQualifiedName(*c), *c, "spec.loadBalancerClass")
		}
		return
	}
	const only = "must be set only for a Service of type LoadBalancer"
	if s.LoadBalancerClass != nil {
		v.add(only, "spec.loadBalancerClass")
	}
	if s.AllocateLoadBalancerNodePorts != nil {
		v.add(only, "spec.allocateLoadBalancerNodePorts")
	}
	if len(s.LoadBalancerSourceRanges) > 0 {
		v.add(only, "spec.loadBalancerSourceRanges")
	}
}

func (v *validator) serviceStatus(svc *corev1.Service) {
	ingress := svc.Status.LoadBalancer.Ingress
	for i := range ingress {
		in := &ingress[i]
		if in.IP != "" {
			v.plainAddress(in.IP, "status.loadBalancer.ingress[%d].ip", i)
			if in.IPMode == nil {
				in.IPMode = &modeVIP
			}
			v.oneOf(string(*in.IPMode), []string{"VIP", "Proxy"}, "status.loadBalancer.ingress[%d].ipMode", i)
		} else if in.IPMode != nil {
			v.add("must be set only together with ip", "status.loadBalancer.ingress[%d].ipMode", i)
		}
		if in.Hostname == "" {
			continue
		}
		if _, err := netip.ParseAddr(in.Hostname); err == nil {
			v.add(document.Quote(in.Hostname)+" is an address; it belongs to ip", "status.loadBalancer.ingress[%d].hostname", i)
		} else {
			v.addAll(utilvalidation.IsDNS1123Subdomain(in.Hostname), in.Hostname, "status.loadBalancer.ingress[%d].hostname", i)
		}
	}
}

// maxFrontends limits the frontends of one Service, which are its addresses times its ports: a document of 100 kB can ask
// for millions. It is far above what Services have in practice, and 10,000 frontends cost no more than as many
// small Services, for which weir is made. maxSources limits the source ranges of all frontends in the same way.
const (
	maxFrontends = 10_000
	maxSources   = 10 * maxFrontends
)

// frontends refuses a Service of too many frontends, before anything is made for each of them.
func (v *validator) frontends(svc *corev1.Service) {
	s := &svc.Spec
	if headless(s) || s.Type == corev1.ServiceTypeExternalName {
		return
	}
	addrs := max(1, len(s.ClusterIPs)) + len(s.ExternalIPs) + len(svc.Status.LoadBalancer.Ingress)
	ports, ranges := len(s.Ports), len(s.LoadBalancerSourceRanges)
	switch n := addrs * ports; {
	case n > maxFrontends:
		v.add(fmt.Sprintf("%d ports at %d addresses are more than %d frontends: split the Service", ports, addrs, maxFrontends), "spec.ports")
	case n*ranges > maxSources:
		v.add(fmt.Sprintf("%d ranges for %d frontends are more than %d: combine ranges, or split the Service", ranges, n, maxSources), "spec.loadBalancerSourceRanges")
	}
}

var modeVIP = corev1.LoadBalancerIPModeVIP

// trimService returns a valid Service with only the fields that are needed to resolve and complete it.
func (d *decoding) trimService(svc *corev1.Service, addrs []netip.Addr) *service {
	in := &svc.Spec
	s := &service{families: in.IPFamilies, policy: familyPolicy(in), clusterIPs: addrs, headless: headless(in), healthPort: in.HealthCheckNodePort}
	s.base = &corev1.Service{ObjectMeta: d.intern.trimMeta(&svc.ObjectMeta)}
	s.base.Spec = corev1.ServiceSpec{
		Type:                          corev1.ServiceType(d.intern.string(string(in.Type))),
		Ports:                         slices.Clip(in.Ports),
		ClusterIP:                     in.ClusterIP,
		Selector:                      d.intern.stringMap(in.Selector),
		ExternalIPs:                   in.ExternalIPs,
		ExternalName:                  in.ExternalName,
		SessionAffinity:               corev1.ServiceAffinity(d.intern.string(string(in.SessionAffinity))),
		SessionAffinityConfig:         in.SessionAffinityConfig,
		ExternalTrafficPolicy:         corev1.ServiceExternalTrafficPolicy(d.intern.string(string(in.ExternalTrafficPolicy))),
		InternalTrafficPolicy:         in.InternalTrafficPolicy,
		PublishNotReadyAddresses:      in.PublishNotReadyAddresses,
		AllocateLoadBalancerNodePorts: sharedBool(in.AllocateLoadBalancerNodePorts),
		LoadBalancerClass:             d.intern.pointer(in.LoadBalancerClass),
		LoadBalancerSourceRanges:      in.LoadBalancerSourceRanges,
		TrafficDistribution:           d.intern.pointer(in.TrafficDistribution),
	}
	for i, cidr := range in.LoadBalancerSourceRanges {
		s.base.Spec.LoadBalancerSourceRanges[i] = strings.TrimSpace(cidr)
	}
	for _, ingress := range svc.Status.LoadBalancer.Ingress {
		ingress.Ports = nil
		s.base.Status.LoadBalancer.Ingress = append(s.base.Status.LoadBalancer.Ingress, ingress)
	}
	for i := range s.base.Spec.Ports {
		p := &s.base.Spec.Ports[i]
		p.Name, p.Protocol = d.intern.string(p.Name), *sharedProtocol(&p.Protocol)
		p.TargetPort.StrVal, p.AppProtocol = d.intern.string(p.TargetPort.StrVal), nil
		if p.NodePort != 0 && s.nodePorts == nil {
			s.nodePorts = make([]int32, len(in.Ports))
		}
		if p.NodePort != 0 {
			s.nodePorts[i] = p.NodePort
		}
	}
	return s
}
