package manifest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/spec"
	"weir/spec/config"
)

var defaultConfig = config.Default().KubeProxyConfiguration

func sameSettings(a, b *spec.Snapshot) bool {
	return reflect.DeepEqual(a.Config, b.Config) && a.UDPIdleTimeout == b.UDPIdleTimeout && reflect.DeepEqual(a.Weir, b.Weir)
}

func sameNodes(a, b map[string]*corev1.Node) bool {
	return maps.EqualFunc(a, b, func(x, y *corev1.Node) bool { return x == y || reflect.DeepEqual(x, y) })
}

// moved is told of Services whose allocated values changed.
func (u *update) moved(o owner) { u.dirty[o.service] = true }

// allocate brings the pools in line with what the dirty Services need: first what is given up, then what is set by hand,
// then what is left to choose.
func (u *update) allocate() {
	wanted := map[spec.Name]needs{}
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

// giveUp releases what a Service had and does not need any more.
func (u *update) giveUp(name spec.Name, had, n needs) {
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

// setPool returns the pool that knows of an address that was set by hand.
func (u *update) setPool(a netip.Addr) *pool[netip.Addr] {
	if p := u.pools.ip[familyOf(a)]; p != nil {
		return p
	}
	return u.pools.foreign
}

func (u *update) reserve(name spec.Name, had, n needs) {
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

func contest[V comparable](m map[V][]spec.Name, v V, first, second spec.Name) {
	if len(m[v]) == 0 {
		m[v] = append(m[v], first)
	}
	m[v] = append(m[v], second)
}

// claim registers what Services want to be allocated, without settling who gets what.
func (u *update) claim(wanted map[spec.Name]needs) (ips []*claim[netip.Addr], ports []*claim[uint16]) {
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

// reportContested reports values that several Services set. The one that has it pinned may keep it, else the first, in the
// order of files and lines.
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

func (u *update) contested(names []spec.Name, what string, field func(*service) string) {
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
		pinned := func(c claimant) int { return min(len(c.field), 1) } // what is pinned was there before
		return cmp.Or(cmp.Compare(pinned(a), pinned(b)), compareOrigins(a.origin(), b.origin()))
	})
	for _, c := range all[1:] {
		u.problem(c.placed, c.field, fmt.Sprintf("%s of Service %s already (%s)", what, all[0].id.name, all[0].origin()))
	}
}

// vip is an address at which a Service is reached besides its ClusterIP.
type vip struct {
	addr     netip.Addr
	port     int32
	protocol corev1.Protocol
}

func vipsOf(svc *corev1.Service) []vip {
	addrs := slices.Clone(svc.Spec.ExternalIPs)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IP != "" {
			addrs = append(addrs, in.IP)
		}
	}
	var out []vip
	for _, s := range addrs {
		if a, err := netip.ParseAddr(s); err == nil {
			for _, p := range svc.Spec.Ports {
				if v := (vip{a, p.Port, p.Protocol}); !slices.Contains(out, v) {
					out = append(out, v)
				}
			}
		}
	}
	return out
}

// registerVIPs notes which Services share an external address and port. Those that share one with a dirty Service become
// dirty themselves, since their notices change.
func (u *update) registerVIPs() {
	for _, name := range slices.Collect(maps.Keys(u.dirty)) {
		if old, ok := u.tree.Get(spec.ServiceKey(name)); ok {
			for _, v := range vipsOf(old.Object) {
				rest := slices.DeleteFunc(slices.Clone(u.vips[v]), func(n spec.Name) bool { return n == name })
				u.shareVIP(v, rest)
			}
		}
		if e := u.entries[name]; e != nil && e.service != nil && e.service.service.proxied() {
			for _, v := range vipsOf(e.service.service.base) {
				all := append(slices.Clip(u.vips[v]), name)
				slices.SortFunc(all, compareNames)
				u.shareVIP(v, all)
			}
		}
	}
}

func (u *update) shareVIP(v vip, names []spec.Name) {
	for _, n := range u.vips[v] {
		u.dirty[n] = true
	}
	if len(names) == 0 {
		remove(&u.undo, u.vips, v)
		return
	}
	put(&u.undo, u.vips, v, names)
}

func compareNames(a, b spec.Name) int {
	if n := strings.Compare(a.Namespace, b.Namespace); n != 0 {
		return n
	}
	return strings.Compare(a.Name, b.Name)
}

// build makes the dirty Services anew and returns the tree of all.
func (u *update) build() *iradix.Tree[*spec.Service] {
	txn := u.tree.Txn()
	for _, name := range slices.SortedFunc(maps.Keys(u.dirty), compareNames) {
		key := spec.ServiceKey(name)
		old, existed := txn.Get(key)
		e := u.entries[name]
		if e == nil || e.service == nil {
			if existed {
				txn.Delete(key)
				u.changed = append(u.changed, name)
			}
			if e != nil {
				put(&u.undo, u.orphan, name, true)
			} else if u.orphan[name] {
				remove(&u.undo, u.orphan, name)
			}
			continue
		}
		if u.orphan[name] {
			remove(&u.undo, u.orphan, name)
		}
		svc := u.service(name, e)
		switch {
		case !existed || !sameService(old, svc):
			u.changed = append(u.changed, name)
		case old.Origin == svc.Origin:
			e.service.service.base = old.Object
			continue
		}
		txn.Insert(key, svc)
	}
	return txn.Commit()
}

// pinned returns what is pinned for the Service, or nil.
func (e *entry) pinned() *pin {
	if e.pin == nil {
		return nil
	}
	return e.pin.pin
}

// sameService says whether two Services differ in nothing but their place.
func sameService(a, b *spec.Service) bool {
	return reflect.DeepEqual(a.Object, b.Object) && slices.Equal(a.Allocated, b.Allocated) && slices.EqualFunc(a.Slices, b.Slices, func(x, y *discoveryv1.EndpointSlice) bool {
		return x == y || reflect.DeepEqual(x, y)
	}) && slices.EqualFunc(a.Notices, b.Notices, func(x, y spec.Problem) bool {
		x.Origin, y.Origin = spec.Origin{}, spec.Origin{}
		return x == y
	})
}

// service completes one Service.
func (u *update) service(name spec.Name, e *entry) *spec.Service {
	own := e.service.service
	own.base = u.pools.complete(name, own, u.needs[name], e.pinned())
	svc := &spec.Service{Name: name, Object: own.base, Allocated: u.pools.allocations(own, u.needs[name], e.pinned()), Origin: e.service.origin()}
	for _, p := range e.slices {
		svc.Slices = append(svc.Slices, p.slice)
	}
	if len(e.slices) == 0 && e.endpoints != nil && e.endpoints.endpoints.Labels[discoveryv1.LabelSkipMirror] != "true" {
		svc.Slices = u.decoder.intern.toSlices(e.endpoints.endpoints)
	}
	if own.proxied() {
		u.serviceNotices(svc, e)
	}
	u.lockNotices(svc, e)
	return svc
}

// serviceNotices tells the author of a Service what will not work as it was probably meant.
func (u *update) serviceNotices(svc *spec.Service, e *entry) {
	notice := func(code spec.Code, field, detail string) {
		svc.Notices = append(svc.Notices, spec.Problem{Origin: svc.Origin, Object: e.service.id.String(), Field: field, Detail: detail, Code: code})
	}
	const ways = "add an EndpointSlice labelled kubernetes.io/service-name, or an Endpoints object of the same name, or let weir read them from an API server"
	switch {
	case len(svc.Slices) > 0 || len(e.slices) > 0:
	case e.endpoints != nil && e.endpoints.endpoints.Labels[discoveryv1.LabelSkipMirror] == "true":
		notice(spec.CodeNoEndpoints, "", "has no endpoints: its Endpoints object is labelled "+discoveryv1.LabelSkipMirror)
	case e.endpoints != nil:
		notice(spec.CodeNoEndpoints, "", "has no endpoints: its Endpoints object has no addresses")
	case e.service.service.selects:
		notice(spec.CodeNoEndpoints, "spec.selector", "selects nothing, since no controller is here to look for pods; programmed without endpoints: "+ways)
	default:
		notice(spec.CodeNoEndpoints, "", "has no endpoints: "+ways)
	}
	for _, s := range svc.Slices {
		if f := corev1.IPFamily(s.AddressType); s.AddressType != discoveryv1.AddressTypeFQDN && !slices.Contains(svc.Object.Spec.IPFamilies, f) {
			notice("", "spec.ipFamilies", fmt.Sprintf("EndpointSlice %s is not used, since the Service is not of family %s", s.Name, f))
		}
	}
	for i, p := range svc.Object.Spec.Ports {
		if missing, has := portMissing(svc.Slices, p.Name, p.Protocol); missing {
			notice("", fmt.Sprintf("spec.ports[%d].name", i), fmt.Sprintf("no endpoints have a port with the name %q and protocol %s; they have %s", p.Name, p.Protocol, has))
		}
	}
	for _, v := range vipsOf(svc.Object) {
		for _, other := range u.vips[v] {
			if other != svc.Name {
				notice(spec.CodeSharedAddress, "", fmt.Sprintf("%s port %d/%s is also an address of Service %s; only one of them will be reached there", v.addr, v.port, v.protocol, other))
			}
		}
	}
}

// portMissing says whether there are endpoints and none has the port, and what ports they have.
func portMissing(all []*discoveryv1.EndpointSlice, name string, protocol corev1.Protocol) (missing bool, has string) {
	var names []string
	for _, s := range all {
		for _, p := range s.Ports {
			if *p.Name == name && *p.Protocol == protocol {
				return false, ""
			}
			if n := fmt.Sprintf("%q (%s)", *p.Name, *p.Protocol); len(s.Endpoints) > 0 && !slices.Contains(names, n) && len(names) < 5 {
				names = append(names, n)
			}
		}
	}
	return len(names) > 0, strings.Join(names, ", ")
}
