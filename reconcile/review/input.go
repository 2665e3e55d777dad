package review

import (
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"weir/backends"
	"weir/reconcile"
	"weir/spec"
)

// StateOf resolves everything that a Snapshot declares for one node.
func StateOf(snap *spec.Snapshot, node *reconcile.Node, mode string) State {
	s := State{Mode: mode}
	for svc := range snap.Services() {
		entries, _ := reconcile.Resolve(svc, node)
		s.Entries = append(s.Entries, entries...)
	}
	return s
}

// NodeOf returns what a Node object, or only a name, says about how to resolve for it.
func NodeOf(name string, object *corev1.Node) reconcile.Node {
	n := reconcile.Node{Name: name, Families: []backends.Family{backends.IPv4, backends.IPv6}}
	if object != nil {
		n.Zone = object.Labels[corev1.LabelTopologyZone]
	}
	return n
}

// InputWarnings returns what is to be said of a Snapshot whatever the node, and was not to be said of the one before;
// before may be nil.
func InputWarnings(before, after *spec.Snapshot) []Warning {
	old := map[string]bool{}
	if before != nil {
		for _, w := range inputWarnings(before) {
			old[string(w.ID)+w.Object] = true
		}
	}
	var all []Warning
	for _, w := range inputWarnings(after) {
		if !old[string(w.ID)+w.Object] {
			all = append(all, w)
		}
	}
	return sortWarnings(all)
}

func inputWarnings(snap *spec.Snapshot) []Warning {
	var all []Warning
	for _, n := range snap.Notices {
		if id := IDOf(n.Code); id != "" {
			all = append(all, Warning{ID: id, Severity: id.Severity(), Object: n.Object, Source: n.Origin.String(), Detail: n.Detail})
		}
	}
	for svc := range snap.Services() {
		all = append(all, sourceFamilies(svc)...)
		for _, n := range svc.Notices {
			if id := IDOf(n.Code); id == UnpinnedAllocation || id == StaleLock { // the Entries tell of the others
				all = append(all, NewWarning(id, backends.ServiceName(svc.Name), n.Origin.String(), "%s", strings.TrimPrefix(n.Field+": "+n.Detail, ": ")))
			}
		}
	}
	return all
}

// sourceFamilies warns of a Service whose source ranges are all of one family though it has addresses of both: in the
// other one everybody is let in, as kube-proxy does.
func sourceFamilies(svc *spec.Service) []Warning {
	s := &svc.Object.Spec
	if s.Type != corev1.ServiceTypeLoadBalancer || len(s.LoadBalancerSourceRanges) == 0 {
		return nil
	}
	has := map[backends.Family]bool{}
	for _, text := range s.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			has[backends.FamilyOf(p.Addr())] = true
		}
	}
	warned := map[backends.Family]bool{}
	var all []Warning
	for _, in := range svc.Object.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err != nil || has[backends.FamilyOf(a)] || warned[backends.FamilyOf(a)] {
			continue
		}
		warned[backends.FamilyOf(a)] = true
		all = append(all, NewWarning(SourcesOtherFamily, backends.ServiceName(svc.Name), svc.Origin.String(),
			"loadBalancerSourceRanges has no %s range, so that everybody reaches %s", backends.FamilyOf(a), a))
	}
	return all
}

// SilenceIn returns the value of AnnotationSilence of a Service, by the first Snapshot that has the Service.
func SilenceIn(snaps ...*spec.Snapshot) func(backends.ServiceName) string {
	return func(name backends.ServiceName) string {
		for _, snap := range snaps {
			if snap == nil {
				continue
			}
			if svc := snap.Service(spec.Name(name)); svc != nil {
				return svc.Object.Annotations[AnnotationSilence]
			}
		}
		return ""
	}
}
