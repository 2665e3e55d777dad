package filesource

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"weir/spec"
)

// pollShare is the part of its time that polling may take: one in so many.
const pollShare = 50

// loop is one Watch: it alone knows time. Everything is done by the goroutine that calls run.
type loop struct {
	*Source
	*session
	events  <-chan fsnotify.Event
	errors  <-chan error
	mounted <-chan struct{}
	out     chan<- spec.Update

	box    spec.Outbox
	settle settle
	// compare says that events do not tell all that changed.
	compare bool
	// hold is until when reading is put off although changes have settled.
	hold time.Time
	// stale is a lock that was there for too long, and does not count any more.
	stale hint
	// probed is how long the last probe took.
	probed time.Duration
}

// run returns ctx's error.
func (l *loop) run(ctx context.Context) error {
	l.revs.locate()
	l.settle.touch(time.Now().Add(-l.quiet()))
	timer, rescan := time.NewTimer(0), time.NewTimer(l.interval())
	defer timer.Stop()
	defer rescan.Stop()
	for {
		var due <-chan time.Time
		if l.settle.waiting() {
			timer.Reset(time.Until(l.dueTime()))
			due = timer.C
		}
		var out chan<- spec.Update
		var news spec.Update
		if u := l.box.Next(); u != nil {
			out, news = l.out, *u
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, ok := <-l.events:
			l.onEvent(e, ok)
		case err, ok := <-l.errors:
			l.onError(err, ok)
		case <-l.mounted:
			l.doubt()
		case <-rescan.C:
			l.doubt()
			rescan.Reset(l.interval())
		case <-due:
			if err := l.read(ctx); err != nil {
				return err
			}
			rescan.Reset(l.interval())
		case out <- news:
			l.box.Sent()
		}
	}
}

// quiet returns how long changes have to rest.
func (l *loop) quiet() time.Duration { return max(l.weir().SettleTime, 0) }

// interval returns the time to the next comparison with everything.
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

// doubt asks for a comparison with everything.
func (l *loop) doubt() {
	l.compare = true
	l.settle.touch(time.Now())
}

// onEvent marks what an event is about. ok is false when there will be no more events.
func (l *loop) onEvent(e fsnotify.Event, ok bool) {
	if !ok {
		l.events, l.tree.watch.n, l.tree.watch.limited = nil, nil, true
		l.doubt()
		return
	}
	dir := filepath.Dir(e.Name)
	matters := l.tree.mark(e.Name) || l.revs.moved(e.Name) || l.tree.watch.early[dir] || l.tree.watch.early[e.Name]
	if !matters {
		return
	}
	l.settle.touch(time.Now())
	if e.Has(fsnotify.Create) && !hidden(filepath.Base(e.Name)) && (l.tree.dirsAt[dir] != nil || l.tree.watch.early[dir]) {
		if fi, err := l.tree.lstat(e.Name); err == nil && fi.IsDir() {
			l.tree.watch.announce(e.Name)
		}
	}
}

// onError deals with a watcher that lost events, for whatever reason.
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
	l.doubt()
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
	if u != nil {
		l.box.Put(*u)
	}
	return nil
}

// locked says that Git is at work in the directory, and not for too long.
func (l *loop) locked(now time.Time) bool {
	lock, ok := l.revs.locked()
	if !ok || lock == l.stale {
		return false
	}
	if l.settle.expired(now, lockMax) {
		l.stale = lock
		l.opts.Log.Warn("a Git lock is held for too long; reading in spite of it", "file", l.revs.repo.IndexLock(),
			"remedy", "remove it if no git is running")
		return false
	}
	return true
}
