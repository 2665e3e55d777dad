package apisource_test

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/apisource"
	"weir/spec/apisource/apitest"
)

// patience is generous: client-go takes up to half a minute, and its jitter, between two attempts.
const patience = 3 * time.Minute

// watcher follows a Source as the reconciler would: it applies every Update to a model by its Delta alone.
type watcher struct {
	t       *testing.T
	updates *spec.Outbox
	snap    *spec.Snapshot
	model   map[dataplane.ServiceName]*spec.Service
	err     error
	alls    int // Updates that said that everything changed
	errs    int // Updates with an error
}

func watch(t *testing.T, o apisource.Options) *watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{t: t, updates: spec.NewOutbox(), model: map[dataplane.ServiceName]*spec.Service{}}
	done := make(chan struct{})
	go func() { defer close(done); _ = apisource.New(o).Watch(ctx, w.updates.Put) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

func (w *watcher) take(u spec.Update) {
	w.t.Helper()
	w.err = u.Err
	if u.Err != nil {
		w.errs++
		return
	}
	w.snap = u.Snapshot
	if u.Delta.All {
		w.alls++
		clear(w.model)
		for svc := range u.Snapshot.Services.All() {
			w.model[svc.Name] = svc
		}
	}
	for _, name := range u.Delta.Services {
		if svc := u.Snapshot.Services.Get(name); svc != nil {
			w.model[name] = svc
		} else {
			delete(w.model, name)
		}
	}
	if len(w.model) != u.Snapshot.Services.Len() {
		w.t.Fatalf("the Deltas lead to %d Services, and the Snapshot has %d", len(w.model), u.Snapshot.Services.Len())
	}
}

// takeAll takes what has come.
func (w *watcher) takeAll() {
	for u, ok := w.updates.Take(); ok; u, ok = w.updates.Take() {
		w.take(u)
	}
}

// await takes Updates until check is content.
func (w *watcher) await(what string, check func() bool) {
	w.t.Helper()
	deadline := time.After(patience)
	for !check() {
		select {
		case <-w.updates.Ready():
			w.takeAll()
		case <-time.After(50 * time.Millisecond): // not every condition is about Updates
		case <-deadline:
			w.t.Fatalf("waited %s for %s; the last error is %v", patience, what, w.err)
		}
	}
}

func (w *watcher) endpoints(name string) int {
	n := 0
	if svc := w.model[dataplane.ServiceName{Namespace: "default", Name: name}]; svc != nil {
		for _, s := range svc.Slices {
			n += len(s.Endpoints)
		}
	} else {
		return -1
	}
	return n
}

func newService(name string) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{"other": "x"}},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}
}

func newSlice(name string, endpoints int) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4}
	s.Name, s.Namespace, s.Labels = name+"-1", "default", map[string]string{discoveryv1.LabelServiceName: name}
	port := int32(8080)
	s.Ports = []discoveryv1.EndpointPort{{Port: &port}}
	for i := range endpoints {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.1.%d.%d", i/250, i%250+1)}})
	}
	return s
}

// setEndpoints writes as a controller does, until the server takes it.
func setEndpoints(t *testing.T, s *apitest.Server, name string, n int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		_, err := s.Client.DiscoveryV1().EndpointSlices("default").Update(t.Context(), newSlice(name, n), metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = s.Client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), newSlice(name, n), metav1.CreateOptions{})
		}
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func createService(t *testing.T, s *apitest.Server, svc *corev1.Service) {
	t.Helper()
	if _, err := s.Client.CoreV1().Services("default").Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestRealServer(t *testing.T) {
	t.Parallel()
	s := apitest.Start(t, apitest.Options{})
	s.Create("../../examples/daemonset/rbac.yaml")
	proxy := apitest.NewProxy(t, s.Address)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	s.Kubeconfig(file, apitest.Token, proxy.Address())
	w := watch(t, apisource.Options{Connection: apisource.Connection{Kubeconfig: file}, NodeName: "node", WaitForPodCIDR: true,
		CheckCredentials: 50 * time.Millisecond})

	w.await("the wait for podCIDRs", func() bool { return w.err != nil })
	if w.snap != nil {
		t.Fatal("a Snapshot came before the Node had podCIDRs")
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Labels: map[string]string{corev1.LabelTopologyZone: "a"}}, Spec: corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24"}}}
	if _, err := s.Client.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("the Node", func() bool { return w.snap != nil && w.snap.Nodes["node"] != nil })

	createService(t, s, newService("web"))
	setEndpoints(t, s, "web", 3)
	w.await("three endpoints", func() bool { return w.endpoints("web") == 3 })
	setEndpoints(t, s, "web", 1000)
	w.await("a large slice", func() bool { return w.endpoints("web") == 1000 })
	foreign := newService("foreign")
	foreign.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	createService(t, s, foreign)
	headless := newService("headless")
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	createService(t, s, headless)
	createService(t, s, newService("gone"))
	w.await("a second Service", func() bool { return w.endpoints("gone") == 0 })
	if w.endpoints("foreign") != -1 {
		t.Error("a Service of another proxy is in the Snapshot")
	}
	if w.endpoints("headless") != -1 {
		t.Error("a headless Service is in the Snapshot")
	}
	if svc := w.snap.Services.Get(dataplane.ServiceName{Namespace: "default", Name: "web"}); svc.Origin.ResourceVersion == "" || svc.Object.Annotations != nil || svc.Object.UID != "" || svc.Object.Spec.ClusterIP == "" {
		t.Errorf("not trimmed, or too much: %+v", svc)
	}
	if err := s.Client.CoreV1().Services("default").Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.await("a deletion", func() bool { return w.endpoints("gone") == -1 })

	t.Run("the API is slow", func(t *testing.T) {
		proxy.Slow(500 * time.Millisecond)
		defer proxy.Slow(0)
		setEndpoints(t, s, "web", 2)
		w.await("a change", func() bool { return w.endpoints("web") == 2 })
		setEndpoints(t, s, "web", 1000)
		w.await("a large change", func() bool { return w.endpoints("web") == 1000 })
		if w.err != nil {
			t.Errorf("slow is not away: %v", w.err)
		}
	})
	t.Run("the network stalls in silence", func(t *testing.T) {
		proxy.Stall(true)
		setEndpoints(t, s, "web", 3)
		w.await("that it is noticed", func() bool { return w.err != nil })
		if w.endpoints("web") != 1000 {
			t.Error("what was known is gone")
		}
		proxy.Stall(false)
		w.await("what happened meanwhile", func() bool { return w.endpoints("web") == 3 && w.err == nil })
		setEndpoints(t, s, "web", 1000)
		w.await("a change", func() bool { return w.endpoints("web") == 1000 })
	})
	t.Run("the API server is killed", func(t *testing.T) {
		s.KillAPI()
		w.await("an error", func() bool { return w.err != nil })
		if w.endpoints("web") != 1000 {
			t.Error("what was known is gone")
		}
		s.Run()
		w.await("the API again", func() bool { return w.err == nil })
		setEndpoints(t, s, "web", 4)
		w.await("a change", func() bool { return w.endpoints("web") == 4 })
	})
	t.Run("etcd is killed too, and comes back", func(t *testing.T) {
		s.Kill()
		w.await("an error", func() bool { return w.err != nil })
		s.Run()
		setEndpoints(t, s, "web", 5)
		w.await("a change", func() bool { return w.endpoints("web") == 5 && w.err == nil })
	})
	t.Run("history is compacted while the network stalls", func(t *testing.T) {
		proxy.Stall(true)
		setEndpoints(t, s, "web", 6)
		createService(t, s, newService("later"))
		s.Compact()
		s.KillAPI() // its watch cache forgets too
		s.Run()
		setEndpoints(t, s, "web", 7)
		proxy.Stall(false)
		w.await("what happened meanwhile", func() bool { return w.endpoints("web") == 7 && w.endpoints("later") == 0 })
	})
	t.Run("credentials expire and are rotated", func(t *testing.T) {
		s.SetTokens(apitest.NextToken)
		w.await("a refusal", func() bool { return w.err != nil })
		if w.endpoints("web") != 7 {
			t.Error("what was known is gone")
		}
		s.Kubeconfig(file, apitest.NextToken, proxy.Address())
		setEndpoints(t, s, "web", 8)
		w.await("a change", func() bool { return w.endpoints("web") == 8 && w.err == nil })
	})
	t.Run("the node is deleted", func(t *testing.T) {
		if err := s.Client.CoreV1().Nodes().Delete(t.Context(), "node", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		w.await("the mark", func() bool { return w.snap.Nodes["node"].DeletionTimestamp != nil })
		if w.snap.Nodes["node"].Spec.PodCIDR == "" {
			t.Error("its podCIDR is forgotten")
		}
	})
	if w.alls != 1 {
		t.Errorf("%d Updates said that everything changed; want the first only", w.alls)
	}
}
