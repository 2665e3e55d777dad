package main_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubelet "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"weir/backends/netlab"
)

// BenchmarkPods measures the whole program on a node with 110 pods in one Service, told by a kubelet's API of pods, so that the
// times are without those of a runtime:
//
//	gone-ms    from the event that a pod is not ready until the kernel has no endpoint of it, median of 100, and worst-ms
//	1000-ms    from the last of 1,000 pods that start at once until the kernel has all of them
//	idle-%     of one core, and rss-MB; idle0-% and rss0-MB the same without pods
func BenchmarkPods(b *testing.B) {
	for b.Loop() {
		none := newBenchPods(b, 0)
		pid, _, stop := none.node.start("--pod-source", "none")
		none.node.awaitServing()
		none.atRest(pid, "0")
		stop()

		p := newBenchPods(b, 110)
		pid, _, stop = p.node.start("--pod-source", "kubelet=unix://"+p.socket)
		p.await(110)
		p.atRest(pid, "")
		var took []time.Duration
		for i := range 100 {
			time.Sleep(50 * time.Millisecond) // the one before is done with
			start := time.Now()
			p.tell(kubelet.EventType_MODIFIED, p.pod(i, false))
			p.awaitUntil(func(rules string) bool {
				return !strings.Contains(rules, podAddress(i)+" ") && !strings.Contains(rules, podAddress(i)+",")
			})
			took = append(took, time.Since(start))
		}
		b.ReportMetric(float64(median(took).Microseconds())/1e3, "gone-ms")
		b.ReportMetric(float64(slices.Max(took).Microseconds())/1e3, "worst-ms")
		for i := range 1000 {
			p.tell(kubelet.EventType_ADDED, p.pod(200+i, true))
		}
		start := time.Now()
		p.await(10 + 1000)
		b.ReportMetric(float64(time.Since(start).Microseconds())/1e3, "1000-ms")
		stop()
	}
	b.ReportMetric(0, "ns/op")
}

// benchPods is a node with a Service, and a kubelet that tells of its pods.
type benchPods struct {
	kubelet.UnimplementedPodsServer
	b      *testing.B
	node   *benchNode
	socket string
	begin  []*corev1.Pod
	events chan *kubelet.WatchPodsEvent
}

func newBenchPods(b *testing.B, pods int) *benchPods {
	b.Helper()
	m := modes[2]
	lab := netlab.New(b, netlab.Topology{Pods: 1})
	p := &benchPods{b: b, node: &benchNode{b: b, d: &daemon{lab: lab, mode: m, dir: b.TempDir(), state: b.TempDir()}}, events: make(chan *kubelet.WatchPodsEvent, 2000)}
	p.node.write("web.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n  clusterIP: 10.96.0.10\n  selector: {app: web}\n  ports: [{port: 80, targetPort: 8080}]\n")
	for i := range pods {
		p.begin = append(p.begin, p.pod(i, true))
	}
	dir, err := os.MkdirTemp("", "pods") // a short path
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(dir) })
	p.socket = filepath.Join(dir, "pods-api.sock")
	l, err := net.Listen("unix", p.socket)
	if err != nil {
		b.Fatal(err)
	}
	s := grpc.NewServer()
	kubelet.RegisterPodsServer(s, p)
	go func() { _ = s.Serve(l) }()
	b.Cleanup(s.Stop)
	return p
}

func podAddress(i int) string { return fmt.Sprintf("10.0.%d.%d", 1+i/200, 1+i%200) }

func (p *benchPods) pod(i int, ready bool) *corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("web-", i), UID: types.UID(fmt.Sprint("u", i)), Labels: map[string]string{"app": "web"}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: podAddress(i), PodIPs: []corev1.PodIP{{IP: podAddress(i)}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
	}
}

func (p *benchPods) event(kind kubelet.EventType, pod *corev1.Pod) *kubelet.WatchPodsEvent {
	raw, err := pod.Marshal()
	if err != nil {
		p.b.Fatal(err)
	}
	return &kubelet.WatchPodsEvent{Type: kind, Pod: raw}
}

func (p *benchPods) tell(kind kubelet.EventType, pod *corev1.Pod) { p.events <- p.event(kind, pod) }

// ListPods implements kubelet.PodsServer.
func (p *benchPods) ListPods(context.Context, *kubelet.ListPodsRequest) (*kubelet.ListPodsResponse, error) {
	var r kubelet.ListPodsResponse
	for _, pod := range p.begin {
		r.Pods = append(r.Pods, p.event(0, pod).Pod)
	}
	return &r, nil
}

// WatchPods implements kubelet.PodsServer.
func (p *benchPods) WatchPods(_ *kubelet.WatchPodsRequest, s grpc.ServerStreamingServer[kubelet.WatchPodsEvent]) error {
	for _, pod := range p.begin {
		if err := s.Send(p.event(kubelet.EventType_ADDED, pod)); err != nil {
			return err
		}
	}
	err := s.Send(&kubelet.WatchPodsEvent{Type: kubelet.EventType_INITIAL_SYNC_COMPLETE})
	for err == nil {
		select {
		case e := <-p.events:
			err = s.Send(e)
		case <-s.Context().Done():
			err = s.Context().Err()
		}
	}
	return err
}

// await waits until the kernel has so many endpoints.
func (p *benchPods) await(n int) {
	p.b.Helper()
	p.awaitUntil(func(rules string) bool { return strings.Count(rules, " : 10.0.") == n })
}

// awaitUntil waits for a state of the map of endpoints.
func (p *benchPods) awaitUntil(check func(rules string) bool) {
	p.b.Helper()
	for deadline := time.Now().Add(patience); ; {
		rules, err := p.node.d.lab.Node().Exec(context.Background(), "nft", "list", "map", "ip", "weir", "endpoints")
		if err == nil && check(rules) {
			return
		}
		if time.Now().After(deadline) {
			p.b.Fatalf("the endpoints do not come: %v\n%s", err, rules)
		}
	}
}

// atRest reports what a process costs that has nothing to do.
func (p *benchPods) atRest(pid int, suffix string) {
	time.Sleep(5 * time.Second)
	const idle = 10
	before := cpuTime(p.b, pid)
	time.Sleep(idle * time.Second)
	p.b.ReportMetric((cpuTime(p.b, pid)-before).Seconds()*100/idle, "idle"+suffix+"-%")
	p.b.ReportMetric(memory(p.b, pid, "VmRSS:"), "rss"+suffix+"-MB")
}
