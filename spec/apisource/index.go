package apisource

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/manifest"
)

// index joins Services, EndpointSlices and the Node. Only one goroutine may use it; all may use the Snapshots that it
// returns.
type index struct {
	nodeName string
	headless bool // see Options.Headless

	services map[dataplane.ServiceName]service
	slices   map[dataplane.ServiceName]slice
	// byService holds the slices of each Service, sorted by name. The lists are immutable. badSlices says why those among
	// them that cannot be used cannot.
	byService map[dataplane.ServiceName][]*discoveryv1.EndpointSlice
	badSlices map[*discoveryv1.EndpointSlice]string
	node      *corev1.Node

	dirty   map[dataplane.ServiceName]struct{}
	newNode bool
	// versions holds the newest resourceVersion of each resource, and bytes what its objects cost.
	versions [resources]string
	bytes    [resources]int64
	// faults says why each Service that is held back cannot be used.
	faults map[dataplane.ServiceName]string

	last *spec.Snapshot
}

type service struct {
	object  *corev1.Service
	version string
	fault   string
}

type slice struct {
	object *discoveryv1.EndpointSlice
	owner  dataplane.ServiceName
}

func newIndex(nodeName string, headless bool) *index {
	return &index{
		nodeName: nodeName, headless: headless, services: map[dataplane.ServiceName]service{}, slices: map[dataplane.ServiceName]slice{},
		byService: map[dataplane.ServiceName][]*discoveryv1.EndpointSlice{}, dirty: map[dataplane.ServiceName]struct{}{},
		badSlices: map[*discoveryv1.EndpointSlice]string{}, faults: map[dataplane.ServiceName]string{},
	}
}

// apply applies a change of one resource. The objects are trimmed, and belong to the index from then on.
func (x *index) apply(c change) {
	x.versions[c.resource] = newer(x.versions[c.resource], c.version)
	if c.complete {
		x.replace(c)
		return
	}
	for _, o := range c.objects {
		x.put(o)
	}
	for _, name := range c.deleted {
		x.remove(c.resource, name)
	}
}

// replace applies a complete list: objects that are not in it are gone.
func (x *index) replace(c change) {
	listed := make(map[dataplane.ServiceName]struct{}, len(c.objects))
	for _, o := range c.objects {
		listed[nameOf(o.meta)] = struct{}{}
	}
	var known []dataplane.ServiceName
	switch c.resource {
	case services:
		known = slices.Collect(maps.Keys(x.services))
	case endpointSlices:
		known = slices.Collect(maps.Keys(x.slices))
	case nodes:
		if x.node != nil {
			known = []dataplane.ServiceName{{Name: x.node.Name}}
		}
	}
	for _, name := range known {
		if _, ok := listed[name]; !ok {
			x.remove(c.resource, name)
		}
	}
	for _, o := range c.objects {
		x.put(o)
	}
}

func nameOf(m *metav1.ObjectMeta) dataplane.ServiceName {
	return dataplane.ServiceName{Namespace: m.Namespace, Name: m.Name}
}

func (x *index) put(o object) {
	version := o.meta.ResourceVersion
	o.meta.ResourceVersion = "" // objects from files have none
	name := nameOf(o.meta)
	switch {
	case o.service != nil:
		old, ok := x.services[name]
		if ok && reflect.DeepEqual(old.object, o.service) {
			return
		}
		if ok {
			x.bytes[services] -= cost(old.object)
		}
		x.services[name] = service{o.service, version, o.fault}
		x.bytes[services] += cost(o.service)
		x.dirty[name] = struct{}{}
	case o.slice != nil:
		new := slice{o.slice, dataplane.ServiceName{Namespace: name.Namespace, Name: o.sliceOf}}
		old, ok := x.slices[name]
		if ok && old.owner == new.owner && reflect.DeepEqual(old.object, new.object) {
			return
		}
		if ok {
			x.unlink(old)
		}
		x.slices[name] = new
		if o.fault != "" {
			x.badSlices[o.slice] = o.fault
		}
		x.link(new)
	case o.node != nil:
		x.putNode(o.node)
	}
}

func (x *index) putNode(n *corev1.Node) {
	if n.Name != x.nodeName || x.node != nil && reflect.DeepEqual(x.node, n) {
		return
	}
	x.node, x.newNode = n, true
}

// remove records that an object is gone.
func (x *index) remove(r resource, name dataplane.ServiceName) {
	switch r {
	case services:
		if old, ok := x.services[name]; ok {
			x.bytes[services] -= cost(old.object)
			delete(x.services, name)
			x.dirty[name] = struct{}{}
		}
	case endpointSlices:
		if old, ok := x.slices[name]; ok {
			delete(x.slices, name)
			x.unlink(old)
		}
	case nodes:
		x.removeNode(name.Name)
	}
}

// removeNode keeps the last state of this node's Node, because its pods may still be served. It marks the Node as being
// deleted, so that load balancers stop using it.
func (x *index) removeNode(name string) {
	if x.node == nil || x.node.Name != name || x.node.DeletionTimestamp != nil {
		return
	}
	n := *x.node
	now := metav1.NewTime(time.Now())
	n.DeletionTimestamp = &now
	x.node, x.newNode = &n, true
}

func (x *index) link(s slice) {
	x.bytes[endpointSlices] += cost(s.object)
	if s.owner.Name == "" {
		return
	}
	all := append(slices.Clip(x.byService[s.owner]), s.object)
	slices.SortFunc(all, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	x.byService[s.owner] = all
	x.dirty[s.owner] = struct{}{}
}

func (x *index) unlink(s slice) {
	x.bytes[endpointSlices] -= cost(s.object)
	delete(x.badSlices, s.object)
	if s.owner.Name == "" {
		return
	}
	rest := slices.DeleteFunc(slices.Clone(x.byService[s.owner]), func(o *discoveryv1.EndpointSlice) bool { return o == s.object })
	x.byService[s.owner] = rest
	if len(rest) == 0 {
		delete(x.byService, s.owner)
	}
	x.dirty[s.owner] = struct{}{}
}

// podCIDRs reports whether the Node is known with its podCIDRs.
func (x *index) podCIDRs() bool {
	return x.node != nil && (len(x.node.Spec.PodCIDRs) > 0 || x.node.Spec.PodCIDR != "")
}

// current returns the last Snapshot if nothing has changed since. Otherwise it returns a new one with its Delta.
func (x *index) current() (*spec.Snapshot, spec.Delta) {
	if x.last != nil && len(x.dirty) == 0 && !x.newNode {
		return x.last, spec.Delta{}
	}
	return x.snapshot()
}

// snapshot returns the current state, and the Delta since the last one; the first has Delta.All.
func (x *index) snapshot() (*spec.Snapshot, spec.Delta) {
	delta := spec.Delta{All: x.last == nil, Nodes: x.newNode}
	var before spec.Snapshot
	if x.last != nil {
		before = *x.last
	}
	all, loose := before.Services.Edit(), before.Slices.Edit()
	for name := range x.dirty {
		old := all.Get(name)
		s, ok := x.services[name]
		if told := x.faults[name]; x.holdBack(name, ok) {
			if x.faults[name] != told { // the Snapshot has a new Notice
				delta.Services = append(delta.Services, name)
			}
			continue
		}
		had, has := loose.Get(name), spec.Slices{}
		if !ok {
			has.List = x.usable(name)
		}
		if len(has.List) > 0 {
			loose.Put(name, has)
		} else {
			loose.Delete(name)
		}
		switch {
		case !ok && old == nil && slices.Equal(had.List, has.List):
			continue
		case !ok:
			all.Delete(name)
		case old != nil && old.Object == s.object && slices.Equal(old.Slices, x.byService[name]):
			continue
		default:
			svc := &spec.Service{Name: name, Object: s.object, Slices: x.byService[name], Origin: spec.Origin{ResourceVersion: s.version}}
			svc.Probes, svc.Notices = manifest.ProbesOf(s.object, svc.Origin)
			all.Put(name, svc)
		}
		delta.Services = append(delta.Services, name)
	}
	slices.SortFunc(delta.Services, compareNames)
	if delta.All {
		delta = spec.Delta{All: true}
	}
	x.newNode = false
	clear(x.dirty)
	snap := &spec.Snapshot{
		Services: all.Commit(),
		Slices:   loose.Commit(),
		Revision: spec.Revision{ID: x.revision(), ProxyOnly: !x.headless},
		Config:   config.Default().KubeProxyConfiguration,
		Weir:     spec.DefaultWeirConfiguration(),
		Nodes:    map[string]*corev1.Node{},
	}
	for _, name := range slices.SortedFunc(maps.Keys(x.faults), compareNames) {
		snap.Notices = append(snap.Notices, spec.ServiceRefused.Notice(spec.Origin{ResourceVersion: x.services[name].version}, spec.ServiceObject(name), "",
			x.faults[name]+"; its last valid state stays in force"))
	}
	if x.node != nil {
		snap.Nodes[x.node.Name] = x.node
	} else {
		snap.Notices = append(snap.Notices, spec.NodeUnknown.Notice(spec.Origin{}, "Node "+x.nodeName, "", "is not in the API, so that topology and podCIDRs are not known; "+
			"give --hostname-override if this node has another name there"))
	}
	x.last = snap
	return x.last, delta
}

func compareNames(a, b dataplane.ServiceName) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// holdBack reports whether a Service, or a slice of it, has a fault, so that the last valid state stands.
func (x *index) holdBack(name dataplane.ServiceName, declared bool) bool {
	fault := x.services[name].fault
	for _, s := range x.byService[name] {
		if why, bad := x.badSlices[s]; bad && fault == "" {
			fault = "EndpointSlice " + s.Name + ": " + why
		}
	}
	if fault == "" || !declared && x.last != nil && x.last.Services.Get(name) != nil {
		delete(x.faults, name) // a Service that is gone goes, whatever its slices are
		return false
	}
	x.faults[name] = fault
	return true
}

// usable returns the slices of a Service that have no fault.
func (x *index) usable(name dataplane.ServiceName) []*discoveryv1.EndpointSlice {
	all := x.byService[name]
	bad := func(s *discoveryv1.EndpointSlice) bool { return x.badSlices[s] != "" }
	if !slices.ContainsFunc(all, bad) {
		return all
	}
	return slices.DeleteFunc(slices.Clone(all), bad)
}

// revision returns the newest resourceVersion of all. It is meant for display only.
func (x *index) revision() string {
	newest := ""
	for _, v := range x.versions {
		newest = newer(newest, v)
	}
	return newest
}

// newer returns the larger of two resourceVersions, which are decimal numbers.
func newer(a, b string) string {
	if len(a) > len(b) || len(a) == len(b) && a > b {
		return a
	}
	return b
}
