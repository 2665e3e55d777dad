package endpoints

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
)

// PodKey names a pod of one source. Two runtimes may have a pod of the same name.
type PodKey struct {
	Source    int
	Namespace string
	Name      string
}

// Index holds pods by their labels and Services by their selectors. One goroutine at a time may use it. The zero value is
// empty.
type Index struct {
	pods map[PodKey]*corev1.Pod
	// byLabel has every pod under each of its labels.
	byLabel map[label]map[PodKey]*corev1.Pod
	// selectors has every Service that selects, and bySelector has it under one pair of its selector.
	selectors  map[dataplane.ServiceName]selector
	bySelector map[label]map[dataplane.ServiceName]struct{}
}

// selector is the selector of a Service, and the pair that the Service is found by.
type selector struct {
	labels map[string]string
	pair   label
}

// label is a label within a namespace, since a Service selects pods of its own namespace only.
type label struct{ namespace, key, value string }

// SetPod adds, replaces or, with nil, removes a pod. It returns the Services that select it now or did before.
func (x *Index) SetPod(key PodKey, pod *corev1.Pod) []dataplane.ServiceName {
	if x.pods == nil {
		x.pods, x.byLabel = map[PodKey]*corev1.Pod{}, map[label]map[PodKey]*corev1.Pod{}
	}
	var affected []dataplane.ServiceName
	if before := x.pods[key]; before != nil {
		affected = x.SelectingLabels(before.Namespace, before.Labels)
		for k, v := range before.Labels {
			remove(x.byLabel, label{before.Namespace, k, v}, key)
		}
		delete(x.pods, key)
	}
	if pod == nil {
		return affected
	}
	x.pods[key] = pod
	for k, v := range pod.Labels {
		put(x.byLabel, label{pod.Namespace, k, v}, key, pod)
	}
	for _, name := range x.SelectingLabels(pod.Namespace, pod.Labels) {
		if !slices.Contains(affected, name) {
			affected = append(affected, name)
		}
	}
	return affected
}

// Keys returns the keys of the pods of a source.
func (x *Index) Keys(source int) []PodKey { return keysOf(x.pods, source) }

// keysOf returns the keys of what a source has told.
func keysOf[V any](told map[PodKey]V, source int) (keys []PodKey) {
	for k := range told {
		if k.Source == source {
			keys = append(keys, k)
		}
	}
	return keys
}

// SetService remembers what a Service selects. A nil Service is forgotten.
func (x *Index) SetService(name dataplane.ServiceName, svc *corev1.Service) {
	if before, ok := x.selectors[name]; ok {
		remove(x.bySelector, before.pair, name)
		delete(x.selectors, name)
	}
	if !Selects(svc) {
		return
	}
	if x.selectors == nil {
		x.selectors, x.bySelector = map[dataplane.ServiceName]selector{}, map[label]map[dataplane.ServiceName]struct{}{}
	}
	pair := rarest(name.Namespace, svc.Spec.Selector, func(l label) int { return len(x.bySelector[l]) })
	x.selectors[name] = selector{svc.Spec.Selector, pair}
	put(x.bySelector, pair, name, struct{}{})
}

// Selects reports whether the Service has endpoints by its selector.
func Selects(svc *corev1.Service) bool {
	return svc != nil && len(svc.Spec.Selector) > 0 && svc.Spec.Type != corev1.ServiceTypeExternalName
}

// Selecting returns the Services of which the pods may be endpoints, in no order.
func (x *Index) Selecting() []dataplane.ServiceName {
	all := make([]dataplane.ServiceName, 0, len(x.selectors))
	for name := range x.selectors {
		all = append(all, name)
	}
	return all
}

// Selected returns the pods that a Service selects, sorted by name. Of a pod that several sources have, as a kubelet and its
// runtime do, the first source's counts.
func (x *Index) Selected(namespace string, selector map[string]string) []*corev1.Pod {
	keys := x.SelectedKeys(namespace, selector)
	if len(keys) == 0 {
		return nil
	}
	pods := make([]*corev1.Pod, 0, len(keys))
	for _, key := range keys {
		pod := x.pods[key]
		if n := len(pods); n == 0 || pod.UID == "" || pods[n-1].UID != pod.UID || pods[n-1].Name != pod.Name {
			pods = append(pods, pod)
		}
	}
	return pods
}

// SelectedKeys returns the keys of the pods of all sources that a selector selects, sorted by name.
func (x *Index) SelectedKeys(namespace string, selector map[string]string) []PodKey {
	var fewest map[PodKey]*corev1.Pod
	for k, v := range selector {
		with := x.byLabel[label{namespace, k, v}]
		if len(with) == 0 {
			return nil
		}
		if fewest == nil || len(with) < len(fewest) {
			fewest = with
		}
	}
	var keys []PodKey
	for key, pod := range fewest {
		if matches(selector, pod.Labels) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, func(a, b PodKey) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Source, b.Source)) })
	return keys
}

// SelectingLabels returns the Services that select pods with these labels, in no order.
func (x *Index) SelectingLabels(namespace string, labels map[string]string) []dataplane.ServiceName {
	var names []dataplane.ServiceName
	for k, v := range labels {
		for name := range x.bySelector[label{namespace, k, v}] {
			if matches(x.selectors[name].labels, labels) {
				names = append(names, name)
			}
		}
	}
	return names
}

func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// rarest returns the label of the fewest others, and of several the first. Labels that all have, such as those of a release,
// would make a search for one as long as one for all.
func rarest(namespace string, labels map[string]string, others func(label) int) (best label) {
	least := -1
	for k, v := range labels {
		l := label{namespace, k, v}
		if n := others(l); least < 0 || n < least || n == least && k < best.key {
			best, least = l, n
		}
	}
	return best
}

func put[K comparable, V any](m map[label]map[K]V, l label, key K, v V) {
	if m[l] == nil {
		m[l] = map[K]V{}
	}
	m[l][key] = v
}

func remove[K comparable, V any](m map[label]map[K]V, l label, key K) {
	if delete(m[l], key); len(m[l]) == 0 {
		delete(m, l)
	}
}
