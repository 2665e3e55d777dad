package podsource

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubelet "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"weir/spec"
	"weir/spec/apisource/apitest"
	"weir/spec/seed"
)

// kubeletPeer is a kubelet of which only the API of pods is there, which is the kubelet's own.
type kubeletPeer struct {
	t      *testing.T
	socket string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
}

func newKubeletPeer(t *testing.T) *kubeletPeer {
	t.Helper()
	dir, err := os.MkdirTemp("", "kubelet") // a short path
	if err != nil {
		t.Fatal(err)
	}
	k := &kubeletPeer{t: t, socket: filepath.Join(dir, "pods-api.sock")}
	t.Cleanup(func() { k.stop(); _ = os.RemoveAll(dir) })
	k.start()
	return k
}

func (k *kubeletPeer) start() {
	k.t.Helper()
	k.cmd = exec.Command(apitest.Binary(k.t, "kubeletpeer"), k.socket)
	k.cmd.Stderr = os.Stderr
	var out io.ReadCloser
	var err error
	if k.in, err = k.cmd.StdinPipe(); err == nil {
		if out, err = k.cmd.StdoutPipe(); err == nil {
			err = k.cmd.Start()
		}
	}
	if err != nil {
		k.t.Fatal(err)
	}
	k.out = bufio.NewScanner(out)
	k.await("serving")
}

func (k *kubeletPeer) await(want string) {
	k.t.Helper()
	if !k.out.Scan() || k.out.Text() != want {
		k.t.Fatalf("kubeletpeer says %q, not %s", k.out.Text(), want)
	}
}

func (k *kubeletPeer) stop() {
	if k.cmd != nil && k.cmd.Process != nil {
		_ = k.cmd.Process.Kill()
		_ = k.cmd.Wait()
		k.cmd = nil
		_ = os.Remove(k.socket)
	}
}

func (k *kubeletPeer) do(step map[string]any) {
	k.t.Helper()
	text, err := json.Marshal(step)
	if err == nil {
		_, err = k.in.Write(append(text, '\n'))
	}
	if err != nil {
		k.t.Fatal(err)
	}
	k.await("done")
}

func (k *kubeletPeer) ready()                 { k.t.Helper(); k.do(map[string]any{"ready": true}) }
func (k *kubeletPeer) looked(p *corev1.Pod)   { k.t.Helper(); k.do(map[string]any{"looked": p}) }
func (k *kubeletPeer) declared(p *corev1.Pod) { k.t.Helper(); k.do(map[string]any{"declared": p}) }
func (k *kubeletPeer) removed(uid types.UID)  { k.t.Helper(); k.do(map[string]any{"removed": uid}) }
func (k *kubeletPeer) reader() *Kubelet       { return kubeletReader(k.socket) }
func kubeletReader(socket string) *Kubelet {
	return &Kubelet{Socket: socket, Node: "n", HostAddresses: func() []string { return []string{"192.0.2.1"} }}
}

// staticPod returns a pod as the kubelet reads it from a file, with the status that it computes.
func staticPod(uid types.UID, name, address string, ready bool) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid, Labels: web},
		Spec: corev1.PodSpec{NodeName: "another", Containers: []corev1.Container{
			{Name: "server", Env: []corev1.EnvVar{{Name: "PASSWORD", Value: "secret"}}, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}},
			{Name: "helper"},
		}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}, {IP: "fd00::1"}}},
	}
	verdict := corev1.ConditionFalse
	if ready {
		verdict = corev1.ConditionTrue
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: verdict}}
	return p
}

func TestKubelet(t *testing.T) {
	t.Parallel()
	k := newKubeletPeer(t)
	source := New(Options{Name: "kubelet", Backoff: true, Reader: k.reader(), Retry: time.Millisecond})
	v := follow(t, source)
	v.until(t, "stale")
	if text := v.err.Error(); !strings.Contains(text, "Kubelet is initializing") {
		t.Errorf("the error is %s", text)
	}
	if _, err := source.Load(t.Context()); err == nil {
		t.Error("a list of a kubelet that is not ready is taken")
	}
	k.looked(staticPod("u1", "web-n", "10.0.0.1", true))
	k.ready()
	v.until(t, "default/web-n app=web Running ready addressed")
	pod := v.pods.Get(podNamed("default", "web-n"))
	want := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web-n", UID: "u1", Labels: web},
		Spec:       corev1.PodSpec{NodeName: "n", Containers: []corev1.Container{{Name: "server", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, PodIP: "10.0.0.1", PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
	if pod.String() != want.String() {
		t.Errorf("the pod is\n%v, not\n%v", pod, want)
	}
	k.looked(staticPod("u1", "web-n", "10.0.0.1", false))
	v.until(t, "default/web-n app=web Running addressed")
	k.looked(staticPod("u1", "web-n", "10.0.0.1", true))
	k.declared(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "new", UID: "u2"}})
	k.looked(staticPod("u3", "third", "10.0.0.3", true))
	v.until(t, "default/third app=web Running ready addressed\ndefault/web-n app=web Running ready addressed")
	terminating := staticPod("u3", "third", "10.0.0.3", true)
	terminating.DeletionTimestamp = &metav1.Time{Time: time.Now()}
	k.looked(terminating)
	v.until(t, "default/third app=web Running ready terminating addressed\ndefault/web-n app=web Running ready addressed")
	k.removed("u3")
	v.until(t, "default/web-n app=web Running ready addressed")

	// A pod is replaced by another of its name. That the former goes is told last.
	k.looked(staticPod("u4", "web-n", "10.0.0.4", true))
	v.untilPods(t, func(p spec.Pods) bool { return p.Get(podNamed("default", "web-n")).Status.PodIP == "10.0.0.4" })
	k.removed("u1")
	k.looked(staticPod("u5", "other", "10.0.0.5", true))
	v.until(t, "default/other app=web Running ready addressed\ndefault/web-n app=web Running ready addressed")

	// The kubelet ends, and begins again without having looked at what runs.
	k.stop()
	v.until(t, "default/other app=web Running ready addressed\ndefault/web-n app=web Running ready addressed\nstale")
	k.start()
	for _, p := range []*corev1.Pod{staticPod("u4", "web-n", "", false), staticPod("u6", "later", "", false)} {
		p.Status = corev1.PodStatus{}
		k.declared(p)
	}
	fromAPI := staticPod("u5", "other", "10.0.0.5", true)
	k.declared(fromAPI)
	k.ready()
	v.until(t, "default/later app=web Pending\ndefault/other app=web Running ready addressed\ndefault/web-n app=web Running ready addressed")
	k.looked(staticPod("u4", "web-n", "10.0.0.9", false))
	k.looked(staticPod("u5", "other", "10.0.0.5", false))
	k.removed("u6")
	v.until(t, "default/other app=web Running addressed\ndefault/web-n app=web Running addressed")
	k.removed("u4")
	k.removed("u5")
	v.until(t, "")
}

// TestKubeletRandom has random things happen to the pods of the kubelet's own server. After each few, and after a restart,
// the pods are those of a model.
func TestKubeletRandom(t *testing.T) {
	t.Parallel()
	r := seed.Rand(t)
	k := newKubeletPeer(t)
	k.ready()
	reader := k.reader()
	reader.every = 30 * time.Millisecond
	v := follow(t, New(Options{Name: "kubelet", Backoff: true, Reader: reader, Retry: time.Millisecond}))
	model := map[string]*corev1.Pod{}
	next := 0
	for range 100 {
		for range 1 + r.IntN(30) {
			name := fmt.Sprint("p", r.IntN(8))
			before := model[name]
			switch {
			case before != nil && r.IntN(4) == 0:
				k.removed(before.UID)
				delete(model, name)
				continue
			case before != nil && r.IntN(4) == 0: // another one of that name, told before or after the former goes
				next++
				p := staticPod(types.UID(fmt.Sprint("u", next)), name, fmt.Sprint("10.0.1.", next%250), r.IntN(2) == 0)
				if model[name] = p; r.IntN(2) == 0 {
					k.removed(before.UID)
					k.looked(p)
				} else {
					k.looked(p)
					k.removed(before.UID)
				}
				continue
			case before == nil:
				next++
				before = staticPod(types.UID(fmt.Sprint("u", next)), name, "10.0.0.1", false)
			}
			p := staticPod(before.UID, name, fmt.Sprint("10.0.0.", 1+r.IntN(200)), r.IntN(2) == 0)
			model[name] = p
			k.looked(p)
		}
		v.untilPods(t, func(p spec.Pods) bool {
			for name, want := range model {
				got := p.Get(podNamed("default", name))
				if got == nil || got.UID != want.UID || got.Status.PodIP != want.Status.PodIP || got.Status.Conditions[0].Status != want.Status.Conditions[1].Status {
					return false
				}
			}
			return p.Len() == len(model)
		})
	}
	if v.err != nil {
		t.Error(v.err)
	}
}

// fakeKubelet serves what a test says.
type fakeKubelet struct {
	kubelet.UnimplementedPodsServer
	mu    sync.Mutex
	watch func(grpc.ServerStreamingServer[kubelet.WatchPodsEvent]) error
}

func (f *fakeKubelet) serves(watch func(grpc.ServerStreamingServer[kubelet.WatchPodsEvent]) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watch = watch
}

func (f *fakeKubelet) WatchPods(_ *kubelet.WatchPodsRequest, s grpc.ServerStreamingServer[kubelet.WatchPodsEvent]) error {
	f.mu.Lock()
	watch := f.watch
	f.mu.Unlock()
	return watch(s)
}

func added(pods ...*corev1.Pod) (all []*kubelet.WatchPodsEvent) {
	for _, p := range pods {
		raw, err := p.Marshal()
		if err != nil {
			panic(err)
		}
		all = append(all, &kubelet.WatchPodsEvent{Type: kubelet.EventType_ADDED, Pod: raw})
	}
	return all
}

// TestKubeletFaults has a kubelet that fails in every way. No pod goes, and what the next complete list has is seen.
func TestKubeletFaults(t *testing.T) {
	a, b, c := staticPod("ua", "a", "10.0.0.1", true), staticPod("ub", "b", "10.0.0.2", true), staticPod("uc", "c", "10.0.0.3", true)
	synced := &kubelet.WatchPodsEvent{Type: kubelet.EventType_INITIAL_SYNC_COMPLETE}
	const both = "default/a app=web Running ready addressed\ndefault/b app=web Running ready addressed"
	send := func(s grpc.ServerStreamingServer[kubelet.WatchPodsEvent], events ...*kubelet.WatchPodsEvent) {
		for _, e := range events {
			_ = s.Send(e)
		}
	}
	type stream = grpc.ServerStreamingServer[kubelet.WatchPodsEvent]
	for name, fault := range map[string]struct {
		serves func(s stream) error
	}{
		"half a list": {serves: func(s stream) error { send(s, added(a)...); return status.Error(codes.Internal, "\x1b[31m") }},
		"no list":     {serves: func(s stream) error { send(s, added(a)...); <-s.Context().Done(); return nil }},
		"an end":      {serves: func(s stream) error { send(s, append(added(a), added(c)...)...); return nil }},
		"an overrun":  {serves: func(stream) error { return status.Error(codes.ResourceExhausted, "watch client channel closed") }},
		"nonsense": {serves: func(s stream) error {
			send(s, &kubelet.WatchPodsEvent{Type: kubelet.EventType_ADDED, Pod: []byte("nonsense")}, synced)
			<-s.Context().Done()
			return nil
		}},
		"too much": {serves: func(s stream) error {
			send(s, &kubelet.WatchPodsEvent{Type: kubelet.EventType_ADDED, Pod: make([]byte, maxAnswer+1)}, synced)
			<-s.Context().Done()
			return nil
		}},
		"no such interface": {serves: func(stream) error { return status.Error(codes.Unimplemented, "unknown service v1alpha1.Pods") }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, err := os.MkdirTemp("", "kubelet")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			f := &fakeKubelet{}
			l, err := net.Listen("unix", filepath.Join(dir, "s"))
			if err != nil {
				t.Fatal(err)
			}
			server := grpc.NewServer()
			kubelet.RegisterPodsServer(server, f)
			go func() { _ = server.Serve(l) }()
			defer server.Stop()
			drop := make(chan struct{})
			f.serves(func(s stream) error {
				send(s, append(added(a, b), synced)...)
				<-drop
				return status.Error(codes.ResourceExhausted, "watch client channel closed")
			})
			v := follow(t, New(Options{Name: "kubelet", Backoff: true, Reader: kubeletReader(l.Addr().String()), Retry: time.Millisecond}))
			v.until(t, both)
			f.serves(fault.serves)
			close(drop)
			v.until(t, both+"\nstale")
			if text := v.err.Error(); len(text) > 2*maxText || strings.Contains(text, "\x1b") {
				t.Errorf("the error is %q", text)
			}
			f.serves(func(s stream) error {
				send(s, append(added(b, c), synced)...)
				<-s.Context().Done()
				return nil
			})
			v.until(t, strings.NewReplacer("/b", "/c", "/a", "/b").Replace(both))
		})
	}
}

// TestKubeletOverrun has a kubelet that drops its client again and again. Nobody is told, and nothing goes.
func TestKubeletOverrun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := &fakeKubelet{}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	kubelet.RegisterPodsServer(server, f)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	n := 0
	f.serves(func(s grpc.ServerStreamingServer[kubelet.WatchPodsEvent]) error {
		n++
		events := added(staticPod("ua", "a", fmt.Sprint("10.0.0.", min(n, 5)), true))
		for _, e := range append(events, &kubelet.WatchPodsEvent{Type: kubelet.EventType_INITIAL_SYNC_COMPLETE}) {
			_ = s.Send(e)
		}
		if n < 5 {
			return status.Error(codes.ResourceExhausted, "watch client channel closed")
		}
		<-s.Context().Done()
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	source := New(Options{Name: "kubelet", Backoff: true, Reader: kubeletReader(l.Addr().String())})
	err = source.Watch(ctx, func(u spec.Update) {
		if u.Err != nil || u.Snapshot.Pods.Len() != 1 {
			t.Errorf("%v", u.Err)
		} else if u.Snapshot.Pods.Get(podNamed("default", "a")).Status.PodIP == "10.0.0.5" {
			cancel()
		}
	})
	if err != context.Canceled {
		t.Error(err)
	}
}

// TestKubeletHostile expects that nothing of a pod that Kubernetes forbids is taken, and nothing that endpoints do not need.
func TestKubeletHostile(t *testing.T) {
	r := kubeletReader("")
	v := newKubeletView()
	for _, text := range []string{"", "a\nb", "../x", strings.Repeat("x", 300), "\x1b[31m"} {
		for _, p := range []*corev1.Pod{
			{ObjectMeta: metav1.ObjectMeta{Namespace: text, Name: "n", UID: "u"}},
			{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: text, UID: "u"}},
			{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "n", UID: types.UID(text)}},
		} {
			if err := v.put(r, added(p)[0].Pod); err != nil || len(v.pods) > 0 {
				t.Errorf("%q: %v, %d pods", text, err, len(v.pods))
			}
		}
	}
	p := staticPod("u", "n", "127.0.0.1", true)
	p.Labels = map[string]string{"a\nb": "x"}
	p.Spec.Hostname, p.Spec.Subdomain = "a\nb", "c"
	p.Status.PodIPs = slices.Repeat([]corev1.PodIP{{IP: "10.0.0.1\n"}}, 1000)
	for i := range 1000 {
		p.Labels[fmt.Sprint("l", i)] = "v"
	}
	if err := v.put(r, added(p)[0].Pod); err != nil {
		t.Fatal(err)
	}
	o := slices.Collect(maps.Values(v.all()))[0]
	if len(o.Labels) != maxLabels || o.Spec.Hostname != "" || len(o.Status.PodIPs) > 0 || strings.Contains(o.String(), "secret") {
		t.Errorf("the pod is %v", o)
	}
}
