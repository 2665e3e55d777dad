package manifest

import (
	"strings"
	"sync"
	"unique"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec"
)

// interner lets equal strings share memory, because namespaces, nodes and zones recur in every object. It is safe for
// concurrent use.
type interner struct {
	mu       sync.Mutex
	pointers map[string]*string
}

// maxPointers limits the strings that the interner itself keeps alive.
const maxPointers = 10_000

func (in *interner) string(s string) string {
	if s == "" {
		return ""
	}
	return unique.Make(s).Value()
}

// pointer returns a pointer to an equal string. The caller must not write to it.
func (in *interner) pointer(s *string) *string {
	if s == nil {
		return nil
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if p, ok := in.pointers[*s]; ok {
		return p
	}
	if in.pointers == nil || len(in.pointers) >= maxPointers {
		in.pointers = map[string]*string{}
	}
	v := strings.Clone(*s)
	in.pointers[v] = &v
	return &v
}

// Shared targets for the many pointers of the API types.
var (
	yes, no = true, false
	tcp     = corev1.ProtocolTCP
	udp     = corev1.ProtocolUDP
	sctp    = corev1.ProtocolSCTP
)

func sharedBool(b *bool) *bool {
	switch {
	case b == nil:
		return nil
	case *b:
		return &yes
	}
	return &no
}

// sharedProtocol returns a shared pointer to an equal protocol, or to the default for nil.
func sharedProtocol(p *corev1.Protocol) *corev1.Protocol {
	switch {
	case p == nil || *p == tcp || *p == "":
		return &tcp
	case *p == udp:
		return &udp
	case *p == sctp:
		return &sctp
	}
	return p
}

// keptLabels and keptAnnotations change how an object is resolved. Annotations with ownPrefix are kept too.
var (
	keptLabels = map[string]bool{
		"service.kubernetes.io/service-proxy-name": true,
		corev1.IsHeadlessService:                   true,
		"endpointslice.kubernetes.io/skip-mirror":  true,
		corev1.LabelTopologyZone:                   true,
		corev1.LabelTopologyRegion:                 true,
		corev1.LabelFailureDomainBetaZone:          true,
		corev1.LabelHostname:                       true,
	}
	keptAnnotations = map[string]bool{
		corev1.AnnotationTopologyMode:                 true,
		corev1.DeprecatedAnnotationTopologyAwareHints: true,
	}
)

// ofControlPlane are the labels of the slices for which spec.OfControlPlane is true. The slices share the map, which is not to be changed.
var ofControlPlane = map[string]string{discoveryv1.LabelManagedBy: spec.EndpointSliceController}

// withMaker adds ofControlPlane to trimmed labels if made is true.
func withMaker(labels map[string]string, made bool) map[string]string {
	switch {
	case !made:
		return labels
	case labels == nil:
		return ofControlPlane
	}
	labels[discoveryv1.LabelManagedBy] = spec.EndpointSliceController
	return labels
}

// ownPrefix is the prefix of weir's own labels and annotations.
const ownPrefix = "weir/"

// trimMeta returns what resolving needs of an object's metadata.
func (in *interner) trimMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:        in.string(m.Name),
		Namespace:   in.string(m.Namespace),
		Labels:      in.trimMap(m.Labels, keptLabels),
		Annotations: in.trimMap(m.Annotations, keptAnnotations),
	}
}

func (in *interner) trimMap(m map[string]string, kept map[string]bool) map[string]string {
	var out map[string]string
	for k, v := range m {
		if kept[k] || strings.HasPrefix(k, ownPrefix) {
			if out == nil {
				out = map[string]string{}
			}
			out[in.string(k)] = in.string(v)
		}
	}
	return out
}

// stringMap returns an equal map of shared strings. The caller must not write to it.
func (in *interner) stringMap(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[in.string(k)] = in.string(v)
	}
	return out
}
