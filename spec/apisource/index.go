package apisource

import (
	"cmp"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec"
	"weir/spec/config"
)

// index joins Services, EndpointSlices and the Node. It is used by one goroutine; the Snapshots that it returns are free.
type index struct {
	nodeName string

	services map[spec.Name]service
	slices   map[spec.Name]slice
	// byService holds the slices of each Service, sorted by name. The lists are immutable.
	byService map[spec.Name][]*discoveryv1.EndpointSlice
	node      *corev1.Node

	dirty   map[spec.Name]struct{}
	newNode bool
	// versions holds the newest resourceVersion of each resource.
	versions [resources]string

	tree *iradix.Tree[*spec.Service]
	last *spec.Snapshot
}

type service struct {
	object  *corev1.Service
	version string
}

type slice struct {
	object *discoveryv1.EndpointSlice
	owner  spec.Name
}

func newIndex(nodeName string) *index {
	return &index{
		nodeName: nodeName, services: map[spec.Name]service{}, slices: map[spec.Name]slice{},
		byService: map[spec.Name][]*discoveryv1.EndpointSlice{}, dirty: map[spec.Name]struct{}{},
		tree: iradix.New[*spec.Service](),
	}
}

// apply takes in one change of one resource. The objects are trimmed, and the index's own from then on.
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

// replace takes in a complete list: what is not in it is gone.
func (x *index) replace(c change) {
	listed := make(map[spec.Name]struct{}, len(c.objects))
	for _, o := range c.objects {
		listed[nameOf(o.meta)] = struct{}{}
	}
	var known []spec.Name
	switch c.resource {
	case services:
		known = slices.Collect(maps.Keys(x.services))
	case endpointSlices:
		known = slices.Collect(maps.Keys(x.slices))
	case nodes:
		if x.node != nil {
			known = []spec.Name{{Name: x.node.Name}}
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

func nameOf(m *metav1.ObjectMeta) spec.Name { return spec.Name{Namespace: m.Namespace, Name: m.Name} }

func (x *index) put(o object) {
	version := o.meta.ResourceVersion
	o.meta.ResourceVersion = "" // objects from files have none
	name := nameOf(o.meta)
	switch {
	case o.service != nil:
		if old, ok := x.services[name]; ok && reflect.DeepEqual(old.object, o.service) {
			return
		}
		x.services[name] = service{o.service, version}
		x.dirty[name] = struct{}{}
	case o.slice != nil:
		new := slice{o.slice, spec.Name{Namespace: name.Namespace, Name: o.sliceOf}}
		old, ok := x.slices[name]
		if ok && old.owner == new.owner && reflect.DeepEqual(old.object, new.object) {
			return
		}
		if ok {
			x.unlink(old)
		}
		x.slices[name] = new
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

// remove takes note that an object is gone.
func (x *index) remove(r resource, name spec.Name) {
	switch r {
	case services:
		if _, ok := x.services[name]; ok {
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

// removeNode keeps the last that was known of this node, since its pods may still be served, and marks it as one that is
// being deleted, so that load balancers are told to stay away.
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
	if s.owner.Name == "" {
		return
	}
	all := append(slices.Clip(x.byService[s.owner]), s.object)
	slices.SortFunc(all, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	x.byService[s.owner] = all
	x.dirty[s.owner] = struct{}{}
}

func (x *index) unlink(s slice) {
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

// podCIDRs says whether the Node is known with its podCIDRs.
func (x *index) podCIDRs() bool {
	return x.node != nil && (len(x.node.Spec.PodCIDRs) > 0 || x.node.Spec.PodCIDR != "")
}

// current returns the last Snapshot if nothing has changed since, and else a new one, with what changed.
func (x *index) current() (*spec.Snapshot, spec.Delta) {
	if x.last != nil && len(x.dirty) == 0 && !x.newNode {
		return x.last, spec.Delta{}
	}
	return x.snapshot()
}

// snapshot returns the state of now, and what changed since the last time; the first has Delta.All.
func (x *index) snapshot() (*spec.Snapshot, spec.Delta) {
	delta := spec.Delta{All: x.last == nil, Nodes: x.newNode}
	txn := x.tree.Txn()
	for name := range x.dirty {
		key := spec.ServiceKey(name)
		old, existed := txn.Get(key)
		s, ok := x.services[name]
		switch {
		case !ok && !existed:
			continue
		case !ok:
			txn.Delete(key)
		case existed && old.Object == s.object && slices.Equal(old.Slices, x.byService[name]):
			continue
		default:
			txn.Insert(key, &spec.Service{Name: name, Object: s.object, Slices: x.byService[name], Origin: spec.Origin{ResourceVersion: s.version}})
		}
		delta.Services = append(delta.Services, name)
	}
	slices.SortFunc(delta.Services, func(a, b spec.Name) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	if delta.All {
		delta = spec.Delta{All: true}
	}
	x.tree, x.newNode = txn.Commit(), false
	clear(x.dirty)
	snap := spec.Snapshot{
		Revision: spec.Revision{ID: x.revision()},
		Config:   config.Default().KubeProxyConfiguration,
		Weir:     spec.DefaultWeirConfiguration(),
		Nodes:    map[string]*corev1.Node{},
	}
	if x.node != nil {
		snap.Nodes[x.node.Name] = x.node
	} else {
		snap.Notices = []spec.Problem{{Object: "Node " + x.nodeName, Detail: "is not in the API, so that topology and podCIDRs are not known; " +
			"give --hostname-override if this node has another name there"}}
	}
	x.last = snap.WithServices(x.tree)
	return x.last, delta
}

// revision is the newest resourceVersion of all. It is for people to read.
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
