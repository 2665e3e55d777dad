package endpoints

import (
	"cmp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"weir/spec"
)

// ReasonRuns is the reason of a pod's condition Ready if its runtime asks no probe and no health check of it: the pod is ready
// because it runs.
const ReasonRuns = "Runs"

// ReasonHealthy is the reason of a pod's condition Ready if the health check of its runtime succeeds.
const ReasonHealthy = "Healthy"

// ReasonUnhealthy is the reason of a pod's condition Ready if it runs, and only the health check of its runtime fails or has not
// succeeded yet.
const ReasonUnhealthy = "Unhealthy"

// ReasonUnsettled is the reason of a pod's condition Ready if it ended and began again several times, and has not run for long
// enough since.
const ReasonUnsettled = "Unsettled"

// Templates holds templates of pods by the labels of the pods. The Name of a key is the Template's Key. One goroutine at a time
// may use it. The zero value is empty.
type Templates struct {
	all map[PodKey]*held
	// byLabel has every template under each of its labels, and byRarest under one of them.
	byLabel, byRarest map[label][]*held
}

type held struct {
	*spec.Template
	key    PodKey
	rarest label
}

// Len returns the number of templates.
func (x *Templates) Len() int { return len(x.all) }

// Set adds, replaces or, with nil, removes a template. It returns the one before, or nil.
func (x *Templates) Set(key PodKey, t *spec.Template) (before *spec.Template) {
	if x.all == nil {
		x.all, x.byLabel, x.byRarest = map[PodKey]*held{}, map[label][]*held{}, map[label][]*held{}
	}
	if h := x.all[key]; h != nil {
		before = h.Template
		for k, v := range h.Labels {
			drop(x.byLabel, label{h.Namespace, k, v}, h)
		}
		drop(x.byRarest, h.rarest, h)
		delete(x.all, key)
	}
	if t == nil {
		return before
	}
	h := &held{Template: t, key: key, rarest: rarest(t.Namespace, t.Labels, func(l label) int { return len(x.byRarest[l]) })}
	for k, v := range t.Labels {
		l := label{t.Namespace, k, v}
		x.byLabel[l] = append(x.byLabel[l], h)
	}
	x.byRarest[h.rarest] = append(x.byRarest[h.rarest], h)
	x.all[key] = h
	return before
}

func drop(m map[label][]*held, l label, h *held) {
	list := m[l]
	if i := slices.Index(list, h); i >= 0 {
		list[i] = list[len(list)-1]
		list[len(list)-1] = nil
		list = list[:len(list)-1]
	}
	if m[l] = list; len(list) == 0 {
		delete(m, l)
	}
}

// Keys returns the keys of the templates of a source.
func (x *Templates) Keys(source int) []PodKey { return keysOf(x.all, source) }

// Selected returns the templates of pods that a selector selects, sorted by kind and name.
func (x *Templates) Selected(namespace string, selector map[string]string) []*spec.Template {
	var fewest []*held
	for k, v := range selector {
		with := x.byLabel[label{namespace, k, v}]
		if len(with) == 0 {
			return nil
		}
		if fewest == nil || len(with) < len(fewest) {
			fewest = with
		}
	}
	var all []*spec.Template
	for _, h := range fewest {
		if matches(selector, h.Labels) {
			all = append(all, h.Template)
		}
	}
	slices.SortFunc(all, func(a, b *spec.Template) int { return strings.Compare(a.Key(), b.Key()) })
	return all
}

// Of returns the template that a pod was made of, or nil. It is one whose labels the pod has. Of several, those count first
// whose name the pod's begins with, and of these the longest name, and then most labels.
func (x *Templates) Of(pod *corev1.Pod) *spec.Template {
	var best *held
	for k, v := range pod.Labels {
		for _, h := range x.byRarest[label{pod.Namespace, k, v}] {
			if matches(h.Labels, pod.Labels) && (best == nil || closer(pod, h, best) < 0) {
				best = h
			}
		}
	}
	if best == nil {
		return nil
	}
	return best.Template
}

// closer compares two templates of which the pod may be.
func closer(pod *corev1.Pod, a, b *held) int {
	return cmp.Or(
		cmp.Compare(named(pod, b), named(pod, a)), cmp.Compare(len(b.Labels), len(a.Labels)),
		strings.Compare(a.Key(), b.Key()), cmp.Compare(a.key.Source, b.key.Source))
}

// named returns how much of the pod's name is that of the template: web-pod and web-pod-0 are of the Deployment web.
func named(pod *corev1.Pod, t *held) int {
	if rest, ok := strings.CutPrefix(pod.Name, t.Name); ok && (rest == "" || t.Kind != "Pod" && rest[0] == '-') {
		return len(t.Name)
	}
	return 0
}

// Completed returns the pod with what its template says and its runtime does not: named ports, the host name, that there is a
// readiness probe, and that the health check of the runtime is a liveness probe, so that the pod is ready while it runs. It
// returns the pod itself without a template.
func Completed(pod *corev1.Pod, t *spec.Template) *corev1.Pod {
	if t == nil {
		return pod
	}
	c := *pod
	if !slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return len(c.Ports) > 0 }) {
		of := corev1.Container{Ports: t.Ports}
		if t.Probed {
			of.ReadinessProbe = &corev1.Probe{}
		}
		c.Spec.Containers = append(slices.Clip(c.Spec.Containers), of)
	}
	if pod.Spec.Hostname == "" && pod.Spec.Subdomain == "" {
		c.Spec.Hostname, c.Spec.Subdomain = t.Hostname, t.Subdomain
		if t.Ordered && len(validation.IsDNS1123Label(pod.Name)) == 0 {
			c.Spec.Hostname = pod.Name
		}
	}
	if t.Lives {
		c.Status.Conditions = slices.Clone(pod.Status.Conditions)
		for i := range c.Status.Conditions {
			if r := &c.Status.Conditions[i]; r.Type == corev1.PodReady && (r.Reason == ReasonHealthy || r.Reason == ReasonUnhealthy) {
				r.Status, r.Reason = corev1.ConditionTrue, ReasonRuns
			}
		}
	}
	return &c
}

// Unprobed reports whether the runtime of a pod with a readiness probe does not ask it: the pod is ready only because it runs.
func Unprobed(pod *corev1.Pod) bool {
	return Runs(pod) && slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.ReadinessProbe != nil })
}

// Runs reports whether a pod is ready only because it runs.
func Runs(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && c.Reason == ReasonRuns
	})
}
