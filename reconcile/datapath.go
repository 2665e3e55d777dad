package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/dataplane"
)

// DataPath is a proxy mode that is ready to work: a Backend and the parts that belong to it alone.
type DataPath struct {
	Mode   string
	Traits backends.Traits
	// Backend is a pointer. The same pointer as before means that nothing changed in the whole DataPath.
	Backend backends.Backend
	// Flows removes the stale connection tracking entries of this Backend. It is called only while the Backend is in
	// force. If it is nil, no entry is touched.
	Flows Flows
}

// maxReplans limits how often one round plans again without the changes that the kernel refused.
const maxReplans = 64

// dataPath is a DataPath with its desired and observed items and its quarantine. An Engine has one, or several while it
// changes the proxy mode.
type dataPath struct {
	DataPath
	log        hclog.Logger
	tracker    *tracker
	desired    desired
	observed   observed
	quarantine *quarantine
}

func newDataPath(p DataPath, log hclog.Logger) *dataPath {
	t, q := newTracker(), newQuarantine(log)
	return &dataPath{DataPath: p, log: log, tracker: t, desired: newDesired(t, q), observed: newObserved(t), quarantine: q}
}

// replace hands over to a Backend of the same mode with other settings. The observed side stays.
func (d *dataPath) replace(p DataPath) {
	if p.Backend != d.Backend {
		d.close()
	}
	d.DataPath = p
	d.desired.all = true
	d.quarantine.forget()
}

func (d *dataPath) close() {
	if err := d.Backend.Close(); err != nil {
		d.log.Debug("close the backend", "error", err)
	}
}

// retire empties the desired side for good.
func (d *dataPath) retire() {
	d.desired.nothing()
	d.quarantine.forget()
	d.observed.keep, d.observed.leaving = false, true
	clear(d.observed.drift)
}

// retryNow retries a Service in the next round, because its input changed.
func (d *dataPath) retryNow(name dataplane.ServiceName) {
	if d.quarantine.retryNow(name) {
		d.desired.changed(name)
	}
}

// round observes, renders and applies. An error means that the kernel may not hold the desired state.
func (d *dataPath) round(ctx context.Context, full bool, from wanted, rep *Report) error {
	if err := d.observe(ctx, full, rep); err != nil {
		return err
	}
	start := time.Now()
	if err := d.render(from, rep.Start); err != nil {
		return err
	}
	rep.Stages.Plan += time.Since(start)
	return d.apply(ctx, rep.Start, rep)
}

// dryRun returns what a round would do, after a fresh read.
func (d *dataPath) dryRun(ctx context.Context, from wanted, rep *Report) (backends.Plan, error) {
	d.observed.doubt()
	if err := errors.Join(d.observe(ctx, true, rep), rep.Err); err != nil {
		return backends.Plan{}, err
	}
	if err := d.render(from, rep.Start); err != nil {
		return backends.Plan{}, err
	}
	return d.plan(rep.Reason, rep.Start), nil
}

// observe brings the observed side up to date. Its error is nil if the observed side is at least what the kernel
// confirmed last. rep.Err may still report that a fresh read failed.
func (d *dataPath) observe(ctx context.Context, full bool, rep *Report) error {
	err := d.observed.refresh(ctx, d.Backend, full, rep)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("read what the kernel holds for %s: %w", d.Mode, err)
	if d.observed.trust == untrusted {
		return err
	}
	rep.Err = errors.Join(rep.Err, err)
	return nil
}

func (d *dataPath) render(from wanted, now time.Time) error {
	if err := d.desired.render(d.Backend, from, now); err != nil {
		return fmt.Errorf("%s: %w", d.Mode, err)
	}
	return nil
}

// plan returns the changes to make now, without those held back, and without deletes until the gate is open.
func (d *dataPath) plan(reason string, now time.Time) backends.Plan {
	changes := d.tracker.Pending(func(id backends.ID, owners []dataplane.ServicePortName) bool {
		return d.quarantine.holdsAll(id, owners, now)
	})
	if !d.observed.mayDelete() {
		changes = slices.DeleteFunc(changes, isDelete)
	}
	return backends.Plan{Backend: d.Mode, Reason: reason, Changes: changes}
}

func isDelete(c backends.Change) bool { return c.Op == backends.Delete }

// apply makes the kernel equal to the desired side, except for what is held back.
func (d *dataPath) apply(ctx context.Context, now time.Time, rep *Report) error {
	for range maxReplans {
		start := time.Now()
		plan := d.plan(rep.Reason, now)
		rep.Stages.Plan += time.Since(start)
		if plan.Empty() {
			d.desired.accepted(now)
			clear(d.observed.drift)
			d.quarantine.clear(now)
			if err := d.quarantine.scaffolding(); err != nil {
				return fmt.Errorf("apply to %s: %w", d.Mode, err)
			}
			return d.effective(ctx)
		}
		start = time.Now()
		result := d.Backend.Apply(ctx, plan)
		rep.Stages.Apply += time.Since(start)
		if err := d.learn(plan, result, now, rep); err != nil {
			return err
		}
	}
	return fmt.Errorf("apply to %s: gave up for now after the kernel refused %d plans, each for another reason", d.Mode, maxReplans)
}

// effective returns an error if the kernel does not run what it holds. What is being removed need not run.
func (d *dataPath) effective(ctx context.Context) error {
	r := d.Backend.Optional().Refuser
	if r == nil || d.observed.leaving {
		return nil
	}
	if err := r.Ineffective(ctx); err != nil {
		return fmt.Errorf("%s has no effect: %w", d.Mode, err)
	}
	return nil
}

// learn records what the kernel confirmed of a plan, and holds back what it refused. An error means that the rest
// cannot be retried before the next round.
func (d *dataPath) learn(plan backends.Plan, result backends.Result, now time.Time, rep *Report) error {
	var confirmed, refused []backends.Change
	switch {
	case len(result.Refused) > 0:
		for _, c := range plan.Changes {
			if _, no := result.Refused[c.ID]; no {
				refused = append(refused, c)
			} else if result.Err == nil {
				confirmed = append(confirmed, c)
			}
		}
	case result.Err == nil:
		confirmed = plan.Changes
	}
	d.observed.confirm(confirmed, rep)
	progress := d.refuseAll(result, refused, now) || len(confirmed) > 0
	if result.Err == nil && (progress || len(refused) == 0) || result.Err != nil && len(refused) > 0 && progress {
		return nil
	}
	d.observed.trust = untrusted
	return fmt.Errorf("apply to %s: %w", d.Mode, cmp.Or(result.Err, errNoProgress))
}

// errNoProgress means that a backend refused changes that were not in its plan.
var errNoProgress = errors.New("the same changes were refused again")

// refuseAll holds back the Services that want the refused changes. It counts each Service once, even if several of its
// changes were refused. It reports whether a new plan is worth trying.
func (d *dataPath) refuseAll(result backends.Result, refused []backends.Change, now time.Time) bool {
	// A delete may fail only because a refused update still references the object. Blame deletes only when nothing else
	// was refused.
	if slices.ContainsFunc(refused, func(c backends.Change) bool { return !isDelete(c) }) {
		refused = slices.DeleteFunc(refused, isDelete)
	}
	progress := false
	seen := map[suspect]bool{}
	for _, c := range refused {
		err := fmt.Errorf("the kernel refused %s of %s: %w", c.Op, c.ID, result.Refused[c.ID])
		for _, s := range suspectsOf(c.ID, c.Owners) {
			if !seen[s] {
				seen[s] = true
				progress = d.refuse(s, err, now) || progress
				d.quarantine.suspects[s].scaffolding = s.item != "" && !isDelete(c)
			}
		}
	}
	return progress
}

// refuse holds back a suspect whose change the kernel refused. A Service is first put back to the state that the kernel
// accepted last. If that is refused too, the Service is left out. It reports whether a new plan is worth trying.
func (d *dataPath) refuse(s suspect, err error, now time.Time) bool {
	news := d.quarantine.fail(s, err, now)
	if news && s.item == "" && d.desired.revert(d.Backend, s.service, now) {
		return true
	}
	return d.quarantine.hold(s) || news
}
