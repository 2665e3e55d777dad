package podsource

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/util/version"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// pollEvery is how often everything is listed, and pollSeldom the same while the runtime tells its events.
	pollEvery, pollSeldom = time.Second, 10 * time.Second
	// lookGap is the shortest time between two looks, so that a flood of events costs little.
	lookGap = 20 * time.Millisecond
	// lookAtAll is the number of events from which on everything is listed.
	lookAtAll = 20
	// eventsRetry is the first wait before the events are asked for again; it doubles up to eventsSeldom.
	eventsRetry, eventsSeldom = time.Second, time.Minute
	// eventsAccepted is how long a stream of events must be open to count.
	eventsAccepted = 3 * time.Second
)

// CRI is a Reader of containerd, CRI-O, or another runtime with the Container Runtime Interface of Kubernetes. Its lists
// are what counts: events say only when to look, so that one that is lost, late or a lie changes nothing.
//
// The interface does not tell a container that prepares the others from one that serves, and not that a pod is about to end.
type CRI struct {
	// Socket is the path of the runtime's socket.
	Socket string
	// Node is the name of this node.
	Node string
	// HostAddresses returns the addresses of a pod that uses the node's own network.
	HostAddresses func() []string
	// UserAgent is the name of the client in requests; "" means that of the library.
	UserAgent string

	every, seldom time.Duration // pollEvery and pollSeldom, but for tests
}

var _ Reader = (*CRI)(nil)

// Speaks reports whether the runtime may have the interface. It is false only if the runtime says that it has not, as
// docker's containerd does.
func (r *CRI) Speaks(ctx context.Context) bool {
	v, err := r.view()
	if err != nil {
		return false
	}
	defer v.conn.Close()
	_, err = call(ctx, v.runtime.Version, &cri.VersionRequest{})
	return status.Code(err) != codes.Unimplemented
}

// List implements Reader.
func (r *CRI) List(ctx context.Context) (Pods, error) {
	v, err := r.view()
	if err != nil {
		return nil, err
	}
	defer v.conn.Close()
	c, err := v.all(ctx)
	return c.Pods, err
}

// Watch implements Reader.
func (r *CRI) Watch(ctx context.Context, sink func(Change)) error {
	v, err := r.view()
	if err != nil {
		return err
	}
	defer v.conn.Close()
	runs, err := v.version(ctx)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return v.stayAwake(ctx) })
	if sharesEvents(runs) {
		g.Go(func() error { v.listen(ctx); return nil })
	}
	g.Go(func() error { return v.follow(ctx, sink) })
	return g.Wait()
}

// version asks the runtime which one it is.
func (v *criView) version(ctx context.Context) (*cri.VersionResponse, error) {
	limited, cancel := context.WithTimeout(ctx, pingLimit)
	defer cancel()
	r, err := v.runtime.Version(limited, &cri.VersionRequest{})
	if err != nil && ctx.Err() == nil && limited.Err() != nil {
		return nil, fmt.Errorf("no answer within %v", pingLimit)
	}
	if err != nil {
		return nil, refused("Version", err)
	}
	return r, nil
}

// stayAwake asks a runtime from time to time whether it is there.
func (v *criView) stayAwake(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pingEvery):
		}
		if _, err := v.version(ctx); err != nil {
			return err
		}
	}
}

// sharesEvents reports whether every client of the runtime receives every event. Earlier versions give each event to one client
// only, so that the kubelet would miss those that weir receives.
func sharesEvents(v *cri.VersionResponse) bool {
	since, known := map[string]*version.Version{"containerd": version.MajorMinor(2, 0), "cri-o": version.MajorMinor(1, 30)}[v.GetRuntimeName()]
	have, err := version.ParseGeneric(v.GetRuntimeVersion())
	return known && err == nil && have.AtLeast(since)
}

// listen notes the events of the runtime, until ctx is done. A runtime may have none.
func (v *criView) listen(ctx context.Context) {
	wait := eventsRetry
	for {
		err := v.events(ctx, func() { wait = eventsRetry })
		if status.Code(err) == codes.Unimplemented {
			wait = eventsSeldom
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, eventsSeldom)
	}
}

func (v *criView) events(ctx context.Context, begun func()) error {
	// A runtime without events ends the stream at once. Until it has told one, nothing else shows that it has them.
	accepted := time.AfterFunc(eventsAccepted, func() { v.tells(true) })
	defer func() { accepted.Stop(); v.tells(false) }()
	stream, err := v.runtime.GetContainerEvents(ctx, &cri.GetEventsRequest{}, grpc.MaxCallRecvMsgSize(maxEvent))
	for err == nil {
		var e *cri.ContainerEventResponse
		if e, err = stream.Recv(); err == nil {
			begun()
			v.note(e)
		}
	}
	return err
}

// tells notes whether the runtime tells its events. When it stops, some may be lost.
func (v *criView) tells(told bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.told && !told {
		v.relist = true
		v.rouse()
	}
	v.told = told
}

// rouse has follow look again. The caller holds the lock.
func (v *criView) rouse() {
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// note notes what an event is about. It never waits, so that a flood of events costs no more than the pods that there are.
func (v *criView) note(e *cri.ContainerEventResponse) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.told = true
	if id := cmp.Or(e.GetPodSandboxStatus().GetId(), e.GetContainerId()); id != "" && len(v.pending) < lookAtAll {
		v.pending[id] = true
	} else {
		v.relist = true
	}
	v.rouse()
}

// take returns what to look at. Without IDs, that is everything.
func (v *criView) take() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	ids := []string{}
	found := map[string]bool{}
	for id := range v.pending {
		switch {
		case v.members[id] != nil:
			found[v.members[id].sandbox] = true
		case len(id) <= maxID:
			found[id] = true
		}
	}
	clear(v.pending)
	if v.relist || len(found) >= lookAtAll {
		v.relist = false
		return nil
	}
	return slices.AppendSeq(ids, maps.Keys(found))
}

// maxID bounds the length of an ID.
const maxID = 256

// follow lists everything, and then looks at what events are about, and at everything from time to time.
func (v *criView) follow(ctx context.Context, sink func(Change)) error {
	var ids []string
	var last time.Time
	for {
		if ids == nil {
			last = time.Now()
		}
		c, err := v.look(ctx, ids)
		if err != nil {
			return err
		}
		sink(c)
		select {
		case <-time.After(lookGap):
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-v.wake:
			ids = v.take()
		case <-time.After(time.Until(last.Add(v.pause()))):
			ids = nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pause returns how long a list of everything is good for.
func (v *criView) pause() time.Duration {
	v.mu.Lock()
	told := v.told
	v.mu.Unlock()
	if told && !v.restless {
		return cmp.Or(v.seldom, pollSeldom)
	}
	return cmp.Or(v.every, pollEvery)
}
