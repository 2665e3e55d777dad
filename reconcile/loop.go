package reconcile

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/spec"
)

// The Loop's own periods.
const (
	// pollPeriod is how often the backend is asked whether another process wrote. noticePeriod is the least time
	// between two such questions when the backend notifies.
	pollPeriod   = 500 * time.Millisecond
	noticePeriod = 20 * time.Millisecond
	// reapPeriod is how often the backend is asked to delete drained objects that still have connections.
	reapPeriod = time.Second
	// readShare limits the reads that such writes cause. After a read that took t, the next waits for readShare times
	// t, so that reading takes at most a tenth of the time.
	readShare = 9
	// urgentPeriod is the least time between two rounds of which the second is urgent, and roundShare limits the rounds
	// of others: after one that took t, the next starts no sooner than roundShare times t. Both hold where the configuration
	// asks for no period.
	urgentPeriod = 10 * time.Millisecond
	roundShare   = 20
	// firstBackoff is the delay before the first retry of a failed round. It doubles up to the sync period.
	firstBackoff = time.Second
	// defaultSyncPeriod is used until the first Settings, and for Settings without a period.
	defaultSyncPeriod = 30 * time.Second
)

// Settings holds what a snapshot's configuration means for the Loop and the Engine.
type Settings struct {
	DataPath
	Node Node
	// MinSyncPeriod is the least time between the starts of two rounds, 0 for none. SyncPeriod is the time between two
	// full rounds; 0 means 30 s.
	MinSyncPeriod, SyncPeriod time.Duration
	// Hurries reports whether a change does not wait for all of MinSyncPeriod if it is urgent or rounds take little,
	// because the configuration does not ask for that period.
	Hurries bool
	// From holds further results of Configure for the Observers. The Loop does not read it.
	From any
}

// LoopOptions configure a Loop.
type LoopOptions struct {
	Engine *Engine
	// Updates receives the Updates of a spec.Source: its Put is the sink. It may be nil.
	Updates *spec.Outbox
	// NodeChanges receives when something about the node changed, such as an address, so that Configure is called
	// again. It may be nil.
	NodeChanges <-chan struct{}
	// Configure turns a snapshot into Settings. It may read from the node, but changes nothing on it. It is called for
	// the first snapshot, whenever the configuration or the nodes in it change, and on NodeChanges. If it fails, the
	// snapshot is not used, the last one stands, and Configure is retried with backoff.
	Configure func(snap *spec.Snapshot) (Settings, error)
	// Interludes receives functions that the Loop calls between two rounds. It changes nothing meanwhile. If one returns
	// true, another process may have changed the kernel's state. It may be nil.
	Interludes <-chan func() bool
	// Observers are called in this order.
	Observers []Observer
	// Log may be nil.
	Log hclog.Logger
}

// Loop decides when the Engine makes a round. It is the only part that knows the time.
//
// It guarantees: The first round is immediate. Later rounds start at least MinSyncPeriod apart. A full round starts at
// most SyncPeriod after the one before. A failed round is retried with backoff, which never exceeds SyncPeriod. A write
// of another process is noticed within half a second if the backend can tell, and at once if the backend notifies. A
// Service that is held back is retried when its own backoff is over. Everything happens on the goroutine that called
// Run.
type Loop struct {
	o        LoopOptions
	settings Settings
	ready    bool // settings are set, and the Engine has a snapshot

	// held is a snapshot that Configure refused, with the Delta from the one in use.
	held *spec.Update
	// snapshot is the one in use.
	snapshot *spec.Snapshot

	// request is for the next round. Its Reason is "" if there is no request.
	request Request
	agenda  agenda
	// started is when the last round started, and took how long it took, without what has a limit of its own. The next poll may be brought forward, but not
	// before pollFrom.
	started, pollFrom time.Time
	took              time.Duration
	// urgent reports whether the requested round is.
	urgent             bool
	failures, refusals int
}

// duties holds the function of each job.
var duties = [numJobs]func(*Loop, context.Context){
	jobConfigure:     func(l *Loop, _ context.Context) { l.reconfigure() },
	jobPoll:          (*Loop).poll,
	jobReap:          (*Loop).reap,
	jobFullSync:      func(l *Loop, _ context.Context) { l.want(Request{Reason: "sync period", Full: true}) },
	jobRetry:         func(l *Loop, _ context.Context) { l.want(Request{Reason: "retry"}) },
	jobRetryHeldBack: func(l *Loop, _ context.Context) { l.want(Request{Reason: "retry of what is held back"}) },
	jobRound:         (*Loop).round,
}

// NewLoop returns a Loop that does nothing until Run.
func NewLoop(o LoopOptions) *Loop {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return &Loop{o: o, settings: Settings{SyncPeriod: defaultSyncPeriod}}
}

// Run makes rounds until ctx is done, and returns ctx's error. It leaves the kernel unchanged at the end.
func (l *Loop) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-l.o.Updates.Ready():
			if u, ok := l.o.Updates.Take(); ok {
				l.update(u)
			}
		case <-l.o.NodeChanges:
			l.nodeChanged()
		case f := <-l.o.Interludes:
			if f() && l.ready {
				l.want(Request{Reason: "another process was in charge", Full: true, moved: true})
			}
		case <-l.o.Engine.Wake():
			l.agenda.set(jobPoll, l.pollFrom)
		case <-timer.C:
		}
		if err := ctx.Err(); err != nil {
			return err // select picks at random, so check first
		}
		for j := range l.agenda.due(time.Now()) {
			duties[j](l, ctx)
		}
		timer.Reset(time.Until(l.agenda.next(time.Now())))
	}
}

// want requests a round. The first reason wins unless a later request asks for a full round.
func (l *Loop) want(r Request) {
	if l.request.Reason == "" || r.Full && !l.request.Full {
		l.request.Reason = r.Reason
	}
	l.request.Full = l.request.Full || r.Full
	l.request.moved = l.request.moved || r.moved
	l.agenda.set(jobRound, l.earliest())
}

// earliest returns when the next round may start.
func (l *Loop) earliest() time.Time {
	wait := l.settings.MinSyncPeriod
	if l.settings.Hurries {
		enough := urgentPeriod
		if !l.urgent {
			enough = max(enough, roundShare*l.took)
		}
		wait = min(wait, enough)
	}
	return l.started.Add(max(wait, 1))
}

// poll asks whether another process wrote, and schedules the next poll.
func (l *Loop) poll(ctx context.Context) {
	l.pollAfter(0)
	if l.o.Engine.Moved(ctx) {
		l.want(Request{Reason: "another process changed the kernel's state", Full: true, moved: true})
	}
}

// pollAfter schedules the next poll after at least this pause.
func (l *Loop) pollAfter(pause time.Duration) {
	now := time.Now()
	l.pollFrom = now.Add(max(noticePeriod, pause))
	l.agenda.set(jobPoll, now.Add(max(pollPeriod, pause)))
}

// reap deletes drained objects, and schedules the next call for those that remain.
func (l *Loop) reap(ctx context.Context) {
	left, err := l.o.Engine.Reap(ctx)
	if err != nil && ctx.Err() == nil {
		l.o.Log.Warn("drained objects cannot be deleted; retrying", "error", err)
	}
	if left > 0 || err != nil {
		l.agenda.set(jobReap, time.Now().Add(reapPeriod))
	}
}

func (l *Loop) round(ctx context.Context) {
	req := l.request
	l.request, l.urgent = Request{}, false
	l.started = time.Now()
	for _, o := range l.o.Observers {
		o.RoundStarts(req)
	}
	rep := l.o.Engine.Round(ctx, req)
	l.took = time.Since(l.started) - rep.limited
	if ctx.Err() != nil && rep.Err != nil {
		return // cut short by the end of the process: no failure to log
	}
	l.schedule(req, rep)
	logReport(l.o.Log, rep)
	for _, o := range l.o.Observers {
		o.Applied(rep)
	}
}

// schedule sets the jobs that follow from a round.
func (l *Loop) schedule(req Request, rep Report) {
	now := time.Now()
	period := l.settings.SyncPeriod
	if rep.Full || !l.agenda.has(jobFullSync) {
		l.agenda.set(jobFullSync, now.Add(period))
	}
	var retry time.Time
	if rep.Err != nil || rep.FlowsErr != nil {
		retry = now.Add(retryDelay(l.failures, period))
		l.failures++
	} else {
		l.failures = 0
	}
	l.agenda.set(jobRetry, retry)
	heldBack := rep.NextRetry()
	if heldBack.Before(retry) {
		heldBack = time.Time{} // the retry of a failed round includes them
	}
	l.agenda.set(jobRetryHeldBack, heldBack)
	if !l.agenda.has(jobReap) {
		l.agenda.set(jobReap, now.Add(reapPeriod))
	}
	switch {
	case rep.Observed && req.moved:
		l.pollAfter(readShare * rep.Stages.Observe)
	case !l.agenda.has(jobPoll):
		l.pollAfter(0)
	}
}

// retryDelay returns the delay after so many failures in a row. It doubles up to limit, and varies at random, so that
// many nodes do not retry at the same moment.
func retryDelay(failures int, limit time.Duration) time.Duration {
	d := min(firstBackoff<<min(failures, 20), limit)
	return min(d-d/10+rand.N(d/5+1), limit)
}

// update takes an Update of the source.
func (l *Loop) update(u spec.Update) {
	if u.Err == nil && l.held != nil {
		u.Delta = spec.Delta{All: true, Config: true, Nodes: true} // its Delta is relative to the held snapshot, which was never used
		l.held = nil
	}
	if u.Err == nil {
		u.Err = l.accept(&u)
	}
	for _, o := range l.o.Observers {
		o.Updated(u)
	}
}

// accept puts a snapshot into use, or holds it if Configure refuses it.
func (l *Loop) accept(u *spec.Update) error {
	d := u.Delta
	if !l.ready || d.All || d.Config || d.Nodes {
		if err := l.configure(u.Snapshot); err != nil {
			l.held = &spec.Update{Snapshot: u.Snapshot, Revision: u.Revision}
			return err
		}
	}
	l.agenda.set(jobConfigure, time.Time{})
	l.refusals = 0
	renamed := l.snapshot != nil && l.snapshot.Revision.String() != u.Snapshot.Revision.String()
	l.snapshot = u.Snapshot
	l.o.Engine.SetSnapshot(u.Snapshot, d)
	if !l.ready {
		l.ready = true
		l.want(Request{Reason: "start", Full: true})
		return nil
	}
	switch {
	case !d.Empty():
		l.urgent = l.urgent || d.Urgent
		l.want(Request{Reason: describe(d)})
	case renamed: // a round without a change tells that this revision is in force
		l.want(Request{Reason: "another revision of the same"})
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

// configure requests the Settings of a snapshot and passes changes to the Engine.
func (l *Loop) configure(snap *spec.Snapshot) error {
	s, err := l.o.Configure(snap)
	if err != nil {
		l.agenda.set(jobConfigure, time.Now().Add(retryDelay(l.refusals, l.settings.SyncPeriod)))
		l.refusals++
		return err
	}
	if s.SyncPeriod <= 0 {
		s.SyncPeriod = defaultSyncPeriod
	}
	if s.SyncPeriod != l.settings.SyncPeriod && l.agenda.has(jobFullSync) {
		l.agenda.set(jobFullSync, time.Now().Add(s.SyncPeriod))
	}
	before := l.settings
	l.settings = s
	if l.agenda.has(jobRound) {
		l.agenda.set(jobRound, l.earliest())
	}
	l.o.Engine.SetNode(s.Node)
	if s.Backend != before.Backend || s.Mode != before.Mode {
		l.o.Engine.SetDataPath(s.DataPath)
	}
	if l.ready && (s.Backend != before.Backend || s.Mode != before.Mode || !s.Node.Equal(before.Node)) {
		l.want(Request{Reason: "configuration changed"})
	}
	for _, o := range l.o.Observers {
		o.Configured(snap, s)
	}
	return nil
}

// nodeChanged requests the Settings again, because the same configuration may now mean something else.
func (l *Loop) nodeChanged() {
	if l.held != nil {
		l.agenda.set(jobConfigure, time.Now())
		return
	}
	if l.snapshot == nil {
		return
	}
	if err := l.configure(l.snapshot); err != nil {
		l.o.Log.Error("the configuration cannot be applied to the changed node; the last settings stay in force", "error", err)
	}
}

// reconfigure retries a snapshot that Configure refused.
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

// took formats a duration with its unit, because a JSON log would leave the unit out.
func took(d time.Duration) string { return d.Round(time.Microsecond).String() }

// logReport writes one line per round: at info level if anything changed, otherwise at debug level.
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
	if n := len(rep.HeldBack); n > 0 {
		args = append(args, "held-back", n, "first-held-back", rep.HeldBack[0].String())
	}
	if n := len(rep.Conflicts); n > 0 {
		args = append(args, "conflicts", n, "first-conflict", string(rep.Conflicts[0].ID))
	}
	switch {
	case rep.Err != nil:
		log.Error("sync failed; the earlier state stays in force; retrying", append(args, "error", rep.Err)...)
	case rep.FlowsErr != nil:
		log.Warn("synced, except for stale connections", append(args, "error", rep.FlowsErr)...)
	case rep.Changes() > 0 || rep.Reason == "start":
		log.Info("synced", args...)
	default:
		log.Debug("synced", args...)
	}
}
