// Command kubeletpeer serves the kubelet's API of pods at the socket that its argument names, with the kubelet's own code and
// without its pods: each line of its input is a Step in JSON, and answered with a line once it is done.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	podsv1alpha1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
	"k8s.io/kubernetes/pkg/kubelet/apis/pods"
	"k8s.io/kubernetes/pkg/kubelet/pod"
)

// Step is something that happens to the kubelet.
type Step struct {
	// Ready is whether the kubelet has read where its pods are declared.
	Ready *bool `json:"ready,omitempty"`
	// Declared is a pod that the kubelet has read about, and not looked at.
	Declared *corev1.Pod `json:"declared,omitempty"`
	// Looked is a pod whose status the kubelet has computed.
	Looked *corev1.Pod `json:"looked,omitempty"`
	// Removed is the UID of a pod that is gone.
	Removed types.UID `json:"removed,omitempty"`
}

// node is what the kubelet knows.
type node struct {
	pod.Manager
	server *pods.PodsServer

	mu       sync.Mutex
	ready    bool
	statuses map[types.UID]corev1.PodStatus
}

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "kubeletpeer:", err)
		os.Exit(1)
	}
}

func run(socket string) error {
	n := &node{Manager: pod.NewBasicPodManager(), statuses: map[types.UID]corev1.PodStatus{}}
	klog.LogToStderr(false)
	klog.SetOutput(discard{})
	n.server = pods.NewPodsServer(pods.NewBroadcaster(context.Background()), n.Manager, n, n)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	podsv1alpha1.RegisterPodsServer(server, n.server)
	go func() { _ = server.Serve(l) }()
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	fmt.Println("serving")
	for lines.Scan() {
		var s Step
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return err
		}
		n.do(s)
		fmt.Println("done")
	}
	return lines.Err()
}

func (n *node) do(s Step) {
	if s.Ready != nil {
		n.mu.Lock()
		n.ready = *s.Ready
		n.mu.Unlock()
	}
	if s.Declared != nil {
		n.AddPod(s.Declared)
	}
	if p := s.Looked; p != nil {
		_, before := n.GetPodByUID(p.UID)
		status := p.Status
		p.Status = corev1.PodStatus{} // as a file has it
		n.UpdatePod(p)
		n.mu.Lock()
		n.statuses[p.UID] = status
		n.mu.Unlock()
		n.server.OnPodUpdated(klog.Background(), p, status, !before)
	}
	if s.Removed != "" {
		if p, ok := n.GetPodByUID(s.Removed); ok {
			n.RemovePod(p)
			n.mu.Lock()
			delete(n.statuses, s.Removed)
			n.mu.Unlock()
			n.server.OnPodRemoved(klog.Background(), p)
		}
	}
}

// GetPodStatus implements the kubelet's PodStatusProvider.
func (n *node) GetPodStatus(uid types.UID) (corev1.PodStatus, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s, ok := n.statuses[uid]
	return s, ok
}

// AddSource implements the kubelet's SourcesReady.
func (n *node) AddSource(string) {}

// AllReady implements the kubelet's SourcesReady.
func (n *node) AllReady() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
