package podsource

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weir/backends/dataplane"
)

const (
	// inspections is how many containers are asked for at a time.
	inspections = 8
	// pingEvery is how often a silent runtime is asked whether it is there, and pingLimit how long that may take. listEvery is
	// how often everything is listed in case an event was lost.
	pingEvery, pingLimit, listEvery = 5 * time.Second, 3 * time.Second, 5 * time.Minute
)

// Containers is a Reader of podman, or of docker, over its socket. A pod of podman is a pod; a container outside of one is a
// pod of one container.
type Containers struct {
	// Socket is the path of the runtime's socket.
	Socket string
	// Node is the name of this node.
	Node string
	// HostAddresses returns the addresses of a pod that uses the node's own network.
	HostAddresses func() []string
	// UserAgent is the name of the client in requests; "" means that of the library.
	UserAgent string
}

var _ Reader = (*Containers)(nil)

// List implements Reader.
func (r *Containers) List(ctx context.Context) (Pods, error) {
	v := r.view()
	if err := v.engine.ping(ctx); err != nil {
		return nil, err
	}
	c, err := v.all(ctx)
	return c.Pods, err
}

// Watch implements Reader.
func (r *Containers) Watch(ctx context.Context, sink func(Change)) error {
	v := r.view()
	if err := v.engine.ping(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	told := make(chan struct{})
	var once sync.Once
	g.Go(func() error { return v.engine.events(ctx, func() { once.Do(func() { close(told) }) }, v.note) })
	g.Go(func() error { return v.stayAwake(ctx) })
	g.Go(func() error {
		select {
		case <-told: // so that no event is lost between the list and the events
		case <-time.After(time.Second): // podman answers with the first event
		case <-ctx.Done():
			return ctx.Err()
		}
		return v.follow(ctx, sink)
	})
	return g.Wait()
}

// view is what is known of a runtime's containers.
type view struct {
	*Containers
	engine     *engine
	containers map[string]*container
	pods       map[string]*pod
	names      map[string]dataplane.ServiceName // of the pods that were told, by the ID of the pod or of its only container

	mu      sync.Mutex
	pending map[string]bool // containers with an event that was not looked at
	died    map[string]int  // the exit codes of those that ended meanwhile
	relist  bool
	wake    chan struct{}
	// healthTold is when the runtime last told of a result of a container's health check.
	healthTold map[string]time.Time
}

func (r *Containers) view() *view {
	return &view{
		Containers: r, engine: newEngine(r.Socket, r.UserAgent), containers: map[string]*container{}, pods: map[string]*pod{},
		names: map[string]dataplane.ServiceName{}, pending: map[string]bool{}, died: map[string]int{}, healthTold: map[string]time.Time{}, wake: make(chan struct{}, 1),
	}
}

// note notes what an event is about. It never waits, so that a flood of events costs no more than the containers that there
// are.
func (v *view) note(e event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case e.Type == "container" && strings.HasPrefix(e.Action, "exec"): // a health check is one, and tells its result by itself
		return
	case e.Type == "container" && e.Actor.ID != "" && len(e.Actor.ID) <= maxID && len(v.pending) < maxPending:
		v.pending[e.Actor.ID] = true
		if e.Action == "die" || e.Action == "died" {
			code, err := strconv.Atoi(cmp.Or(e.Actor.Attributes["exitCode"], e.Actor.Attributes["containerExitCode"]))
			if err != nil {
				code = 1
			}
			v.died[e.Actor.ID] = code
		}
		if strings.HasPrefix(e.Action, "health_status") {
			v.healthTold[e.Actor.ID] = time.Now()
		}
	case e.Type == "container" || e.Type == "network":
		v.relist = true
	default:
		return
	}
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// maxPending is the number of containers from which on everything is listed again.
const maxPending = 5000

// stayAwake asks a runtime from time to time whether it is there.
func (v *view) stayAwake(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pingEvery):
		}
		probe := *v.engine // ping writes to it
		if err := probe.ping(ctx); err != nil {
			return err
		}
	}
}

// follow lists everything, and then looks at what events are about.
func (v *view) follow(ctx context.Context, sink func(Change)) error {
	list := true
	next := time.NewTicker(listEvery)
	defer next.Stop()
	for {
		var c Change
		var err error
		if list {
			c, err = v.all(ctx)
		} else {
			var dead Change
			if dead, err = v.bury(ctx); err == nil && len(dead.Pods) > 0 {
				sink(dead)
			}
			c, err = v.some(ctx, v.take())
		}
		if err != nil {
			return err
		}
		sink(c)
		select {
		case <-v.untilHealth():
			v.noteHealth()
			list = false
		case <-v.wake:
			v.mu.Lock()
			list, v.relist = v.relist, false
			v.mu.Unlock()
		case <-next.C:
			list = true
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// healthDue returns when to look at the health of a container again. Podman tells some results only, and those before it
// has written them down. The first success is awaited, so that comes soon.
func (v *view) healthDue(c *container) time.Time {
	const settled, often, seldom = 300 * time.Millisecond, time.Second, 5 * time.Second
	if t := v.healthTold[c.ID].Add(settled); c.looked.Before(t) {
		return t
	}
	if !healthy(c) {
		return c.looked.Add(often)
	}
	return c.looked.Add(min(max(c.Config.Healthcheck.Interval/2, often), seldom))
}

// untilHealth returns a channel that receives a value when the health of a container is to be looked at again. It is nil if
// there is no such container. Docker tells every result by itself.
func (v *view) untilHealth() <-chan time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.engine.libpod {
		return nil
	}
	var first time.Time
	for _, c := range v.containers {
		if c.checked() && (first.IsZero() || v.healthDue(c).Before(first)) {
			first = v.healthDue(c)
		}
	}
	if first.IsZero() {
		return nil
	}
	return time.After(time.Until(first))
}

// noteHealth notes the containers whose health is to be looked at now.
func (v *view) noteHealth() {
	v.mu.Lock()
	defer v.mu.Unlock()
	soon := time.Now().Add(50 * time.Millisecond) // those that are due together are looked at together
	for id, c := range v.containers {
		if c.checked() && v.healthDue(c).Before(soon) {
			v.pending[id] = true
		}
	}
}

// take returns the containers to look at.
func (v *view) take() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	ids := slices.Collect(maps.Keys(v.pending))
	clear(v.pending)
	clear(v.died)
	return ids
}

// bury returns the pods of containers that ended, as far as the events tell. Podman describes a container only when it has
// taken its network down, a tenth of a second later.
func (v *view) bury(ctx context.Context) (Change, error) {
	v.mu.Lock()
	died := maps.Clone(v.died)
	clear(v.died)
	v.mu.Unlock()
	touched := map[string]bool{}
	for id, code := range died {
		if c := v.containers[id]; c != nil {
			ended := *c
			ended.State.Status, ended.State.ExitCode = "exited", code
			v.containers[id] = &ended
			touched[podID(c)] = true
		}
	}
	return v.compose(ctx, touched)
}

// all looks at every container.
func (v *view) all(ctx context.Context) (Change, error) {
	v.take()
	ids, err := v.engine.list(ctx)
	if err != nil {
		return Change{}, err
	}
	for id := range v.containers {
		v.forget(id)
	}
	clear(v.pods)
	clear(v.names)
	c, err := v.some(ctx, ids)
	for name, pod := range c.Pods {
		if pod == nil {
			delete(c.Pods, name)
		}
	}
	c.All = true
	return c, err
}

// some looks at containers, and returns the pods that they are in.
func (v *view) some(ctx context.Context, ids []string) (Change, error) {
	touched := map[string]bool{}
	if err := v.inspect(ctx, ids, touched); err != nil {
		return Change{}, err
	}
	return v.compose(ctx, touched)
}

// compose returns pods, by their IDs, as their containers are known.
func (v *view) compose(ctx context.Context, touched map[string]bool) (Change, error) {
	members := map[string][]*container{}
	for _, c := range v.containers {
		if id := podID(c); touched[id] {
			members[id] = append(members[id], c)
		}
	}
	change := Change{Pods: Pods{}}
	for id := range touched {
		if before, ok := v.names[id]; ok {
			change.Pods[before] = nil
			delete(v.names, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(touched)) {
		if len(members[id]) == 0 {
			delete(v.pods, id)
			continue
		}
		p, err := v.podOf(ctx, id, members[id])
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return Change{}, err
		}
		object := v.object(p, members[id])
		name := dataplane.ServiceName{Namespace: object.Namespace, Name: object.Name}
		change.Pods[name], v.names[id] = object, name
	}
	return change, nil
}

// podID returns the ID of the pod that the container is in: its own if it is in none.
func podID(c *container) string {
	if c.Pod != "" {
		return c.Pod
	}
	return c.ID
}

// inspect looks at containers, and adds the pods that they are and were in to touched.
func (v *view) inspect(ctx context.Context, ids []string, touched map[string]bool) error {
	found := make([]*container, len(ids))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(inspections)
	for i, id := range ids {
		g.Go(func() error {
			c, err := v.engine.inspect(ctx, id)
			if errors.Is(err, errGone) {
				return nil
			}
			found[i] = c
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, id := range ids {
		if before := v.containers[id]; before != nil {
			touched[podID(before)] = true
		}
		if found[i] == nil {
			v.forget(id)
			continue
		}
		found[i].ID, found[i].looked = id, time.Now()
		v.containers[id] = found[i]
		touched[podID(found[i])] = true
	}
	return nil
}

// forget drops what is known of a container that is gone.
func (v *view) forget(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.containers, id)
	delete(v.healthTold, id)
}

// podOf returns podman's pod of that ID, or one that stands for a container outside of any.
func (v *view) podOf(ctx context.Context, id string, members []*container) (*pod, error) {
	if members[0].Pod == "" {
		return &pod{ID: id, Name: strings.TrimPrefix(members[0].Name, "/"), Labels: members[0].Config.Labels, namespace: members[0].namespace}, nil
	}
	if p := v.pods[id]; p != nil { // neither its name nor its labels change
		return p, nil
	}
	p, err := v.engine.inspectPod(ctx, id)
	if err == nil {
		p.ID, v.pods[id] = id, p
	}
	return p, err
}
