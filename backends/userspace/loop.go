package userspace

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// loop is one thread that serves many sockets as they become ready (epoll(7), edge-triggered). A goroutine for each
// direction of each connection would cost twice the CPU time for short connections, and several kB for each idle one.
//
// What a loop serves is touched by its own goroutine only; everybody else posts to it.
type loop struct {
	epoll, wakeup int
	served        []served // by descriptor
	again         []*pair  // had their share of the time, and have more to do
	pipes         pipes
	stopped       bool

	mu     sync.Mutex
	posted []func()
	closed bool
}

// served is who is told what happens to a descriptor. The serial number tells its events from those of an earlier
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

// serve has the handler told of the events of a descriptor, until that is closed.
func (l *loop) serve(fd int, events uint32, by handler) error {
	for fd >= len(l.served) {
		l.served = append(l.served, make([]served, max(64, len(l.served)))...)
	}
	s := &l.served[fd]
	s.by = by
	s.serial++
	return unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd), Pad: s.serial})
}

// forget is for a descriptor that is about to be closed.
func (l *loop) forget(fd int) { l.served[fd].by = nil }

// post has f run by the loop. It may be called from anywhere.
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

// stop ends the loop. Nothing is served by it any more then.
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
		if len(l.again) > 0 {
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
		again := l.again
		l.again = nil
		for _, p := range again {
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

// after has f run by the loop after a while, unless the timer is stopped; f may run all the same if that is too late.
func (l *loop) after(d time.Duration, f func()) *time.Timer {
	return time.AfterFunc(d, func() { l.post(f) })
}
