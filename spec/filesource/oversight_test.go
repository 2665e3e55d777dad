package filesource

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/spec"
)

// hungCalls makes calls to the file system hang, as on a mount whose server is gone.
type hungCalls struct {
	mu    sync.Mutex
	skip  map[string]int // how many calls for a path come back before the others hang
	end   chan struct{}
	hangs int
}

// patient makes a Source give up soon, with calls that hang.
func patient(t *testing.T) (*hungCalls, func(*Source)) {
	h := &hungCalls{skip: map[string]int{}, end: make(chan struct{})}
	return h, func(s *Source) {
		s.newStuck = func() *stuck {
			k := newStuck()
			k.patience, k.before = 200*time.Millisecond, h.call
			return k
		}
	}
}

func (h *hungCalls) call(path string) {
	h.mu.Lock()
	left, hangs := h.skip[path]
	if hangs && left > 0 {
		h.skip[path]--
		hangs = false
	}
	if hangs {
		h.hangs++
	}
	end := h.end
	h.mu.Unlock()
	if hangs {
		<-end
	}
}

// hang makes calls for a path hang, after some.
func (h *hungCalls) hang(path string, after int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.skip[path] = after
}

// forget lets further calls for a path come back.
func (h *hungCalls) forget(path string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.skip, path)
}

// answer makes all calls come back. It returns how many there were.
func (h *hungCalls) answer() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.end)
	h.end, h.skip = make(chan struct{}), map[string]int{}
	return h.hangs
}

// TestHungCalls has each call for a file or a directory hang: it is named, the last good state stands, and the rest is read
// again when the file is gone, and when the call has come back.
func TestHungCalls(t *testing.T) {
	for _, c := range []struct {
		path  string
		after int
	}{
		{"sub/b.yaml", 0}, {"sub/b.yaml", 1}, {"sub/b.yaml", 2}, {"sub/b.yaml", 3}, {"sub/b.yaml", 4}, {"sub", 0}, {"sub", 1}, {"sub", 2}, {"sub", 3},
	} {
		t.Run(fmt.Sprintf("%s after %d calls", c.path, c.after), func(t *testing.T) {
			t.Parallel()
			d := t.TempDir()
			a, sub := filepath.Join(d, "a.yaml"), filepath.Join(d, "sub")
			b, hung := filepath.Join(sub, "b.yaml"), filepath.Join(d, c.path)
			write(t, a, "1")
			write(t, b, "1")
			calls, change := patient(t)
			defer calls.answer()
			h := start(t, Options{Paths: []string{d}, RescanInterval: 100 * time.Millisecond}, change)
			h.awaitFiles(a, "1", b, "1")

			calls.hang(hung, c.after)
			if hung == b {
				write(t, b, "2")
			}
			h.awaitErr(hung, "has not come back")
			calls.forget(hung) // what is not there comes back
			if err := os.RemoveAll(sub); err != nil {
				t.Fatal(err)
			}
			write(t, a, "3")
			h.awaitFiles(a, "3")

			calls.answer()
			write(t, b, "4")
			h.awaitFiles(a, "3", b, "4")
		})
	}
}

// TestHungMount has all files of a file system hang: a few goroutines find out, not one for each.
func TestHungMount(t *testing.T) {
	d := t.TempDir()
	calls, change := patient(t)
	var want []string
	for i := range 20 {
		name := filepath.Join(d, fmt.Sprintf("%d.yaml", i))
		write(t, name, "1")
		calls.hang(name, 2) // its size is known, and it can be opened
		want = append(want, name, "1")
	}
	h := start(t, Options{Paths: []string{d}, RescanInterval: 100 * time.Millisecond}, change)
	h.awaitErr(d + ": it is not read, because reading " + d)
	if n := calls.answer(); n > 2 {
		t.Errorf("%d calls were needed to find out", n)
	}
	h.awaitFiles(want...)
}

// TestHungInput has one of two inputs hang. What the other changes is not taken up, because a part of the input is missing,
// and is when the first answers.
func TestHungInput(t *testing.T) {
	in, mnt := t.TempDir(), t.TempDir()
	a, b := filepath.Join(in, "a.yaml"), filepath.Join(mnt, "b.yaml")
	write(t, a, "1")
	write(t, b, "1")
	calls, change := patient(t)
	h := start(t, Options{Paths: []string{in, mnt}, RescanInterval: 100 * time.Millisecond}, change)
	h.awaitFiles(a, "1", b, "1")
	calls.hang(mnt, 0)
	h.awaitErr(mnt, "has not come back")
	was := h.rev
	write(t, a, "2")
	h.await("the change is read", func() bool { return h.rev != was })
	if h.err == nil || h.files[a] != "1" || h.files[b] != "1" {
		t.Errorf("in force are %v, with the error %v", h.files, h.err)
	}
	calls.answer()
	h.awaitFiles(a, "2", b, "1")
}

// TestHungEnd ends a Watch and a Load while a call hangs.
func TestHungEnd(t *testing.T) {
	d := t.TempDir()
	write(t, filepath.Join(d, "a.yaml"), "1")
	calls, change := patient(t)
	defer calls.answer()
	calls.hang(d, 0)
	src, _ := newSource(Options{Paths: []string{d}})
	change(src)
	if _, err := src.Load(t.Context()); err == nil || !strings.Contains(err.Error(), d+": reading it has not come back") {
		t.Errorf("Load: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := src.Load(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Load that is ended: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	told := make(chan error, 10)
	done := make(chan error)
	go func() { done <- src.Watch(ctx, func(u spec.Update) { told <- u.Err }) }()
	select {
	case err := <-told:
		if err == nil || !strings.Contains(err.Error(), "has not come back") {
			t.Errorf("Watch tells %v", err)
		}
	case <-time.After(deadline):
		t.Fatal("Watch tells nothing")
	}
	cancel()
	select {
	case <-done:
	case <-time.After(deadline):
		t.Fatal("Watch does not end")
	}
}
