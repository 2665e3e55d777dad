package config

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/spec"
)

// written has all fields that a user may write: those of the current type and those of former versions.
type written struct {
	kubeproxyconfig.KubeProxyConfiguration

	// Conntrack has the settings of the kernel's connection tracking.
	Conntrack conntrack `json:"conntrack"`

	// UDPIdleTimeout is how long userspace mode keeps a UDP flow after its last datagram: a duration, greater than 0. It was
	// removed from kube-proxy with that mode. Example: 500ms.
	UDPIdleTimeout metav1.Duration `json:"udpIdleTimeout"`
	// UDPTimeoutMilliseconds is how long userspace mode keeps a UDP flow, if udpIdleTimeout is not set. In spite of its name
	// it holds a duration. Example: 500ms.
	UDPTimeoutMilliseconds metav1.Duration `json:"udpTimeoutMilliseconds"`
	// ResourceContainer was the cgroup that kube-proxy ran in. Example: /kube-proxy.
	ResourceContainer string `json:"resourceContainer"`
}

type conntrack struct {
	kubeproxyconfig.KubeProxyConntrackConfiguration
	// Max was the maximum number of tracked connections. Example: 0.
	Max *int32 `json:"max"`
}

func (d *written) config() *KubeProxy {
	c := &KubeProxy{KubeProxyConfiguration: d.KubeProxyConfiguration.DeepCopy(), UDPIdleTimeout: d.UDPIdleTimeout.Duration}
	c.MinSyncPeriodGiven = c.IPTables.MinSyncPeriod.Duration != 0 || c.NFTables.MinSyncPeriod.Duration != 0
	c.Conntrack = *d.Conntrack.KubeProxyConntrackConfiguration.DeepCopy()
	if c.UDPIdleTimeout == 0 {
		c.UDPIdleTimeout = d.UDPTimeoutMilliseconds.Duration
	}
	return c
}

// reporter collects the problems of one document.
type reporter struct {
	doc      Doc
	object   string
	id       spec.NoticeID // the kind of the reported notices
	problems []spec.Problem
	// undecoded holds the fields whose values could not be decoded. They are not validated.
	undecoded map[string]bool
}

// add reports a problem with a field.
func (r *reporter) add(field, format string, args ...any) {
	if r.undecoded[field] {
		return
	}
	r.addAt(r.doc.Line(field), field, fmt.Sprintf(format, args...))
}

func (r *reporter) addAt(line int, field, detail string) {
	r.problems = append(r.problems, r.id.Notice(spec.Origin{File: r.doc.File, Line: line}, r.object, field, detail))
}

// sorted returns the problems in the order of their lines.
func (r *reporter) sorted() []spec.Problem {
	slices.SortStableFunc(r.problems, func(a, b spec.Problem) int { return a.Origin.Line - b.Origin.Line })
	return r.problems
}

// decodeStrict decodes the reporter's document into out. It reports what it cannot decode and leaves it out, so that
// the rest can be validated as well. It returns false if there is no rest.
func decodeStrict(r *reporter, out any) bool {
	for _, p := range r.doc.Problems() {
		r.addAt(p.Line, p.Field, p.Detail)
	}
	if r.doc.JSON() == nil {
		return false
	}
	r.undecoded = map[string]bool{}
	for _, p := range r.doc.Decode(out) {
		r.addAt(p.Line, p.Field, p.Detail)
		r.undecoded[p.Field] = true
	}
	return !r.undecoded[""]
}
