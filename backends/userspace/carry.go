package userspace

import (
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is the requested size of a pipe. It is so large that a fast sender costs few system calls.
	pipeSize = 1 << 20
	// bufferSize bounds how much a direction without a pipe moves at once.
	bufferSize = 32 << 10
	// share bounds how much a direction moves before the others have their turn.
	share = 1 << 20
)

// pipe is a kernel buffer for bytes on their way from one socket to another: splice(2) moves them without a copy.
type pipe struct{ r, w int }

// pipes are the pipes of one loop. Few are needed, since a direction has one only while it holds bytes that its
// receiver has not taken yet. For small amounts, which two copies move cheaper than a pipe, there is a buffer.
type pipes struct {
	buffer []byte
	limit  int // the maximum number, which depends on the descriptor limit
	made   int
	spare  []pipe
}

// maxSpare bounds the number of empty pipes that are kept for reuse.
const maxSpare = 16

// take returns false if too many pipes are in use.
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
	// The kernel may refuse an unprivileged user a larger pipe.
	unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	ps.made++
	return pipe{fds[0], fds[1]}, true
}

// give returns a pipe. Only an empty one can be used again.
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

// side is one of the two sockets of a pair, and whether a read or a write would make progress. An event reports that it
// would. A read or a write without progress reports that it would not.
type side struct {
	pair               *pair
	fd                 int // -1 if it is closed
	readable, writable bool
	ending             bool // at the end of the stream, or at urgent data, a read may return less than there is
}

// direction is one direction of a pair. It holds nothing while its sender is idle, and at most one pipe or buffer while
// its receiver is slow. Further bytes of the sender wait in the sender's own sockets.
type direction struct {
	from, to *side
	bulk     bool // much has arrived at once: a pipe is worth its system calls
	pipe     pipe
	inPipe   int    // bytes
	rest     []byte // the bytes in a buffer
	borrowed bool   // the buffer is the loop's, for this turn only
	ended    bool   // the sender has ended its sending, and everything was passed on
}

func (w *direction) empty() bool { return w.inPipe == 0 && len(w.rest) == 0 }

// move passes on as many bytes as possible. It returns true if there may be more to do after the others had their turn.
func (w *direction) move(ps *pipes) (more bool, err error) {
	more, err = w.turn(ps)
	if w.borrowed && len(w.rest) > 0 {
		w.rest = slices.Clone(w.rest)
	}
	w.borrowed = false
	return more, err
}

func (w *direction) turn(ps *pipes) (more bool, err error) {
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

// fill reads the bytes that have arrived.
func (w *direction) fill(ps *pipes) error {
	if !w.bulk {
		return w.fillBuffer(ps)
	}
	p, ok := ps.take()
	if !ok {
		return w.fillBuffer(ps)
	}
	n, err := splice(w.from.fd, p.w, pipeSize)
	w.bulk = n >= len(ps.buffer)
	if n > 0 {
		w.pipe, w.inPipe = p, n
		return nil
	}
	ps.give(p, true)
	return w.nothing(err)
}

func (w *direction) fillBuffer(ps *pipes) error {
	n, err := ignoringEINTR(func() (int, error) { return unix.Read(w.from.fd, ps.buffer) })
	if n == 0 || err != nil {
		return w.nothing(err)
	}
	w.rest, w.borrowed = ps.buffer[:n], true
	// A short read means that no more bytes have arrived, unless the side may return short reads.
	w.bulk = n == len(ps.buffer)
	w.from.readable = w.bulk || w.from.ending
	return nil
}

// nothing records why a read returned no bytes.
func (w *direction) nothing(err error) error {
	if err == unix.EAGAIN {
		w.from.readable = false
		return nil
	}
	w.ended = err == nil
	return err
}

// drain passes on the held bytes, and returns how many were written.
func (w *direction) drain(ps *pipes) (n int, err error) {
	if w.inPipe > 0 {
		n, err = splice(w.pipe.r, w.to.fd, w.inPipe)
		if w.inPipe -= n; w.inPipe == 0 {
			ps.give(w.pipe, true)
		}
	} else {
		n, err = ignoringEINTR(func() (int, error) { return unix.SendmsgN(w.to.fd, w.rest, nil, nil, unix.MSG_NOSIGNAL) })
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

// drop frees the pipe or buffer.
func (w *direction) drop(ps *pipes) {
	if w.inPipe > 0 {
		ps.give(w.pipe, false)
	}
	w.inPipe, w.rest = 0, nil
}

// splice moves at most n bytes from one descriptor to another, and returns how many.
func splice(from, to, n int) (int, error) {
	return ignoringEINTR(func() (int, error) {
		moved, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		return int(moved), err // an int64 where int has 64 bits, else an int
	})
}

// ignoringEINTR repeats a system call until no signal interrupts it.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}
