package join

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir/backends/dataplane"
	"weir/spec"
)

// selecting returns a Service from a file that selects app=NAME.
func selecting(name string, list ...*discoveryv1.EndpointSlice) *spec.Service {
	n := dataplane.ServiceName{Namespace: "d", Name: name}
	return &spec.Service{Name: n, Origin: spec.Origin{File: name + ".yaml"}, Slices: list, Object: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name},
		Spec: corev1.ServiceSpec{
			ClusterIP: "10.96.0.1", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}},
		},
	}}
}

// runs returns the Snapshot of a runtime in which a pod runs for each address.
func runs(app string, addrs ...string) *spec.Snapshot {
	b := spec.Pods{}.Edit()
	for i, a := range addrs {
		name := fmt.Sprint(app, "-", i)
		b.Put(dataplane.ServiceName{Namespace: "d", Name: name}, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, Labels: map[string]string{"app": app}},
			Spec:       corev1.PodSpec{NodeName: "n"},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: a}},
				Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		})
	}
	return &spec.Snapshot{Pods: b.Commit()}
}

func endpointsOf(svc *spec.Service) string {
	var all []string
	for _, s := range svc.Slices {
		for _, e := range s.Endpoints {
			all = append(all, e.Addresses...)
			if e.Zone != nil {
				all = append(all, *e.Zone)
			}
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// TestPodsAreEndpoints sends what files and two runtimes say, and expects the endpoints of each Service.
func TestPodsAreEndpoints(t *testing.T) {
	files, podman, docker := make(hand), make(hand), make(hand)
	out := make(chan spec.Update, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	layer := func(name string, h hand) Layer {
		l := Fixed(name, h)
		l.GivesPods = true
		return l
	}
	src := New(files, layer("podman", podman), layer("docker", docker))
	go func() { defer close(done); _ = src.Watch(ctx, func(u spec.Update) { out <- u }) }()
	defer func() { cancel(); <-done }()
	next := func() *spec.Snapshot {
		t.Helper()
		select {
		case u := <-out:
			if u.Err != nil {
				t.Fatal(u.Err)
			}
			return u.Snapshot
		case <-time.After(time.Minute):
			t.Fatal("no Update came")
			return nil
		}
	}
	get := func(s *spec.Snapshot, name string) *spec.Service {
		return s.Services.Get(dataplane.ServiceName{Namespace: "d", Name: name})
	}
	expect := func(s *spec.Snapshot, name, want string) {
		t.Helper()
		if got := endpointsOf(get(s, name)); got != want {
			t.Errorf("Service %s has endpoints %q, want %q", name, got, want)
		}
	}
	noticed := func(s *spec.Snapshot, name string, id spec.NoticeID) string {
		for _, n := range get(s, name).AllNotices() {
			if n.ID() == id {
				return n.Detail
			}
		}
		return ""
	}
	all, podmanIs := spec.Delta{All: true}, func(names ...string) spec.Delta {
		var d spec.Delta
		for _, n := range names {
			d.Pods = append(d.Pods, dataplane.ServiceName{Namespace: "d", Name: n})
		}
		return d
	}

	written := selecting("written", &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.9.9.9"}}}})
	base := &spec.Snapshot{Services: spec.ServicesOf(selecting("web"), selecting("db"), written)}
	files <- spec.Update{Snapshot: base, Delta: all}
	podman <- spec.Update{Snapshot: runs("web", "10.0.0.1"), Delta: all}
	docker <- spec.Update{Snapshot: runs("web", "10.1.0.1"), Delta: all}
	s := next()
	expect(s, "web", "10.0.0.1 10.1.0.1") // of both runtimes, though the pods have one name
	expect(s, "db", "")
	expect(s, "written", "10.9.9.9")
	if d := noticed(s, "db", spec.NoReadyEndpoint); !strings.Contains(d, "podman and docker") {
		t.Errorf("the notice for a Service without pods is %q", d)
	}

	starting := runs("db", "10.0.0.3")
	starting.Pods.Get(dataplane.ServiceName{Namespace: "d", Name: "db-0"}).Status.PodIPs = nil
	podman <- spec.Update{Snapshot: starting, Delta: podmanIs("web-0", "db-0")}
	if d := noticed(next(), "db", spec.NoReadyEndpoint); !strings.Contains(d, "podman and docker; pod d/db-0 has these labels, and no address") {
		t.Errorf("the notice for a Service whose pod starts is %q", d)
	}
	podman <- spec.Update{Snapshot: runs("web", "10.0.0.1", "10.0.0.2"), Delta: podmanIs("web-0", "web-1", "db-0")}
	expect(next(), "web", "10.0.0.1 10.0.0.2 10.1.0.1")
	podman <- spec.Update{Snapshot: runs("db", "10.0.0.3"), Delta: podmanIs("web-0", "web-1", "db-0")}
	s = next()
	expect(s, "web", "10.1.0.1")
	expect(s, "db", "10.0.0.3")
	if noticed(s, "db", spec.NoReadyEndpoint) != "" {
		t.Error("a Service with a pod is said to have none")
	}
	podman <- spec.Update{Snapshot: runs("written", "10.0.0.4"), Delta: podmanIs("db-0", "written-0")}
	s = next()
	expect(s, "written", "10.9.9.9")
	if noticed(s, "written", spec.PodsNotUsed) == "" {
		t.Error("nothing tells that pods are not used")
	}
	base = &spec.Snapshot{Services: base.Services, Nodes: map[string]*corev1.Node{"n": {ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z"}}}}}
	files <- spec.Update{Snapshot: base, Delta: spec.Delta{Nodes: true}}
	expect(next(), "web", "10.1.0.1 z")
	files <- spec.Update{Snapshot: &spec.Snapshot{Services: spec.ServicesOf(selecting("web"), selecting("written"))}, Delta: spec.Delta{Nodes: true, Services: []dataplane.ServiceName{written.Name, {Namespace: "d", Name: "db"}}}}
	s = next()
	expect(s, "written", "10.0.0.4")
	if get(s, "db") != nil {
		t.Error("a deleted Service is there")
	}
	docker <- spec.Update{Snapshot: &spec.Snapshot{}, Delta: all} // a complete list without pods
	expect(next(), "web", "")
}

// counting is a Filter that counts how often each Service is joined.
type counting map[dataplane.ServiceName]int

func (c counting) Slices(name dataplane.ServiceName, svc, _ *spec.Service) []*discoveryv1.EndpointSlice {
	c[name]++
	if svc == nil {
		return nil
	}
	return svc.Slices
}

func (counting) Watch(context.Context, func(...dataplane.ServiceName)) {}

// TestManyPodsAtOnce has many pods of one Service start at once, which joins it once.
func TestManyPodsAtOnce(t *testing.T) {
	joined := counting{}
	u := New(make(hand), Layer{Name: "podman", GivesPods: true}).Filtered(joined).newUnion()
	web := selecting("web")
	none := &spec.Snapshot{}
	for i, snap := range []*spec.Snapshot{{Services: spec.ServicesOf(web)}, none} {
		u.said[i] = snap
		u.takePods(i, snap, spec.Delta{All: true})
	}
	u.update(spec.Delta{All: true}, false)
	before := joined[web.Name]
	var addresses []string
	var delta spec.Delta
	for i := range 500 {
		addresses = append(addresses, fmt.Sprintf("10.0.%d.%d", i/250, i%250))
		delta.Pods = append(delta.Pods, dataplane.ServiceName{Namespace: "d", Name: fmt.Sprint("web-", i)})
	}
	u.said[1] = runs("web", addresses...)
	delta.Services = u.takePods(1, u.said[1], delta)
	snap, _ := u.update(delta, false)
	if n := len(strings.Fields(endpointsOf(snap.Services.Get(web.Name)))); n != 500 {
		t.Errorf("%d endpoints, want 500", n)
	}
	if n := joined[web.Name] - before; n != 1 {
		t.Errorf("500 pods joined their Service %d times", n)
	}
}
