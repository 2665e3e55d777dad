package handover

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Socket is a descriptor that is handed over, and its name.
type Socket struct {
	Name string
	FD   int
}

// Successor is the program that is to replace this one.
type Successor struct {
	cmd  *exec.Cmd
	link *link
	// ended is closed when the process has ended, and exit is then what became of it.
	ended chan struct{}
	exit  error
	// trouble is what the successor told last.
	trouble string
}

// Start starts a program, which should call Inherit. Its environment is this process's.
func Start(path string, args []string) (*Successor, error) {
	l, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := &exec.Cmd{
		Path: path, Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Env: append(os.Environ(), env+"=3"), ExtraFiles: []*os.File{theirs},
	}
	if err := cmd.Start(); err != nil {
		l.conn.Close()
		return nil, err
	}
	s := &Successor{cmd: cmd, link: l, ended: make(chan struct{})}
	go func() {
		s.exit = cmd.Wait()
		close(s.ended)
	}()
	return s, nil
}

// PID returns the process.
func (s *Successor) PID() int { return s.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (s *Successor) Ended() <-chan struct{} { return s.ended }

// Able waits until the successor is able to take over. Nothing must change for this process before.
func (s *Successor) Able(timeout time.Duration) error {
	version, err := s.await(msgAble, timeout)
	if err == nil && version != protocol {
		err = fmt.Errorf("the new program hands over by protocol %q, and this one by %q", version, protocol)
	}
	return err
}

// Give hands descriptors over, and notes. They stay open in this process.
func (s *Successor) Give(timeout time.Duration, sockets []Socket, notes []string) error {
	s.link.limit(timeout)
	for some := range slices.Chunk(sockets, maxDescriptors) {
		names, fds := make([]string, len(some)), make([]int, len(some))
		for i, d := range some {
			names[i], fds[i] = d.Name, d.FD
		}
		if err := s.link.send(msgSockets, strings.Join(names, "\n"), fds...); err != nil {
			return s.failed(err, timeout)
		}
	}
	for len(notes) > 0 {
		n, size := 0, 0
		for n < len(notes) && (n == 0 || size+len(notes[n])+1 < maxText/2) {
			size += len(notes[n]) + 1
			n++
		}
		if err := s.link.send(msgNotes, strings.Join(notes[:n], "\n")); err != nil {
			return s.failed(err, timeout)
		}
		notes = notes[n:]
	}
	return nil
}

// Take has the successor do the work, and waits until it does.
func (s *Successor) Take(timeout time.Duration) error {
	s.link.limit(timeout)
	if err := s.link.send(msgTake, ""); err != nil {
		return s.failed(err, timeout)
	}
	_, err := s.await(msgReady, timeout)
	return err
}

// Serve has the successor serve, and waits until it does.
func (s *Successor) Serve(timeout time.Duration) error {
	s.link.limit(timeout)
	if err := s.link.send(msgServe, ""); err != nil {
		return s.failed(err, timeout)
	}
	_, err := s.await(msgServing, timeout)
	return err
}

// Release leaves the successor alone in charge.
func (s *Successor) Release() { s.link.conn.Close() }

// Kill ends the successor, and waits for its end.
func (s *Successor) Kill() {
	_ = s.cmd.Process.Kill() // the error is that it has ended
	<-s.ended
	s.link.conn.Close()
}

// await waits for a message. A successor that tells of trouble while it is not able yet will not be.
func (s *Successor) await(want byte, timeout time.Duration) (string, error) {
	s.link.limit(timeout)
	for {
		kind, text, fds, err := s.link.receive()
		closeAll(fds)
		switch {
		case err != nil:
			return "", s.failed(err, timeout)
		case kind == want:
			return text, nil
		case kind == msgTrouble:
			if s.trouble = text; want == msgAble {
				return "", errors.New(text)
			}
		}
	}
}

// endPatience is how long a process that has closed its end may take to end.
const endPatience = 2 * time.Second

// failed says what an error of the link means.
func (s *Successor) failed(err error, timeout time.Duration) error {
	because := ""
	if s.trouble != "" {
		because = ": " + s.trouble
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the new program is not ready after %s%s", timeout, because)
	case gone(err):
		select {
		case <-s.ended:
			end := "exit status 0"
			if s.exit != nil {
				end = s.exit.Error()
			}
			return fmt.Errorf("the new program ended (%s)%s; its log says why", end, because)
		case <-time.After(endPatience):
			return fmt.Errorf("the new program does not take over%s", because)
		}
	}
	return err
}
