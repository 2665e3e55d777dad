package userspace

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loop is one goroutine that serves many sockets as they become ready (epoll(7), edge-triggered). A goroutine for each
// direction of each connection would cost twice the CPU time for short connections, and several kB for each idle one.
//
// Only the loop's own goroutine uses the objects that it serves. Every other goroutine must call post.
type loop struct {
	epoll, wakeup int
	served        []served // by descriptor
	rescheduled   []*pair  // had their share of time, and have more to do
	pipes         pipes
	stopped       bool

	mu     sync.Mutex
	posted []func()
	closed bool
}

// served is the handler of a descriptor's events. The serial number distinguishes its events from those of an earlier
// descriptor with the same number.
type served struct {
	by     handler
	serial int32
}

type handler interface{ ready(events uint32) }

func newLoop(maxPipes int) (*loop, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	wakeup, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err == nil {
		err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wakeup, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wakeup)})
	}
	if err != nil {
		unix.Close(epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &loop{epoll: epoll, wakeup: wakeup, pipes: pipes{buffer: make([]byte, bufferSize), limit: maxPipes}}
	go l.run()
	return l, nil
}

// serve calls the handler with the events of a descriptor, until the descriptor is closed.
func (l *loop) serve(fd int, events uint32, by handler) error {
	for fd >= len(l.served) {
		l.served = append(l.served, make([]served, max(64, len(l.served)))...)
	}
	s := &l.served[fd]
	s.by = by
	s.serial++
	return unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: s.serial})
}

// forget removes the handler of a descriptor that is about to be closed.
func (l *loop) forget(fd int) { l.served[fd].by = nil }

// post makes the loop run f. It may be called from any goroutine.
func (l *loop) post(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	if l.posted = append(l.posted, f); len(l.posted) == 1 {
		unix.Write(l.wakeup, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// stop ends the loop. It serves nothing afterwards.
func (l *loop) stop() { l.post(func() { l.stopped = true }) }

func (l *loop) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	unix.Close(l.epoll)
	unix.Close(l.wakeup)
	l.pipes.close()
}

func (l *loop) run() {
	defer l.close()
	events := make([]unix.EpollEvent, 128)
	for !l.stopped {
		timeout := -1
		if len(l.rescheduled) > 0 {
			timeout = 0
		}
		n, err := unix.EpollWait(l.epoll, events, timeout)
		if err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("epoll_wait: %v", err)) // the descriptor is this loop's own
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == l.wakeup {
				l.runPosted()
			} else if s := l.served[e.Fd]; s.by != nil && s.serial == e.Pad {
				s.by.ready(e.Events)
			}
		}
		rescheduled := l.rescheduled
		l.rescheduled = nil
		for _, p := range rescheduled {
			p.pump()
		}
	}
}

func (l *loop) runPosted() {
	var count [8]byte
	unix.Read(l.wakeup, count[:])
	l.mu.Lock()
	fs := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

// after makes the loop run f after a while, unless the timer is stopped. If it is stopped too late, f may run even so.
func (l *loop) after(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() { l.post(f) })
}
