package filesource

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"weir/spec"
)

// pollShare limits the time spent on polling to one part in pollShare.
const pollShare = 50

// loop is one Watch, and the only part that knows the time. The goroutine that calls run does everything.
type loop struct {
	*Source
	*session
	events  <-chan fsnotify.Event
	errors  <-chan error
	mounted <-chan struct{}
	stuck   *stuck
	sink    func(spec.Update)
	// stdinEnds is closed when standard input ends, if the loop began without it.
	stdinEnds <-chan struct{}

	settle settle
	// compare means that events did not report all changes.
	compare bool
	// hold is the time until which reading is put off although changes have settled.
	hold time.Time
	// stale is a lock that existed for too long, and is ignored from then on.
	stale hint
	// probed is how long the last probe took.
	probed time.Duration
}

// run returns ctx's error.
func (l *loop) run(ctx context.Context) error {
	l.revs.locate()
	l.settle.touch(time.Now().Add(-l.quiet()))
	timer, periodic := time.NewTimer(0), time.NewTimer(l.interval())
	defer timer.Stop()
	defer periodic.Stop()
	for {
		var due <-chan time.Time
		if l.settle.waiting() {
			timer.Reset(time.Until(l.dueTime()))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-l.events:
			l.onEvent(e, ok)
		case err, ok := <-l.errors:
			l.onError(err, ok)
		case <-l.mounted:
			l.stuck.forgive()
			l.rescan()
		case <-l.stdinEnds:
			l.stdinEnds = nil
			l.takeStdin(l.tree)
			l.settle.touch(time.Now())
		case l.session.kept = <-l.Source.kept:
			l.rescan()
		case <-l.stuck.back:
			l.rescan()
		case <-l.opts.Reread:
			l.opts.Log.Info("asked to: reading the input again")
			l.rescan()
		case <-periodic.C:
			l.rescan()
			periodic.Reset(l.interval())
		case <-due:
			if err := l.read(ctx); err != nil {
				return err
			}
			periodic.Reset(l.interval())
		}
	}
}

// quiet returns how long there must be no change before a read.
func (l *loop) quiet() time.Duration { return max(l.weir().SettleTime, 0) }

// interval returns the time to the next full comparison.
func (l *loop) interval() time.Duration {
	if l.tree.watch.limited {
		return max(l.opts.PollInterval, pollShare*l.probed)
	}
	return l.opts.RescanInterval
}

func (l *loop) dueTime() time.Time {
	if due := l.settle.due(l.quiet()); due.After(l.hold) {
		return due
	}
	return l.hold
}

// rescan requests a full comparison.
func (l *loop) rescan() {
	l.compare = true
	l.settle.touch(time.Now())
}

// onEvent marks the path of an event. ok is false when there will be no more events.
func (l *loop) onEvent(e fsnotify.Event, ok bool) {
	if !ok {
		l.events, l.tree.watch.n, l.tree.watch.limited = nil, nil, true
		l.rescan()
		return
	}
	dir := filepath.Dir(e.Name)
	matters := l.tree.mark(e.Name) || l.revs.moved(e.Name) || l.tree.watch.early[dir] || l.tree.watch.early[e.Name]
	if !matters {
		return
	}
	l.settle.touch(time.Now())
	if e.Has(fsnotify.Remove | fsnotify.Rename) {
		l.tree.oversight.gone(e.Name)
	}
	if e.Has(fsnotify.Create) && !hidden(filepath.Base(e.Name)) && (l.tree.dirsAt.has(dir) || l.tree.watch.early[dir]) {
		if fi, err := l.tree.lstat(e.Name); err == nil && fi.IsDir() {
			l.tree.watch.announce(e.Name)
		}
	}
}

// onError handles a watcher that lost events, for whatever reason.
func (l *loop) onError(err error, ok bool) {
	if !ok {
		l.errors = nil
		return
	}
	if errors.Is(err, fsnotify.ErrEventOverflow) {
		l.opts.Log.Info("more file changes than the kernel queues; comparing everything")
	} else {
		l.opts.Log.Warn("watching files failed; comparing everything", "error", err)
	}
	l.rescan()
}

// read makes a pass, unless there is a reason to wait a little longer.
func (l *loop) read(ctx context.Context) error {
	if l.compare {
		l.compare = false
		start := time.Now()
		l.tree.watch.renew()
		if err := l.tree.probe(ctx); err != nil {
			return err
		}
		l.probed = time.Since(start)
	}
	now := time.Now()
	if l.locked(now) || !l.settle.expired(now, settleMax) && (l.tree.moving() || l.tree.emptied()) {
		l.hold = now.Add(max(l.quiet(), time.Millisecond))
		return nil
	}
	l.settle, l.hold = settle{}, time.Time{}
	u, err := l.pass(ctx)
	if err != nil {
		return err
	}
	l.tree.watch.settled()
	if l.passed != nil {
		l.passed(l.tree.calls)
	}
	if len(l.tree.marked) > 0 {
		l.settle.touch(now)
	}
	for i := range u {
		l.sink(u[i])
	}
	return nil
}

// locked reports whether Git is at work in the directory, and not for too long.
func (l *loop) locked(now time.Time) bool {
	lock, ok := l.revs.locked()
	if !ok || lock == l.stale {
		return false
	}
	if l.settle.expired(now, lockMax) {
		l.stale = lock
		l.opts.Log.Warn("a Git lock is held for too long; reading the files anyway", "file", l.revs.repo.IndexLock(),
			"remedy", "remove it if no git is running")
		return false
	}
	return true
}
