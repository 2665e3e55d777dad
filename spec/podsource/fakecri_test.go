package podsource

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeCRI is a runtime with the Container Runtime Interface that fails on demand.
type fakeCRI struct {
	cri.UnimplementedRuntimeServiceServer
	t       testing.TB
	socket  string
	server  *grpc.Server
	version string // of containerd

	mu         sync.Mutex
	sandboxes  map[string]*cri.PodSandboxStatus
	containers map[string]*cri.ContainerStatus
	inside     map[string]string // the sandbox of each container
	ports      map[string]string // the annotation of each container
	// fails returns the error of a method, or nil. It may block until ctx is done.
	fails   func(ctx context.Context, method string) error
	asked   map[string]int
	streams map[chan *cri.ContainerEventResponse]bool
	clock   int64
}

func newFakeCRI(t testing.TB, version string) *fakeCRI {
	dir, err := os.MkdirTemp("", "cri") // a short path
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeCRI{
		t: t, socket: filepath.Join(dir, "s"), version: version, sandboxes: map[string]*cri.PodSandboxStatus{}, containers: map[string]*cri.ContainerStatus{},
		inside: map[string]string{}, ports: map[string]string{}, asked: map[string]int{}, streams: map[chan *cri.ContainerEventResponse]bool{},
		clock: time.Now().Add(-time.Hour).UnixNano(),
	}
	t.Cleanup(func() { f.stop(); _ = os.RemoveAll(dir) })
	f.start()
	return f
}

func (f *fakeCRI) start() {
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		f.t.Fatal(err)
	}
	f.server = grpc.NewServer(grpc.MaxSendMsgSize(1<<30), grpc.UnaryInterceptor(func(ctx context.Context, in any, info *grpc.UnaryServerInfo, do grpc.UnaryHandler) (any, error) {
		f.mu.Lock()
		method := filepath.Base(info.FullMethod)
		f.asked[method]++
		fails := f.fails
		f.mu.Unlock()
		if fails != nil {
			if err := fails(ctx, method); err != nil {
				return nil, err
			}
		}
		return do(ctx, in)
	}))
	cri.RegisterRuntimeServiceServer(f.server, f)
	go func() { _ = f.server.Serve(l) }()
}

func (f *fakeCRI) stop() {
	f.server.Stop()
	_ = os.Remove(f.socket)
}

// failing makes methods fail until it is called with nil.
func (f *fakeCRI) failing(fails func(ctx context.Context, method string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fails = fails
}

// do changes the runtime, and then tells an event about a sandbox or a container, if there is an ID.
func (f *fakeCRI) do(id string, change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock += int64(time.Second)
	change()
	if id == "" {
		return
	}
	e := &cri.ContainerEventResponse{ContainerId: id}
	if s := f.sandboxes[f.inside[id]]; s != nil {
		e.PodSandboxStatus = s
	}
	for c := range f.streams {
		select {
		case c <- e:
		default:
		}
	}
}

// run adds a pod with a running container, whose ID is that of the sandbox with "-c".
func (f *fakeCRI) run(id, namespace, name, address string, labels map[string]string) {
	f.sandboxes[id] = &cri.PodSandboxStatus{
		Id: id, Metadata: &cri.PodSandboxMetadata{Namespace: namespace, Name: name, Uid: "u-" + name}, CreatedAt: f.clock, Labels: labels,
		Network: &cri.PodSandboxNetworkStatus{Ip: address},
	}
	f.contain(id, id+"-c", "server", 0, cri.ContainerState_CONTAINER_RUNNING)
}

// contain adds a container to a sandbox.
func (f *fakeCRI) contain(sandbox, id, name string, attempt uint32, state cri.ContainerState) *cri.ContainerStatus {
	f.containers[id] = &cri.ContainerStatus{
		Id: id, Metadata: &cri.ContainerMetadata{Name: name, Attempt: attempt}, CreatedAt: f.clock, StartedAt: f.clock, FinishedAt: f.clock, State: state,
	}
	f.inside[id] = sandbox
	return f.containers[id]
}

// exit ends a container.
func (f *fakeCRI) exit(id string, code int32) {
	c := f.containers[id]
	c.State, c.ExitCode, c.FinishedAt = cri.ContainerState_CONTAINER_EXITED, code, f.clock
}

// remove removes a sandbox with all that is in it.
func (f *fakeCRI) remove(id string) {
	delete(f.sandboxes, id)
	for c, s := range f.inside {
		if s == id {
			delete(f.containers, c)
			delete(f.inside, c)
		}
	}
}

func (f *fakeCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "containerd", RuntimeVersion: f.version}, nil
}

func (f *fakeCRI) ListPodSandbox(_ context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &cri.ListPodSandboxResponse{}
	for id, s := range f.sandboxes {
		if of := r.GetFilter().GetId(); of == "" || of == id {
			out.Items = append(out.Items, &cri.PodSandbox{Id: id, Metadata: s.Metadata, State: s.State, CreatedAt: s.CreatedAt, Labels: s.Labels, Annotations: s.Annotations})
		}
	}
	return out, nil
}

func (f *fakeCRI) ListContainers(_ context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &cri.ListContainersResponse{}
	for id, c := range f.containers {
		if in := r.GetFilter().GetPodSandboxId(); in == "" || in == f.inside[id] {
			out.Containers = append(out.Containers, &cri.Container{Id: id, PodSandboxId: f.inside[id], Metadata: c.Metadata, State: c.State, CreatedAt: c.CreatedAt,
				Annotations: map[string]string{annotationPorts: f.ports[id]}})
		}
	}
	return out, nil
}

func (f *fakeCRI) PodSandboxStatus(_ context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.sandboxes[r.GetPodSandboxId()]; s != nil {
		return &cri.PodSandboxStatusResponse{Status: s}, nil
	}
	return nil, status.Error(codes.NotFound, "no such sandbox")
}

func (f *fakeCRI) ContainerStatus(_ context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[r.GetContainerId()]; c != nil {
		return &cri.ContainerStatusResponse{Status: c}, nil
	}
	return nil, status.Error(codes.NotFound, "no such container")
}

func (f *fakeCRI) GetContainerEvents(_ *cri.GetEventsRequest, s grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	c := make(chan *cri.ContainerEventResponse, 1000)
	f.mu.Lock()
	f.asked["GetContainerEvents"]++
	f.streams[c] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.streams, c)
	}()
	for {
		select {
		case e := <-c:
			if err := s.Send(e); err != nil {
				return err
			}
		case <-s.Context().Done():
			return fmt.Errorf("the client is gone")
		}
	}
}
