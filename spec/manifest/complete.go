package manifest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/config"
)

var defaultConfig = config.Default().KubeProxyConfiguration

func sameSettings(a, b *spec.Snapshot) bool {
	return reflect.DeepEqual(a.Config, b.Config) && a.UDPIdleTimeout == b.UDPIdleTimeout && a.MinSyncPeriodGiven == b.MinSyncPeriodGiven && reflect.DeepEqual(a.Weir, b.Weir) && maps.Equal(a.Silenced, b.Silenced)
}

func sameNodes(a, b map[string]*corev1.Node) bool {
	return maps.EqualFunc(a, b, func(x, y *corev1.Node) bool { return x == y || reflect.DeepEqual(x, y) })
}

// moved marks a Service whose allocation changed as dirty.
func (u *update) moved(o owner) { u.dirty[o.service] = true }

// allocate brings the pools in line with the needs of the dirty Services. It first releases values, then reserves those
// set by hand, then allocates the rest.
func (u *update) allocate() {
	wanted := map[dataplane.ServiceName]needs{}
	for name := range u.dirty {
		n := needs{}
		if e := u.entries[name]; e != nil && e.service != nil {
			var problems []fieldProblem
			n, problems = u.pools.needsOf(e.service.service, e.pinned())
			for _, p := range problems {
				u.problem(e.service, p.field, p.detail)
			}
			if e.pin != nil {
				u.checkPinned(e.service.service, e.pin, n)
			}
		}
		if !n.equal(u.needs[name]) {
			wanted[name] = n
		}
	}
	for name, n := range wanted {
		u.giveUp(name, u.needs[name], n)
	}
	for name, n := range wanted {
		u.reserve(name, u.needs[name], n)
	}
	ips, ports := u.claim(wanted)
	u.reportContested()
	if u.full() {
		return
	}
	for _, c := range ips {
		u.poolOf(c.owner.need).place(&u.undo, c, u.moved)
	}
	for _, c := range ports {
		u.pools.port.place(&u.undo, c, u.moved)
	}
	for name, n := range wanted {
		if e := u.entries[name]; e == nil || e.service == nil {
			remove(&u.undo, u.needs, name)
		} else {
			put(&u.undo, u.needs, name, n)
		}
	}
}

func (u *update) poolOf(n need) *pool[netip.Addr] {
	if n == needIPv4 {
		return u.pools.ip[corev1.IPv4Protocol]
	}
	return u.pools.ip[corev1.IPv6Protocol]
}

func isAddress(n need) bool { return n == needIPv4 || n == needIPv6 }

// giveUp releases what a Service had and no longer needs.
func (u *update) giveUp(name dataplane.ServiceName, had, n needs) {
	for _, w := range had.wanted {
		switch o := (owner{name, w}); {
		case slices.Contains(n.wanted, w):
		case isAddress(w):
			u.poolOf(w).release(&u.undo, o, u.moved)
		default:
			u.pools.port.release(&u.undo, o, u.moved)
		}
	}
	for _, a := range had.addrs {
		if !slices.Contains(n.addrs, a) {
			u.setPool(a).unreserve(&u.undo, a, u.moved)
		}
	}
	for _, p := range had.ports {
		if !slices.Contains(n.ports, p) {
			u.pools.port.unreserve(&u.undo, p, u.moved)
		}
	}
}

// setPool returns the pool that keeps account of an address that was set by hand.
func (u *update) setPool(a netip.Addr) *pool[netip.Addr] {
	if p := u.pools.ip[familyOf(a)]; p != nil {
		return p
	}
	return u.pools.foreign
}

func (u *update) reserve(name dataplane.ServiceName, had, n needs) {
	for _, a := range n.addrs {
		if slices.Contains(had.addrs, a) {
			continue
		}
		if other, ok := u.setPool(a).reserve(&u.undo, a, owner{service: name}, u.moved); !ok {
			contest(u.contestedIPs, a, other.service, name)
		}
	}
	for _, p := range n.ports {
		if slices.Contains(had.ports, p) {
			continue
		}
		if other, ok := u.pools.port.reserve(&u.undo, p, owner{service: name}, u.moved); !ok {
			contest(u.contestedPorts, p, other.service, name)
		}
	}
}

func contest[V comparable](m map[V][]dataplane.ServiceName, v V, first, second dataplane.ServiceName) {
	if len(m[v]) == 0 {
		m[v] = append(m[v], first)
	}
	m[v] = append(m[v], second)
}

// claim registers the values that Services want to be allocated, without placing them.
func (u *update) claim(wanted map[dataplane.ServiceName]needs) (ips []*claim[netip.Addr], ports []*claim[uint16]) {
	for name, n := range wanted {
		for _, w := range n.wanted {
			switch o := (owner{name, w}); {
			case slices.Contains(u.needs[name].wanted, w):
			case isAddress(w):
				ips = append(ips, u.poolOf(w).add(&u.undo, o))
			default:
				ports = append(ports, u.pools.port.add(&u.undo, o))
			}
		}
	}
	return ips, ports
}

// full reports pools that are too small.
func (u *update) full() bool {
	full := false
	for f, p := range u.pools.ip {
		if p.full() {
			full = true
			u.problems = append(u.problems, spec.Problem{Object: "WeirConfiguration", Field: "serviceCIDRs",
				Detail: fmt.Sprintf("%d Services need an %s ClusterIP, and the service CIDR has %d to allocate; make it larger", len(p.claims), f, p.size-min(p.setInside, p.size))})
		}
	}
	if p := u.pools.port; p.full() {
		full = true
		u.problems = append(u.problems, spec.Problem{Object: "WeirConfiguration", Field: "nodePortRange",
			Detail: fmt.Sprintf("%d node ports are needed, and the range has %d to allocate; make it larger", len(p.claims), p.size-min(p.setInside, p.size))})
	}
	return full
}

// reportContested reports values that several Services set. A Service that has the value pinned may keep it. Otherwise
// the first one in the order of files and lines keeps it.
func (u *update) reportContested() {
	for a, names := range u.contestedIPs {
		u.contested(names, fmt.Sprintf("%s is the ClusterIP", a), func(s *service) string {
			switch i := slices.Index(s.clusterIPs, a); i {
			case -1:
				return ""
			case 0:
				return "spec.clusterIP"
			default:
				return fmt.Sprintf("spec.clusterIPs[%d]", i)
			}
		})
	}
	for p, names := range u.contestedPorts {
		u.contested(names, fmt.Sprintf("%d is a node port", p), func(s *service) string {
			if i := slices.Index(s.nodePorts, int32(p)); i >= 0 {
				return fmt.Sprintf("spec.ports[%d].nodePort", i)
			}
			if s.healthPort == int32(p) {
				return "spec.healthCheckNodePort"
			}
			return ""
		})
	}
}

func (u *update) contested(names []dataplane.ServiceName, what string, field func(*service) string) {
	type claimant struct {
		*placed
		field string // "" if it is pinned
	}
	var all []claimant
	for _, name := range names {
		e := u.entries[name]
		c := claimant{e.service, field(e.service.service)}
		if c.field == "" {
			c.placed = e.pin
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b claimant) int {
		pinned := func(c claimant) int { return min(len(c.field), 1) } // pinned claims sort first, because they existed before
		return cmp.Or(cmp.Compare(pinned(a), pinned(b)), compareOrigins(a.origin(), b.origin()))
	})
	for _, c := range all[1:] {
		u.problem(c.placed, c.field, fmt.Sprintf("%s of Service %s already (%s)", what, all[0].id.name, all[0].origin()))
	}
}

func compareNames(a, b dataplane.ServiceName) int {
	if n := strings.Compare(a.Namespace, b.Namespace); n != 0 {
		return n
	}
	return strings.Compare(a.Name, b.Name)
}

// build makes the dirty Services again and returns all Services.
func (u *update) build() (spec.Services, spec.ByName[spec.Slices]) {
	all, loose := u.services.Edit(), u.slices.Edit()
	for _, name := range slices.SortedFunc(maps.Keys(u.dirty), compareNames) {
		old := all.Get(name)
		e := u.entries[name]
		if e == nil || e.service == nil {
			if old != nil {
				all.Delete(name)
				u.changed = append(u.changed, name)
			}
			had, has := loose.Get(name), u.looseSlices(e)
			if u.leftOut(name) {
				has = spec.Slices{}
			}
			if !sameSlices(had.List, has.List) && old == nil {
				u.changed = append(u.changed, name)
			}
			if len(has.List) > 0 {
				loose.Put(name, has)
			} else {
				loose.Delete(name)
			}
			u.pinnedForNone(name, e != nil && e.pin != nil && !u.leftOut(name))
			mark(&u.undo, u.strayPolicies, name, e != nil && len(e.policies) > 0 && !u.leftOut(name))
			continue
		}
		loose.Delete(name)
		u.pinnedForNone(name, false)
		mark(&u.undo, u.strayPolicies, name, false)
		svc := u.service(name, e)
		switch {
		case old == nil || !sameService(old, svc):
			u.changed = append(u.changed, name)
		case old.Origin == svc.Origin && slices.Equal(old.SliceFiles, svc.SliceFiles) && old.Probes.Identical(svc.Probes):
			e.service.service.base = old.Object
			continue
		}
		all.Put(name, svc)
	}
	return all.Commit(), loose.Commit()
}

// looseSlices returns the slices of a Service that is not declared.
func (u *update) looseSlices(e *entry) spec.Slices {
	switch {
	case e == nil:
		return spec.Slices{}
	case len(e.slices) > 0:
		origin := e.slices[0].origin()
		return spec.Slices{List: u.slicesOf(e), Origin: origin, Files: e.sliceFiles(origin.File), Object: e.slices[0].id.String()}
	case e.endpoints != nil:
		return spec.Slices{List: u.slicesOf(e), Origin: e.endpoints.origin(), Object: e.endpoints.id.String()}
	}
	return spec.Slices{}
}

// slicesOf returns the slices of a Service, converting Endpoints if there are no others.
func (u *update) slicesOf(e *entry) []*discoveryv1.EndpointSlice {
	if len(e.slices) == 0 && e.endpoints != nil && e.endpoints.endpoints.Labels[discoveryv1.LabelSkipMirror] != "true" {
		return u.decoder.intern.toSlices(e.endpoints.endpoints)
	}
	var all []*discoveryv1.EndpointSlice
	for _, p := range e.slices {
		all = append(all, p.slice)
	}
	return all
}

// sliceFiles returns the files of the slices, or nil if all are in the given one.
func (e *entry) sliceFiles(own string) []string {
	if len(e.slices) == 0 && e.endpoints != nil && e.endpoints.at.path != own {
		return []string{e.endpoints.at.path} // the slices that it is converted to, at most one for each family, share it
	}
	if !slices.ContainsFunc(e.slices, func(p *placed) bool { return p.at.path != own }) {
		return nil
	}
	files := make([]string, len(e.slices))
	for i, p := range e.slices {
		files[i] = p.at.path
	}
	return files
}

// pinnedForNone records whether values are pinned for a Service that does not exist.
func (u *update) pinnedForNone(name dataplane.ServiceName, pinned bool) {
	mark(&u.undo, u.unusedPins, name, pinned)
}

// mark adds a name to a set, or removes it.
func mark(u *undo, set map[dataplane.ServiceName]bool, name dataplane.ServiceName, in bool) {
	switch {
	case in:
		put(u, set, name, true)
	case set[name]:
		remove(u, set, name)
	}
}

func sameSlices(a, b []*discoveryv1.EndpointSlice) bool {
	return slices.EqualFunc(a, b, func(x, y *discoveryv1.EndpointSlice) bool { return x == y || reflect.DeepEqual(x, y) })
}

// pinned returns the pin of the Service, or nil.
func (e *entry) pinned() *pin {
	if e.pin == nil {
		return nil
	}
	return e.pin.pin
}

// sameService reports whether two Services differ at most in their Origin.
func sameService(a, b *spec.Service) bool {
	return reflect.DeepEqual(a.Object, b.Object) && slices.Equal(a.Allocated, b.Allocated) && sameSlices(a.Slices, b.Slices) && a.Probes.Equal(b.Probes) && slices.EqualFunc(a.Notices, b.Notices, func(x, y spec.Notice) bool {
		x.Origin, y.Origin = spec.Origin{}, spec.Origin{}
		return x == y
	})
}

// service completes one Service.
func (u *update) service(name dataplane.ServiceName, e *entry) *spec.Service {
	own := e.service.service
	own.base = u.pools.complete(name, own, u.needs[name], e.pinned())
	svc := &spec.Service{Name: name, Object: own.base, Allocated: u.pools.allocations(own, u.needs[name], e.pinned()), Origin: e.service.origin()}
	svc.Slices, svc.SliceFiles = u.slicesOf(e), e.sliceFiles(svc.Origin.File)
	if own.proxied() {
		u.serviceNotices(svc, e)
	}
	u.lockNotices(svc, e)
	u.probes(svc, e)
	return svc
}

// serviceNotices adds notices about parts of a Service that probably do not work as its author meant, regardless of the
// other sources.
func (u *update) serviceNotices(svc *spec.Service, e *entry) {
	notice := func(id spec.NoticeID, detail string) {
		svc.Notices = append(svc.Notices, id.Notice(svc.Origin, e.service.id.String(), "", detail))
	}
	switch {
	case len(svc.Slices) > 0 || e.endpoints == nil:
	case e.endpoints.endpoints.Labels[discoveryv1.LabelSkipMirror] == "true":
		notice(spec.NoReadyEndpoint, "has no endpoints: its Endpoints object is labelled "+discoveryv1.LabelSkipMirror)
	default:
		notice(spec.NoReadyEndpoint, "has no endpoints: its Endpoints object has no addresses")
	}
}
