package names

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/seed"
)

func service(name dataplane.ServiceName, clusterIP string, endpoints ...string) *spec.Service {
	svc := &spec.Service{Name: name, Object: &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: clusterIP, ClusterIPs: []string{clusterIP}}}}
	if len(endpoints) > 0 {
		slice := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
		for _, e := range endpoints {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{e}})
		}
		svc.Slices = []*discoveryv1.EndpointSlice{slice}
	}
	return svc
}

// TestZoneAgainstNaiveModel runs random sequences of changes, rounds that succeed and fail, and Services that are held back.
// What the Zone answers is what a model holds that is computed anew each time.
func TestZoneAgainstNaiveModel(t *testing.T) {
	r := seed.Rand(t)
	z := NewZone()
	declared := spec.Services{}
	inForce := map[dataplane.ServiceName]*spec.Service{}
	var held []reconcile.HeldBack
	name := func() dataplane.ServiceName {
		return dataplane.ServiceName{Namespace: fmt.Sprint("ns", r.IntN(3)), Name: fmt.Sprint("svc", r.IntN(4))}
	}
	endpoint := func() string { return fmt.Sprintf("10.1.0.%d", r.IntN(6)) }
	for range seed.Steps(3000) {
		switch r.IntN(5) {
		case 0, 1:
			edit, n := declared.Edit(), name()
			switch r.IntN(4) {
			case 0:
				edit.Delete(n)
			case 1:
				edit.Put(n, service(n, "None", endpoint(), endpoint()))
			default:
				edit.Put(n, service(n, "10.96.0."+n.Namespace[2:]+n.Name[3:], endpoint()))
			}
			declared = edit.Commit()
			z.Updated(spec.Update{Snapshot: &spec.Snapshot{Services: declared}, Delta: spec.Delta{Services: []dataplane.ServiceName{n}, All: r.IntN(10) == 0}})
		case 2:
			z.Updated(spec.Update{Err: errors.New("the input is not valid")})
		case 3:
			z.RoundStarts(reconcile.Request{})
			for n := range inForce {
				if declared.Get(n) == nil && z.snapshot != nil {
					delete(inForce, n)
				}
			}
			z.Applied(reconcile.Report{Err: errors.New("the kernel refused")})
		case 4:
			held = nil
			if r.IntN(2) == 0 {
				held = []reconcile.HeldBack{{Service: name()}}
			}
			z.RoundStarts(reconcile.Request{})
			z.Applied(reconcile.Report{HeldBack: held})
			if z.snapshot == nil {
				continue
			}
			next := map[dataplane.ServiceName]*spec.Service{}
			for svc := range declared.All() {
				next[svc.Name] = svc
			}
			for _, h := range held {
				if svc := inForce[h.Service]; svc != nil && declared.Get(h.Service) != nil {
					next[h.Service] = svc
				} else {
					delete(next, h.Service)
				}
			}
			inForce = next
		}
		compare(t, z, inForce)
	}
}

func compare(t *testing.T, z *Zone, want map[dataplane.ServiceName]*spec.Service) {
	t.Helper()
	namespaces := map[string]bool{}
	owners := map[netip.Addr][]dataplane.ServiceName{}
	for n, svc := range want {
		namespaces[n.Namespace] = true
		for _, addr := range reconcile.AddressesOf(reconcile.Names(svc)) {
			owners[addr] = append(owners[addr], n)
		}
	}
	for i := range 3 {
		ns := fmt.Sprint("ns", i)
		if z.HasNamespace(ns) != namespaces[ns] {
			t.Fatalf("namespace %s: %v", ns, z.HasNamespace(ns))
		}
		for j := range 4 {
			n := dataplane.ServiceName{Namespace: ns, Name: fmt.Sprint("svc", j)}
			if z.services[n] != want[n] {
				t.Fatalf("%s: %v, want %v", n, z.services[n], want[n])
			}
		}
	}
	if len(z.owners) != len(owners) {
		t.Fatalf("%d addresses, want %d", len(z.owners), len(owners))
	}
	for addr, all := range owners {
		got := slices.Clone(z.Pointers(addr))
		slices.SortFunc(got, dataplane.ServiceName.Compare)
		slices.SortFunc(all, dataplane.ServiceName.Compare)
		if !slices.Equal(got, all) {
			t.Fatalf("%s: %v, want %v", addr, got, all)
		}
	}
}

// TestHeadlessUnknown knows nothing as long as headless Services are left out, because their names would be denied, and keeps
// what it knows.
func TestHeadlessUnknown(t *testing.T) {
	name := dataplane.ServiceName{Namespace: "default", Name: "web"}
	edit := spec.Services{}.Edit()
	edit.Put(name, service(name, "10.96.0.1"))
	full := &spec.Snapshot{Services: edit.Commit()}
	part := &spec.Snapshot{Revision: spec.Revision{ProxyOnly: true}}
	z := NewZone()
	for i, snap := range []*spec.Snapshot{part, full, part} {
		z.Updated(spec.Update{Snapshot: snap, Delta: spec.Delta{All: i == 0}})
		z.RoundStarts(reconcile.Request{})
		z.Applied(reconcile.Report{})
		if known := z.Serial() != 0 && z.Names(name) != nil; known != (i > 0) {
			t.Errorf("after %d: known: %t", i, known)
		}
	}
}
