package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/spec"
)

// Options is what an Engine starts with. Backend may be nil until SetBackend.
type Options struct {
	Mode    string
	Backend backends.Backend
	Node    Node
	// Flows may be nil: then no conntrack entry is touched.
	Flows Flows
	// Log may be nil.
	Log hclog.Logger
}

// Request asks for a round.
type Request struct {
	// Reason is for logs and plans, such as "services changed".
	Reason string
	// Full asks to compare with the kernel rather than with what is remembered of it.
	Full bool
}

// Engine makes one round of reconciliation at a time: it reads the kernel if it must, works out what should be there, has
// the difference applied, and records what the kernel confirmed.
//
// Goals: work in proportion to what changed, not to what there is; no intent is lost, whatever fails; a fault of one
// Service is that Service's alone; nothing is deleted that was not fully known before.
//
// Where they conflict: safety of what is in force comes before speed, so that an apply of unknown outcome costs a full
// read; and before exactness, so that a Service which the kernel refuses keeps what it had, and drift in it is not repaired
// until it is accepted.
//
// An Engine has no timers and no goroutines, and is not safe for concurrent use: everything is called from one goroutine.
type Engine struct {
	log   hclog.Logger
	node  Node
	flows *flowDebts

	snapshot *spec.Snapshot
	services map[backends.ServiceName]*service
	// dirty names the Services to resolve again; all says that every one is.
	dirty map[backends.ServiceName]struct{}
	all   bool
	// unsettled names the Services whose Entries may differ from those in force.
	unsettled map[backends.ServiceName]struct{}
	notices   map[backends.ServiceName][]spec.Problem

	// active is in force. next takes its place once it has been applied in full. What is leaving is taken down.
	active, next *dataPath
	leaving      []*dataPath
}

// service is what became of one Service.
type service struct {
	// entries are wanted, inForce are what the kernel confirmed last.
	entries, inForce []*backends.Entry
}

// NewEngine returns an Engine that has no snapshot yet. Until it has one, a round does nothing.
func NewEngine(o Options) *Engine {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	e := &Engine{
		log:       o.Log,
		node:      o.Node,
		flows:     newFlowDebts(o.Flows),
		services:  map[backends.ServiceName]*service{},
		dirty:     map[backends.ServiceName]struct{}{},
		unsettled: map[backends.ServiceName]struct{}{},
		notices:   map[backends.ServiceName][]spec.Problem{},
	}
	if o.Backend != nil {
		e.SetBackend(o.Mode, o.Backend)
	}
	return e
}

// SetSnapshot makes the snapshot the one that the next round works for. The delta is to the snapshot given before.
func (e *Engine) SetSnapshot(snap *spec.Snapshot, delta spec.Delta) {
	before := e.snapshot
	e.snapshot = snap
	if before != nil && !delta.All {
		for _, n := range delta.Services {
			name := backends.ServiceName(n)
			e.dirty[name] = struct{}{}
			e.pardon(name)
		}
		return
	}
	e.all = true
	for name := range e.services {
		if before == nil || before.Service(spec.Name(name)) != snap.Service(spec.Name(name)) {
			e.pardon(name)
		}
	}
}

func (e *Engine) pardon(name backends.ServiceName) {
	for _, d := range e.paths() {
		d.pardon(name)
	}
}

// paths returns the data paths that are kept up to date.
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

// SetBackend hands over to another backend. In the same mode it only has other settings: what is known of the kernel is
// kept, everything is rendered anew and the difference applied. In another mode the new backend is applied in full before
// the old one is taken down; until that succeeds the old one is kept up to date.
func (e *Engine) SetBackend(mode string, b backends.Backend) {
	switch {
	case e.active == nil:
		e.active = e.enter(mode, b)
	case e.active.mode == mode:
		e.leave(e.next)
		e.next = nil
		e.active.replace(b)
	case e.next != nil && e.next.mode == mode:
		e.next.replace(b)
	default:
		e.leave(e.next)
		e.next = e.enter(mode, b)
	}
}

// enter makes a data path that takes over whatever its mode left behind before.
func (e *Engine) enter(mode string, b backends.Backend) *dataPath {
	e.leaving = slices.DeleteFunc(e.leaving, func(d *dataPath) bool {
		if d.mode == mode {
			d.dismiss()
		}
		return d.mode == mode
	})
	return newDataPath(mode, b, e.log.With("mode", mode))
}

func (e *Engine) leave(d *dataPath) {
	if d != nil {
		d.retire()
		e.leaving = append(e.leaving, d)
	}
}

// Mode returns the proxy mode in force, "" if there is none.
func (e *Engine) Mode() string {
	if e.active == nil {
		return ""
	}
	return e.active.mode
}

// Moved says in O(1) whether somebody else may have written to what the backend in force owns since it was read last. It
// is false if the backend cannot tell.
func (e *Engine) Moved(ctx context.Context) bool { return e.active != nil && e.active.moved(ctx) }

// Notified returns what tells that Moved should be asked; nil, which never does, if the backend in force has nothing of the
// kind.
func (e *Engine) Notified() <-chan struct{} {
	if e.active == nil {
		return nil
	}
	if n, ok := e.active.backend.(backends.Notifier); ok {
		return n.Notified()
	}
	return nil
}

// Reap has the backend in force, and the one that is about to be, take down what no connection uses any more. It returns how
// much is left for later.
func (e *Engine) Reap(ctx context.Context) (left int, err error) {
	for _, d := range e.paths() {
		drainer, ok := d.backend.(backends.Drainer)
		if !ok {
			continue
		}
		n, reapErr := drainer.Reap(ctx)
		left += n
		if reapErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: take down what was drained: %w", d.mode, reapErr))
		}
	}
	return left, err
}

// Notices returns what the authors of Services should know, as of the last round or plan, ordered by Service.
func (e *Engine) Notices() []spec.Problem {
	var all []spec.Problem
	for _, name := range slices.SortedFunc(maps.Keys(e.notices), backends.ServiceName.Compare) {
		all = append(all, e.notices[name]...)
	}
	return all
}

// Round makes what the snapshot asks for true. Whatever fails is in the Report, and is tried again by the next round.
func (e *Engine) Round(ctx context.Context, req Request) Report {
	rep := Report{Reason: req.Reason, Start: time.Now()}
	inForce := false
	if e.snapshot != nil && e.active != nil {
		rep.Revision = e.snapshot.Revision.String()
		for _, d := range e.paths() {
			d.keep = e.snapshot.Revision.Stale
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
		e.clean(ctx, &rep) // what was taken down cannot make stale flows anew
	}
	e.summarize(&rep)
	return rep
}

// applyAll brings the data path in force up to date, or puts the next one in its place. The error is that of the data path
// in force.
func (e *Engine) applyAll(ctx context.Context, full bool, rep *Report) error {
	if e.next != nil {
		err := e.next.round(ctx, full, e, rep)
		if err == nil {
			e.log.Info("proxy mode changed", "from", e.active.mode, "to", e.next.mode)
			e.leave(e.active)
			e.active, e.next = e.next, nil
			e.oweAll()
			return nil
		}
		rep.Err = errors.Join(rep.Err, err)
	}
	return e.active.round(ctx, full, e, rep)
}

// oweAll has the flows of every Service looked at: another mode may have sent them elsewhere.
func (e *Engine) oweAll() {
	for _, s := range e.services {
		for _, entry := range s.inForce {
			e.flows.owe(entry.Key, nil)
		}
	}
}

// takeDown empties what is leaving.
func (e *Engine) takeDown(ctx context.Context, rep *Report) {
	e.leaving = slices.DeleteFunc(e.leaving, func(d *dataPath) bool {
		err := d.round(ctx, true, e, rep)
		if err != nil {
			rep.Err = errors.Join(rep.Err, err)
		}
		done := err == nil && len(d.isolated) == 0
		if done {
			d.dismiss()
		}
		return done
	})
}

// Isolated returns what is held back, as of the last round or plan.
func (e *Engine) Isolated() []Isolated {
	origin := func(name backends.ServiceName) string {
		if e.snapshot != nil {
			if svc := e.snapshot.Service(spec.Name(name)); svc != nil {
				return svc.Origin.String()
			}
		}
		return ""
	}
	var all []Isolated
	for _, d := range append(e.paths(), e.leaving...) {
		all = append(all, d.isolated.list(origin)...)
	}
	return all
}

func (e *Engine) summarize(rep *Report) {
	rep.Isolated = e.Isolated()
	if e.active != nil {
		rep.Mode = e.active.mode
		rep.Items = e.active.tracker.Len()
		rep.Conflicts = e.active.tracker.Conflicts()
	}
	if e.snapshot != nil {
		rep.Services = e.snapshot.Len()
	}
	rep.Stages.Total = time.Since(rep.Start)
}

// resolve works out the dirty Services anew.
func (e *Engine) resolve(rep *Report) {
	start := time.Now()
	if e.all {
		for name := range e.services {
			e.dirty[name] = struct{}{}
		}
		for svc := range e.snapshot.Services() {
			e.dirty[backends.ServiceName(svc.Name)] = struct{}{}
		}
	}
	rep.Resolved = len(e.dirty)
	for name := range e.dirty {
		e.resolveService(name)
	}
	e.all = false
	e.dirty = map[backends.ServiceName]struct{}{} // walking a map costs what it held at most, not what it holds
	rep.Stages.Resolve += time.Since(start)
}

func (e *Engine) resolveService(name backends.ServiceName) {
	var entries []*backends.Entry
	var notices []spec.Problem
	if svc := e.snapshot.Service(spec.Name(name)); svc != nil {
		entries, notices = Resolve(svc, &e.node)
	}
	if len(notices) > 0 {
		e.notices[name] = notices
	} else {
		delete(e.notices, name)
	}
	s := e.services[name]
	if s == nil {
		if len(entries) == 0 {
			return
		}
		s = &service{}
		e.services[name] = s
	}
	if slices.EqualFunc(s.entries, entries, equalEntries) {
		return
	}
	s.entries = entries
	e.unsettled[name] = struct{}{}
	for _, d := range e.paths() {
		d.changed(name)
	}
}

// equalEntries leaves out the Origin, which is for people only.
func equalEntries(a, b *backends.Entry) bool {
	return a.Key == b.Key && a.ClusterIP == b.ClusterIP && a.Port == b.Port && a.NodePort == b.NodePort &&
		slices.Equal(a.ExternalIPs, b.ExternalIPs) && slices.Equal(a.LoadBalancerIPs, b.LoadBalancerIPs) &&
		slices.Equal(a.SourceRanges, b.SourceRanges) && a.InternalLocal == b.InternalLocal && a.ExternalLocal == b.ExternalLocal &&
		a.Affinity == b.Affinity && slices.Equal(a.Endpoints, b.Endpoints) &&
		slices.Equal(a.Serving, b.Serving) && a.HasEndpoints == b.HasEndpoints &&
		a.HealthCheckNodePort == b.HealthCheckNodePort && a.Scheduler == b.Scheduler &&
		a.ProxyProtocol == b.ProxyProtocol
}

// entries and names make the Engine what its data paths render.
func (e *Engine) entries(name backends.ServiceName) []*backends.Entry {
	if s := e.services[name]; s != nil {
		return s.entries
	}
	return nil
}

func (e *Engine) names() []backends.ServiceName {
	return slices.SortedFunc(maps.Keys(e.services), backends.ServiceName.Compare)
}

// settle records which Entries are in force now, after a round that succeeded.
func (e *Engine) settle(rep *Report) {
	for _, name := range slices.SortedFunc(maps.Keys(e.unsettled), backends.ServiceName.Compare) {
		blamed := e.active.isolated[culprit{service: name}]
		if blamed != nil && blamed.held {
			continue // the kernel holds what it held before
		}
		s, now := e.services[name], e.active.rendered[name]
		for _, entry := range now {
			old := find(s.inForce, entry.Key)
			if old != nil && equalEntries(old, entry) {
				continue
			}
			rep.Changed = append(rep.Changed, entry)
			e.flows.owe(entry.Key, old)
		}
		for _, old := range s.inForce {
			if find(now, old.Key) == nil {
				rep.Gone = append(rep.Gone, old.Key)
				e.flows.owe(old.Key, old)
			}
		}
		s.inForce = now
		if blamed != nil {
			continue // a port of it cannot be rendered, or the Service was put back to what it was before
		}
		if len(s.entries) == 0 {
			delete(e.services, name)
		}
		delete(e.unsettled, name)
	}
	if len(e.unsettled) == 0 {
		e.unsettled = map[backends.ServiceName]struct{}{}
	}
	for _, key := range e.active.repaired {
		e.flows.owe(key, nil)
	}
	e.active.repaired = nil
}

// clean removes the conntrack entries that what is in force now made stale.
func (e *Engine) clean(ctx context.Context, rep *Report) {
	start := time.Now()
	rep.Flows, rep.FlowsErr = e.flows.clean(ctx, func(key backends.PortKey) *backends.Entry {
		if s := e.services[key.Service]; s != nil {
			return find(s.inForce, key)
		}
		return nil
	})
	rep.Stages.Flows += time.Since(start)
}

// Plan reads the kernel and returns what a round would do. Nothing is changed.
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

// Cleanup removes everything that the backend owns, whatever the snapshot says. If it fails it can be called again;
// nothing else is done with the Engine thereafter.
func (e *Engine) Cleanup(ctx context.Context) Report {
	e.retire()
	return e.Round(ctx, Request{Reason: "cleanup", Full: true})
}

// PlanCleanup returns what Cleanup would do, without doing it. Nothing but Cleanup is done with the Engine thereafter.
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

// retire puts an empty desired side, given explicitly, in the place of any snapshot.
func (e *Engine) retire() {
	e.leave(e.next)
	e.leave(e.active)
	e.next, e.active, e.snapshot = nil, nil, nil
}
