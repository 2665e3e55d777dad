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
	"weir/spec/manifest"
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

// hungTree is an input in force of which a part hangs, for TestHungInput.
type hungTree struct {
	*harness
	in, mnt string // two directories
	calls   *hungCalls
}

// TestHungInput has a part of the input hang. It is named, it stays as it was last good, and the changes of the rest are taken
// up, in a revision that is marked, until the part answers.
func TestHungInput(t *testing.T) {
	const a, b, sub = "in/a.yaml", "mnt/b.yaml", "in/sub/c.yaml"
	for name, c := range map[string]struct {
		paths []string          // of -f; none stand for both directories
		files map[string]string // besides a, b and sub
		hangs string
		do    func(*hungTree)
		// want has the contents of a, b and sub while it hangs, and after what hangs answers.
		want, healed [3]string
	}{
		"a file":                 {hangs: b, want: [3]string{"2", "1", "1"}, healed: [3]string{"2", "1", "1"}},
		"a directory of several": {hangs: "mnt", want: [3]string{"2", "1", "1"}, healed: [3]string{"2", "1", "1"}},
		"a mount in the middle":  {paths: []string{"in"}, hangs: "in/sub", want: [3]string{"2", "", "1"}, healed: [3]string{"2", "", "1"}},
		"what changes below it": {hangs: "mnt", do: func(h *hungTree) { write(h.t, h.mnt+"/b.yaml", "2") },
			want: [3]string{"2", "1", "1"}, healed: [3]string{"2", "2", "1"}},
		"what goes below it": {hangs: "in/sub", do: func(h *hungTree) { must(h.t, os.Remove(h.in+"/sub/c.yaml")) },
			want: [3]string{"2", "1", "1"}, healed: [3]string{"2", "1", ""}},
		"what goes beside it": {hangs: "mnt", do: func(h *hungTree) { must(h.t, os.Remove(h.in+"/sub/c.yaml")) },
			want: [3]string{"2", "1", ""}, healed: [3]string{"2", "1", ""}},
		"rules": {files: map[string]string{"in/sub/.weirignore": "x.yaml", "in/sub/x.yaml": "1"}, hangs: "in/sub/.weirignore",
			do:   func(h *hungTree) { write(h.t, h.in+"/sub/c.yaml", "2") },
			want: [3]string{"2", "1", "1"}, healed: [3]string{"2", "1", "2"}},
		"a chart": {files: map[string]string{"in/sub/Chart.yaml": "1", "in/sub/templates/x.yaml": "BAD"}, hangs: "in/sub/Chart.yaml",
			do:   func(h *hungTree) { write(h.t, h.in+"/sub/c.yaml", "2") },
			want: [3]string{"2", "1", "1"}, healed: [3]string{"2", "1", "2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := filepath.EvalSymlinks(t.TempDir())
			must(t, err)
			for _, f := range []string{a, b, sub} {
				write(t, filepath.Join(d, f), "1")
			}
			for f, text := range c.files {
				write(t, filepath.Join(d, f), text)
			}
			if c.paths == nil {
				c.paths = []string{"in", "mnt"}
			}
			for i := range c.paths {
				c.paths[i] = filepath.Join(d, c.paths[i])
			}
			calls, change := patient(t)
			h := &hungTree{start(t, Options{Paths: c.paths, RescanInterval: 100 * time.Millisecond}, change), d + "/in", d + "/mnt", calls}
			h.await("all files", func() bool { return h.err == nil && h.files[d+"/"+a] == "1" && !h.rev.Outdated })
			had := len(h.files)

			calls.hang(filepath.Join(d, c.hangs), 0)
			if c.hangs == b {
				write(t, filepath.Join(d, b), "1") // so that it is read again
				must(t, os.Chtimes(filepath.Join(d, b), time.Now(), time.Now().Add(-time.Hour)))
			}
			h.awaitErr(filepath.Join(d, c.hangs), "has not come back")
			if c.do != nil {
				c.do(h)
			}
			write(t, filepath.Join(d, a), "2")
			has := func(want [3]string) bool {
				return h.files[d+"/"+a] == want[0] && h.files[d+"/"+b] == want[1] && h.files[d+"/"+sub] == want[2]
			}
			h.await(fmt.Sprint("while it hangs: ", c.want), func() bool { return h.err != nil && h.rev.Outdated && has(c.want) })
			if gone := had - len(h.files); gone != 0 && c.want[2] != "" {
				t.Errorf("%d files are gone: %v", gone, h.files)
			}
			calls.answer()
			h.await(fmt.Sprint("when it answers: ", c.healed), func() bool { return h.err == nil && !h.rev.Outdated && has(c.healed) })
		})
	}
}

// TestHungInputBesideFaults has a part of the input hang while another is invalid, cannot be read, or lost its content: nothing
// is taken up, and all that is wrong is told.
func TestHungInputBesideFaults(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(t *testing.T, in string)
		want string
	}{
		"invalid":    {func(t *testing.T, in string) { write(t, in+"/a.yaml", "BAD") }, "a.yaml: is bad"},
		"unreadable": {func(t *testing.T, in string) { must(t, os.Symlink("nowhere.yaml", in+"/x.yaml")) }, "x.yaml: a symlink that leads to nothing"},
		"empty":      {func(t *testing.T, in string) { must(t, os.Remove(in+"/a.yaml")) }, "/in: the directory holds no"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := filepath.EvalSymlinks(t.TempDir())
			must(t, err)
			in, mnt := d+"/in", d+"/mnt"
			write(t, in+"/a.yaml", "1")
			write(t, mnt+"/b.yaml", "1")
			calls, change := patient(t)
			defer calls.answer()
			h := start(t, Options{Paths: []string{in, mnt}, RescanInterval: 100 * time.Millisecond, StrictTree: true}, change)
			h.awaitFiles(in+"/a.yaml", "1", mnt+"/b.yaml", "1")
			calls.hang(mnt, 0)
			h.awaitErr(mnt, "has not come back")
			c.do(t, in)
			h.awaitErr(c.want, mnt+": reading it has not come back")
			must(t, os.RemoveAll(in+"/x.yaml"))
			write(t, in+"/a.yaml", "2")
			h.await("the change", func() bool { return h.err != nil && h.files[in+"/a.yaml"] == "2" && h.files[mnt+"/b.yaml"] == "1" })
		})
	}
}

// TestHungKustomization has the build of one of two kustomizations hang: what it rendered stays, and the other one changes.
func TestHungKustomization(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	one, two := kustomized(t, dir+"/one"), kustomized(t, dir+"/two")
	calls, change := patient(t)
	h := start(t, Options{Kustomize: []string{one, two}, RescanInterval: 100 * time.Millisecond}, change)
	has := func(k, tree, text string) bool {
		return strings.Contains(h.files[manifest.RenderedPath(dir+"/"+tree+"/base/web.yaml", k)], text)
	}
	h.await("both", func() bool { return h.err == nil && has(one, "one", "a-web") && has(two, "two", "a-web") })
	calls.hang(two, 0)
	write(t, two+"/kustomization.yaml", "resources: [../../base]\nnamePrefix: b-\n")
	h.awaitErr(two, "has not come back")
	write(t, one+"/kustomization.yaml", "resources: [../../base]\nnamePrefix: b-\n")
	h.await("the other one", func() bool { return h.err != nil && has(one, "one", "b-web") && has(two, "two", "a-web") })
	calls.answer()
	h.await("both again", func() bool { return h.err == nil && has(one, "one", "b-web") && has(two, "two", "b-web") })
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
