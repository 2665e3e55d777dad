package reconcile

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"weir/backends/dataplane"
	"weir/spec"
)

// frontends decides which ServicePort owns each address and port that clients use, so that every backend is given the same
// answer and none has to decide.
//
// The rule: a ClusterIP comes before a load balancer's address, that before an external IP, and that before a node port;
// among equals the ServicePort whose name sorts first owns the address. So the owner depends on what is declared and never
// on the order in which it was declared. A ServicePort that owns its ClusterIP not even has nothing left to serve.
//
// A change of one Service costs what that Service has, and not what all have.
type frontends struct {
	node []netip.Addr // the addresses at which node ports are served
	// claims holds the only claimant of an address, or the owner; contested holds all of them, the owner first.
	claims    map[frontendKey]*dataplane.ServicePort
	contested map[frontendKey][]*dataplane.ServicePort
	// clusterIPs counts the ServicePorts of each ClusterIP, whatever their ports.
	clusterIPs map[netip.Addr]int
	// blocks counts the ServicePorts with endpoints in each block of addresses. Few Services have endpoints in the blocks of
	// front addresses, so that the endpoints on a new front address rarely need to be looked for.
	blocks map[netip.Prefix]int
	// moved are the front addresses that may have another owner, or none, since takeMoved.
	moved map[netip.Addr]struct{}
}

// frontendKey is an address and port that one ServicePort can own. Of a node port the address is the unspecified one.
type frontendKey struct {
	addr     netip.Addr
	port     uint16
	protocol dataplane.Protocol
}

// String returns "10.0.0.1:80/TCP", or "node port 30080/TCP".
func (k frontendKey) String() string {
	if k.addr.IsUnspecified() {
		return fmt.Sprintf("node port %d/%s", k.port, k.protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(k.addr, k.port), k.protocol)
}

// role is what an address is to a ServicePort. Roles sort in the order in which they win.
type role uint8

const (
	roleClusterIP role = iota
	roleLoadBalancerIP
	roleExternalIP
	roleNodePort
)

// String returns the role as it is named to people.
func (r role) String() string {
	return [...]string{"the ClusterIP", "a load balancer address", "an external IP", "a node port"}[r]
}

// field returns the field of a Service that has such addresses.
func (r role) field() string {
	return [...]string{"spec.clusterIP", "status.loadBalancer.ingress", "spec.externalIPs", "spec.ports[].nodePort"}[r]
}

// loss is an address that a ServicePort asks for and another one owns.
type loss struct {
	key    frontendKey
	loser  *dataplane.ServicePort
	role   role // the address's role for the loser
	winner *dataplane.ServicePort
	won    role // the address's role for the winner
}

func newFrontends() *frontends {
	return &frontends{
		claims:     map[frontendKey]*dataplane.ServicePort{},
		contested:  map[frontendKey][]*dataplane.ServicePort{},
		clusterIPs: map[netip.Addr]int{},
		blocks:     map[netip.Prefix]int{},
		moved:      map[netip.Addr]struct{}{},
	}
}

// nodePortKey returns the key of a ServicePort's node port.
func nodePortKey(p *dataplane.ServicePort) frontendKey {
	addr := netip.IPv4Unspecified()
	if p.Key.Family == dataplane.IPv6 {
		addr = netip.IPv6Unspecified()
	}
	return frontendKey{addr, p.NodePort, p.Key.Protocol}
}

// keysOf yields each address that a ServicePort asks for, with its best role.
func keysOf(p *dataplane.ServicePort, yield func(frontendKey, role)) {
	yield(frontendKey{p.ClusterIP, p.Port, p.Key.Protocol}, roleClusterIP)
	for _, a := range p.LoadBalancerIPs {
		if a != p.ClusterIP {
			yield(frontendKey{a, p.Port, p.Key.Protocol}, roleLoadBalancerIP)
		}
	}
	for _, a := range p.ExternalIPs {
		if a != p.ClusterIP && !slices.Contains(p.LoadBalancerIPs, a) {
			yield(frontendKey{a, p.Port, p.Key.Protocol}, roleExternalIP)
		}
	}
	if p.NodePort != 0 {
		yield(nodePortKey(p), roleNodePort)
	}
}

// roleOf returns the best role of an address for a ServicePort that asks for it.
func roleOf(p *dataplane.ServicePort, k frontendKey) role {
	switch {
	case k.addr.IsUnspecified():
		return roleNodePort
	case k.addr == p.ClusterIP:
		return roleClusterIP
	case slices.Contains(p.LoadBalancerIPs, k.addr):
		return roleLoadBalancerIP
	}
	return roleExternalIP
}

// set replaces what a Service asks for, old being what it asked for before, and adds to affected the Services that share an
// address with either.
func (f *frontends) set(old, new []*dataplane.ServicePort, affected map[dataplane.ServiceName]struct{}) {
	if !slices.EqualFunc(old, new, sameFronts) {
		for _, p := range slices.Concat(old, new) {
			keysOf(p, func(k frontendKey, _ role) { f.moved[k.addr] = struct{}{} })
		}
	}
	for _, p := range old {
		f.countBlocks(p, -1)
		if f.clusterIPs[p.ClusterIP]--; f.clusterIPs[p.ClusterIP] == 0 {
			delete(f.clusterIPs, p.ClusterIP)
		}
		keysOf(p, func(k frontendKey, r role) { f.release(k, r, p, affected) })
	}
	for _, p := range new {
		f.countBlocks(p, 1)
		f.clusterIPs[p.ClusterIP]++
		keysOf(p, func(k frontendKey, r role) { f.claim(k, r, p, affected) })
	}
}

// sameFronts reports whether two ServicePorts ask for the same addresses, and are named alike in notices.
func sameFronts(a, b *dataplane.ServicePort) bool {
	return a.Key == b.Key && a.Origin == b.Origin && a.ClusterIP == b.ClusterIP && a.Port == b.Port && a.NodePort == b.NodePort &&
		slices.Equal(a.ExternalIPs, b.ExternalIPs) && slices.Equal(a.LoadBalancerIPs, b.LoadBalancerIPs)
}

// blockOf returns the block of an address.
func blockOf(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() {
		bits = 112
	}
	p, _ := a.Prefix(bits)
	return p
}

func (f *frontends) countBlocks(p *dataplane.ServicePort, by int) {
	var last netip.Prefix
	for _, ep := range p.Endpoints {
		b := blockOf(ep.Addr.Addr())
		if b == last {
			continue
		}
		last = b
		if f.blocks[b] += by; f.blocks[b] == 0 {
			delete(f.blocks, b)
		}
	}
}

// takeMoved returns the front addresses that may have another owner since the last call, as far as endpoints may be on them.
func (f *frontends) takeMoved() map[netip.Addr]struct{} {
	near := map[netip.Addr]struct{}{}
	look := func(a netip.Addr) {
		if f.blocks[blockOf(a)] > 0 {
			near[a] = struct{}{}
		}
	}
	for a := range f.moved {
		if !a.IsUnspecified() {
			look(a)
			continue
		}
		for _, n := range f.node { // a node port
			if n.Is4() == a.Is4() {
				look(n)
			}
		}
	}
	f.moved = map[netip.Addr]struct{}{}
	return near
}

func (f *frontends) claim(k frontendKey, r role, p *dataplane.ServicePort, affected map[dataplane.ServiceName]struct{}) {
	owner := f.claims[k]
	if owner == nil {
		f.claims[k] = p
		f.touchNodePort(k, r, affected)
		return
	}
	all := f.contested[k]
	if all == nil {
		all = []*dataplane.ServicePort{owner}
	}
	for _, other := range all {
		affected[other.Key.Service] = struct{}{}
	}
	all = append(all, p)
	slices.SortFunc(all, func(a, b *dataplane.ServicePort) int {
		return cmp.Or(cmp.Compare(roleOf(a, k), roleOf(b, k)), a.Key.Compare(b.Key))
	})
	f.contested[k], f.claims[k] = all, all[0]
}

func (f *frontends) release(k frontendKey, r role, p *dataplane.ServicePort, affected map[dataplane.ServiceName]struct{}) {
	all := f.contested[k]
	if all == nil {
		if f.claims[k] == p {
			delete(f.claims, k)
			f.touchNodePort(k, r, affected)
		}
		return
	}
	all = slices.DeleteFunc(all, func(o *dataplane.ServicePort) bool { return o == p })
	for _, other := range all {
		affected[other.Key.Service] = struct{}{}
	}
	f.claims[k] = all[0]
	if len(all) == 1 {
		delete(f.contested, k)
		return
	}
	f.contested[k] = all
}

// touchNodePort notes the owner of the node port that an address of the node covers.
func (f *frontends) touchNodePort(k frontendKey, r role, affected map[dataplane.ServiceName]struct{}) {
	if r == roleNodePort || !slices.Contains(f.node, k.addr) {
		return
	}
	any := netip.IPv4Unspecified()
	if k.addr.Is6() {
		any = netip.IPv6Unspecified()
	}
	if np := f.claims[frontendKey{any, k.port, k.protocol}]; np != nil {
		affected[np.Key.Service] = struct{}{}
	}
}

// owned returns ServicePorts, as they were given to set, with nothing but what they own, and what they lost. What lost
// nothing is returned as it is.
func (f *frontends) owned(ports []*dataplane.ServicePort) (owned []*dataplane.ServicePort, losses []loss) {
	differ := false
	for i, p := range ports {
		lost := f.losses(p)
		losses = append(losses, lost...)
		kept := keepOwned(p, lost)
		if kept != p && !differ {
			differ = true
			owned = slices.Clone(ports[:i])
		}
		if differ && kept != nil {
			owned = append(owned, kept)
		}
	}
	if !differ {
		owned = ports
	}
	return owned, losses
}

func (f *frontends) losses(p *dataplane.ServicePort) []loss {
	var lost []loss
	keysOf(p, func(k frontendKey, r role) {
		if owner := f.claims[k]; owner != p {
			lost = append(lost, loss{k, p, r, owner, roleOf(owner, k)})
			return
		}
		if r != roleNodePort {
			return
		}
		for _, a := range f.node {
			at := frontendKey{a, p.NodePort, p.Key.Protocol}
			if owner := f.claims[at]; owner != nil {
				lost = append(lost, loss{at, p, r, owner, roleOf(owner, at)})
			}
		}
	})
	return lost
}

// keepOwned returns a ServicePort without what it lost and without addresses that it names twice, of which the narrower role
// counts: a load balancer's address is subject to source ranges, an external IP is not. It is nil if the ClusterIP was lost.
func keepOwned(p *dataplane.ServicePort, lost []loss) *dataplane.ServicePort {
	twice := func(a netip.Addr) bool { return a == p.ClusterIP || slices.Contains(p.LoadBalancerIPs, a) }
	if len(lost) == 0 && !slices.ContainsFunc(p.ExternalIPs, twice) && !slices.Contains(p.LoadBalancerIPs, p.ClusterIP) {
		return p
	}
	kept := *p
	gone := func(a netip.Addr) bool {
		return a == p.ClusterIP || slices.ContainsFunc(lost, func(l loss) bool { return l.role != roleNodePort && l.key.addr == a })
	}
	kept.LoadBalancerIPs = slices.DeleteFunc(slices.Clone(p.LoadBalancerIPs), gone)
	kept.ExternalIPs = slices.DeleteFunc(slices.Clone(p.ExternalIPs), func(a netip.Addr) bool { return gone(a) || twice(a) })
	for _, l := range lost {
		switch {
		case l.role == roleClusterIP:
			return nil
		case l.role == roleNodePort && l.key.addr.IsUnspecified():
			kept.NodePort = 0
		case l.role == roleNodePort:
			kept.NodePortExcept = append(slices.Clip(kept.NodePortExcept), l.key.addr)
		}
	}
	return &kept
}

// ownerAt returns the ServicePort that owns the address and port, or nil. A node port is found by any address of the node.
func (f *frontends) ownerAt(addr netip.AddrPort, protocol dataplane.Protocol) *dataplane.ServicePort {
	if p := f.claims[frontendKey{addr.Addr(), addr.Port(), protocol}]; p != nil {
		return p
	}
	if !slices.Contains(f.node, addr.Addr()) {
		return nil
	}
	any := netip.IPv4Unspecified()
	if addr.Addr().Is6() {
		any = netip.IPv6Unspecified()
	}
	return f.claims[frontendKey{any, addr.Port(), protocol}]
}

// notice tells the author of a Service that another one owns an address of it.
func (l loss) notice(svc *spec.Service) spec.Notice {
	return spec.SharedAddress.Notice(svc.Origin, spec.ServiceObject(svc.Name), l.role.field(), fmt.Sprintf(
		"%s is %s of Service %s too (%s): that one is reached there, and this one is not", l.key, l.won, l.winner.Key.Service, l.winner.Origin))
}

// ResolveAll works out what a node should do for all Services: what Resolve says of each, without the addresses that another
// one owns. The notices are yielded by Service, in order.
func ResolveAll(services iter.Seq[*spec.Service], node *Node) (ports []*dataplane.ServicePort, notices []ServiceNotices) {
	f := newFrontends()
	f.node = node.NodePortAddresses
	type resolved struct {
		svc     *spec.Service
		ports   []*dataplane.ServicePort
		notices []spec.Notice
	}
	var all []resolved
	shared := map[dataplane.ServiceName]struct{}{}
	for svc := range services {
		p, n := Resolve(svc, node)
		f.set(nil, p, shared)
		all = append(all, resolved{svc, p, n})
	}
	for _, r := range all {
		owned, losses := f.owned(r.ports)
		ports = append(ports, owned...)
		r.notices = append(slices.Clip(r.notices), f.notices(r.svc, owned, losses)...)
		if len(r.notices) > 0 {
			notices = append(notices, ServiceNotices{r.svc, r.notices})
		}
	}
	return ports, notices
}

// ServiceNotices are the notices of one Service.
type ServiceNotices struct {
	Service *spec.Service
	Notices []spec.Notice
}

// notices tells the author of a Service which addresses others own, and which of its endpoints are addresses of Services.
func (f *frontends) notices(svc *spec.Service, owned []*dataplane.ServicePort, losses []loss) []spec.Notice {
	var all []spec.Notice
	for _, l := range losses {
		if l.winner != l.loser { // a node port may be covered by an address of the same ServicePort
			all = append(all, l.notice(svc))
		}
	}
	for _, p := range owned {
		for _, ep := range p.Endpoints {
			problem := f.isFrontend(ep.Addr, p.Key.Protocol)
			if problem == "" {
				continue
			}
			n := spec.EndpointIsFrontend.Notice(svc.Origin, spec.ServiceObject(svc.Name), "", problem)
			if !slices.Contains(all, n) {
				all = append(all, n)
			}
		}
	}
	return all
}

// isFrontend returns why an endpoint cannot be reached because its address is one of a Service, or "". A ClusterIP exists
// for its Service only, so no other port of it leads anywhere either.
func (f *frontends) isFrontend(endpoint netip.AddrPort, protocol dataplane.Protocol) string {
	if owner := f.ownerAt(endpoint, protocol); owner != nil {
		return fmt.Sprintf("endpoint %s/%s is an address of Service %s (%s): connections are not sent on from there; give the addresses of its endpoints instead",
			endpoint, protocol, owner.Key.Service, owner.Origin)
	}
	if f.clusterIPs[endpoint.Addr()] > 0 {
		return fmt.Sprintf("endpoint %s/%s is on the ClusterIP of a Service that does not have this port: no connection gets there; give the address of a pod instead",
			endpoint, protocol)
	}
	return ""
}
