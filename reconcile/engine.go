package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/spec"
)

// Options configure an Engine. Without a Backend it does nothing until SetDataPath.
type Options struct {
	DataPath
	Node Node
	// Log may be nil.
	Log hclog.Logger
}

// Request asks for a round.
type Request struct {
	// Reason appears in logs and plans, such as "services changed".
	Reason string
	// Full asks for a comparison with the kernel instead of the remembered observed side.
	Full bool
	// moved means that the reason is a write of another process.
	moved bool
}

// Engine makes one round of reconciliation at a time. It reads the kernel if necessary, computes the desired state,
// lets the backend apply the difference, and records what the kernel confirmed.
//
// Goals: the work is proportional to the change, not to the number of Services. No failure loses the desired state. A
// fault of one Service does not affect others. Nothing is deleted before it was fully known.
//
// Where they conflict, safety of the state in force wins over speed: an apply with an unknown outcome costs a full
// read. It also wins over exactness: a refused Service keeps its earlier state, and drift in it is not repaired until
// the Service is accepted.
//
// An Engine has no timers and no goroutines, and is not safe for concurrent use: one goroutine calls everything.
type Engine struct {
	log   hclog.Logger
	node  Node
	stale staleFlows
	left  leftEndpoints

	snapshot *spec.Snapshot
	services map[dataplane.ServiceName]*service
	// dirty names the Services to resolve again. all means every Service.
	dirty map[dataplane.ServiceName]struct{}
	all   bool
	// unsettled names the Services whose ServicePorts may differ from those in force.
	unsettled map[dataplane.ServiceName]struct{}
	frontends *frontends
	notices   map[dataplane.ServiceName][]spec.Notice

	// active is in force. next replaces it once it has been applied in full. leaving holds the data paths that are
	// being taken down.
	active, next *dataPath
	leaving      []*dataPath
}

// service is the resolved state of one Service.
type service struct {
	// resolved are as the Service asks for them, servicePorts hold of that what the Service owns, and inForce are what the kernel
	// confirmed last.
	resolved, servicePorts, inForce []*dataplane.ServicePort
	// resolveNotices are those that Resolve gave.
	resolveNotices []spec.Notice
}

// NewEngine returns an Engine without a snapshot. Until it has one, a round does nothing.
func NewEngine(o Options) *Engine {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	e := &Engine{
		log:       o.Log,
		node:      o.Node,
		stale:     staleFlows{},
		services:  map[dataplane.ServiceName]*service{},
		dirty:     map[dataplane.ServiceName]struct{}{},
		unsettled: map[dataplane.ServiceName]struct{}{},
		frontends: newFrontends(),
		notices:   map[dataplane.ServiceName][]spec.Notice{},
	}
	if o.Backend != nil {
		e.SetDataPath(o.DataPath)
	}
	return e
}

// SetSnapshot sets the snapshot for the next round. The delta is relative to the snapshot before.
func (e *Engine) SetSnapshot(snap *spec.Snapshot, delta spec.Delta) {
	before := e.snapshot
	e.snapshot = snap
	if before != nil && !delta.All {
		for _, n := range delta.Services {
			name := n
			e.dirty[name] = struct{}{}
			e.retryNow(name)
		}
		return
	}
	e.all = true
	for name := range e.services {
		if before == nil || before.Services.Get(name) != snap.Services.Get(name) {
			e.retryNow(name)
		}
	}
}

func (e *Engine) retryNow(name dataplane.ServiceName) {
	for _, d := range e.paths() {
		d.retryNow(name)
	}
}

// paths returns the data paths that must stay up to date.
func (e *Engine) paths() []*dataPath {
	var paths []*dataPath
	for _, d := range []*dataPath{e.next, e.active} {
		if d != nil {
			paths = append(paths, d)
		}
	}
	return paths
}

// SetNode makes the next round resolve every Service for the node.
func (e *Engine) SetNode(node Node) {
	if !e.node.Equal(node) {
		e.node, e.all = node, true
	}
}

// SetDataPath hands over to another Backend. In the same mode only settings differ: the observed side is kept,
// everything is rendered again, and the difference is applied. In another mode the new backend is applied in full
// before the old one is taken down. Until that succeeds the old one is kept up to date.
func (e *Engine) SetDataPath(p DataPath) {
	switch {
	case e.active == nil:
		e.active = e.enter(p)
	case e.active.Mode == p.Mode:
		e.leave(e.next)
		e.next = nil
		e.active.replace(p)
	case e.next != nil && e.next.Mode == p.Mode:
		e.next.replace(p)
	default:
		e.leave(e.next)
		e.next = e.enter(p)
	}
}

// enter makes a data path that takes over the leftovers of its mode.
func (e *Engine) enter(p DataPath) *dataPath {
	e.leaving = slices.DeleteFunc(e.leaving, func(d *dataPath) bool {
		if d.Mode == p.Mode {
			d.close()
		}
		return d.Mode == p.Mode
	})
	return newDataPath(p, e.log.With("mode", p.Mode))
}

func (e *Engine) leave(d *dataPath) {
	if d != nil {
		d.retire()
		e.leaving = append(e.leaving, d)
	}
}

// Mode returns the proxy mode in force, or "" if there is none.
func (e *Engine) Mode() string {
	if e.active == nil {
		return ""
	}
	return e.active.Mode
}

// Moved reports in O(1) whether another process may have written to objects of the backend in force since the last
// read. It returns false if the backend cannot tell.
func (e *Engine) Moved(ctx context.Context) bool {
	if e.active == nil || e.active.observed.trust != trusted {
		return false // the retry of the failed round reads everything anyway
	}
	moved, known := e.active.observed.moved(ctx, e.active.Backend)
	return moved && known
}

// Wake returns a channel that receives when Moved should be called. It is nil, and so never receives, if the backend in
// force can only be polled.
func (e *Engine) Wake() <-chan struct{} {
	if e.active == nil {
		return nil
	}
	if w := e.active.Backend.Optional().Watcher; w != nil {
		return w.Wake()
	}
	return nil
}

// Reap deletes drained objects without connections, or past their drain limit, in the backend in force and in the next
// one, and the flows of endpoints that left for which the round had no time. It returns how many remain.
func (e *Engine) Reap(ctx context.Context) (left int, err error) {
	if e.active != nil {
		_, err = e.left.clean(ctx, e.active.Flows, e.inForce)
		left = len(e.left.of)
	}
	for _, d := range e.paths() {
		drainer := d.Backend.Optional().Drainer
		if drainer == nil {
			continue
		}
		n, reapErr := drainer.Reap(ctx)
		left += n
		if reapErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: take down what was drained: %w", d.Mode, reapErr))
		}
	}
	return left, err
}

// Notices returns the notices for the authors of Services, as of the last round or plan, ordered by Service.
func (e *Engine) Notices() []spec.Notice {
	var all []spec.Notice
	for _, name := range slices.SortedFunc(maps.Keys(e.notices), dataplane.ServiceName.Compare) {
		all = append(all, e.notices[name]...)
	}
	return all
}

// Round brings the kernel to the state that the snapshot asks for. The Report contains every failure. The next round
// retries.
func (e *Engine) Round(ctx context.Context, req Request) Report {
	rep := Report{Reason: req.Reason, Start: time.Now()}
	inForce := false
	if e.snapshot != nil && e.active != nil {
		rep.Revision = e.snapshot.Revision.String()
		for _, d := range e.paths() {
			d.observed.keep = e.snapshot.Revision.Stale
		}
		e.resolve(&rep)
		if err := e.applyAll(ctx, req.Full, &rep); err != nil {
			rep.Err = errors.Join(rep.Err, err)
		} else {
			e.settle(&rep)
			inForce = true
		}
	}
	e.takeDown(ctx, &rep)
	if inForce {
		e.clean(ctx, &rep) // no stale flow can appear after the data path was taken down
	}
	e.summarize(&rep)
	return rep
}

// applyAll brings the data path in force up to date, or replaces it with the next one. The error is that of the data
// path in force.
func (e *Engine) applyAll(ctx context.Context, full bool, rep *Report) error {
	if e.next != nil {
		err := e.next.round(ctx, full, e, rep)
		if err == nil {
			e.log.Info("proxy mode changed", "from", e.active.Mode, "to", e.next.Mode)
			e.leave(e.active)
			e.active, e.next = e.next, nil
			e.markAll()
			return nil
		}
		rep.Err = errors.Join(rep.Err, err)
	}
	return e.active.round(ctx, full, e, rep)
}

// markAll marks the flows of every Service as stale, because another mode may have sent them elsewhere.
func (e *Engine) markAll() {
	for _, s := range e.services {
		for _, entry := range s.inForce {
			e.stale.mark(entry.Key, nil)
		}
	}
}

// takeDown empties the data paths that are leaving.
func (e *Engine) takeDown(ctx context.Context, rep *Report) {
	e.leaving = slices.DeleteFunc(e.leaving, func(d *dataPath) bool {
		err := d.round(ctx, true, e, rep)
		if err != nil {
			rep.Err = errors.Join(rep.Err, err)
		}
		done := err == nil && len(d.quarantine.suspects) == 0
		if done {
			d.close()
		}
		return done
	})
}

// HeldBack returns the Services held back, as of the last round or plan.
func (e *Engine) HeldBack() []HeldBack {
	origin := func(name dataplane.ServiceName) string {
		if e.snapshot != nil {
			if svc := e.snapshot.Services.Get(name); svc != nil {
				return svc.Origin.String()
			}
		}
		return ""
	}
	var all []HeldBack
	for _, d := range append(e.paths(), e.leaving...) {
		all = append(all, d.quarantine.list(origin)...)
	}
	return all
}

func (e *Engine) summarize(rep *Report) {
	rep.HeldBack = e.HeldBack()
	if e.active != nil {
		rep.Mode, rep.Traits = e.active.Mode, e.active.Traits
		rep.Items = e.active.tracker.Len()
		rep.Conflicts = e.active.tracker.Conflicts()
	}
	if e.snapshot != nil {
		rep.Services = e.snapshot.Services.Len()
	}
	rep.Stages.Total = time.Since(rep.Start)
}

// resolve resolves the dirty Services again.
func (e *Engine) resolve(rep *Report) {
	start := time.Now()
	if e.all {
		for name := range e.services {
			e.dirty[name] = struct{}{}
		}
		for svc := range e.snapshot.Services.All() {
			e.dirty[svc.Name] = struct{}{}
		}
	}
	rep.Resolved = len(e.dirty)
	e.frontends.node = e.node.NodePortAddresses
	affected := make(map[dataplane.ServiceName]struct{}, len(e.dirty))
	for name := range e.dirty {
		affected[name] = struct{}{}
		e.resolveService(name, affected)
	}
	if moved := e.frontends.takeMoved(); !e.all && len(moved) > 0 {
		e.addEndpointsOn(moved, affected)
	}
	for name := range affected {
		e.settleFrontends(name, rep)
	}
	e.all = false
	e.dirty = map[dataplane.ServiceName]struct{}{} // ranging over a map costs its peak size, so allocate a new one
	rep.Stages.Resolve += time.Since(start)
}

// addEndpointsOn adds to affected the Services with endpoints on the addresses, because their notices depend on the owners of these.
func (e *Engine) addEndpointsOn(addrs map[netip.Addr]struct{}, affected map[dataplane.ServiceName]struct{}) {
	for name, s := range e.services {
		for _, p := range s.resolved {
			if slices.ContainsFunc(p.Endpoints, func(ep dataplane.Endpoint) bool { return contains(addrs, ep.Addr.Addr()) }) {
				affected[name] = struct{}{}
			}
		}
	}
}

// resolveService works out what a Service asks for, and adds to affected the Services that share an address with it.
func (e *Engine) resolveService(name dataplane.ServiceName, affected map[dataplane.ServiceName]struct{}) {
	var resolved []*dataplane.ServicePort
	var notices []spec.Notice
	if svc := e.snapshot.Services.Get(name); svc != nil {
		resolved, notices = Resolve(svc, &e.node)
	}
	s := e.services[name]
	if s == nil {
		if len(resolved)+len(notices) == 0 {
			return
		}
		s = &service{}
		e.services[name] = s
	}
	e.frontends.set(s.resolved, resolved, affected)
	s.resolved, s.resolveNotices = resolved, notices
}

// settleFrontends works out what a Service owns of what it asks for, and what its author should know of that.
func (e *Engine) settleFrontends(name dataplane.ServiceName, rep *Report) {
	s := e.services[name]
	if s == nil {
		delete(e.notices, name)
		return
	}
	servicePorts, losses := e.frontends.owned(s.resolved)
	if svc := e.snapshot.Services.Get(name); svc != nil {
		e.notice(svc, append(slices.Clip(s.resolveNotices), e.frontends.notices(svc, servicePorts, losses)...), rep)
	} else {
		delete(e.notices, name)
	}
	if slices.EqualFunc(s.servicePorts, servicePorts, (*dataplane.ServicePort).Equal) {
		e.forgetEmpty(name, s)
		return
	}
	s.servicePorts = servicePorts
	e.unsettled[name] = struct{}{}
	for _, d := range e.paths() {
		d.desired.changed(name)
	}
}

// notice keeps the notices of a Service, and reports them if they differ from before.
func (e *Engine) notice(svc *spec.Service, notices []spec.Notice, rep *Report) {
	if slices.Equal(e.notices[svc.Name], notices) {
		return
	}
	rep.Notices = append(rep.Notices, ServiceNotices{svc, notices})
	if len(notices) == 0 {
		delete(e.notices, svc.Name)
	} else {
		e.notices[svc.Name] = notices
	}
}

// forgetEmpty drops what became of a Service of which nothing is left.
func (e *Engine) forgetEmpty(name dataplane.ServiceName, s *service) {
	if _, unsettled := e.unsettled[name]; !unsettled && len(s.resolved)+len(s.resolveNotices)+len(s.servicePorts)+len(s.inForce) == 0 {
		delete(e.services, name)
	}
}

// servicePorts and names implement wanted for the Engine's data paths.
func (e *Engine) servicePorts(name dataplane.ServiceName) []*dataplane.ServicePort {
	if s := e.services[name]; s != nil {
		return s.servicePorts
	}
	return nil
}

func (e *Engine) names() []dataplane.ServiceName {
	return slices.SortedFunc(maps.Keys(e.services), dataplane.ServiceName.Compare)
}

// settle records which ServicePorts are in force now, after a round that succeeded.
func (e *Engine) settle(rep *Report) {
	for _, name := range slices.SortedFunc(maps.Keys(e.unsettled), dataplane.ServiceName.Compare) {
		heldBack := e.active.quarantine.of(name)
		if heldBack != nil && heldBack.held {
			continue // the kernel still holds the earlier state
		}
		s, now := e.services[name], e.active.desired.current[name]
		for _, entry := range now {
			old := find(s.inForce, entry.Key)
			if old != nil && old.Equal(entry) {
				continue
			}
			rep.Changed = append(rep.Changed, entry)
			e.stale.mark(entry.Key, old)
			e.left.mark(old, entry)
		}
		for _, old := range s.inForce {
			if find(now, old.Key) == nil {
				rep.Gone = append(rep.Gone, old.Key)
				e.stale.mark(old.Key, old)
				e.left.mark(old, nil)
			}
		}
		s.inForce = now
		if heldBack != nil {
			continue // a port of it cannot be rendered, or the Service was put back to an earlier state
		}
		delete(e.unsettled, name)
		e.forgetEmpty(name, s)
	}
	if len(e.unsettled) == 0 {
		e.unsettled = map[dataplane.ServiceName]struct{}{}
	}
	for _, key := range e.active.observed.takeRepaired() {
		e.stale.mark(key, nil)
	}
}

// clean removes the conntrack entries that the state in force made stale, with the Flows of the data path in force.
func (e *Engine) clean(ctx context.Context, rep *Report) {
	start := time.Now()
	stale, err := e.stale.clean(ctx, e.active.Flows, e.inForce)
	leaving := time.Now()
	left, leftErr := e.left.clean(ctx, e.active.Flows, e.inForce)
	rep.limited = time.Since(leaving)
	rep.Flows, rep.FlowsErr = stale+left, errors.Join(err, leftErr)
	if err == nil && len(e.stale) > 0 {
		e.stale = staleFlows{} // if it failed, the next round cleans all of them
	}
	rep.Stages.Flows += time.Since(start)
}

// inForce returns the Service port as the kernel confirmed it last, or nil.
func (e *Engine) inForce(key dataplane.ServicePortName) *dataplane.ServicePort {
	if s := e.services[key.Service]; s != nil {
		return find(s.inForce, key)
	}
	return nil
}

// Plan reads the kernel and returns what a round would do. It changes nothing.
func (e *Engine) Plan(ctx context.Context, reason string) (backends.Plan, error) {
	d := e.next
	if d == nil {
		d = e.active
	}
	if e.snapshot == nil || d == nil {
		return backends.Plan{Reason: reason}, nil
	}
	rep := Report{Reason: reason, Start: time.Now()}
	e.resolve(&rep)
	return d.dryRun(ctx, e, &rep)
}

// Cleanup removes everything that the backend owns, regardless of the snapshot. If it fails it can be called again, and tries
// at once what was refused before. The Engine must not be used for anything else afterwards.
func (e *Engine) Cleanup(ctx context.Context) Report {
	e.retire()
	for _, d := range e.leaving {
		d.quarantine.forget()
	}
	return e.Round(ctx, Request{Reason: "cleanup", Full: true})
}

// PlanCleanup returns what Cleanup would do, without doing it. The Engine must only be used for Cleanup afterwards.
func (e *Engine) PlanCleanup(ctx context.Context) (backends.Plan, error) {
	e.retire()
	plan := backends.Plan{Reason: "cleanup"}
	rep := Report{Reason: "cleanup", Start: time.Now()}
	for _, d := range e.leaving {
		p, err := d.dryRun(ctx, e, &rep)
		if err != nil {
			return backends.Plan{}, err
		}
		plan.Backend = p.Backend
		plan.Changes = append(plan.Changes, p.Changes...)
	}
	return plan, nil
}

// retire replaces any snapshot by an explicitly empty desired side.
func (e *Engine) retire() {
	e.leave(e.next)
	e.leave(e.active)
	e.next, e.active, e.snapshot = nil, nil, nil
}
