package endpoints

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
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

// kept is the controller of a control plane with the slices of one Service, which it changes from state to state.
type kept struct {
	reconciler *endpointslice.Reconciler
	client     *fake.Clientset
	slices     map[string]*discoveryv1.EndpointSlice
	created    int
	pods       []*corev1.Pod // those of its last work
}

func newKept(nodes corelisters.NodeLister) *kept {
	k := &kept{client: fake.NewClientset(), slices: map[string]*discoveryv1.EndpointSlice{}}
	k.client.PrependReactor("*", "endpointslices", func(a clienttesting.Action) (bool, runtime.Object, error) {
		switch a := a.(type) {
		case clienttesting.CreateActionImpl:
			s := a.GetObject().(*discoveryv1.EndpointSlice)
			k.created++
			s.Name = fmt.Sprint(s.GenerateName, k.created)
			k.slices[s.Name] = s
			return true, s, nil
		case clienttesting.UpdateActionImpl:
			s := a.GetObject().(*discoveryv1.EndpointSlice)
			k.slices[s.Name] = s
			return true, s, nil
		case clienttesting.DeleteActionImpl:
			delete(k.slices, a.GetName())
			return true, nil, nil
		}
		return false, nil, nil
	})
	k.reconciler = endpointslice.NewReconciler(k.client, nodes, maxEndpoints, endpointsliceutil.NewEndpointSliceTracker(), nil, record.NewFakeRecorder(1), spec.ManagedBy, endpointslice.WithPreferSameTrafficDistributionEnabled(true))
	return k
}

func (k *kept) list() []*discoveryv1.EndpointSlice {
	return slices.Collect(maps.Values(k.slices))
}

func (k *kept) reconcile(svc *corev1.Service, pods []*corev1.Pod) error {
	var existing []*discoveryv1.EndpointSlice
	for _, s := range k.list() {
		existing = append(existing, s.DeepCopy())
	}
	k.client.ClearActions()
	k.pods = pods
	return k.reconciler.Reconcile(klog.Background(), svc, pods, existing, metav1.Now().Time)
}

// world is what TestSteps changes: Services, pods and the zones of nodes, with what weir and the controller make of them.
type world struct {
	r        *rand.Rand
	index    Index
	pods     map[PodKey]*corev1.Pod
	services map[dataplane.ServiceName]*corev1.Service
	zones    map[string]string
	nodes    cache.Indexer

	made  map[dataplane.ServiceName][]*discoveryv1.EndpointSlice
	peers map[dataplane.ServiceName]*kept
}

func (w *world) labels() map[string]string {
	l := map[string]string{}
	for _, k := range []string{"app", "tier"} {
		if w.r.IntN(4) > 0 {
			l[k] = pick(w.r, "web", "db")
		}
	}
	return l
}

// step changes one thing, and returns the Services that weir works on because of it, and what the step was.
func (w *world) step() (affected []dataplane.ServiceName, what string) {
	namespace := pick(w.r, "default", "default", "shop")
	switch n := w.r.IntN(20); {
	case n == 0: // a node has another zone
		node := pick(w.r, "node-0", "node-1", "node-2")
		w.setZone(node, pick(w.r, "a", "b", ""))
		for _, name := range w.index.Selecting() {
			w.peers[name].pods = nil // the controller does not look at Nodes again by itself
			affected = append(affected, name)
		}
		return affected, "zone of " + node
	case n < 4:
		name := dataplane.ServiceName{Namespace: namespace, Name: pick(w.r, "web", "other", "db")}
		var svc *corev1.Service
		if w.r.IntN(6) > 0 {
			svc = randomService(w.r)
			svc.Namespace, svc.Name, svc.Spec.Selector = name.Namespace, name.Name, w.labels()
		}
		w.index.SetService(name, svc)
		if !Selects(svc) {
			delete(w.services, name)
			delete(w.made, name)
			delete(w.peers, name)
			return nil, "without Service " + name.String()
		}
		if before := w.services[name]; before == nil || before.Spec.ClusterIP != svc.Spec.ClusterIP { // which cannot be changed
			w.peers[name] = newKept(corelisters.NewNodeLister(w.nodes))
		}
		w.services[name], w.peers[name].pods = svc, nil
		return []dataplane.ServiceName{name}, "Service " + name.String()
	}
	i := w.r.IntN(8)
	key := PodKey{w.r.IntN(2), namespace, fmt.Sprintf("web-%d", i)}
	before := w.pods[key]
	if before != nil && w.r.IntN(4) == 0 {
		delete(w.pods, key)
		return w.index.SetPod(key, nil), "without pod " + key.Name
	}
	pod := randomPod(w.r, i+10*key.Source)
	pod.Namespace, pod.Name, pod.Labels = key.Namespace, key.Name, w.labels()
	if before != nil && w.r.IntN(2) == 0 { // the same pod in another state
		status, deleted := pod.Status, pod.DeletionTimestamp
		pod = before.DeepCopy()
		pod.Status, pod.DeletionTimestamp = status, deleted
	}
	w.pods[key] = pod
	return w.index.SetPod(key, pod), "pod " + key.Name
}

func (w *world) setZone(node, zone string) {
	w.zones[node] = zone
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: map[string]string{}}}
	if zone != "" {
		n.Labels[corev1.LabelTopologyZone] = zone
	}
	if err := w.nodes.Update(n); err != nil {
		panic(err)
	}
}

// selected returns the pods of a Service by a search through all of them.
func (w *world) selected(svc *corev1.Service) []*corev1.Pod {
	all := []*corev1.Pod{}
	for _, key := range slices.SortedFunc(maps.Keys(w.pods), func(a, b PodKey) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }) {
		if pod := w.pods[key]; pod.Namespace == svc.Namespace && matches(svc.Spec.Selector, pod.Labels) {
			all = append(all, pod)
		}
	}
	return all
}

// TestSteps changes one world step by step, and compares what is made of it after each with the controller's work. Services
// that the Index does not name keep what was made of them before. WEIR_RANDOM_STEPS is the number of steps.
func TestSteps(t *testing.T) {
	count := 3000
	if n, err := strconv.Atoi(os.Getenv("WEIR_RANDOM_STEPS")); err == nil {
		count = n
	}
	w := &world{
		r: seed.Rand(t), pods: map[PodKey]*corev1.Pod{}, services: map[dataplane.ServiceName]*corev1.Service{}, zones: map[string]string{},
		nodes: cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}),
		made:  map[dataplane.ServiceName][]*discoveryv1.EndpointSlice{}, peers: map[dataplane.ServiceName]*kept{},
	}
	for node, zone := range zones {
		w.setZone(node, zone)
	}
	compared, ends := 0, 0
	for n := range count {
		affected, what := w.step()
		for _, name := range affected {
			svc := w.services[name]
			w.made[name] = Of(svc, w.index.Selected(name.Namespace, svc.Spec.Selector), func(node string) string { return w.zones[node] })
		}
		for name, peer := range w.peers {
			svc := w.services[name]
			if pods := w.selected(svc); peer.pods == nil || !slices.Equal(pods, peer.pods) {
				if err := peer.reconcile(svc, pods); err != nil {
					t.Fatal(err)
				}
			}
			got, want := facts(w.made[name]), facts(peer.list())
			compared, ends = compared+1, ends+len(want)
			if !slices.Equal(got, want) {
				t.Fatalf("step %d, %s: Service %v %+v\ngot\n%s\nwant\n%s", n, what, name, svc.Spec, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
	if t.Logf("%d steps, %d comparisons, %d endpoints", count, compared, ends); ends < count {
		t.Errorf("only %d endpoints in %d steps", ends, count)
	}
}
