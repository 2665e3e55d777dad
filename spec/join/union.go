package join

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/endpoints"
)

// union holds the last Snapshots of the base and the layers, and the one Snapshot that joins them.
type union struct {
	names   []string         // the names of the layers in notices; the base has no name
	said    []*spec.Snapshot // the base first, then the layers in ascending precedence
	filters []Filter

	givesPods []bool // the layers that give pods
	// away are the layers that give pods and cannot be read at the moment.
	away []*spec.Away
	// plans reports whether Services are to be planned with what templates promise.
	plans bool
	// pods are those of all layers, completed by the templates of all layers, and made has the slices that were made of them.
	pods      endpoints.Index
	templates endpoints.Templates
	made      map[dataplane.ServiceName][]*discoveryv1.EndpointSlice
	// lacking are the Services that select no pod, by namespace.
	lacking map[string]map[dataplane.ServiceName]bool
	// knew is what known returned for the last update.
	knew string

	// lost reports whether an endpoint that was ready is so no more, since the last update.
	lost bool

	begun    bool
	services spec.Services
	slices   spec.ByName[spec.Slices]
	nodes    map[string]*corev1.Node
	// notices holds the notices of all layers, disputes those of the join itself.
	notices, disputes []spec.Notice
	told              [][]spec.Notice
}

// complete reports whether all have sent a Snapshot.
func (u *union) complete() bool { return !slices.Contains(u.said, nil) }

// update brings the union up to date after any Snapshot changed. It returns the union and its Delta.
func (u *union) update(delta spec.Delta, outdated bool) (*spec.Snapshot, spec.Delta) {
	for _, f := range u.filters {
		if c, ok := f.(Configurable); ok {
			delta.Services = append(slices.Clip(delta.Services), c.Configure(u.said[0])...)
		}
	}
	if known := u.known(); known != u.knew {
		u.knew, delta.All = known, true
	}
	if !u.begun || delta.All || delta.Nodes {
		u.mergeNodes()
		delta.Services = append(delta.Services, u.pods.Selecting()...) // the zone of a pod is its Node's
	}
	if !u.begun || delta.All {
		u.all()
		u.begun, delta = true, spec.Delta{All: true}
	} else {
		delta.Services = u.some(delta.Services)
	}
	delta.Urgent, u.lost = delta.Urgent || u.lost, false
	u.mergeNotices()
	snap := *u.said[0]
	snap.Services, snap.Slices, snap.Nodes, snap.Notices = u.services, u.slices, u.nodes, u.notices
	snap.Pods, snap.Templates, snap.Found = spec.Pods{}, spec.Templates{}, u.found()
	snap.Away = u.awayNow()
	for _, other := range u.said[1:] {
		snap.Silenced = merged(snap.Silenced, other.Silenced)
	}
	snap.Revision = u.revision()
	snap.Kept = u.kept()
	snap.Revision.Outdated = snap.Revision.Outdated || outdated
	snap.Revision.Away = len(snap.Away) > 0
	return &snap, delta
}

// found returns the pods of each layer that has any. As in the index, those of the base come last.
func (u *union) found() (all []spec.Pods) {
	for source := range u.said {
		if pods := u.said[u.layer(source)].Pods; pods.Len() > 0 {
			all = append(all, pods)
		}
	}
	return all
}

// some joins the named Services anew and returns those that changed.
func (u *union) some(names []dataplane.ServiceName) []dataplane.ServiceName {
	services, loose := u.services.Edit(), u.slices.Edit()
	var changed []dataplane.ServiceName
	done := make(map[dataplane.ServiceName]bool, len(names)) // many pods may matter to one Service
	for _, name := range names {
		if done[name] {
			continue
		}
		done[name] = true
		before, wasLoose := services.Get(name), loose.Get(name)
		svc, rest := u.join(name, before)
		if svc == before && sameList(wasLoose.List, rest.List) {
			continue
		}
		changed = append(changed, name)
		set(services, name, svc, svc != nil)
		set(loose, name, rest, len(rest.List) > 0)
	}
	u.services, u.slices = services.Commit(), loose.Commit()
	return changed
}

// all joins everything again. Services that only the base has are shared with the base.
func (u *union) all() {
	before := u.services
	services, loose := u.said[0].Services.Edit(), spec.ByName[spec.Slices]{}.Edit()
	put := func(name dataplane.ServiceName) {
		svc, rest := u.join(name, nil)
		if svc == nil || services.Get(name) != svc { // what is shared with the base stays so
			set(services, name, svc, svc != nil)
		}
		set(loose, name, rest, len(rest.List) > 0)
	}
	for i, snap := range u.said {
		for name := range snap.Slices.Names() {
			put(name)
		}
		if i > 0 || len(u.filters) > 0 || u.knew != "" {
			for name := range snap.Services.Names() {
				put(name)
			}
		}
	}
	u.services, u.slices = services.Commit(), loose.Commit()
	if len(u.filters) == 0 && u.knew == "" {
		return
	}
	for name := range before.Names() {
		if u.services.Get(name) == nil {
			u.forget(name)
			u.filter(name, nil)
		}
	}
}

func set[V any](b *spec.Builder[V], name dataplane.ServiceName, v V, there bool) {
	if there {
		b.Put(name, v)
	} else {
		b.Delete(name)
	}
}

// join returns the winning Service, or nil, and the slices that belong to no Service. It returns before, the previous
// result, if that is still right.
func (u *union) join(name dataplane.ServiceName, before *spec.Service) (*spec.Service, spec.Slices) {
	var svc *spec.Service
	var winner string
	var notices []spec.Notice
	var extra []spec.Slices
	for i, snap := range slices.Backward(u.said) {
		if more := snap.Slices.Get(name); len(more.List) > 0 {
			extra = append(extra, more)
		}
		switch s := snap.Services.Get(name); {
		case s == nil:
		case svc == nil:
			svc, winner = s, u.names[i]
		default:
			notices = append(notices, spec.InTwoSources.Notice(s.Origin, spec.ServiceObject(name), "",
				fmt.Sprintf("is in %s too, and that one is used; remove one of them", winner)))
		}
	}
	if svc == nil {
		u.forget(name)
		if before != nil {
			u.filter(name, nil)
		}
		return nil, merge(spec.Slices{}, extra, nil)
	}
	list := merge(spec.Slices{List: svc.Slices}, extra, func(s *discoveryv1.EndpointSlice, from spec.Origin) {
		notices = append(notices, spec.InTwoSources.Notice(from, fmt.Sprintf("EndpointSlice %s/%s", name.Namespace, s.Name), "",
			"differs from another source's, and that one is used; remove one of them"))
	}).List
	joined := u.discover(with(svc, list, notices))
	joined = with(joined, u.filter(name, joined), nil)
	if before != nil && same(before, joined) {
		return before, spec.Slices{}
	}
	return joined, spec.Slices{}
}

// filter returns the slices of the Service after all Filters.
func (u *union) filter(name dataplane.ServiceName, svc *spec.Service) []*discoveryv1.EndpointSlice {
	if len(u.filters) == 0 && svc != nil {
		return svc.Slices
	}
	before, given := u.services.Get(name), svc
	for _, f := range u.filters {
		list := f.Slices(name, svc, before)
		if svc != nil {
			svc = with(svc, list, nil)
		}
	}
	if svc == nil {
		return nil
	}
	if before != nil && svc != given && !sameList(before.Slices, svc.Slices) {
		u.lost = u.lost || lost(before.Slices, svc.Slices)
	}
	return svc.Slices
}

// with returns the Service with these slices and additional notices. It returns svc itself if nothing changes.
func with(svc *spec.Service, list []*discoveryv1.EndpointSlice, notices []spec.Notice) *spec.Service {
	if len(notices) == 0 && sameList(list, svc.Slices) {
		return svc
	}
	changed := *svc
	changed.Slices = list
	changed.Notices = append(slices.Clip(svc.Notices), notices...)
	return &changed
}

// merge adds further slices to a list, which stays sorted by name. Among slices of one name the first wins. merge calls
// disputed for others of that name that differ from it.
func merge(first spec.Slices, more []spec.Slices, disputed func(*discoveryv1.EndpointSlice, spec.Origin)) spec.Slices {
	for _, m := range more {
		if len(first.List) == 0 {
			first = m
			continue
		}
		list := slices.Clone(first.List)
		for _, s := range m.List {
			i, found := slices.BinarySearchFunc(list, s.Name, func(a *discoveryv1.EndpointSlice, n string) int { return strings.Compare(a.Name, n) })
			switch {
			case !found:
				list = slices.Insert(list, i, s)
			case disputed != nil && !reflect.DeepEqual(list[i], s):
				disputed(s, m.Origin)
			}
		}
		first.List = list
	}
	return first
}

func sameList(a, b []*discoveryv1.EndpointSlice) bool { return slices.Equal(a, b) }

// same reports whether two Services have the same parts.
func same(a, b *spec.Service) bool {
	return a == b || a.Object == b.Object && a.Origin == b.Origin && a.OfPods == b.OfPods && a.Asked == b.Asked && a.Hint == b.Hint && a.Promised == b.Promised && sameList(a.Slices, b.Slices) && a.Probes.Identical(b.Probes) && slices.Equal(a.Notices, b.Notices) && slices.Equal(a.Allocated, b.Allocated)
}

// mergeNodes merges the Nodes by name.
func (u *union) mergeNodes() {
	u.nodes, u.disputes, u.told = nil, nil, nil
	for i, snap := range u.said {
		switch {
		case len(snap.Nodes) == 0:
			continue
		case len(u.nodes) == 0:
			u.nodes = maps.Clone(snap.Nodes)
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(snap.Nodes)) {
			n := snap.Nodes[name]
			if old, ok := u.nodes[name]; ok && !sameNode(old, n) {
				u.disputes = append(u.disputes, spec.InTwoSources.Notice(spec.Origin{}, "Node "+name, "", fmt.Sprintf("differs from that in %s, and that one is used", u.names[i])))
			}
			u.nodes[name] = n
		}
	}
}

// sameNode compares the fields of a Node that weir reads.
func sameNode(a, b *corev1.Node) bool {
	return a.Labels[corev1.LabelTopologyZone] == b.Labels[corev1.LabelTopologyZone] && slices.Equal(a.Spec.PodCIDRs, b.Spec.PodCIDRs)
}

// mergeNotices collects the notices of all layers. It does nothing if none changed.
func (u *union) mergeNotices() {
	all := make([][]spec.Notice, len(u.said))
	for i, snap := range u.said {
		all[i] = snap.Notices
	}
	identical := func(a, b []spec.Notice) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }
	if u.told != nil && slices.EqualFunc(all, u.told, identical) {
		return
	}
	u.told = all
	u.notices = slices.Concat(slices.Concat(all...), u.disputes)
}

// kept returns when the oldest of the kept Snapshots was kept, or zero if there is none.
func (u *union) kept() (oldest time.Time) {
	for _, snap := range u.said {
		if !snap.Kept.IsZero() && (oldest.IsZero() || snap.Kept.Before(oldest)) {
			oldest = snap.Kept
		}
	}
	return oldest
}

// merged returns both maps in one.
func merged(a, b map[string]string) map[string]string {
	switch {
	case len(b) == 0:
		return a
	case len(a) == 0:
		return b
	}
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// revision returns the joined Revision of all layers.
func (u *union) revision() (r spec.Revision) {
	var ids []string
	for _, snap := range u.said {
		if id := snap.Revision.ID; id != "" {
			ids = append(ids, id)
		}
		r.Dirty = r.Dirty || snap.Revision.Dirty
		r.Signer = cmp.Or(r.Signer, snap.Revision.Signer)
		r.Stale = r.Stale || snap.Revision.Stale
		r.Outdated = r.Outdated || snap.Revision.Outdated
		r.ProxyOnly = r.ProxyOnly || snap.Revision.ProxyOnly
	}
	r.ID = strings.Join(ids, "+")
	return r
}
