package podsource

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	kubelet "k8s.io/kubelet/pkg/apis/pods/v1alpha1"

	"weir/backends/dataplane"
)

const (
	// maxPods bounds the pods of a kubelet.
	maxPods = 20_000
	// overrunRetry is the wait before the pods are read again after the kubelet had more to tell than it kept.
	overrunRetry = 100 * time.Millisecond
	// initializing is what the kubelet says of a pod that it has not looked at since it started.
	initializing = "Kubelet is initializing pod containers"
)

// Kubelet is a Reader of the kubelet's API of pods, which has them with the kubelet's own verdicts. One Watch at a time may
// run.
type Kubelet struct {
	// Socket is the path of the API's socket.
	Socket string
	// Node is the name of this node.
	Node string
	// HostAddresses returns the addresses of a pod that uses the node's own network, in case the kubelet does not know them.
	HostAddresses func() []string
	// UserAgent is the name of the client in requests; "" means that of the library.
	UserAgent string

	known map[types.UID]*corev1.Pod // what was told last
	every time.Duration             // listEvery, but for tests
}

var _ Reader = (*Kubelet)(nil)

// List implements Reader.
func (r *Kubelet) List(ctx context.Context) (Pods, error) {
	conn, err := dial(r.Socket, r.UserAgent)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	all, err := call(ctx, kubelet.NewPodsClient(conn).ListPods, &kubelet.ListPodsRequest{})
	if err != nil {
		return nil, refused("ListPods", err)
	}
	v := newKubeletView()
	for _, raw := range all.GetPods() {
		if err := v.put(r, raw); err != nil {
			return nil, err
		}
	}
	return v.all(), nil
}

// Watch implements Reader.
func (r *Kubelet) Watch(ctx context.Context, sink func(Change)) error {
	conn, err := dial(r.Socket, r.UserAgent)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := kubelet.NewPodsClient(conn)
	for {
		synced, err := r.follow(ctx, client, sink)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errAgain):
			continue
		case errors.Is(err, io.EOF):
			return errors.New("the kubelet ended its watch")
		case !synced || status.Code(err) != codes.ResourceExhausted:
			return refused("WatchPods", err)
		}
		select {
		case <-time.After(overrunRetry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errAgain means that it is time to read everything again, in case an event was lost.
var errAgain = errors.New("read everything again")

// follow reads all pods, and then every change, until the stream ends or is old. It reports whether it has read all pods.
func (r *Kubelet) follow(ctx context.Context, client kubelet.PodsClient, sink func(Change)) (synced bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	late := time.AfterFunc(callLimit, func() { cancel(status.Error(codes.DeadlineExceeded, "")) })
	defer late.Stop()
	stream, err := client.WatchPods(ctx, &kubelet.WatchPodsRequest{})
	v := newKubeletView()
	for err == nil {
		var e *kubelet.WatchPodsEvent
		if e, err = stream.Recv(); err != nil {
			break
		}
		switch e.GetType() {
		case kubelet.EventType_ADDED, kubelet.EventType_MODIFIED:
			err = v.put(r, e.GetPod())
		case kubelet.EventType_DELETED:
			err = v.remove(e.GetPod())
		case kubelet.EventType_INITIAL_SYNC_COMPLETE:
			if !synced {
				synced = true
				late.Stop()
				old := time.AfterFunc(cmp.Or(r.every, listEvery), func() { cancel(errAgain) })
				defer old.Stop()
				v.touched = map[dataplane.ServiceName]bool{}
				r.known = v.pods
				sink(Change{Pods: v.all(), All: true})
			}
		}
		if synced && len(v.touched) > 0 {
			sink(v.changed())
		}
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return synced, err
}

// kubeletView is what is known of the pods of a kubelet. Two pods may have one name, because one that replaces another may be
// told before the other is gone.
type kubeletView struct {
	pods    map[types.UID]*corev1.Pod
	named   map[dataplane.ServiceName][]types.UID // in the order in which they came
	touched map[dataplane.ServiceName]bool
}

func newKubeletView() *kubeletView {
	return &kubeletView{map[types.UID]*corev1.Pod{}, map[dataplane.ServiceName][]types.UID{}, map[dataplane.ServiceName]bool{}}
}

// put adds or replaces a pod, as it was sent.
func (v *kubeletView) put(r *Kubelet, raw []byte) error {
	told, err := decodePod(raw)
	if err != nil {
		return err
	}
	if told == nil {
		return nil
	}
	pod := r.object(told)
	if before := r.known[pod.UID]; before != nil && !looked(told) {
		pod = before // since it started, the kubelet has not looked at it
	}
	if before := v.pods[pod.UID]; before != nil && nameOfPod(before) != nameOfPod(pod) {
		v.drop(before)
	}
	name := nameOfPod(pod)
	if v.pods[pod.UID] == nil {
		if len(v.pods) >= maxPods {
			return fmt.Errorf("the kubelet has more than %d pods", maxPods)
		}
		v.named[name] = append(v.named[name], pod.UID)
	}
	v.pods[pod.UID], v.touched[name] = pod, true
	return nil
}

// remove removes a pod, of which only its names need to have been sent.
func (v *kubeletView) remove(raw []byte) error {
	told, err := decodePod(raw)
	if err != nil || told == nil {
		return err
	}
	if pod := v.pods[told.UID]; pod != nil {
		v.drop(pod)
	}
	return nil
}

func (v *kubeletView) drop(pod *corev1.Pod) {
	name := nameOfPod(pod)
	delete(v.pods, pod.UID)
	v.touched[name] = true
	if v.named[name] = slices.DeleteFunc(v.named[name], func(uid types.UID) bool { return uid == pod.UID }); len(v.named[name]) == 0 {
		delete(v.named, name)
	}
}

// get returns the pod of a name, or nil: the newest, but one that runs before those that do not.
func (v *kubeletView) get(name dataplane.ServiceName) *corev1.Pod {
	var best *corev1.Pod
	for _, uid := range v.named[name] {
		if pod := v.pods[uid]; best == nil || rank(pod) >= rank(best) {
			best = pod
		}
	}
	return best
}

func rank(pod *corev1.Pod) int {
	switch {
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return 0
	case pod.DeletionTimestamp != nil:
		return 1
	}
	return 2
}

func (v *kubeletView) all() Pods {
	all := Pods{}
	for name := range v.named {
		all[name] = v.get(name)
	}
	return all
}

// changed returns the pods that changed since it was last called.
func (v *kubeletView) changed() Change {
	c := Change{Pods: Pods{}}
	for name := range v.touched {
		c.Pods[name] = v.get(name)
	}
	clear(v.touched)
	return c
}

func nameOfPod(pod *corev1.Pod) dataplane.ServiceName {
	return dataplane.ServiceName{Namespace: pod.Namespace, Name: pod.Name}
}

// decodePod returns a pod as it was sent, or nil if its names are none.
func decodePod(raw []byte) (*corev1.Pod, error) {
	var pod corev1.Pod
	if err := pod.Unmarshal(raw); err != nil {
		return nil, errors.New("the kubelet sends a pod that cannot be decoded")
	}
	if len(validation.IsDNS1123Label(pod.Namespace)) > 0 || len(validation.IsDNS1123Subdomain(pod.Name)) > 0 || len(validation.IsDNS1123Subdomain(strings.ToLower(string(pod.UID)))) > 0 {
		return nil, nil
	}
	return &pod, nil
}

// looked reports whether the kubelet has looked at the pod since it started. Before, it tells what it read, or that nothing
// runs yet.
func looked(pod *corev1.Pod) bool {
	s := &pod.Status
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue || c.Message != initializing
		}
	}
	return len(s.Conditions) > 0 || len(s.ContainerStatuses) > 0 || len(s.PodIPs) > 0
}

// object returns what endpoints need of a pod. Nothing else of it is kept, such as its environment.
func (r *Kubelet) object(pod *corev1.Pod) *corev1.Pod {
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, Labels: allowed(pod.Labels), DeletionTimestamp: pod.DeletionTimestamp},
		Spec: corev1.PodSpec{
			NodeName: r.Node, HostNetwork: pod.Spec.HostNetwork,
			Containers: withPorts(pod.Spec.Containers), InitContainers: withPorts(pod.Spec.InitContainers),
		},
		Status: corev1.PodStatus{Phase: pod.Status.Phase},
	}
	if len(validation.IsDNS1123Label(pod.Spec.Hostname)) == 0 && len(validation.IsDNS1123Label(pod.Spec.Subdomain)) == 0 {
		o.Spec.Hostname, o.Spec.Subdomain = pod.Spec.Hostname, pod.Spec.Subdomain
	}
	texts := []string{pod.Status.PodIP}
	for _, a := range pod.Status.PodIPs[:min(maxAddresses, len(pod.Status.PodIPs))] {
		texts = append(texts, a.IP)
	}
	addresses := reachable(slices.Compact(slices.DeleteFunc(texts, func(s string) bool { return s == "" })))
	if len(addresses) == 0 && pod.Spec.HostNetwork {
		addresses = r.HostAddresses()
	}
	ready := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	told := state{phase: pod.Status.Phase, ready: ready}
	running := 0
	for i := range pod.Status.ContainerStatuses {
		switch c := &pod.Status.ContainerStatuses[i].State; {
		case c.Running != nil:
			running++
		case c.Terminated != nil && !told.ended && (told.phase == corev1.PodFailed && c.Terminated.ExitCode != 0 || told.phase == corev1.PodSucceeded):
			told.ended, told.code = true, c.Terminated.ExitCode
		}
	}
	told.unprobed = !ready && running > 0 && running == len(pod.Status.ContainerStatuses)
	setStatus(o, addresses, told)
	return o
}

// withPorts returns the containers that have ports, with nothing but them.
func withPorts(containers []corev1.Container) []corev1.Container {
	var all []corev1.Container
	for _, c := range containers {
		if ports := allowedPorts(c.Ports); len(ports) > 0 {
			all = append(all, corev1.Container{Name: c.Name, RestartPolicy: c.RestartPolicy, Ports: ports})
		}
	}
	return all
}
