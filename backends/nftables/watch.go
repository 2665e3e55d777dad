package nftables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"weir/backends/nfnl"

	"golang.org/x/sys/unix"
)

// settleWait bounds how long a look waits for the next notification of a commit that the kernel has already counted.
// readLimit bounds how long all of them may take: a second for 250,000 elements.
const (
	settleWait = 50 * time.Millisecond
	readLimit  = 5 * time.Second
)

// errUnsettled is returned if the kernel has counted a commit but not yet notified of it.
var errUnsettled = errors.New("the kernel has not yet sent the notifications of another process's commit")

// watcher distinguishes commits that touched weir's tables from all others. It receives the notifications of every
// transaction, except those of weir's own connection. It reads them only when the generation of the ruleset has moved.
//
// If notifications were lost, or do not come, it assumes that the tables were touched. So it may report a write that
// never happened, but never misses one. The mutex of the Backend guards it.
type watcher struct {
	kernel nfnl.Kernel
	name   string        // of the tables
	wake   chan struct{} // receives when another process may have written

	listener nfnl.Listener // nil until the first look
	// seen is the kernel's generation up to which everything is accounted for. own is the generation after weir's last
	// transaction.
	seen, own uint32
	// moved reports whether another process may have touched the tables since the last read began. touched holds what
	// it touched since the last successful read.
	moved   bool
	touched touched
	// waitingSince is when the wait began for notifications that belong to no accounted commit. touchedOurs reports
	// whether one of the received ones is about weir's tables.
	waitingSince time.Time
	touchedOurs  bool
	// paused reports whether the kernel sends no notifications for now.
	paused bool
}

func (w *watcher) close() error {
	if w.listener == nil {
		return nil
	}
	err := w.listener.Close()
	w.listener = nil
	return err
}

// look records what other processes have committed until now.
func (w *watcher) look(ctx context.Context, own nfnl.Conn) error {
	if w.listener == nil {
		if err := w.start(ctx, own); err != nil {
			return fmt.Errorf("watch the ruleset: %w", err)
		}
	}
	now, err := nfnl.Generation(ctx, own)
	if err != nil {
		return err
	}
	if now != w.seen && !w.receive(now) {
		return errUnsettled
	}
	return nil
}

// start subscribes. Earlier commits are unknown.
func (w *watcher) start(ctx context.Context, own nfnl.Conn) error {
	l, err := w.kernel.Listen(own, w.wake)
	if err != nil {
		return err
	}
	if w.seen, err = nfnl.Generation(ctx, own); err != nil {
		return errors.Join(err, l.Close())
	}
	w.listener, w.paused = l, false
	w.invalidate()
	return nil
}

// invalidate records that the notifications do not tell what was touched.
func (w *watcher) invalidate() {
	w.moved, w.touched = true, touched{everything: true}
}

// beginRead records that a read of the tables begins. The read accounts for all commits until now.
func (w *watcher) beginRead(ctx context.Context, own nfnl.Conn) error {
	err := w.look(ctx, own)
	w.moved = err != nil
	return err
}

// endRead records that the read succeeded.
func (w *watcher) endRead() { w.touched = touched{} }

// receive accounts for all commits up to the generation now. It returns false if some of their notifications have not
// arrived. The kernel sends the notifications of a commit before the next commit can begin. So after a commit of weir's
// own, those of all earlier commits have been sent.
func (w *watcher) receive(now uint32) bool {
	complete := now == w.own
	take := func(n nfnl.Notification) {
		if n.Type == unix.NFT_MSG_NEWGEN {
			complete = complete || int32(n.Generation-now) >= 0
			return
		}
		w.touchedOurs = w.touched.note(n, w.name) || w.touchedOurs
	}
	if w.waitingSince.IsZero() {
		w.waitingSince = time.Now()
	}
	var err error
	for limit := time.Now().Add(readLimit); err == nil && time.Now().Before(limit); {
		err = w.listener.Receive(0, take)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if complete {
				w.moved = w.moved || w.touchedOurs
				w.markRead(now)
				return true
			}
			err = w.listener.Receive(settleWait, take)
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && time.Since(w.waitingSince) < readLimit {
		return false
	}
	w.invalidate() // some were lost, or do not come
	w.markRead(now)
	return true
}

// markRead records that nothing up to a generation is left to be received.
func (w *watcher) markRead(now uint32) {
	w.seen, w.touchedOurs, w.waitingSince = now, false, time.Time{}
}

// pauseThreshold is the number of changes of a plan from which on the subscription pauses while the plan is applied.
// Otherwise the kernel makes a notification of every element, only for the filter to drop it, which costs as much as
// the commit.
const pauseThreshold = 500

// account runs a number of weir's own commits, with the given number of changes in all, and accounts for them.
func (w *watcher) account(ctx context.Context, own nfnl.Conn, changes, commits int, run func() error) error {
	before, err := nfnl.Generation(ctx, own)
	if err == nil && changes >= pauseThreshold {
		w.pause(before)
		before, err = nfnl.Generation(ctx, own) // another process may have committed before
	}
	soleWriter := false
	defer func() { w.resume(soleWriter) }()
	if err != nil {
		return err
	}
	if err := run(); err != nil {
		return err
	}
	if after, err := nfnl.Generation(ctx, own); err == nil {
		soleWriter = w.committed(before, after, commits)
	}
	return nil
}

// pause ends the subscription until resume. It first receives the notifications up to the generation now.
func (w *watcher) pause(now uint32) {
	if w.listener == nil {
		return
	}
	if w.seen != now {
		w.receive(now)
	}
	w.paused = w.listener.Pause() == nil
}

// resume begins the subscription anew. soleWriter reports whether no other process committed meanwhile.
func (w *watcher) resume(soleWriter bool) {
	if !w.paused {
		return
	}
	w.paused = false
	if !soleWriter {
		w.invalidate()
	}
	if err := w.listener.Resume(); err != nil {
		_ = w.close() // the next look starts anew, and assumes that the tables were touched
	}
}

// committed accounts for weir's own commits after the generation before. It reports whether weir's were the only
// commits since the last accounted generation.
func (w *watcher) committed(before, after uint32, commits int) bool {
	if after != before+uint32(commits) {
		return false
	}
	w.own = after
	if w.seen != before {
		return false
	}
	w.seen = after
	return true
}
