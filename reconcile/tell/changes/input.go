package changes

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/nodeconfig"
)

// StateOf resolves all Services of a Snapshot for one node.
func StateOf(snap *spec.Snapshot, node *reconcile.Node, mode string, traits backends.Traits) State {
	with := *node
	with.External = reconcile.ExternalPolicyOf(&snap.Weir, node.External.Own)
	servicePorts, _ := reconcile.ResolveAll(snap.Services.All(), &with)
	return State{Mode: mode, Traits: traits, ServicePorts: servicePorts, Promised: PromisedIn(snap), Hints: HintsIn(snap)}
}

// PromisedIn returns the Services of a Snapshot whose pods are only promised, and by which templates.
func PromisedIn(snap *spec.Snapshot) map[dataplane.ServiceName]string {
	all := map[dataplane.ServiceName]string{}
	for svc := range snap.Services.All() {
		if svc.Promised != "" {
			all[svc.Name] = svc.Promised
		}
	}
	return all
}

// HintsIn returns what is near to the selectors of the Services of a Snapshot that select nothing.
func HintsIn(snap *spec.Snapshot) map[dataplane.ServiceName]string {
	all := map[dataplane.ServiceName]string{}
	for svc := range snap.Services.All() {
		if svc.Hint != "" {
			all[svc.Name] = svc.Hint
		}
	}
	return all
}

// NodeOf returns the node to resolve for, from a Node object or only a name.
func NodeOf(name string, object *corev1.Node) reconcile.Node {
	n := reconcile.Node{Name: name, Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6}}
	if object != nil {
		n.Zone = object.Labels[corev1.LabelTopologyZone]
	}
	return n
}

// InputNotices returns the notices about a Snapshot that are not silenced: those that hold for this node, or, if it is nil,
// for any node.
func InputNotices(snap *spec.Snapshot, node *reconcile.Node) []spec.Notice {
	var all []spec.Notice
	seen := map[spec.Notice]bool{}
	add := func(notices []spec.Notice) {
		for _, n := range notices {
			if !seen[n] && !Silenced(n, snap) {
				seen[n] = true
				all = append(all, n)
			}
		}
	}
	add(snap.AllNotices())
	add(detection(snap, node))
	if node == nil {
		any := NodeOf("", nil)
		any.External = reconcile.ExternalPolicyOf(&snap.Weir, nil)
		node = &any
	}
	add(unmatched(snap, node.Name))
	_, resolved := reconcile.ResolveAll(snap.Services.All(), node)
	for svc := range snap.Services.All() {
		of := snap.NoticesOf(svc.Name)
		if len(resolved) > 0 && resolved[0].Service == svc {
			of = Combine(of, resolved[0].Notices)
			resolved = resolved[1:]
		}
		add(of)
		add(sourceFamilies(svc))
	}
	return all
}

// detection returns the notices about detectLocalMode NodeCIDR: for this node, or for those that the input has.
func detection(snap *spec.Snapshot, node *reconcile.Node) []spec.Notice {
	name := strings.ToLower(snap.Config.HostnameOverride)
	if node != nil {
		name = node.Name
	}
	of := func(name string) []spec.Notice {
		return nodeconfig.DetectionNotices(snap.Config, snap.ConfigOrigin, name, snap.Nodes[name], nil)
	}
	switch {
	case name != "":
		return of(name)
	case len(snap.Nodes) == 0 && snap.Config.ClientConnection.Kubeconfig != "":
		return nil // the API has the Node
	case len(snap.Nodes) == 0:
		return of("")
	}
	var all []spec.Notice
	for _, name := range slices.Sorted(maps.Keys(snap.Nodes)) {
		all = append(all, of(name)...)
	}
	return all
}

// unmatched returns the notice of a node of that name that no endpoint of the input names.
func unmatched(snap *spec.Snapshot, node string) []spec.Notice {
	p := Placement{}
	for svc := range snap.Services.All() {
		p.Add(PlacementOf(svc, node), 1)
	}
	return p.Notice(node, snap.Nodes[node])
}

// Combine returns the notices of a Service that its input gave and those that Resolve gave, each once. That a port has no
// endpoints is known to both, and told in the words of the first.
func Combine(input, resolved []spec.Notice) []spec.Notice {
	all := slices.Clip(input)
	portsTold := slices.ContainsFunc(input, func(n spec.Notice) bool { return n.ID() == spec.PortWithoutEndpoints })
	for _, n := range resolved {
		same := func(o spec.Notice) bool { return WithoutLine(o) == WithoutLine(n) }
		if !slices.ContainsFunc(all, same) && (n.ID() != spec.PortWithoutEndpoints || !portsTold) {
			all = append(all, n)
		}
	}
	return all
}

// WithoutLine returns a Notice as it is wherever it stands in its file.
func WithoutLine(n spec.Notice) spec.Notice {
	n.Origin.Line = 0
	return n
}

// NewNotices returns the InputNotices of a Snapshot that the one before did not have; before may be nil. It leaves out
// the kinds that Warn finds on its own.
func NewNotices(before, after *spec.Snapshot, node *reconcile.Node) []spec.Notice {
	type subject struct {
		id     spec.NoticeID
		object string
	}
	old := map[subject]bool{}
	if before != nil {
		for _, n := range InputNotices(before, node) {
			old[subject{n.ID(), n.Object}] = true
		}
	}
	return slices.DeleteFunc(InputNotices(after, node), func(n spec.Notice) bool {
		return old[subject{n.ID(), n.Object}] || n.ID() == spec.NoReadyEndpoint
	})
}

// sourceFamilies warns of a Service whose source ranges are all of one family although it has addresses of both. In the
// other family every client is admitted, as in kube-proxy.
func sourceFamilies(svc *spec.Service) []spec.Notice {
	s := &svc.Object.Spec
	if s.Type != corev1.ServiceTypeLoadBalancer || len(s.LoadBalancerSourceRanges) == 0 {
		return nil
	}
	has := map[dataplane.Family]bool{}
	for _, text := range s.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			has[dataplane.FamilyOf(p.Addr())] = true
		}
	}
	warned := map[dataplane.Family]bool{}
	var all []spec.Notice
	for _, in := range svc.Object.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err != nil || has[dataplane.FamilyOf(a)] || warned[dataplane.FamilyOf(a)] {
			continue
		}
		warned[dataplane.FamilyOf(a)] = true
		all = append(all, spec.SourcesOtherFamily.Notice(svc.Origin, spec.ServiceObject(svc.Name), "",
			fmt.Sprintf("loadBalancerSourceRanges has no %s range, so that everybody reaches %s", dataplane.FamilyOf(a), a)))
	}
	return all
}

// The kinds of Services that ServiceTypes and NotProxied count besides the types of Services.
const (
	kindHeadless   = "headless"
	kindOtherProxy = "left to another proxy"
)

// kindOf returns the type of a Service as people name it, and whether weir proxies it.
func kindOf(svc *spec.Service) (kind string, proxied bool) {
	s := &svc.Object.Spec
	_, other := svc.Object.Labels[reconcile.LabelServiceProxyName]
	switch {
	case s.Type == corev1.ServiceTypeExternalName:
		return string(s.Type), false
	case s.ClusterIP == corev1.ClusterIPNone:
		return kindHeadless, false
	case other:
		return kindOtherProxy, false
	}
	return string(s.Type), true
}

// ServiceTypes counts the Services by type: "9 ClusterIP, 1 NodePort, 2 headless".
func ServiceTypes(snap *spec.Snapshot) string { return countKinds(snap, true) }

// NotProxied counts the Services that no proxy has anything to do for, and those of them of each kind.
func NotProxied(snap *spec.Snapshot) *Unproxied {
	u := &Unproxied{}
	for svc := range snap.Services.All() {
		if _, proxied := kindOf(svc); !proxied {
			u.Services++
		}
	}
	if u.Services == 0 {
		return nil
	}
	u.Kinds = countKinds(snap, false)
	return u
}

// countKinds returns "2 headless, 1 ExternalName"; without those that are proxied unless all is true.
func countKinds(snap *spec.Snapshot, all bool) string {
	counts := map[string]int{}
	for svc := range snap.Services.All() {
		if kind, proxied := kindOf(svc); all || !proxied {
			counts[kind]++
		}
	}
	var parts []string
	for _, kind := range []string{string(corev1.ServiceTypeClusterIP), string(corev1.ServiceTypeNodePort), string(corev1.ServiceTypeLoadBalancer),
		kindHeadless, string(corev1.ServiceTypeExternalName), kindOtherProxy} {
		if n := counts[kind]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, kind))
		}
	}
	return strings.Join(parts, ", ")
}

// Silenced reports whether a Notice is accepted: by its author, in an annotation of the Service or a comment at the head of
// the file that it is about, or in the WeirConfiguration. The first Snapshot that has the Service decides for its
// annotation; the first Snapshot decides for the rest.
func Silenced(n spec.Notice, snaps ...*spec.Snapshot) bool {
	name := n.Service()
	snaps = slices.DeleteFunc(slices.Clone(snaps), func(s *spec.Snapshot) bool { return s == nil })
	for i, snap := range snaps {
		if i == 0 && (n.ID().In(snap.Silenced[n.Origin.File]) || slices.ContainsFunc(snap.Weir.Silence, n.ID().In)) {
			return true
		}
		if svc := snap.Services.Get(name); svc != nil {
			return n.ID().In(svc.Object.Annotations[spec.AnnotationSilence])
		}
	}
	return false
}
