package main

import (
	"fmt"
	"io"
	"os"
	"testing"
	"time"
)

// stalled is a reader that takes nothing until it is released.
type stalled struct {
	entered chan struct{}
	release chan struct{}
	got     chan string
	err     error
}

func newStalled() *stalled {
	return &stalled{entered: make(chan struct{}, 1), release: make(chan struct{}), got: make(chan string, 4*logBacklog)}
}

func (s *stalled) Write(b []byte) (int, error) {
	select {
	case s.entered <- struct{}{}:
	default:
	}
	<-s.release
	if s.err != nil {
		err := s.err
		s.err = nil
		return 0, err
	}
	s.got <- string(b)
	return len(b), nil
}

func newTestLogWriter(w io.Writer) *logWriter {
	l := newLogWriter(w)
	l.told = func(lost int64) []byte { return fmt.Appendf(nil, "lost %d\n", lost) }
	return l
}

// TestLogStalls: a reader that stalls costs lines, which are counted, and keeps nobody waiting.
func TestLogStalls(t *testing.T) {
	s := newStalled()
	l := newTestLogWriter(s)
	fmt.Fprintln(l, "first")
	<-s.entered
	for i := range logBacklog + 7 { // all that wait, and seven that are lost
		fmt.Fprintln(l, i)
	}
	close(s.release)
	for _, want := range []string{"first\n", "lost 7\n", "0\n", "1\n"} {
		if got := <-s.got; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	l.close()
	var last string
	for len(s.got) > 0 {
		last = <-s.got
	}
	if want := fmt.Sprintln(logBacklog - 1); last != want {
		t.Errorf("the last line is %q, want %q", last, want)
	}
}

// TestLogFails: a line that cannot be written is counted as well.
func TestLogFails(t *testing.T) {
	s := newStalled()
	s.err = os.ErrClosed
	close(s.release)
	l := newTestLogWriter(s)
	fmt.Fprintln(l, "a")
	fmt.Fprintln(l, "b")
	l.close()
	if a, b := <-s.got, <-s.got; a != "b\n" || b != "lost 1\n" {
		t.Errorf("%q, %q", a, b)
	}
}

// TestLogCloseWhileStalled: the end does not wait for a reader that stalls.
func TestLogCloseWhileStalled(t *testing.T) {
	s := newStalled()
	defer close(s.release)
	l := newTestLogWriter(s)
	fmt.Fprintln(l, "a")
	closed := make(chan struct{})
	go func() {
		l.close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Error("close waits")
	}
}

// TestOneEntry: what others wrote ends no line and steers no terminal.
func TestOneEntry(t *testing.T) {
	for _, tc := range []struct {
		line, want string
		colours    bool
	}{
		{line: "plain ä\tb\n", want: "plain ä\tb\n"},
		{line: "a\nforged\n", want: `a\nforged` + "\n"},
		{line: "a\rb\x1b[2Jc\u202ed\u009b\xff\n", want: `a\rb\x1b[2Jc\u202ed\u009b\xff` + "\n"},
		{line: "several:\n  error=\n  | one\n  | two\n", want: "several:\n  error=\n  | one\n  | two\n"},
		{line: "\x1b[33mWARN\x1b[0m a\x1b[2Jb\n", want: "\x1b[33mWARN\x1b[0m a" + `\x1b[2Jb` + "\n", colours: true},
		{line: "\x1b[33mWARN\n", want: `\x1b[33mWARN` + "\n"},
	} {
		if got := string(oneEntry([]byte(tc.line), tc.colours)); got != tc.want {
			t.Errorf("%q: got %q, want %q", tc.line, got, tc.want)
		}
	}
}
