package filesource

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/backends/dataplane"
	"weir/backends/netlab"
	"weir/spec"
	"weir/spec/manifest"
)

// recorder is an updater whose Snapshots are the contents of the files. It refuses any that hold the word BAD.
type recorder struct {
	mu    sync.Mutex
	files map[string]string
	snaps map[*spec.Snapshot]map[string]string
	// updates are the names of the files of each Update.
	updates [][]string
}

func newRecorder() *recorder {
	return &recorder{files: map[string]string{}, snaps: map[*spec.Snapshot]map[string]string{}}
}

func (r *recorder) Holds(string) bool { return true }

func (r *recorder) Expect(string) {}

func (r *recorder) Update(_ context.Context, rev spec.Revision, files []manifest.File) (*spec.Snapshot, spec.Delta, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := maps.Clone(r.files)
	delta := spec.Delta{All: len(r.snaps) == 0}
	var names []string
	var problems spec.Problems
	for _, f := range files {
		if f.Fault != nil {
			problems = append(problems, *f.Fault)
			continue
		}
		names = append(names, f.Path)
		delta.Services = append(delta.Services, dataplane.ServiceName{Name: f.Path})
		if f.Data == nil {
			delete(next, f.Path)
		} else {
			next[f.Path] = string(f.Data)
		}
	}
	r.updates = append(r.updates, names)
	for _, name := range slices.Sorted(maps.Keys(next)) {
		if strings.Contains(next[name], "BAD") {
			problems = append(problems, spec.Problem{Origin: spec.Origin{File: name}, Detail: "is bad"})
		}
	}
	if len(next) == 0 && len(problems) == 0 {
		problems = append(problems, spec.Problem{Detail: "no Service"})
	}
	if len(problems) > 0 {
		return nil, spec.Delta{}, problems
	}
	r.files = next
	snap := &spec.Snapshot{Revision: rev, Weir: quickly()}
	r.snaps[snap] = next
	return snap, delta, nil
}

func (r *recorder) state(s *spec.Snapshot) map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.snaps[s]
}

func quickly() spec.WeirConfiguration {
	w := spec.DefaultWeirConfiguration()
	w.SettleTime = 20 * time.Millisecond
	return w
}

// harness runs a Watch and follows what it says.
type harness struct {
	t      *testing.T
	src    *Source
	rec    *recorder
	out    *spec.Outbox
	cancel context.CancelFunc
	done   chan error
	calls  chan calls // after each pass

	files map[string]string // of the last Snapshot
	rev   spec.Revision
	err   error // of the last Update
	count int
}

// deadline bounds every wait. It is far longer than anything takes, so that a slow machine does not matter.
const deadline = 20 * time.Second

func newSource(o Options) (*Source, *recorder) {
	if o.Overrides.SettleTime == nil {
		settle := quickly().SettleTime
		o.Overrides.SettleTime = &settle
	}
	rec := newRecorder()
	src := New(o)
	src.skim, src.newSet = nil, func(spec.ObjectChoice) updater { return rec }
	return src, rec
}

// start watches until the test ends. Unless the options say otherwise there are no rescans, so that what is found was
// found by events.
func start(t *testing.T, o Options, change ...func(*Source)) *harness {
	t.Helper()
	if o.RescanInterval == 0 {
		o.RescanInterval = time.Hour
	}
	src, rec := newSource(o)
	h := &harness{t: t, src: src, rec: rec, out: spec.NewOutbox(), done: make(chan error, 1), calls: make(chan calls, 10000)}
	src.passed = func(c calls) { h.calls <- c }
	for _, f := range change {
		f(src)
	}
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	go func() { h.done <- src.Watch(ctx, h.out.Put) }()
	t.Cleanup(func() { h.stop(before) })
	return h
}

// stop ends the Watch and checks that it left nothing behind.
func (h *harness) stop(before int) {
	h.cancel()
	select {
	case err := <-h.done:
		if !errors.Is(err, context.Canceled) {
			h.t.Errorf("Watch ended with %v, want ctx's error", err)
		}
	case <-time.After(deadline):
		h.t.Error("Watch does not end")
	}
	for end := time.Now().Add(deadline); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			h.t.Fatalf("goroutines are left:\n%s", buf[:runtime.Stack(buf, true)])
		}
	}
}

// take follows one Update, and returns false if none comes in time.
func (h *harness) take(wait time.Duration) bool {
	u, ok := h.next(wait)
	if ok {
		h.count++
		h.err, h.rev = u.Err, u.Revision
		if u.Err == nil {
			h.files = h.rec.state(u.Snapshot)
			if u.Snapshot.Revision != u.Revision {
				h.t.Errorf("the Snapshot's revision is %s, the Update's %s", u.Snapshot.Revision, u.Revision)
			}
		}
	}
	return ok
}

// next takes one Update, if it comes in time.
func (h *harness) next(wait time.Duration) (spec.Update, bool) {
	late := time.After(wait)
	for {
		if u, ok := h.out.Take(); ok {
			return u, true
		}
		select {
		case <-h.out.Ready():
		case <-late:
			return spec.Update{}, false
		}
	}
}

// await follows Updates until ok.
func (h *harness) await(what string, ok func() bool) {
	h.t.Helper()
	end := time.Now().Add(deadline)
	for first := true; first || !ok(); first = false {
		if !first || !ok() {
			if !h.take(time.Until(end)) {
				h.t.Fatalf("%s: still files %v, err %v", what, h.files, h.err)
			}
		}
	}
}

// awaitFiles follows Updates until exactly these files, given as name and content in turn, are accepted.
func (h *harness) awaitFiles(pairs ...string) {
	h.t.Helper()
	want := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		want[pairs[i]] = pairs[i+1]
	}
	h.await(fmt.Sprint("want ", want), func() bool { return h.err == nil && maps.Equal(h.files, want) })
}

// awaitErr follows Updates until one fails with all of these words in its error, and checks that it is Problems and that
// the last good state stands.
func (h *harness) awaitErr(words ...string) {
	h.t.Helper()
	had := h.files
	h.await(fmt.Sprint("want an error with ", words), func() bool {
		if h.err == nil {
			return false
		}
		for _, w := range words {
			if !strings.Contains(h.err.Error(), w) {
				return false
			}
		}
		return true
	})
	var p spec.Problems
	if !errors.As(h.err, &p) {
		h.t.Errorf("%v is no spec.Problems", h.err)
	}
	if !maps.Equal(had, h.files) {
		h.t.Errorf("the last good state was %v, now %v", had, h.files)
	}
}

// quiet fails if an Update comes although a whole pass has been made since before.
func (h *harness) quiet(before func()) {
	h.t.Helper()
	for len(h.calls) > 0 {
		<-h.calls
	}
	before()
	select {
	case <-h.calls:
	case <-time.After(deadline):
		h.t.Fatal("no pass is made")
	}
	if h.take(50 * time.Millisecond) {
		h.t.Fatalf("unexpected Update: revision %s, err %v", h.rev, h.err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// replace writes text to a temporary file and renames it to path.
func replace(t *testing.T, path, text string) {
	t.Helper()
	write(t, path+".tmp", text)
	must(t, os.Rename(path+".tmp", path))
}

// relink makes link point to target in one step, as git-sync and the kubelet do.
func relink(t *testing.T, target, link string) {
	t.Helper()
	must(t, os.Symlink(target, link+"_tmp"))
	must(t, os.Rename(link+"_tmp", link))
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	netlab.RequireProgram(t, "git")
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.com")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}
