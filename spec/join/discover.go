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
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/endpoints"
	"weir/spec/probe"
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
	known := strings.Join(u.givers(func(i int) string { return u.names[i] }), " and ")
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
		return with(u.probedAs(svc), svc.Slices, []spec.Notice{spec.PodsNotUsed.Notice(svc.Origin, spec.ServiceObject(svc.Name), "spec.selector",
			"selects pods of "+u.asked()+", and the EndpointSlices in the input are used instead; remove those to follow the pods")})
	case len(svc.Slices) > 0:
		return u.probedAs(svc)
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
	notices := u.unknownPorts(svc, pods)
	if len(pods) == 0 {
		u.setLacking(svc.Name, true)
		return with(u.without(svc), nil, notices)
	}
	if len(made) == 0 { // they start or have ended
		asked := *svc
		asked.Asked = u.asked()
		asked.Hint = endpoints.WhyNone(pods)
		return with(&asked, nil, notices)
	}
	discovered := *u.probed(svc, pods)
	discovered.OfPods = true
	return with(&discovered, made, notices)
}

// probed returns the Service with the readinessProbes of the pods that are ready only because they run. Where a runtime knows
// more, it has asked itself.
func (u *union) probed(svc *spec.Service, pods []*corev1.Pod) *spec.Service {
	var all []spec.PodProbes
	for _, pod := range pods {
		if !endpoints.Runs(pod) {
			continue
		}
		if t := u.templates.Of(pod); t != nil && len(t.Probes) > 0 {
			all = append(all, spec.PodProbes{Pod: pod.Name, Probes: t.Probes})
		}
	}
	if len(all) == 0 {
		return svc
	}
	changed := *svc
	changed.Probes = withPods(svc.Probes, all)
	if len(all) == len(pods) {
		changed.Notices = withNotUsed(svc, all[0].Probes[0].Origin)
	}
	return &changed
}

// withNotUsed returns the notices of a Service, and one about its annotation if a readinessProbe comes before that.
func withNotUsed(svc *spec.Service, by probe.Origin) []spec.Notice {
	if svc.Probes == nil {
		return svc.Notices
	}
	for _, p := range svc.Probes.Ports {
		if o := p.Probe.Origin; o.Form == probe.Annotation {
			return append(slices.Clip(svc.Notices), spec.ProbeNotUsed.Notice(spec.Origin{File: o.File, Line: o.Line}, spec.ServiceObject(svc.Name),
				"metadata.annotations[weir/probe]", fmt.Sprintf("is not used, since the readinessProbe of %s at %s:%d tells which pods work; remove the annotation", by.Object, by.File, by.Line)))
		}
	}
	return svc.Notices
}

// probedAs returns the Service, whose EndpointSlices are in the input, with the readinessProbes of the templates that it selects.
// An endpoint there names no pod, so that all of them must ask the same.
func (u *union) probedAs(svc *spec.Service) *spec.Service {
	if !slices.ContainsFunc(svc.Slices, func(s *discoveryv1.EndpointSlice) bool { return !spec.OfControlPlane(s) }) {
		return svc
	}
	templates := u.templates.Selected(svc.Name.Namespace, svc.Object.Spec.Selector)
	i := slices.IndexFunc(templates, func(t *spec.Template) bool { return len(t.Probes) > 0 })
	if i < 0 {
		return svc
	}
	first := templates[i]
	changed := *svc
	for _, t := range templates {
		if !slices.EqualFunc(t.Probes, first.Probes, (*probe.Probe).Equal) {
			at := first.Probes[0].Origin
			changed.Notices = append(slices.Clip(svc.Notices), spec.ProbeNotUsed.Notice(spec.Origin{File: at.File, Line: at.Line}, spec.ServiceObject(svc.Name), "",
				fmt.Sprintf("the readinessProbe of %s is not asked, since %s has another or none, and the EndpointSlices in the input do not tell which endpoint is of which; remove them, or ask by the annotation weir/probe", first, t)))
			return &changed
		}
	}
	changed.Notices = withNotUsed(svc, first.Probes[0].Origin)
	changed.Probes = &spec.Probes{Template: first.Probes}
	if svc.Probes != nil {
		changed.Probes.Ports, changed.Probes.MinHealthy = svc.Probes.Ports, svc.Probes.MinHealthy
	}
	return &changed
}

// withPods returns the Probes, which may be nil, with those of pods. Two runtimes may know one pod.
func withPods(p *spec.Probes, pods []spec.PodProbes) *spec.Probes {
	if len(pods) == 0 {
		return p
	}
	all := spec.Probes{Pods: slices.SortedFunc(slices.Values(pods), func(a, b spec.PodProbes) int { return strings.Compare(a.Pod, b.Pod) })}
	all.Pods = slices.CompactFunc(all.Pods, func(a, b spec.PodProbes) bool { return a.Pod == b.Pod })
	if p != nil {
		all.Ports, all.MinHealthy = p.Ports, p.MinHealthy
	}
	return &all
}

// unknownPorts returns a notice for each port of the Service whose target is a name that its pods do not know.
func (u *union) unknownPorts(svc *spec.Service, pods []*corev1.Pod) (notices []spec.Notice) {
	for i := range svc.Object.Spec.Ports {
		p := &svc.Object.Spec.Ports[i]
		if p.TargetPort.Type == intstr.Int {
			continue
		}
		if wrong := endpoints.UnknownPort(p, pods, u.templates.Selected(svc.Name.Namespace, svc.Object.Spec.Selector)); wrong != "" {
			notices = append(notices, spec.TargetPortUnknown.Notice(svc.Origin, spec.ServiceObject(svc.Name), fmt.Sprintf("spec.ports[%d].targetPort", i), wrong))
		}
	}
	return notices
}

// without returns a Service that selects no pod, with what is known about why.
func (u *union) without(svc *spec.Service) *spec.Service {
	selector, ns := svc.Object.Spec.Selector, svc.Name.Namespace
	asked := *svc
	asked.Asked = u.asked()
	var promises []string
	var probes []spec.PodProbes
	for _, t := range u.templates.Selected(ns, selector) {
		if len(promises) == maxPromises {
			promises = append(promises, "others")
			break
		}
		promises = append(promises, t.Promise())
		if len(t.Probes) > 0 {
			probes = append(probes, spec.PodProbes{Pod: t.Key(), Probes: t.Probes})
		}
	}
	promised := strings.Join(promises, " and ")
	switch {
	case promised != "" && u.plans && (!slices.Contains(u.givesPods, true) || slices.ContainsFunc(u.away, func(a *spec.Away) bool { return a != nil })):
		asked.Promised = promised
		asked.Probes = withPods(svc.Probes, probes)
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

// asked returns the names of the layers that give pods, with those that do not answer marked as such, or "".
func (u *union) asked() string {
	return strings.Join(u.givers(func(i int) string {
		if u.away[i] != nil {
			return u.names[i] + " (which does not answer)"
		}
		return u.names[i]
	}), " and ")
}

// givers returns the names of the layers that give pods, each once.
func (u *union) givers(name func(layer int) string) (names []string) {
	for i, gives := range u.givesPods {
		text := ""
		switch {
		case gives && u.names[i] != "":
			text = name(i)
		case !gives && u.said[i] != nil && u.said[i].Pods.Len() > 0:
			text = "the input"
		}
		if text != "" && !slices.Contains(names, text) {
			names = append(names, text)
		}
	}
	return names
}

// setAway notes that the source of a layer cannot be read, or, with nil, that it can. It returns the Services whose notices tell
// of it.
func (u *union) setAway(layer int, away *spec.Away) (affected []dataplane.ServiceName) {
	if before := u.away[layer]; before == away || before != nil && away != nil && *before == *away {
		return nil
	}
	u.away[layer] = away
	for _, in := range u.lacking {
		affected = slices.AppendSeq(affected, maps.Keys(in))
	}
	return affected
}

// awayNow returns the sources that cannot be read.
func (u *union) awayNow() (all []spec.Away) {
	for _, a := range u.away {
		if a != nil {
			all = append(all, *a)
		}
	}
	return all
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
		for i := range s.Endpoints {
			if addr, ok := readyAddress(&s.Endpoints[i]); ok {
				ready[addr] = true
			}
		}
	}
	for _, s := range before {
		for i := range s.Endpoints {
			if addr, ok := readyAddress(&s.Endpoints[i]); ok && !ready[addr] {
				return true
			}
		}
	}
	return false
}

// readyAddress returns the address of an endpoint, and whether it is ready.
func readyAddress(e *discoveryv1.Endpoint) (string, bool) {
	if len(e.Addresses) == 0 || e.Conditions.Ready != nil && !*e.Conditions.Ready {
		return "", false
	}
	return e.Addresses[0], true
}
