package nftables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// noticeBuffer holds what the kernel says at once when somebody empties a map of 250,000 elements; what does not fit is
// lost, and everything has to be read. The memory is used for that moment only.
const noticeBuffer = 32 << 20

// settleWait is how long a call of Generation waits for the next notification of a commit that the kernel has already counted,
// and readLimit how long they may take in all: a second for 250,000 elements.
const (
	settleWait = 50 * time.Millisecond
	readLimit  = 5 * time.Second
)

// errUnsettled says that the kernel has yet to tell what a commit was about.
var errUnsettled = errors.New("nftables: the kernel has not told yet what somebody else wrote")

// watcher tells commits that touched weir's tables from all other. It holds a socket that receives what every transaction
// changed, except weir's own, and reads it only when the ruleset's generation has moved. Where the kernel had to drop
// notifications, or they do not come, it takes the tables for touched.
type watcher struct {
	conn *conn
	// bell is another descriptor of the same socket. It is never read from: it only says when there is something to read.
	bell *os.File
	// seen is the kernel's generation up to which everything is accounted for.
	seen uint32
	// own is the generation that weir's last transaction made.
	own uint32
	// moves counts the times that somebody else may have touched the tables, and touched is what, since it was read last.
	moves   uint64
	touched touched
	// awaited is since when notifications are waited for that belong to no commit accounted for, and hit says that one of
	// those which came is about the tables.
	awaited time.Time
	hit     bool
	// paused says that notifications are not received for now.
	paused bool
}

func (w *watcher) close() error {
	if w.conn == nil {
		return nil
	}
	err := errors.Join(w.bell.Close(), w.conn.close())
	w.conn, w.bell = nil, nil
	return err
}

// Notified implements backends.Notifier, from the first call of Generation on.
func (b *Backend) Notified() <-chan struct{} { return b.wake }

// Generation moves when somebody else may have written to weir's tables. It costs one small request when nobody wrote at
// all, and a look at what was written when somebody did.
func (b *Backend) Generation(ctx context.Context) (uint64, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.open()
	if err != nil {
		return 0, fmt.Errorf("nftables: %w", err)
	}
	w := &b.watch
	if w.conn == nil {
		if err := w.start(ctx, c, b.wake); err != nil {
			return 0, fmt.Errorf("nftables: watch the ruleset: %w", err)
		}
	}
	now, err := c.generation(ctx)
	if err != nil {
		return 0, fmt.Errorf("nftables: %w", err)
	}
	if now != w.seen && !w.read(now, b.name) {
		return 0, errUnsettled
	}
	return w.moves, nil
}

// start subscribes, and has wake told of what arrives. What happened before is not known, so it counts as a move.
func (w *watcher) start(ctx context.Context, own *conn, wake chan<- struct{}) error {
	c, err := dial()
	if err != nil {
		return err
	}
	_ = c.nl.SetReadBuffer(noticeBuffer)
	pid := own.nl.PID()
	// Notifications carry the port of the socket that committed; the filter reads it in network order.
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: swap32(pid), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 30},
		bpf.RetConstant{Val: 0},
	})
	if err == nil {
		err = c.nl.SetBPF(filter)
	}
	if err == nil {
		err = c.nl.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
	if err == nil {
		w.seen, err = own.generation(ctx)
	}
	var bell *os.File
	if err == nil {
		bell, err = c.duplicate()
	}
	if err != nil {
		return errors.Join(err, c.close())
	}
	w.conn, w.bell = c, bell
	w.lost()
	go ring(bell, wake)
	return nil
}

// ring tells of everything that arrives at a socket, until that is closed.
func ring(bell *os.File, wake chan<- struct{}) {
	raw, err := bell.SyscallConn()
	for err == nil {
		waited := false
		err = raw.Read(func(uintptr) bool {
			again := waited
			waited = true
			return again
		})
		if err == nil {
			select {
			case wake <- struct{}{}:
			default: // it has not been heard yet
			}
		}
	}
}

func swap32(n uint32) uint32 {
	b := native32(n)
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}

// lost says that the notifications do not tell what was touched.
func (w *watcher) lost() {
	w.moves++
	w.touched = touched{everything: true}
}

// read accounts for all commits up to the generation now. It is false if their notifications are still to come. The kernel
// notifies before the next commit can begin: after a commit of weir's own all earlier ones have notified.
func (w *watcher) read(now uint32, name string) bool {
	complete := now == w.own
	read := func(r reply) error {
		switch {
		case r.typ == subsys(unix.NFT_MSG_NEWGEN):
			complete = complete || int32(generationOf(r.data)-now) >= 0
		case r.typ>>8 == unix.NFNL_SUBSYS_NFTABLES:
			w.hit = w.touched.note(r.typ, r.data, name) || w.hit
		}
		return nil
	}
	if w.awaited.IsZero() {
		w.awaited = time.Now()
	}
	err := w.conn.nl.SetReadDeadline(time.Now().Add(settleWait)) // the one before may have passed
	for limit := time.Now().Add(readLimit); err == nil && time.Now().Before(limit); {
		err = w.conn.receive(false, read)
		if errors.Is(err, unix.EAGAIN) {
			if complete {
				if w.hit {
					w.moves++
				}
				w.account(now)
				return true
			}
			err = errors.Join(w.conn.nl.SetReadDeadline(time.Now().Add(settleWait)), w.conn.receive(true, read))
		}
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && time.Since(w.awaited) < readLimit {
		return false
	}
	w.lost() // or it does not come
	w.account(now)
	return true
}

// account says that nothing up to a generation is left to be read.
func (w *watcher) account(now uint32) { w.seen, w.hit, w.awaited = now, false, time.Time{} }

// quiet is how many changes a plan has at least for the subscription to pause while it is applied: otherwise the kernel
// makes a notification of every element, only for the filter to drop it, which costs as much as the commit.
const quiet = 500

// pause ends the subscription until resume. What was told until the generation now is read before.
func (w *watcher) pause(now uint32, name string) {
	if w.conn != nil && w.seen != now {
		w.read(now, name)
	}
	if w.conn != nil && w.conn.nl.LeaveGroup(unix.NFNLGRP_NFTABLES) == nil {
		w.paused = true
	}
}

// resume takes the subscription up again. alone says that nobody else committed meanwhile.
func (w *watcher) resume(alone bool) {
	if !w.paused {
		return
	}
	w.paused = false
	if !alone {
		w.lost()
	}
	if err := w.conn.nl.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		_ = w.close() // the next call of Generation begins anew, which counts as a move
	}
}

// committed accounts for transactions of weir's own: before is the generation ahead of them. It says whether nobody else
// committed between, nor before without being accounted for.
func (w *watcher) committed(before, after uint32, transactions int) bool {
	if after != before+uint32(transactions) {
		return false
	}
	w.own = after
	if w.seen != before {
		return false
	}
	w.seen = after
	return true
}
