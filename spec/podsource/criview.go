package podsource

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"weir/backends/dataplane"
	"weir/spec/document"
)

const (
	// maxSandboxes and maxMembers bound what a runtime may list, and maxPorts and maxPortsText the ports of a container.
	maxSandboxes, maxMembers, maxPorts, maxPortsText = 20_000, 100_000, 256, 64 << 10
	// annotationPorts is where the kubelet keeps the ports of a container.
	annotationPorts = "io.kubernetes.container.ports"
)

// criView is what is known of the pods of a runtime.
type criView struct {
	*CRI
	conn      *grpc.ClientConn
	runtime   cri.RuntimeServiceClient
	sandboxes map[string]*sandbox
	members   map[string]*member
	// ofPod has the sandboxes of each pod, and inSandbox the containers in each, by their IDs.
	ofPod     map[dataplane.ServiceName]map[string]*sandbox
	inSandbox map[string]map[string]*member
	hostAddrs []string // the node's, when everything was last looked at
	// restless reports whether a pod may change without an event.
	restless bool

	mu      sync.Mutex
	pending map[string]bool // sandboxes and containers with an event that was not looked at
	relist  bool
	told    bool // the runtime tells its events
	wake    chan struct{}
}

func (r *CRI) view() (*criView, error) {
	conn, err := dial(r.Socket, r.UserAgent)
	if err != nil {
		return nil, err
	}
	return &criView{
		CRI: r, conn: conn, runtime: cri.NewRuntimeServiceClient(conn), sandboxes: map[string]*sandbox{}, members: map[string]*member{},
		ofPod: map[dataplane.ServiceName]map[string]*sandbox{}, inSandbox: map[string]map[string]*member{},
		pending: map[string]bool{}, wake: make(chan struct{}, 1),
	}, nil
}

// sandbox is what the containers of a pod have in common, their network above all. A pod that is started again gets
// another one.
type sandbox struct {
	id      string
	pod     dataplane.ServiceName
	uid     types.UID
	labels  map[string]string
	ready   bool
	created int64
	fault   string // what is wrong with the name of its namespace
	// addressed reports whether the rest is known, which does not change.
	addressed bool
	host      bool
	addresses []string
}

// member is a container in a sandbox. One that is started again gets another ID.
type member struct {
	id, sandbox, name string
	attempt           uint32
	created           int64
	state             cri.ContainerState
	ports             []corev1.ContainerPort
	fault             string // what is wrong with its ports
	// ended reports whether the rest is known, of a container that has exited.
	ended bool
	code  int32
}

// all looks at everything, and returns every pod.
func (v *criView) all(ctx context.Context) (Change, error) {
	c, err := v.look(ctx, nil)
	c.All = true
	return c, err
}

// look looks at sandboxes, or at everything if there are no IDs, and returns the pods that may have changed.
func (v *criView) look(ctx context.Context, ids []string) (Change, error) {
	first := len(v.ofPod) == 0
	touched := map[dataplane.ServiceName]bool{}
	if ids == nil {
		v.restless = false
		listed, err := v.list(ctx, nil, nil)
		if err != nil {
			return Change{}, err
		}
		for id := range v.sandboxes {
			if listed.sandboxes[id] == nil {
				v.setSandbox(id, nil, touched)
			}
		}
		for id := range v.members {
			if listed.members[id] == nil {
				v.setMember(id, nil, touched)
			}
		}
		v.merge(listed, touched)
		v.noteHost(touched)
	}
	for _, id := range ids {
		listed, err := v.list(ctx, &cri.PodSandboxFilter{Id: id}, &cri.ContainerFilter{PodSandboxId: id})
		if err != nil {
			return Change{}, err
		}
		if before := v.sandboxes[id]; before != nil && listed.sandboxes[id] == nil {
			v.setSandbox(id, nil, touched)
		}
		for other := range v.inSandbox[id] {
			if listed.members[other] == nil {
				v.setMember(other, nil, touched)
			}
		}
		v.merge(listed, touched)
	}
	if err := v.describe(ctx, touched, ids == nil); err != nil {
		return Change{}, err
	}
	change := Change{Pods: Pods{}, All: first && ids == nil}
	for name := range touched {
		if pod := v.object(name); pod != nil || !change.All {
			change.Pods[name] = pod
		}
	}
	return change, nil
}

// listing is what a runtime listed, by ID.
type listing struct {
	sandboxes map[string]*cri.PodSandbox
	members   map[string]*cri.Container
}

// list lists sandboxes and containers.
func (v *criView) list(ctx context.Context, of *cri.PodSandboxFilter, in *cri.ContainerFilter) (listing, error) {
	l := listing{map[string]*cri.PodSandbox{}, map[string]*cri.Container{}}
	pods, err := call(ctx, v.runtime.ListPodSandbox, &cri.ListPodSandboxRequest{Filter: of})
	if err != nil {
		return l, refused("ListPodSandbox", err)
	}
	members, err := call(ctx, v.runtime.ListContainers, &cri.ListContainersRequest{Filter: in})
	switch {
	case err != nil:
		return l, refused("ListContainers", err)
	case len(pods.GetItems()) > maxSandboxes || len(members.GetContainers()) > maxMembers:
		return l, fmt.Errorf("the runtime lists more than %d pods or %d containers", maxSandboxes, maxMembers)
	}
	for _, s := range pods.GetItems() {
		if id := s.GetId(); id != "" && len(id) <= maxID && (of == nil || of.Id == id) {
			l.sandboxes[id] = s
		}
	}
	for _, m := range members.GetContainers() {
		if id := m.GetId(); id != "" && len(id) <= maxID && (in == nil || in.PodSandboxId == m.GetPodSandboxId()) {
			l.members[id] = m
		}
	}
	return l, nil
}

// merge takes what was listed. Of a sandbox and of a container, only the state changes.
func (v *criView) merge(l listing, touched map[dataplane.ServiceName]bool) {
	for id, s := range l.sandboxes {
		ready := s.GetState() == cri.PodSandboxState_SANDBOX_READY
		switch before := v.sandboxes[id]; {
		case before == nil:
			v.setSandbox(id, newSandbox(s), touched)
		case before.ready != ready:
			changed := *before
			changed.ready = ready
			v.setSandbox(id, &changed, touched)
		}
	}
	for id, c := range l.members {
		before := v.members[id]
		if before == nil || before.state != c.GetState() {
			v.setMember(id, newMember(c), touched)
		}
	}
}

func newSandbox(s *cri.PodSandbox) *sandbox {
	meta, labels := s.GetMetadata(), maps.Clone(s.GetLabels())
	namespace, fault := namespaceOf("namespace", meta.GetNamespace())
	if text := labels[labelNamespace]; meta.GetNamespace() == "" || fault != "" && text != "" {
		namespace, fault = namespaceOf("label "+labelNamespace, text)
	}
	name := meta.GetName()
	if len(validation.IsDNS1123Subdomain(name)) > 0 {
		name = "pod-" + strings.ToLower(s.GetId()[:min(12, len(s.GetId()))])
		if len(validation.IsDNS1123Subdomain(name)) > 0 {
			name = "pod"
		}
	}
	uid := meta.GetUid()
	if len(validation.IsDNS1123Subdomain(strings.ToLower(uid))) > 0 {
		uid = ""
	}
	return &sandbox{
		id: s.GetId(), pod: dataplane.ServiceName{Namespace: namespace, Name: name}, uid: types.UID(uid),
		labels: allowed(labels), ready: s.GetState() == cri.PodSandboxState_SANDBOX_READY, created: s.GetCreatedAt(), fault: fault,
	}
}

func newMember(c *cri.Container) *member {
	m := &member{
		id: c.GetId(), sandbox: c.GetPodSandboxId(), name: c.GetMetadata().GetName(), attempt: c.GetMetadata().GetAttempt(),
		created: c.GetCreatedAt(), state: c.GetState(),
	}
	m.ports, m.fault = portsIn(c.GetAnnotations()[annotationPorts])
	return m
}

// portsIn returns the ports that the kubelet wrote into an annotation, as far as Kubernetes allows them, and what is wrong with
// the others.
func portsIn(text string) (ports []corev1.ContainerPort, fault string) {
	var all []corev1.ContainerPort
	if text == "" {
		return nil, ""
	}
	if len(text) > maxPortsText || json.Unmarshal([]byte(text), &all) != nil {
		return nil, "annotation " + annotationPorts + ": " + document.Quote(text) + " is not a list of ports; the pod counts as one without named ports"
	}
	given := len(all)
	if ports = allowedPorts(all); len(ports) < given {
		fault = fmt.Sprintf("annotation %s: %d of %d ports are not valid, and are left out", annotationPorts, given-len(ports), given)
	}
	return ports, fault
}

// setSandbox adds, replaces or, with nil, removes a sandbox.
func (v *criView) setSandbox(id string, s *sandbox, touched map[dataplane.ServiceName]bool) {
	if before := v.sandboxes[id]; before != nil {
		touched[before.pod] = true
		delete(v.sandboxes, id)
		if delete(v.ofPod[before.pod], id); len(v.ofPod[before.pod]) == 0 {
			delete(v.ofPod, before.pod)
		}
	}
	if s == nil {
		return
	}
	touched[s.pod] = true
	v.sandboxes[id] = s
	if v.ofPod[s.pod] == nil {
		v.ofPod[s.pod] = map[string]*sandbox{}
	}
	v.ofPod[s.pod][id] = s
}

// setMember adds, replaces or, with nil, removes a container.
func (v *criView) setMember(id string, m *member, touched map[dataplane.ServiceName]bool) {
	if before := v.members[id]; before != nil {
		v.touch(before.sandbox, touched)
		delete(v.members, id)
		if delete(v.inSandbox[before.sandbox], id); len(v.inSandbox[before.sandbox]) == 0 {
			delete(v.inSandbox, before.sandbox)
		}
	}
	if m == nil {
		return
	}
	v.touch(m.sandbox, touched)
	v.members[id] = m
	if v.inSandbox[m.sandbox] == nil {
		v.inSandbox[m.sandbox] = map[string]*member{}
	}
	v.inSandbox[m.sandbox][id] = m
}

// touch adds the pod of a sandbox.
func (v *criView) touch(id string, touched map[dataplane.ServiceName]bool) {
	if s := v.sandboxes[id]; s != nil {
		touched[s.pod] = true
	}
}

// noteHost looks at the addresses of the node, and adds the pods in its network if they have changed.
func (v *criView) noteHost(touched map[dataplane.ServiceName]bool) {
	before, asked := v.hostAddrs, false
	for _, s := range v.sandboxes {
		if !s.host {
			continue
		}
		if !asked {
			asked, v.hostAddrs = true, v.HostAddresses()
		}
		if !slices.Equal(before, v.hostAddrs) {
			touched[s.pod] = true
		}
	}
}

// describe asks for what lists do not tell of the pods: addresses, and how containers ended. With all, it asks again for the
// addresses that are missing, since a sandbox may be ready before it has one.
func (v *criView) describe(ctx context.Context, touched map[dataplane.ServiceName]bool, all bool) error {
	if all {
		for _, s := range v.sandboxes {
			if s.ready && !s.addressed {
				touched[s.pod] = true
			}
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(inspections)
	var asked []*sandbox
	for name := range touched {
		for id, s := range v.ofPod[name] {
			if s.ready && !s.addressed {
				asked = append(asked, s)
				g.Go(func() error { return v.address(ctx, s) })
			}
			for _, m := range v.inSandbox[id] {
				if m.state == cri.ContainerState_CONTAINER_EXITED && !m.ended {
					g.Go(func() error { return v.autopsy(ctx, m) })
				}
			}
		}
	}
	err := g.Wait()
	v.restless = v.restless || slices.ContainsFunc(asked, func(s *sandbox) bool { return !s.addressed })
	return err
}

// address asks for the network of a sandbox. One that the runtime cannot describe is asked for again the next time, and keeps
// no other from being seen.
func (v *criView) address(ctx context.Context, s *sandbox) error {
	r, err := call(ctx, v.runtime.PodSandboxStatus, &cri.PodSandboxStatusRequest{PodSandboxId: s.id})
	if err != nil || r.GetStatus() == nil {
		return ofRuntime("PodSandboxStatus", err)
	}
	s.host = r.GetStatus().GetLinux().GetNamespaces().GetOptions().GetNetwork() == cri.NamespaceMode_NODE
	texts := []string{r.GetStatus().GetNetwork().GetIp()}
	for _, more := range r.GetStatus().GetNetwork().GetAdditionalIps() {
		if len(texts) < maxAddresses {
			texts = append(texts, more.GetIp())
		}
	}
	s.addresses = reachable(texts)
	s.addressed = s.host || len(s.addresses) > 0
	return nil
}

// maxAddresses bounds the addresses of a pod.
const maxAddresses = 16

// autopsy asks how a container ended.
func (v *criView) autopsy(ctx context.Context, m *member) error {
	r, err := call(ctx, v.runtime.ContainerStatus, &cri.ContainerStatusRequest{ContainerId: m.id})
	if err != nil || r.GetStatus() == nil {
		return ofRuntime("ContainerStatus", err)
	}
	if s := r.GetStatus(); s.GetState() == cri.ContainerState_CONTAINER_EXITED {
		m.ended, m.code = true, s.GetExitCode()
	}
	return nil
}

// ofRuntime returns the error of a call about one object if it is about the runtime, and nil if it is about the object.
func ofRuntime(what string, err error) error {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unimplemented, codes.PermissionDenied, codes.Unauthenticated:
		return refused(what, err)
	}
	return nil
}

// object returns a pod, or nil if there is none of that name. Of its sandboxes, the newest counts, but one that is ready
// before those that are not.
func (v *criView) object(name dataplane.ServiceName) *corev1.Pod {
	var s *sandbox
	for _, other := range v.ofPod[name] {
		if s == nil || newer(other, s) {
			s = other
		}
	}
	if s == nil {
		return nil
	}
	latest := map[string]*member{}
	for _, m := range v.inSandbox[s.id] {
		if before := latest[m.name]; before == nil || later(m, before) {
			latest[m.name] = m
		}
	}
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name, UID: s.uid, Labels: s.labels},
		Spec:       corev1.PodSpec{NodeName: v.Node, HostNetwork: s.host},
		Status:     corev1.PodStatus{Message: s.fault},
	}
	n := tally{unready: !s.ready}
	members := slices.SortedFunc(maps.Values(latest), func(a, b *member) int {
		return cmp.Or(cmp.Compare(a.created, b.created), cmp.Compare(a.name, b.name))
	})
	for _, m := range members {
		o.Status.Message = cmp.Or(o.Status.Message, m.fault)
		if len(m.ports) > 0 {
			o.Spec.Containers = append(o.Spec.Containers, corev1.Container{Ports: m.ports})
		}
		switch m.state {
		case cri.ContainerState_CONTAINER_RUNNING:
			n.running++
		case cri.ContainerState_CONTAINER_EXITED:
			if m.ended {
				n.end(m.code)
			} else {
				n.failed++
			}
		default:
			n.waiting++
		}
	}
	state := n.state()
	if !s.ready && n.running == 0 && state.phase == corev1.PodPending { // it does not begin in a network that is gone
		state.phase = corev1.PodSucceeded
	}
	addresses := s.addresses
	if s.host {
		if v.hostAddrs == nil {
			v.hostAddrs = v.HostAddresses()
		}
		addresses = v.hostAddrs
	}
	state.unasked = true
	setStatus(o, addresses, state)
	return o
}

func newer(a, b *sandbox) bool {
	if a.ready != b.ready {
		return a.ready
	}
	return cmp.Or(cmp.Compare(a.created, b.created), cmp.Compare(a.id, b.id)) > 0
}

func later(a, b *member) bool {
	return cmp.Or(cmp.Compare(a.attempt, b.attempt), cmp.Compare(a.created, b.created), cmp.Compare(a.id, b.id)) > 0
}
