package reconcile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/spec"
)

// The Loop's own times.
const (
	// pollPeriod is how often the backend is asked whether somebody else wrote, and noticePeriod how often at most when it
	// says that somebody did.
	pollPeriod   = 500 * time.Millisecond
	noticePeriod = 20 * time.Millisecond
	// reapPeriod is how often the backend is asked to take down what connections still use.
	reapPeriod = time.Second
	// readShare bounds the reads that such writes cause: after one that took t, the next waits for readShare times t, so
	// that reading takes at most a tenth of the time.
	readShare = 9
	// firstBackoff is how long a failed round waits before it is tried again, doubling up to the sync period.
	firstBackoff = time.Second
	// defaultSyncPeriod stands in until the first Settings, and for Settings without one.
	defaultSyncPeriod = 30 * time.Second
)

// Settings is what a snapshot's configuration comes down to.
type Settings struct {
	Mode string
	// Backend is a pointer. The same pointer as before says that nothing changed for it.
	Backend backends.Backend
	Node    Node
	// MinSyncPeriod is the least time between the starts of two rounds, 0 for none. SyncPeriod is the time between two full
	// rounds; 0 means 30 s.
	MinSyncPeriod, SyncPeriod time.Duration
}

// LoopOptions is what a Loop runs on.
type LoopOptions struct {
	Engine *Engine
	// Updates is fed by a spec.Source.
	Updates <-chan spec.Update
	// NodeChanges tells that something about the node changed (an address, say), so that Configure is asked again. It may
	// be nil.
	NodeChanges <-chan struct{}
	// Configure turns a snapshot into Settings. It is called for the first snapshot, whenever the configuration or the
	// nodes in it change, and on NodeChanges. If it fails the snapshot is not used, the last one stands, and it is tried
	// again with a backoff.
	Configure func(snap *spec.Snapshot) (Settings, error)
	// OnUpdate is told of every Update, with Err set if Configure refused it, and once more with Err nil when Configure
	// accepts it later. OnRound is told of every round before it, OnReport after it. They may be nil, are called from the
	// Loop's goroutine, and must not call back.
	OnUpdate func(spec.Update)
	OnRound  func(Request)
	OnReport func(Report)
	// Log may be nil.
	Log hclog.Logger
}

// Loop decides when the Engine makes a round. It alone knows time.
//
// It guarantees: the first round is immediate; later ones start at least MinSyncPeriod apart; a full one starts at the
// latest SyncPeriod after the one before; a failed one is tried again after a backoff that never exceeds SyncPeriod; a
// write by somebody else is noticed within half a second, if the backend can tell, and at once if it is told; a Service
// that is held back is tried again when its own time has come. All of it happens on the goroutine that called Run.
type Loop struct {
	o        LoopOptions
	settings Settings
	ready    bool // settings are set, and the Engine has a snapshot

	// held is a snapshot that Configure refused, with the Delta from the one in use.
	held *spec.Update
	// snapshot is the one in use.
	snapshot *spec.Snapshot

	// reason is why the next round is wanted, "" if none is.
	reason string
	full   bool
	// noticed says that it is wanted because somebody else wrote.
	noticed bool

	started, fullAt, retryAt, isolatedAt, reapAt, configureAt time.Time
	// pollAt is when the next poll is due, and pollFrom from when on it may be made sooner; both are set, or none.
	pollAt, pollFrom   time.Time
	failures, refusals int
}

// NewLoop returns a Loop that does nothing until Run.
func NewLoop(o LoopOptions) *Loop {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return &Loop{o: o, settings: Settings{SyncPeriod: defaultSyncPeriod}}
}

// Run makes rounds until ctx is done, and returns its error. The kernel is left as it is.
func (l *Loop) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	updates := l.o.Updates
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case u, ok := <-updates:
			if !ok {
				updates = nil // what is known stands, and is kept up
				break
			}
			l.update(u)
		case <-l.o.NodeChanges:
			l.nodeChanged()
		case <-l.o.Engine.Notified():
			l.pollAt = l.pollFrom
		case <-timer.C:
		}
		if err := ctx.Err(); err != nil {
			return err // select does not prefer it
		}
		l.step(ctx)
		timer.Reset(time.Until(l.next()))
	}
}

// step does what is due.
func (l *Loop) step(ctx context.Context) {
	now := time.Now()
	if due(l.configureAt, now) {
		l.configureAt = time.Time{}
		l.reconfigure()
	}
	if !l.ready {
		return
	}
	if due(l.pollAt, now) {
		l.poll(now, 0)
		if l.o.Engine.Moved(ctx) {
			l.want("the kernel's state was changed by somebody else", true)
			l.noticed = true
		}
	}
	if due(l.reapAt, now) {
		l.reap(ctx)
	}
	switch {
	case due(l.fullAt, now):
		l.want("sync period", true)
	case due(l.retryAt, now):
		l.want("retry", false)
	case due(l.isolatedAt, now):
		l.want("retry of what is held back", false)
	}
	if l.reason != "" && due(l.earliest(), now) {
		l.round(ctx)
	}
}

// due says whether a time was set and has come.
func due(t, now time.Time) bool { return !t.IsZero() && !t.After(now) }

// want asks for a round; the first reason is the one that is told, unless a full round comes on top.
func (l *Loop) want(reason string, full bool) {
	if l.reason == "" || full && !l.full {
		l.reason = reason
	}
	l.full = l.full || full
}

// earliest is when the next round may start.
func (l *Loop) earliest() time.Time { return l.started.Add(max(l.settings.MinSyncPeriod, 1)) }

// next is when something is due; far away if nothing is.
func (l *Loop) next() time.Time {
	next := time.Now().Add(time.Hour)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	sooner(l.configureAt)
	if !l.ready {
		return next
	}
	sooner(l.pollAt)
	sooner(l.reapAt)
	if l.reason != "" {
		sooner(l.earliest())
		return next
	}
	sooner(l.fullAt)
	sooner(l.retryAt)
	sooner(l.isolatedAt)
	return next
}

// reap has what is drained taken down, and comes back for what is left.
func (l *Loop) reap(ctx context.Context) {
	l.reapAt = time.Time{}
	left, err := l.o.Engine.Reap(ctx)
	if err != nil && ctx.Err() == nil {
		l.o.Log.Warn("will be tried again", "error", err)
	}
	if left > 0 || err != nil {
		l.reapAt = time.Now().Add(reapPeriod)
	}
}

func (l *Loop) round(ctx context.Context) {
	req := Request{Reason: l.reason, Full: l.full}
	l.reason, l.full = "", false
	l.started = time.Now()
	if l.o.OnRound != nil {
		l.o.OnRound(req)
	}
	rep := l.o.Engine.Round(ctx, req)
	if ctx.Err() != nil && rep.Err != nil {
		return // cut short on the way out: not a failure worth telling
	}
	l.schedule(rep)
	l.noticed = false
	logReport(l.o.Log, rep)
	if l.o.OnReport != nil {
		l.o.OnReport(rep)
	}
}

// schedule sets what follows from a round.
func (l *Loop) schedule(rep Report) {
	now := time.Now()
	period := l.settings.SyncPeriod
	if rep.Full || l.fullAt.IsZero() || due(l.fullAt, now) {
		l.fullAt = now.Add(period)
	}
	l.retryAt = time.Time{}
	if rep.Err != nil || rep.FlowsErr != nil {
		l.retryAt = now.Add(backoff(l.failures, period))
		l.failures++
	} else {
		l.failures = 0
	}
	l.isolatedAt = rep.NextRetry()
	if l.isolatedAt.Before(l.retryAt) {
		l.isolatedAt = time.Time{} // a failed round tries them too
	}
	if l.reapAt.IsZero() {
		l.reapAt = now.Add(reapPeriod)
	}
	switch {
	case rep.Observed && l.noticed:
		l.poll(now, readShare*rep.Stages.Observe)
	case l.pollAt.IsZero():
		l.poll(now, 0)
	}
}

// poll sets the time of the next poll, after a pause of at least so long.
func (l *Loop) poll(now time.Time, pause time.Duration) {
	l.pollFrom, l.pollAt = now.Add(max(noticePeriod, pause)), now.Add(max(pollPeriod, pause))
}

// backoff returns how long to wait after so many failures in a row: doubling, spread so that many nodes do not retry
// together, and at most limit.
func backoff(failures int, limit time.Duration) time.Duration {
	d := min(firstBackoff<<min(failures, 20), limit)
	return min(d-d/10+rand.N(d/5+1), limit)
}

// update takes news from the source.
func (l *Loop) update(u spec.Update) {
	if u.Err == nil && u.Snapshot == nil {
		u.Err = errors.New("the source sent an update without a snapshot")
	}
	if u.Err == nil && l.held != nil {
		u.Delta = spec.Delta{All: true, Config: true, Nodes: true} // it is to the held snapshot, which never came into use
		l.held = nil
	}
	if u.Err == nil {
		u.Err = l.accept(&u)
	}
	if l.o.OnUpdate != nil {
		l.o.OnUpdate(u)
	}
}

// accept puts a snapshot into use, or holds it if its configuration cannot be.
func (l *Loop) accept(u *spec.Update) error {
	d := u.Delta
	if !l.ready || d.All || d.Config || d.Nodes {
		if err := l.configure(u.Snapshot); err != nil {
			l.held = &spec.Update{Snapshot: u.Snapshot, Revision: u.Revision}
			return err
		}
	}
	l.configureAt, l.refusals = time.Time{}, 0
	l.snapshot = u.Snapshot
	l.o.Engine.SetSnapshot(u.Snapshot, d)
	if !l.ready {
		l.ready = true
		l.want("start", true)
		return nil
	}
	if !d.Empty() {
		l.want(describe(d), false)
	}
	return nil
}

func describe(d spec.Delta) string {
	switch {
	case d.All:
		return "everything may have changed"
	case d.Config && len(d.Services) > 0:
		return "configuration and Services changed"
	case d.Config:
		return "configuration changed"
	case len(d.Services) == 1:
		return "Service " + d.Services[0].String() + " changed"
	case len(d.Services) > 0:
		return fmt.Sprintf("%d Services changed", len(d.Services))
	}
	return "nodes changed"
}

// configure asks for the Settings of a snapshot and hands the Engine what is new in them.
func (l *Loop) configure(snap *spec.Snapshot) error {
	s, err := l.o.Configure(snap)
	if err != nil {
		l.configureAt = time.Now().Add(backoff(l.refusals, l.settings.SyncPeriod))
		l.refusals++
		return err
	}
	if s.SyncPeriod <= 0 {
		s.SyncPeriod = defaultSyncPeriod
	}
	if s.SyncPeriod != l.settings.SyncPeriod && !l.fullAt.IsZero() {
		l.fullAt = time.Now().Add(s.SyncPeriod)
	}
	before := l.settings
	l.settings = s
	l.o.Engine.SetNode(s.Node)
	if s.Backend != before.Backend || s.Mode != before.Mode {
		l.o.Engine.SetBackend(s.Mode, s.Backend)
	}
	if l.ready && (s.Backend != before.Backend || s.Mode != before.Mode || !s.Node.Equal(before.Node)) {
		l.want("configuration changed", false)
	}
	return nil
}

// nodeChanged asks for Settings again, since what the snapshot's configuration comes down to may be different now.
func (l *Loop) nodeChanged() {
	if l.held != nil {
		l.configureAt = time.Now()
		return
	}
	if l.snapshot == nil {
		return
	}
	if err := l.configure(l.snapshot); err != nil {
		l.o.Log.Error("the node changed, and the configuration cannot be applied to it; the last settings stand", "error", err)
	}
}

// reconfigure tries again what Configure refused.
func (l *Loop) reconfigure() {
	if l.held == nil {
		l.nodeChanged()
		return
	}
	u := *l.held
	u.Delta = spec.Delta{All: true, Config: true, Nodes: true}
	l.held = nil
	l.update(u)
}

// took writes a duration with its unit, which a JSON log would leave out.
func took(d time.Duration) string { return d.Round(time.Microsecond).String() }

// logReport writes the one line of a sync: at info level if anything changed, at debug level if nothing did.
func logReport(log hclog.Logger, rep Report) {
	args := []any{
		"reason", rep.Reason, "mode", rep.Mode, "revision", rep.Revision, "services", rep.Services, "resolved", rep.Resolved,
		"created", rep.Created, "updated", rep.Updated, "deleted", rep.Deleted, "total", took(rep.Stages.Total),
		"resolve", took(rep.Stages.Resolve), "plan", took(rep.Stages.Plan), "apply", took(rep.Stages.Apply),
	}
	if rep.Observed {
		args = append(args, "observe", took(rep.Stages.Observe))
	}
	if d := rep.Stages.Flows.Round(time.Microsecond); d > 0 {
		args = append(args, "conntrack", took(d))
	}
	if rep.Drifted > 0 {
		args = append(args, "drifted", rep.Drifted, "repaired", rep.Repaired)
	}
	if rep.Flows > 0 {
		args = append(args, "flows", rep.Flows)
	}
	if n := len(rep.Isolated); n > 0 {
		args = append(args, "held-back", n, "first-held-back", rep.Isolated[0].String())
	}
	if n := len(rep.Conflicts); n > 0 {
		args = append(args, "conflicts", n, "first-conflict", string(rep.Conflicts[0].ID))
	}
	switch {
	case rep.Err != nil:
		log.Error("sync failed; what was in force stays, and it will be tried again", append(args, "error", rep.Err)...)
	case rep.FlowsErr != nil:
		log.Warn("synced, except for stale connections", append(args, "error", rep.FlowsErr)...)
	case rep.Changes() > 0 || rep.Reason == "start":
		log.Info("synced", args...)
	default:
		log.Debug("synced", args...)
	}
}
