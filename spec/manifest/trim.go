package manifest

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Trimmer reduces the objects of an API server to the form that Sets produce: only the fields that resolving needs,
// with shared strings. The resourceVersion is kept too. It is safe for concurrent use. The result shares parts with the
// input, so the caller must not use the input any more.
type Trimmer struct{ d decoding }

// NewTrimmer returns a Trimmer.
func NewTrimmer() *Trimmer {
	return &Trimmer{decoding{decoder: &decoder{intern: &interner{}}}}
}

// Service trims a Service that is complete: with defaults, ClusterIPs and node ports.
func (t *Trimmer) Service(svc *corev1.Service) *corev1.Service {
	setServiceDefaults(&svc.Spec)
	in := &svc.Spec
	for i := range svc.Status.LoadBalancer.Ingress {
		if ingress := &svc.Status.LoadBalancer.Ingress[i]; ingress.IP != "" && ingress.IPMode == nil {
			ingress.IPMode = &modeVIP
		}
	}
	out := t.d.trimService(svc, nil).base
	out.ResourceVersion = svc.ResourceVersion
	out.Spec.ClusterIPs = slices.Clip(in.ClusterIPs)
	out.Spec.IPFamilies = sharedFamilies(in.IPFamilies)
	out.Spec.HealthCheckNodePort = in.HealthCheckNodePort
	if p := familyPolicy(in); in.Type != corev1.ServiceTypeExternalName {
		out.Spec.IPFamilyPolicy = sharedPolicy(p)
	}
	return out
}

// Slice trims an EndpointSlice and returns the name of its Service, or "".
func (t *Trimmer) Slice(s *discoveryv1.EndpointSlice) (out *discoveryv1.EndpointSlice, service string) {
	out = t.d.trimSlice(s)
	out.ResourceVersion = s.ResourceVersion
	return out, t.d.intern.string(s.Labels[discoveryv1.LabelServiceName])
}

// Node trims a Node. It keeps the signs that the Node is about to be removed.
func (t *Trimmer) Node(n *corev1.Node) *corev1.Node {
	out := &corev1.Node{ObjectMeta: t.d.intern.trimMeta(&n.ObjectMeta)}
	out.ResourceVersion, out.DeletionTimestamp = n.ResourceVersion, n.DeletionTimestamp
	out.Spec.PodCIDR, out.Spec.PodCIDRs = n.Spec.PodCIDR, n.Spec.PodCIDRs
	for _, taint := range n.Spec.Taints {
		out.Spec.Taints = append(out.Spec.Taints, corev1.Taint{Key: taint.Key, Effect: taint.Effect})
	}
	out.Status.Addresses = n.Status.Addresses
	return out
}
