package join

import (
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/endpoints"
)

// takePods takes the pods and templates of a layer's new Snapshot, and returns the Services that they may matter to.
func (u *union) takePods(layer int, snap *spec.Snapshot, delta spec.Delta) (affected []dataplane.ServiceName) {
	pods, templates := delta.Pods, delta.Templates
	if delta.All {
		pods = allNames(u.pods.Keys(u.source(layer)), snap.Pods.Names())
		templates = allNames(u.templates.Keys(u.source(layer)), snap.Templates.Names())
	}
	again := keySet{}
	namespaces := map[string]bool{}
	for _, name := range templates {
		namespaces[name.Namespace] = true
		now := snap.Templates.Get(name)
		before := u.templates.Set(u.keyOf(layer, name), now)
		for _, t := range []*spec.Template{before, now} {
			if t != nil {
				affected = append(affected, u.pods.SelectingLabels(t.Namespace, t.Labels)...)
				again.add(u.pods.SelectedKeys(t.Namespace, t.Labels)...)
			}
		}
	}
	for _, name := range pods {
		namespaces[name.Namespace] = true
		again.add(u.keyOf(layer, name))
	}
	for _, key := range again.keys {
		from := snap
		if key.Source != u.source(layer) {
			from = u.said[u.layer(key.Source)]
		}
		pod := from.Pods.Get(dataplane.ServiceName{Namespace: key.Namespace, Name: key.Name})
		if pod != nil {
			pod = endpoints.Completed(pod, u.templates.Of(pod))
		}
		affected = append(affected, u.pods.SetPod(key, pod)...)
	}
	for ns := range namespaces { // what is nearest to their selectors may have changed
		if lacking := u.lacking[ns]; len(lacking) <= maxLacking {
			affected = slices.AppendSeq(affected, maps.Keys(lacking))
		}
	}
	return affected
}

// maxLacking is the number of Services of a namespace without pods up to which they are told what is nearest to them whenever
// a pod changes. Those of a larger namespace keep what was nearest before.
const maxLacking = 50

// keySet is a set of keys in the order in which they came.
type keySet struct {
	keys  []endpoints.PodKey
	known map[endpoints.PodKey]bool
}

func (s *keySet) add(keys ...endpoints.PodKey) {
	if s.known == nil {
		s.known = map[endpoints.PodKey]bool{}
	}
	for _, k := range keys {
		if !s.known[k] {
			s.known[k] = true
			s.keys = append(s.keys, k)
		}
	}
}

func (u *union) keyOf(layer int, name dataplane.ServiceName) endpoints.PodKey {
	return endpoints.PodKey{Source: u.source(layer), Namespace: name.Namespace, Name: name.Name}
}

// source returns the number of a layer among the sources of pods, and layer is its inverse. The base is the last source, since
// a runtime knows more of a pod than a file that was written once.
func (u *union) source(layer int) int { return (layer + len(u.said) - 1) % len(u.said) }
func (u *union) layer(source int) int { return (source + 1) % len(u.said) }

func allNames(keys []endpoints.PodKey, more iter.Seq[dataplane.ServiceName]) (names []dataplane.ServiceName) {
	for _, key := range keys {
		names = append(names, dataplane.ServiceName{Namespace: key.Namespace, Name: key.Name})
	}
	return slices.AppendSeq(names, more)
}

// known returns a text that differs if Services with selectors have other sources of pods. It is "" if there are none, and no
// templates either.
func (u *union) known() string {
	known := u.asked()
	if u.templates.Len() > 0 {
		known += " and templates"
	}
	return known
}

// discover returns the Service with the slices of the pods that it selects, unless it has slices from elsewhere. The slices
// of a Service of an API are made by its control plane.
func (u *union) discover(svc *spec.Service) *spec.Service {
	u.setLacking(svc.Name, false)
	if u.knew == "" || svc.Origin.File == "" || !endpoints.Selects(svc.Object) {
		u.forget(svc.Name)
		return svc
	}
	u.pods.SetService(svc.Name, svc.Object)
	pods := u.pods.Selected(svc.Name.Namespace, svc.Object.Spec.Selector)
	switch {
	case len(svc.Slices) > 0 && len(pods) > 0:
		return with(svc, svc.Slices, []spec.Notice{spec.PodsNotUsed.Notice(svc.Origin, spec.ServiceObject(svc.Name), "spec.selector",
			"selects pods of "+u.asked()+", and the EndpointSlices in the input are used instead; remove those to follow the pods")})
	case len(svc.Slices) > 0:
		return svc
	}
	made := endpoints.Of(svc.Object, pods, u.zone)
	if before := u.made[svc.Name]; reflect.DeepEqual(before, made) {
		made = before
	} else {
		u.lost = u.lost || lost(before, made)
	}
	if u.made == nil {
		u.made = map[dataplane.ServiceName][]*discoveryv1.EndpointSlice{}
	}
	u.made[svc.Name] = made
	if len(pods) == 0 {
		u.setLacking(svc.Name, true)
		return u.without(svc)
	}
	if len(made) == 0 { // they start or have ended
		asked := *svc
		asked.Asked = u.asked()
		asked.Hint = fmt.Sprintf("pod %s/%s has these labels, and no address", pods[0].Namespace, pods[0].Name)
		return &asked
	}
	var notices []spec.Notice
	if slices.ContainsFunc(pods, endpoints.Unprobed) {
		notices = []spec.Notice{spec.ProbeNotAsked.Notice(svc.Origin, spec.ServiceObject(svc.Name), "spec.selector",
			"selects pods with a readinessProbe, and weir does not ask it: a pod is ready while it runs")}
	}
	return with(svc, made, notices)
}

// without returns a Service that selects no pod, with what is known about why.
func (u *union) without(svc *spec.Service) *spec.Service {
	selector, ns := svc.Object.Spec.Selector, svc.Name.Namespace
	asked := *svc
	asked.Asked = u.asked()
	var promises []string
	for _, t := range u.templates.Selected(ns, selector) {
		if len(promises) == maxPromises {
			promises = append(promises, "others")
			break
		}
		promises = append(promises, t.Promise())
	}
	promised := strings.Join(promises, " and ")
	switch {
	case promised != "" && u.plans && !slices.Contains(u.givesPods, true):
		asked.Promised = promised
	case promised != "":
		asked.Hint = promised + " is to make such pods"
		if len(promises) > 1 {
			asked.Hint = promised + " are to make such pods"
		}
	default:
		asked.Hint = u.nearest(ns, selector)
	}
	return &asked
}

// maxPromises is how many templates are named for one Service.
const maxPromises = 3

// nearest returns which pod or template is nearest to being selected, and what its labels lack; or "".
func (u *union) nearest(namespace string, selector map[string]string) string {
	if namespace != metav1.NamespaceDefault { // that of pods for which their runtime knows none
		if pods := u.pods.Selected(metav1.NamespaceDefault, selector); len(pods) > 0 {
			return fmt.Sprintf("pod %s/%s has these labels, and is in another namespace", pods[0].Namespace, pods[0].Name)
		}
	}
	return endpoints.Nearest(selector,
		func(yield func(*corev1.Pod) bool) {
			for _, snap := range u.said {
				for pod := range snap.Pods.In(namespace) {
					if !yield(pod) {
						return
					}
				}
			}
		},
		func(yield func(*spec.Template) bool) {
			for _, snap := range u.said {
				for t := range snap.Templates.In(namespace) {
					if !yield(t) {
						return
					}
				}
			}
		})
}

func (u *union) setLacking(name dataplane.ServiceName, lacks bool) {
	in := u.lacking[name.Namespace]
	if !lacks {
		delete(in, name)
		return
	}
	if in == nil {
		in = map[dataplane.ServiceName]bool{}
		if u.lacking == nil {
			u.lacking = map[string]map[dataplane.ServiceName]bool{}
		}
		u.lacking[name.Namespace] = in
	}
	in[name] = true
}

// forget drops what is known of the pods of a Service that does not select any more.
func (u *union) forget(name dataplane.ServiceName) {
	u.pods.SetService(name, nil)
	u.setLacking(name, false)
	delete(u.made, name)
}

// asked returns the names of the layers that give pods, or "".
func (u *union) asked() string {
	var names []string
	for i, gives := range u.givesPods {
		switch {
		case gives && u.names[i] != "":
			names = append(names, u.names[i])
		case !gives && u.said[i] != nil && u.said[i].Pods.Len() > 0:
			names = append(names, "the input")
		}
	}
	return strings.Join(names, " and ")
}

// zone returns the zone of a node, or "".
func (u *union) zone(node string) string {
	if n := u.nodes[node]; n != nil {
		return n.Labels[corev1.LabelTopologyZone]
	}
	return ""
}

// lost reports whether an endpoint that was ready before is not ready now.
func lost(before, now []*discoveryv1.EndpointSlice) bool {
	ready := map[string]bool{}
	for _, s := range now {
		for _, e := range s.Endpoints {
			if *e.Conditions.Ready {
				ready[e.Addresses[0]] = true
			}
		}
	}
	for _, s := range before {
		for _, e := range s.Endpoints {
			if *e.Conditions.Ready && !ready[e.Addresses[0]] {
				return true
			}
		}
	}
	return false
}
