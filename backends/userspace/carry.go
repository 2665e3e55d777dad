package userspace

import (
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is how much a pipe is asked to hold: enough that a fast sender costs few system calls.
	pipeSize = 1 << 20
	// bufferSize is how much a direction moves that has no pipe.
	bufferSize = 32 << 10
	// share is how much a direction moves before others have their turn.
	share = 1 << 20
)

// pipe is room in the kernel for bytes on their way from one socket to another: splice(2) moves them without a copy.
type pipe struct{ r, w int }

// pipes are those of one loop. Few are needed, since a direction has one only while it holds bytes that its receiver did
// not take yet. For little, which two copies cost less than a pipe, there is a buffer.
type pipes struct {
	buffer []byte
	limit  int // how many the descriptors allow
	made   int
	spare  []pipe
}

// maxSpare is how many empty pipes are kept for the next.
const maxSpare = 16

// take returns false if there are too many already.
func (ps *pipes) take() (pipe, bool) {
	if n := len(ps.spare); n > 0 {
		p := ps.spare[n-1]
		ps.spare = ps.spare[:n-1]
		return p, true
	}
	var fds [2]int
	if ps.made >= ps.limit || unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return pipe{}, false
	}
	// The kernel may allow an unprivileged user no more than it gave.
	unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	ps.made++
	return pipe{fds[0], fds[1]}, true
}

// give takes a pipe back. Only an empty one is of use.
func (ps *pipes) give(p pipe, empty bool) {
	if empty && len(ps.spare) < maxSpare {
		ps.spare = append(ps.spare, p)
		return
	}
	unix.Close(p.r)
	unix.Close(p.w)
	ps.made--
}

func (ps *pipes) close() {
	for _, p := range ps.spare {
		unix.Close(p.r)
		unix.Close(p.w)
	}
}

// end is one of the sockets of a pair, and what is known of it: whether a read or a write would do something. Events say
// that it would, and a read or a write that does nothing that it would not.
type end struct {
	pair               *pair
	fd                 int // -1 if it is closed
	readable, writable bool
	ending             bool // a read may return less than there is: before the end of the stream, or at urgent data
}

// way is one direction of a pair. It holds nothing while its sender is idle, and at most one pipe or buffer while its
// receiver is slow: what the sender sends beyond that stays in its own socket's buffer, and then with the sender.
type way struct {
	from, to *end
	bulk     bool // much has arrived at once: a pipe is worth its system calls
	pipe     pipe
	inPipe   int    // bytes
	rest     []byte // bytes that are in a buffer
	borrowed bool   // the buffer is the loop's, for this turn only
	ended    bool   // the sender has ended its sending, and all has been passed on
}

func (w *way) empty() bool { return w.inPipe == 0 && len(w.rest) == 0 }

// move passes on what can be. It returns true if there may be more to do and others should have their turn first.
func (w *way) move(ps *pipes) (more bool, err error) {
	more, err = w.turn(ps)
	if w.borrowed && len(w.rest) > 0 {
		w.rest = slices.Clone(w.rest)
	}
	w.borrowed = false
	return more, err
}

func (w *way) turn(ps *pipes) (more bool, err error) {
	for moved := 0; moved < share; {
		if w.empty() {
			if w.ended || !w.from.readable || !w.to.writable {
				return false, nil
			}
			if err := w.fill(ps); err != nil || w.empty() {
				return false, err
			}
		}
		n, err := w.drain(ps)
		if err != nil || !w.to.writable {
			return false, err
		}
		moved += n
	}
	return true, nil
}

// fill takes what has arrived.
func (w *way) fill(ps *pipes) error {
	if !w.bulk {
		return w.fillBuffer(ps)
	}
	p, ok := ps.take()
	if !ok {
		return w.fillBuffer(ps)
	}
	n, err := again(func() (int64, error) {
		return unix.Splice(w.from.fd, nil, p.w, nil, pipeSize, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	})
	w.bulk = n >= len(ps.buffer)
	if n > 0 {
		w.pipe, w.inPipe = p, n
		return nil
	}
	ps.give(p, true)
	return w.nothing(err)
}

func (w *way) fillBuffer(ps *pipes) error {
	n, err := again(func() (int, error) { return unix.Read(w.from.fd, ps.buffer) })
	if n == 0 || err != nil {
		return w.nothing(err)
	}
	w.rest, w.borrowed = ps.buffer[:n], true
	// A short read says that there is no more, but for those that end early.
	w.bulk = n == len(ps.buffer)
	w.from.readable = w.bulk || w.from.ending
	return nil
}

// nothing notes why a read returned no bytes.
func (w *way) nothing(err error) error {
	if err == unix.EAGAIN {
		w.from.readable = false
		return nil
	}
	w.ended = err == nil
	return err
}

// drain passes on what is held, and returns how much was taken.
func (w *way) drain(ps *pipes) (n int, err error) {
	if w.inPipe > 0 {
		n, err = again(func() (int64, error) {
			return unix.Splice(w.pipe.r, nil, w.to.fd, nil, w.inPipe, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		})
		if w.inPipe -= n; w.inPipe == 0 {
			ps.give(w.pipe, true)
		}
	} else {
		n, err = again(func() (int, error) { return unix.SendmsgN(w.to.fd, w.rest, nil, nil, unix.MSG_NOSIGNAL) })
		if w.rest = w.rest[n:]; len(w.rest) == 0 {
			w.rest = nil
		}
	}
	if err == unix.EAGAIN {
		w.to.writable = false
		err = nil
	}
	return n, err
}

// drop gives back what is held.
func (w *way) drop(ps *pipes) {
	if w.inPipe > 0 {
		ps.give(w.pipe, false)
	}
	w.inPipe, w.rest = 0, nil
}

// again makes a system call until no signal interrupts it.
func again[N int | int64](call func() (N, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return int(max(n, 0)), err
		}
	}
}
