package endpoints

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/fake"
	corelisters "k8s.io/client-go/listers/core/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/endpointslice"
	endpointsliceutil "k8s.io/endpointslice/util"
	"k8s.io/klog/v2"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/seed"
)

// zones has the zone of each node of the tests.
var zones = map[string]string{"node-0": "a", "node-1": "b", "node-2": ""}

func zoneOf(node string) string { return zones[node] }

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomService(r *rand.Rand) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Labels: pick(r, nil, map[string]string{"team": "a"}, map[string]string{corev1.IsHeadlessService: "x"})},
		Spec: corev1.ServiceSpec{
			Selector:                 map[string]string{"app": "web"},
			ClusterIP:                pick(r, "10.96.0.1", "10.96.0.1", corev1.ClusterIPNone),
			IPFamilies:               pick(r, []corev1.IPFamily{corev1.IPv4Protocol}, []corev1.IPFamily{corev1.IPv6Protocol}, []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}),
			PublishNotReadyAddresses: r.IntN(4) == 0,
		},
	}
	if r.IntN(3) == 0 {
		d := pick(r, corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
		svc.Spec.TrafficDistribution = &d
	}
	for i := range r.IntN(4) {
		p := corev1.ServicePort{Name: fmt.Sprintf("p%d", i), Port: int32(80 + i), Protocol: pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP)}
		p.TargetPort = pick(r, intstr.FromInt32(8080), intstr.FromInt32(p.Port), intstr.FromString("http"), intstr.FromString("dns"))
		if r.IntN(3) == 0 {
			h := "http"
			p.AppProtocol = &h
		}
		svc.Spec.Ports = append(svc.Spec.Ports, p)
	}
	return svc
}

func randomContainer(r *rand.Rand, sidecar bool) corev1.Container {
	c := corev1.Container{Name: "c"}
	for range r.IntN(3) {
		c.Ports = append(c.Ports, corev1.ContainerPort{Name: pick(r, "http", "dns", ""), ContainerPort: int32(8000 + r.IntN(4)), Protocol: pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP)})
	}
	if sidecar && r.IntN(2) == 0 {
		always := corev1.ContainerRestartPolicyAlways
		c.RestartPolicy = &always
	}
	return c
}

func randomPod(r *rand.Rand, i int) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web-%d", i), Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			NodeName:  pick(r, "node-0", "node-1", "node-2"),
			Hostname:  pick(r, "", "h"),
			Subdomain: pick(r, "", "web", "other"),
		},
		Status: corev1.PodStatus{Phase: pick(r, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodPending, corev1.PodFailed, corev1.PodSucceeded)},
	}
	for range r.IntN(3) {
		pod.Spec.Containers = append(pod.Spec.Containers, randomContainer(r, false))
	}
	for range r.IntN(2) {
		pod.Spec.InitContainers = append(pod.Spec.InitContainers, randomContainer(r, true))
	}
	four, six := corev1.PodIP{IP: fmt.Sprintf("10.0.0.%d", 1+i)}, corev1.PodIP{IP: fmt.Sprintf("fd00::%x", 1+i)}
	pod.Status.PodIPs = pick(r, []corev1.PodIP{four}, []corev1.PodIP{four, six}, []corev1.PodIP{six, four}, nil)
	if len(pod.Status.PodIPs) > 0 {
		pod.Status.PodIP = pod.Status.PodIPs[0].IP
	}
	if r.IntN(4) > 0 {
		pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: pick(r, corev1.ConditionTrue, corev1.ConditionTrue, corev1.ConditionFalse)}}
	}
	if r.IntN(5) == 0 {
		now := metav1.Now()
		pod.DeletionTimestamp = &now
	}
	return pod
}

// controller returns what the EndpointSlice controller makes of the pods, beginning with no slices.
func controller(t *testing.T, nodes corelisters.NodeLister, svc *corev1.Service, pods []*corev1.Pod) []*discoveryv1.EndpointSlice {
	t.Helper()
	var made []*discoveryv1.EndpointSlice
	client := fake.NewClientset()
	client.PrependReactor("create", "endpointslices", func(a clienttesting.Action) (bool, runtime.Object, error) {
		s := a.(clienttesting.CreateAction).GetObject().(*discoveryv1.EndpointSlice)
		s.Name = fmt.Sprint(s.GenerateName, len(made))
		made = append(made, s)
		return true, s, nil
	})
	r := endpointslice.NewReconciler(client, nodes, maxEndpoints, endpointsliceutil.NewEndpointSliceTracker(), nil, record.NewFakeRecorder(10), spec.ManagedBy, endpointslice.WithPreferSameTrafficDistributionEnabled(true))
	if err := r.Reconcile(klog.Background(), svc, pods, nil, metav1.Now().Time); err != nil {
		t.Fatal(err)
	}
	return made
}

// facts returns every endpoint with all that a proxy and a name server read of it, sorted.
func facts(list []*discoveryv1.EndpointSlice) []string {
	var all []string
	for _, s := range list {
		var ports []string
		for _, p := range s.Ports {
			app := ""
			if p.AppProtocol != nil {
				app = *p.AppProtocol
			}
			ports = append(ports, fmt.Sprint(*p.Name, " ", *p.Port, " ", *p.Protocol, " ", app))
		}
		slices.Sort(ports)
		for _, e := range s.Endpoints {
			text := func(s *string) string {
				if s == nil {
					return "-"
				}
				return *s
			}
			all = append(all, fmt.Sprint(s.AddressType, s.Labels, e.Addresses, *e.Conditions.Ready, *e.Conditions.Serving, *e.Conditions.Terminating,
				text(e.Hostname), text(e.NodeName), text(e.Zone), e.Hints, e.TargetRef.Name, ports))
		}
	}
	slices.Sort(all)
	return all
}

func TestPeer(t *testing.T) {
	r := seed.Rand(t)
	store := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	for name, zone := range zones {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
		if zone != "" {
			n.Labels[corev1.LabelTopologyZone] = zone
		}
		if err := store.Add(n); err != nil {
			t.Fatal(err)
		}
	}
	nodes := corelisters.NewNodeLister(store)
	for range seed.Steps(3000) {
		svc := randomService(r)
		var pods []*corev1.Pod
		for i := range r.IntN(8) {
			pods = append(pods, randomPod(r, i))
		}
		// The controller keeps a slice without endpoints for a Service without any.
		got, want := facts(Of(svc, pods, zoneOf)), facts(controller(t, nodes, svc, pods))
		if !slices.Equal(got, want) {
			t.Fatalf("Service %+v\ngot\n%s\nwant\n%s", svc.Spec, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestSlicesAreBounded(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	svc := randomService(r)
	svc.Spec.IPFamilies, svc.Spec.Ports = []corev1.IPFamily{corev1.IPv4Protocol}, []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(80)}}
	var pods []*corev1.Pod
	for i := range 2*maxEndpoints + 1 {
		pods = append(pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i)}, Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.0.%d.%d", i/200, 1+i%200)}}}})
	}
	list := Of(svc, pods, zoneOf)
	var sizes []int
	for _, s := range list {
		sizes = append(sizes, len(s.Endpoints))
	}
	if !slices.Equal(sizes, []int{maxEndpoints, maxEndpoints, 1}) || !slices.IsSortedFunc(list, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("slices of %v endpoints", sizes)
	}
}

// TestIndex compares the Index with a search through everything, over random changes.
// TestOnePodOfTwoSources has a pod that a kubelet and its runtime tell of, and another of that name.
func TestOnePodOfTwoSources(t *testing.T) {
	var x Index
	for source, uid := range []types.UID{"a", "a", "b", ""} {
		x.SetPod(PodKey{source, "n", "p"}, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: uid, Labels: map[string]string{"app": "web"}}, Spec: corev1.PodSpec{NodeName: fmt.Sprint(source)}})
	}
	var got []string
	for _, p := range x.Selected("n", map[string]string{"app": "web"}) {
		got = append(got, p.Spec.NodeName)
	}
	if !slices.Equal(got, []string{"0", "2", "3"}) {
		t.Errorf("the pods of the sources %v are selected", got)
	}
}

func TestIndex(t *testing.T) {
	r := seed.Rand(t)
	var x Index
	pods, services := map[PodKey]*corev1.Pod{}, map[dataplane.ServiceName]*corev1.Service{}
	randomLabels := func() map[string]string {
		l := map[string]string{}
		for range r.IntN(4) {
			l[pick(r, "app", "tier", "x")] = pick(r, "a", "b")
		}
		return l
	}
	selected := func(svc *corev1.Service) []*corev1.Pod { return x.Selected(svc.Namespace, svc.Spec.Selector) }
	for range seed.Steps(5000) {
		if ns := pick(r, "n", "m"); r.IntN(3) == 0 {
			name := dataplane.ServiceName{Namespace: ns, Name: pick(r, "s", "t", "u", "v")}
			var svc *corev1.Service
			if r.IntN(4) > 0 {
				svc = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name.Name}, Spec: corev1.ServiceSpec{Selector: randomLabels()}}
			}
			x.SetService(name, svc)
			if services[name] = svc; svc == nil {
				delete(services, name)
			}
			continue
		} else {
			key := PodKey{r.IntN(2), ns, pick(r, "p", "q", "r", "s", "t")}
			var pod *corev1.Pod
			if r.IntN(3) > 0 {
				pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: key.Name, Labels: randomLabels()}}
			}
			before := map[dataplane.ServiceName][]*corev1.Pod{}
			for name, svc := range services {
				before[name] = selected(svc)
			}
			affected := x.SetPod(key, pod)
			if pods[key] = pod; pod == nil {
				delete(pods, key)
			}
			for name, svc := range services {
				if !slices.Contains(affected, name) && !slices.Equal(before[name], selected(svc)) {
					t.Fatalf("%v changed, which SetPod did not return", name)
				}
			}
		}
		for name, svc := range services {
			want := map[*corev1.Pod]bool{}
			for _, pod := range pods {
				if Selects(svc) && pod.Namespace == name.Namespace && matches(svc.Spec.Selector, pod.Labels) {
					want[pod] = true
				}
			}
			got := map[*corev1.Pod]bool{}
			for _, pod := range selected(svc) {
				got[pod] = true
			}
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("%v selects %v, want %v", name, got, want)
			}
		}
	}
}

func BenchmarkOf(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 1))
	svc := randomService(r)
	var pods []*corev1.Pod
	for i := range 250 {
		pods = append(pods, randomPod(r, i))
	}
	for b.Loop() {
		Of(svc, pods, zoneOf)
	}
}
