package reconcile

import (
	"context"
	"fmt"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
)

// trust is how well the observed side of a tracker is known to match the kernel.
type trust uint8

const (
	// untrusted: nothing was read yet, or the outcome of an apply is unknown. A full read comes before anything else.
	untrusted trust = iota
	// doubted: a read failed. The observed side is what the kernel confirmed last, and the next round reads everything.
	doubted
	// trusted: the observed side is what was read and confirmed, unless another process has written since.
	trusted
)

// reading is how much of the kernel a round reads.
type reading uint8

const (
	readNothing reading = iota
	readUnwatched
	readTouched
	readAll
)

// observed keeps the observed side of a tracker, and how far it can be trusted.
type observed struct {
	tracker *tracker
	trust   trust
	// listed reports whether a full read has succeeded in this process. keep reports whether the desired side is only
	// what an earlier process knew. Together they are the delete gate.
	listed, keep bool
	// leaving reports whether everything is taken down. What differs then is no drift.
	leaving bool
	// drift holds the IDs for which the kernel differs from what it had confirmed. repaired holds the owners of
	// repaired IDs, until the Engine takes them.
	drift    map[backends.ID]struct{}
	repaired []dataplane.ServicePortName
}

func newObserved(t *tracker) observed { return observed{tracker: t, drift: map[backends.ID]struct{}{}} }

// mayDelete reports whether the delete gate is open. A kept desired side must not delete, because the kernel may have
// been programmed after it was written.
func (o *observed) mayDelete() bool { return o.listed && !o.keep }

// moved reports whether another process may have written since the last read. known is false if the backend cannot
// tell.
func (o *observed) moved(ctx context.Context, b backends.Backend) (moved, known bool) {
	w := b.Optional().Watcher
	if w == nil {
		return false, false
	}
	moved, err := w.Moved(ctx)
	return moved, err == nil
}

// reading decides how much of the kernel a round reads.
func (o *observed) reading(ctx context.Context, b backends.Backend, full bool) reading {
	if o.trust != trusted {
		return readAll
	}
	if !full {
		return readNothing
	}
	moved, known := o.moved(ctx, b)
	switch {
	case !known:
		return readAll
	case moved:
		return readTouched
	case b.Optional().Unwatched != nil:
		return readUnwatched
	}
	return readNothing
}

// refresh reads the kernel if a read is requested or necessary. If the read fails, trust falls to doubted.
func (o *observed) refresh(ctx context.Context, b backends.Backend, full bool, rep *Report) error {
	how := o.reading(ctx, b, full)
	if how == readNothing {
		rep.Full = rep.Full || full
		return nil
	}
	start := time.Now()
	differ, touched, err := o.read(ctx, b, how)
	rep.Stages.Observe += time.Since(start)
	if err != nil {
		o.doubt()
		return err
	}
	if o.trust != untrusted && !o.leaving {
		rep.Drifted += len(differ)
		for _, id := range differ {
			o.drift[id] = struct{}{}
		}
	}
	o.listed, o.trust = true, trusted
	rep.Full = true
	if how != readUnwatched || len(differ) > 0 {
		rep.Observed, rep.Touched = true, touched
	}
	return nil
}

// doubt makes the next round read everything.
func (o *observed) doubt() { o.trust = min(o.trust, doubted) }

// read replaces the observed side. If the backend knows what another process wrote, it reads only that.
func (o *observed) read(ctx context.Context, b backends.Backend, how reading) (differ []backends.ID, touched bool, err error) {
	if how == readUnwatched {
		items, err := b.Optional().Unwatched.ReadUnwatched(ctx)
		return o.tracker.Reobserve(items), true, err
	}
	if how == readTouched {
		items, ok, err := b.Optional().Watcher.Reread(ctx, o.tracker)
		if err != nil {
			return nil, false, fmt.Errorf("read what was touched: %w", err)
		}
		if ok {
			return o.tracker.Reobserve(items), true, nil
		}
	}
	items := make([]backends.Item, 0, o.tracker.Len())
	for item, err := range b.Observe(ctx) {
		if err != nil {
			return nil, false, err
		}
		items = append(items, item)
	}
	if err := ctx.Err(); err != nil {
		return nil, false, err // an interrupted dump may end without an error
	}
	return o.tracker.ReplaceObserved(items), false, nil
}

// confirm records that the kernel made the changes.
func (o *observed) confirm(changes []backends.Change, rep *Report) {
	o.tracker.Confirm(changes)
	for _, c := range changes {
		rep.count(c)
		if _, ok := o.drift[c.ID]; ok {
			delete(o.drift, c.ID)
			o.repaired = append(o.repaired, c.Owners...)
			rep.Repaired++
		}
	}
}

// takeRepaired returns the Service ports whose drift was repaired since the last call.
func (o *observed) takeRepaired() []dataplane.ServicePortName {
	taken := o.repaired
	o.repaired = nil
	return taken
}
