// Package kubedns has a spec.Source that adds the Service kube-system/kube-dns to those of another Source, with the addresses
// at which weir answers pods as its endpoints. So pods find names at the address that every kubelet gives them, and
// every mode serves it as it serves any Service. Where weir has port 53, if only on loopback, the Service is marked as one that
// weir can answer for itself (spec.Service.Answered). It may have no endpoints then.
//
// A kube-dns that is declared with endpoints is used as it is. The package reads nothing: what it adds follows from the
// Snapshot. cmd/weir wraps the joined sources in it.
package kubedns

import (
	"context"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir/backends/dataplane"
	"weir/spec"
)

// Name is the name of the Service, to which kubelets point pods.
var Name = dataplane.ServiceName{Namespace: "kube-system", Name: "kube-dns"}

// place is which address of a service CIDR the Service has, as in every cluster: 10.96.0.10.
const place = 10

// Taken returns why weir must not answer at an address at which kubelets have pods ask, since the node or another host has it, or "".
// Addresses in the ranges of ClusterIPs and link-local ones are not asked about. A nil Taken stands for a node that is not known.
type Taken func(netip.Addr) string

// Source adds the Service to what another Source says.
type Source struct {
	source spec.Source
	log    hclog.Logger
	taken  Taken
}

// New returns a Source over another.
func New(source spec.Source, log hclog.Logger, taken Taken) *Source {
	return &Source{source, log, taken}
}

// Load implements spec.Source.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) {
	snap, err := s.source.Load(ctx)
	if err != nil || snap == nil {
		return snap, err
	}
	a := adder{log: s.log, taken: s.taken}
	snap, _ = a.add(snap, spec.Delta{All: true})
	return snap, nil
}

// Added returns a Snapshot, which may be nil, with the Service.
func Added(snap *spec.Snapshot, taken Taken) *spec.Snapshot {
	if snap == nil {
		return nil
	}
	a := adder{log: hclog.NewNullLogger(), taken: taken}
	snap, _ = a.add(snap, spec.Delta{All: true})
	return snap
}

// Notices returns the notices about the Service that it would have in a Snapshot.
func Notices(snap *spec.Snapshot) []spec.Notice {
	a := adder{log: hclog.NewNullLogger()}
	a.add(snap, spec.Delta{All: true})
	return a.notices
}

// Watch implements spec.Source.
func (s *Source) Watch(ctx context.Context, sink func(spec.Update)) error {
	a := adder{log: s.log, taken: s.taken}
	return s.source.Watch(ctx, func(u spec.Update) {
		if u.Snapshot != nil {
			u.Snapshot, u.Delta = a.add(u.Snapshot, u.Delta)
		}
		sink(u)
	})
}

// adder holds what was added last. A change that is not about the Service costs it O(1) for each Service that changed.
type adder struct {
	log   hclog.Logger
	taken Taken
	// endpoints are the addresses of weir that the rest was made from, asked those at which pods ask, and answers is whether weir can
	// answer for the Service.
	endpoints []netip.AddrPort
	asked     []netip.Addr
	answers   bool
	declared  *spec.Service
	added     *spec.Service
	// holder is the Service that has the address, if another one does.
	holder dataplane.ServiceName
	// notices are about the Service, and told what was logged last.
	notices []spec.Notice
	says    []string
	told    []string
}

// add returns the Snapshot with the Service.
func (a *adder) add(snap *spec.Snapshot, delta spec.Delta) (*spec.Snapshot, spec.Delta) {
	endpoints, asked := reachable(&snap.Weir.DNS), addresses(snap, nil)
	answers, declared := answerable(&snap.Weir.DNS), snap.Services.Get(Name)
	before := a.added
	if delta.All || a.declared != declared || a.answers != answers || !slices.Equal(a.endpoints, endpoints) || !slices.Equal(a.asked, asked) || a.moved(snap, delta) {
		a.endpoints, a.asked, a.answers, a.declared = endpoints, asked, answers, declared
		a.make(snap)
	}
	if a.added != before && !delta.All {
		delta.Services = append(slices.Clip(delta.Services), Name)
	}
	if a.added == nil && len(a.notices) == 0 {
		return snap, delta
	}
	with := *snap
	with.Notices = slices.Concat(snap.Notices, a.notices)
	if a.added == nil {
		return &with, delta
	}
	edit := snap.Services.Edit()
	edit.Put(Name, a.added)
	with.Services = edit.Commit()
	return &with, delta
}

// moved reports whether a change may give the address to another Service, or take it from one.
func (a *adder) moved(snap *spec.Snapshot, delta spec.Delta) bool {
	if a.added == nil && a.holder == (dataplane.ServiceName{}) {
		return false
	}
	return slices.ContainsFunc(delta.Services, func(name dataplane.ServiceName) bool {
		svc := snap.Services.Get(name)
		return name == a.holder || name != Name && svc != nil && a.added != nil && shares(svc, a.added)
	})
}

// make makes the Service anew, and logs what was not logged before. If it is as it was, it stays the same.
func (a *adder) make(snap *spec.Snapshot) {
	before := a.added
	a.added, a.holder, a.notices, a.says = nil, dataplane.ServiceName{}, nil, nil
	a.decide(snap)
	if a.added != nil && before != nil && reflect.DeepEqual(*before, *a.added) {
		a.added = before
	}
	for _, what := range a.says {
		if !slices.Contains(a.told, what) {
			a.log.Warn(what)
		}
	}
	a.told = a.says
}

// decide sets added, holder and notices.
func (a *adder) decide(snap *spec.Snapshot) {
	switch svc := a.declared; {
	case len(a.endpoints) == 0 && !a.answers:
		if d := snap.Weir.DNS; d.Serve && slices.ContainsFunc(d.Listen, func(at netip.AddrPort) bool { return at.Addr().IsUnspecified() }) {
			a.tell("pods have no kube-dns to ask, because weir listens at all addresses of the node: name those that pods reach (--dns-listen)")
		}
		return
	case svc == nil:
		if a.added = undeclared(addresses(snap, a.refuses), a.serves); a.added != nil {
			a.added.Slices = endpointSlices(a.added.Object.Spec.Ports, a.endpoints)
			a.added.Answered = a.answers
		}
	case svc.Object.Spec.Type == corev1.ServiceTypeExternalName || slices.ContainsFunc(svc.Slices, hasEndpoints):
		a.tell("kube-system/kube-dns is declared with endpoints: it is used, and does not lead to this node")
		return
	default:
		own := *svc
		own.Slices = endpointSlices(svc.Object.Spec.Ports, a.endpoints)
		own.Answered = a.answers && svc.Object.Spec.Type == corev1.ServiceTypeClusterIP && len(svc.Object.Spec.ExternalIPs) == 0
		if len(own.Slices) == 0 && !own.Answered {
			a.tell("kube-system/kube-dns has addresses besides its ClusterIP, and leads nowhere: have weir listen at an address of the node that pods reach (--dns-listen)")
			return
		}
		a.added = &own
	}
	for svc := range snap.Services.All() {
		if a.added != nil && svc.Name != Name && shares(svc, a.added) {
			a.tell("kube-system/kube-dns is not served: " + svc.Name.String() + " has its ClusterIP")
			a.notices = append(a.notices, spec.SharedAddress.Notice(svc.Origin, spec.ServiceObject(svc.Name), "spec.clusterIP",
				svc.Object.Spec.ClusterIP+" is where pods ask for names, and weir does not answer there as long as this Service has it; give it another"))
			a.added, a.holder = nil, svc.Name
		}
	}
}

func (a *adder) tell(what string) { a.says = append(a.says, what) }

// refuses reports whether weir must not answer at an address of clusterDNS, and tells why.
func (a *adder) refuses(snap *spec.Snapshot, ip netip.Addr) bool {
	nobodys := ip.IsLinkLocalUnicast() || slices.ContainsFunc(snap.Weir.ServiceCIDRs, func(p netip.Prefix) bool { return p.Contains(ip) })
	why := ""
	switch d := &snap.Weir.DNS; {
	case slices.ContainsFunc(slices.Concat(append(slices.Collect(maps.Values(d.Forward)), d.Upstreams)...), func(at netip.AddrPort) bool { return at.Addr() == ip }):
		why = "weir itself asks a resolver there"
	case nobodys:
	case !ip.IsPrivate():
		why = "it is no private address; if it is one of ClusterIPs, say so with serviceCIDRs in the WeirConfiguration"
	case a.taken != nil:
		why = a.taken(ip)
	}
	if why != "" {
		a.tell("weir does not answer at " + ip.String() + ", which is clusterDNS of a KubeletConfiguration, because " + why)
	}
	return why != ""
}

func hasEndpoints(s *discoveryv1.EndpointSlice) bool { return len(s.Endpoints) > 0 }

// shares reports whether two Services have a ClusterIP in common.
func shares(a, b *spec.Service) bool {
	return slices.ContainsFunc(a.Object.Spec.ClusterIPs, func(ip string) bool {
		return ip != corev1.ClusterIPNone && slices.Contains(b.Object.Spec.ClusterIPs, ip)
	})
}

// reachable returns the addresses at which weir answers pods.
func reachable(d *spec.DNS) (found []netip.AddrPort) {
	if !d.Serve {
		return nil
	}
	for _, at := range d.Listen {
		if a := at.Addr(); !a.IsLoopback() && !a.IsUnspecified() {
			found = append(found, at)
		}
	}
	return found
}

// answerable reports whether weir can listen at port 53 of the Service's own address as well: it has that port at another
// address, and not at all of them, which would include that one.
func answerable(d *spec.DNS) bool {
	has := false
	for _, at := range d.Listen {
		if at.Port() != 53 {
			continue
		}
		if at.Addr().IsUnspecified() {
			return false
		}
		has = true
	}
	return has && d.Serve
}

// serves reports whether the Service can have the address: weir answers there itself, or with endpoints, they are of its family too.
func (a *adder) serves(ip netip.Addr) bool {
	return a.answers || slices.ContainsFunc(a.endpoints, func(at netip.AddrPort) bool { return at.Addr().Is4() == ip.Is4() })
}

// addresses returns where kubelets have pods ask, the first in each family that is not refused. Where weir listens anyway, no Service
// leads there. A nil refuses refuses nothing.
func addresses(snap *spec.Snapshot, refuses func(*spec.Snapshot, netip.Addr) bool) (all []netip.Addr) {
	add := func(ip netip.Addr) {
		if !slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Is4() == ip.Is4() }) {
			all = append(all, ip)
		}
	}
	for _, ip := range snap.Weir.DNS.ClusterIPs {
		if !slices.Contains(snap.Weir.DNS.Listen, netip.AddrPortFrom(ip, 53)) && (refuses == nil || !refuses(snap, ip)) {
			add(ip)
		}
	}
	if all != nil {
		return all
	}
	for _, r := range snap.Weir.ServiceCIDRs {
		ip := r.Addr()
		for range place {
			ip = ip.Next()
		}
		if r.Contains(ip) {
			add(ip)
		}
	}
	return all
}

// undeclared returns the Service as an API server would have it, or nil if pods ask at no address that it can have.
func undeclared(asked []netip.Addr, serves func(netip.Addr) bool) *spec.Service {
	o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: Name.Namespace, Name: Name.Name}}
	cluster, single := corev1.ServiceInternalTrafficPolicyCluster, corev1.IPFamilyPolicySingleStack
	o.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, SessionAffinity: corev1.ServiceAffinityNone, InternalTrafficPolicy: &cluster, IPFamilyPolicy: &single}
	for _, p := range []corev1.ServicePort{{Name: "dns", Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", Protocol: corev1.ProtocolTCP}} {
		p.Port, p.TargetPort = 53, intstr.FromInt32(53)
		o.Spec.Ports = append(o.Spec.Ports, p)
	}
	for _, ip := range asked {
		if !serves(ip) {
			continue
		}
		o.Spec.ClusterIPs = append(o.Spec.ClusterIPs, ip.String())
		o.Spec.IPFamilies = append(o.Spec.IPFamilies, corev1.IPFamily(dataplane.FamilyOf(ip).String()))
	}
	switch len(o.Spec.ClusterIPs) {
	case 0:
		return nil
	case 2:
		*o.Spec.IPFamilyPolicy = corev1.IPFamilyPolicyRequireDualStack
	}
	o.Spec.ClusterIP = o.Spec.ClusterIPs[0]
	return &spec.Service{Name: Name, Object: o, Origin: spec.Origin{File: "weir's own names"}}
}

// endpointSlices returns a slice for each address: their ports may differ.
func endpointSlices(ports []corev1.ServicePort, endpoints []netip.AddrPort) (made []*discoveryv1.EndpointSlice) {
	for _, at := range endpoints {
		s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv6}
		s.Name = "weir-" + at.String()
		if at.Addr().Is4() {
			s.AddressType = discoveryv1.AddressTypeIPv4
		}
		for _, p := range ports {
			if p.Port != 53 {
				continue // such as metrics, which weir has elsewhere
			}
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new(p.Name), Protocol: new(p.Protocol), Port: new(int32(at.Port()))})
		}
		ready := true
		s.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{at.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready}}}
		made = append(made, s)
	}
	slices.SortFunc(made, func(a, b *discoveryv1.EndpointSlice) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return made
}
