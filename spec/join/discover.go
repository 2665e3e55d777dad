package join

import (
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/endpoints"
)

// takePods takes the pods of a layer's new Snapshot, and returns the Services that select a pod which changed.
func (u *union) takePods(layer int, snap *spec.Snapshot, delta spec.Delta) (affected []dataplane.ServiceName) {
	changed := delta.Pods
	if delta.All {
		changed = nil
		for _, key := range u.pods.Keys(layer) {
			changed = append(changed, dataplane.ServiceName{Namespace: key.Namespace, Name: key.Name})
		}
		changed = slices.AppendSeq(changed, snap.Pods.Names())
	}
	for _, name := range changed {
		key := endpoints.PodKey{Source: layer, Namespace: name.Namespace, Name: name.Name}
		affected = append(affected, u.pods.SetPod(key, snap.Pods.Get(name))...)
	}
	return affected
}

// discover returns the Service with the slices of the pods that it selects, unless it has slices from elsewhere. The slices
// of a Service of an API are made by its control plane.
func (u *union) discover(svc *spec.Service) *spec.Service {
	if !u.asksForPods() || svc.Origin.File == "" || !endpoints.Selects(svc.Object) {
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
		asked := *svc
		asked.Asked = u.asked()
		return &asked
	}
	return with(svc, made, nil)
}

// forget drops what is known of the pods of a Service that does not select any more.
func (u *union) forget(name dataplane.ServiceName) {
	u.pods.SetService(name, nil)
	delete(u.made, name)
}

// asksForPods reports whether there is a layer that gives pods.
func (u *union) asksForPods() bool { return slices.Contains(u.givesPods, true) }

// asked returns the names of the layers that give pods.
func (u *union) asked() string {
	var names []string
	for i, gives := range u.givesPods {
		if gives && u.names[i] != "" {
			names = append(names, u.names[i])
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
