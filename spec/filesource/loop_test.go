package filesource

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"

	"weir/backends/netlab"
	"weir/spec"
)

// fakeNotifier is a notifier whose events the test makes.
type fakeNotifier struct {
	mu      sync.Mutex
	err     error
	events  chan fsnotify.Event
	errors  chan error
	watched map[string]bool
}

func newFake() *fakeNotifier {
	return &fakeNotifier{events: make(chan fsnotify.Event), errors: make(chan error), watched: map[string]bool{}}
}

func (f *fakeNotifier) Add(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.watched[path] = true
	}
	return f.err
}

func (f *fakeNotifier) Remove(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watched, path)
	return nil
}

// use makes a Source take its events from f, and nothing from the kernel, so that it can run in a synctest bubble.
func (f *fakeNotifier) use(s *Source) {
	s.newWatcher = func() (watcher, error) {
		return watcher{notifier: f, events: f.events, errors: f.errors, close: func() {}}, nil
	}
	s.mounts = func(context.Context, hclog.Logger) (<-chan struct{}, func()) { return nil, func() {} }
}

// bubble runs a Watch with a fake clock, and gives what it sends, with the time since the start.
func bubble(t *testing.T, d string, f *fakeNotifier, do func(s *Source, event func(name string), got func() (spec.Update, time.Duration))) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newSource(Options{Paths: []string{d}})
		f.events, f.errors = make(chan fsnotify.Event), make(chan error)
		f.use(s)
		ctx, cancel := context.WithCancel(t.Context())
		out, done := spec.NewOutbox(), make(chan error, 1)
		go func() { done <- s.Watch(ctx, out.Put) }()
		start := time.Now()
		do(s,
			func(name string) { f.events <- fsnotify.Event{Name: name, Op: fsnotify.Write} },
			func() (spec.Update, time.Duration) {
				<-out.Ready()
				u, _ := out.Take()
				return u, time.Since(start)
			})
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
}

func TestSettle(t *testing.T) {
	d := t.TempDir()
	a := d + "/a.yaml"
	tests := []struct {
		name string
		do   func(t *testing.T, event func(string))
		// from and to bound when the change is sent, after it began.
		from, to time.Duration
	}{
		{"one event", func(t *testing.T, event func(string)) { write(t, a, "one"); event(a) }, 20 * time.Millisecond, 200 * time.Millisecond},
		{"events that go on for 1 s", func(t *testing.T, event func(string)) {
			write(t, a, "two")
			for range 100 {
				event(a)
				time.Sleep(10 * time.Millisecond)
			}
		}, time.Second, 1200 * time.Millisecond},
		{"events that never end", func(t *testing.T, event func(string)) {
			write(t, a, "three")
			for range 230 {
				event(a)
				time.Sleep(10 * time.Millisecond)
			}
		}, 2 * time.Second, 2300*time.Millisecond + time.Millisecond},
		{"a file emptied and left so", func(t *testing.T, event func(string)) { write(t, a, ""); event(a) }, 2 * time.Second, 2200 * time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			write(t, a, "zero")
			bubble(t, d, newFake(), func(_ *Source, event func(string), got func() (spec.Update, time.Duration)) {
				_, first := got()
				tt.do(t, event)
				if u, at := got(); u.Err != nil || at-first < tt.from || at-first > tt.to {
					t.Errorf("sent after %v, err %v; want between %v and %v", at-first, u.Err, tt.from, tt.to)
				}
			})
		})
	}
}

func TestSettleEmptiedThenWritten(t *testing.T) {
	d := t.TempDir()
	a := d + "/a.yaml"
	write(t, a, "1")
	bubble(t, d, newFake(), func(s *Source, event func(string), got func() (spec.Update, time.Duration)) {
		got()
		write(t, a, "")
		event(a)
		time.Sleep(time.Second)
		write(t, a, "2")
		event(a)
		got()
	})
}

func TestIndexLock(t *testing.T) {
	d := t.TempDir()
	git(t, d, "init", "-q")
	write(t, d+"/a.yaml", "1")
	lock := d + "/.git/index.lock"
	bubble(t, d, newFake(), func(_ *Source, event func(string), got func() (spec.Update, time.Duration)) {
		_, first := got()
		write(t, lock, "")
		write(t, d+"/a.yaml", "2")
		event(d + "/a.yaml")
		time.Sleep(10 * time.Second)
		must(t, os.Remove(lock))
		if _, at := got(); at-first < 10*time.Second || at-first > 11*time.Second {
			t.Errorf("a lock of 10 s delays for %v", at-first)
		}
		// A lock that nobody removes delays once for 30 s, and then no more.
		for i, want := range []time.Duration{30 * time.Second, 0} {
			if i == 0 {
				write(t, lock, "")
			}
			began := time.Now()
			write(t, d+"/a.yaml", fmt.Sprint("stale ", i))
			event(d + "/a.yaml")
			got()
			if took := time.Since(began); took < want || took > want+time.Second {
				t.Errorf("change %d under a stale lock took %v, want %v", i, took, want)
			}
		}
	})
}

func TestOverflowAndErrorsRescan(t *testing.T) {
	d := t.TempDir()
	write(t, d+"/a.yaml", "0")
	f := newFake()
	bubble(t, d, f, func(_ *Source, _ func(string), got func() (spec.Update, time.Duration)) {
		got()
		for i, err := range []error{fsnotify.ErrEventOverflow, syscall.EIO, errors.New("whatever")} {
			write(t, d+"/a.yaml", strings.Repeat("x", i+1))
			began := time.Now()
			f.errors <- err
			got()
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("after %v the change took %v", err, took)
			}
		}
		write(t, d+"/a.yaml", "last")
		close(f.events)
		close(f.errors)
		got()
		write(t, d+"/a.yaml", "polled")
		got()
	})
}

func TestWatchLimitPolls(t *testing.T) {
	d := t.TempDir()
	write(t, d+"/a.yaml", "0")
	f := newFake()
	f.err = syscall.ENOSPC
	bubble(t, d, f, func(_ *Source, _ func(string), got func() (spec.Update, time.Duration)) {
		got()
		for i := range 3 {
			write(t, d+"/sub/b.yaml", strings.Repeat("x", i+1))
			began := time.Now()
			got()
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("polling took %v", took)
			}
		}
		f.mu.Lock()
		f.err = nil // the limit is raised
		f.mu.Unlock()
		time.Sleep(5 * time.Second)
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.watched) == 0 {
			t.Error("it does not watch again")
		}
	})
}

func TestNoWatcherPolls(t *testing.T) {
	d := t.TempDir()
	write(t, d+"/a.yaml", "0")
	h := start(t, Options{Paths: []string{d}, PollInterval: 20 * time.Millisecond}, func(s *Source) {
		s.newWatcher = func() (watcher, error) { return watcher{close: func() {}}, syscall.EMFILE }
	})
	h.awaitFiles(d+"/a.yaml", "0")
	write(t, d+"/a.yaml", "11")
	h.awaitFiles(d+"/a.yaml", "11")
}

// TestRealOverflow lets the kernel's queue overflow while nobody reads it.
func TestRealOverflow(t *testing.T) {
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil || len(strings.TrimSpace(string(text))) > 5 {
		netlab.Missing(t, "the kernel's queue is too long to overflow: %s", text)
	}
	d := t.TempDir()
	write(t, d+"/a.yaml", "1")
	blocked, free := make(chan struct{}), make(chan struct{})
	h := start(t, Options{Paths: []string{d}}, func(s *Source) {
		passes := 0
		s.passed = func(calls) {
			if passes++; passes == 2 {
				close(blocked)
				<-free
			}
		}
	})
	h.awaitFiles(d+"/a.yaml", "1")
	write(t, d+"/a.yaml", "2")
	<-blocked
	f, err := os.Create(d + "/x.txt")
	must(t, err)
	g, err := os.Create(d + "/y.txt")
	must(t, err)
	for range 50_000 { // alternating, since equal events in a row are merged
		_, _ = f.WriteString("x")
		_, _ = g.WriteString("x")
	}
	f.Close()
	g.Close()
	write(t, d+"/last.yaml", "1")
	close(free)
	h.awaitFiles(d+"/a.yaml", "2", d+"/last.yaml", "1")
}

func TestSlowReceiver(t *testing.T) {
	d := t.TempDir()
	write(t, d+"/a.yaml", "0")
	h := start(t, Options{Paths: []string{d}})
	<-h.calls
	for i, name := range []string{"b", "c", "d"} {
		h.quietPass(func() { write(t, d+"/"+name+".yaml", fmt.Sprint(i)) })
	}
	h.quietPass(func() { write(t, d+"/e.yaml", "BAD") })
	u, _ := h.next(deadline)
	if got := h.rec.state(u.Snapshot); len(got) != 4 || !u.Delta.All {
		t.Errorf("the first Update has %v, delta %+v; want the latest, with all", got, u.Delta)
	}
	if u, _ = h.next(deadline); u.Err == nil {
		t.Error("the error after it is lost")
	}
}

// quietPass makes a change and waits until it is read, taking no Update.
func (h *harness) quietPass(change func()) {
	h.t.Helper()
	change()
	select {
	case <-h.calls:
	case <-time.After(deadline):
		h.t.Fatal("no pass is made")
	}
}

// TestCostOfOneEvent counts what touches the file system when one of many files changes.
func TestCostOfOneEvent(t *testing.T) {
	costs := map[int]calls{}
	for _, n := range []int{10, 2000} {
		d := t.TempDir()
		for i := range n {
			write(t, fmt.Sprintf("%s/d%d/f%d.yaml", d, i%10, i), "1")
		}
		h := start(t, Options{Paths: []string{d}})
		h.await("the start", func() bool { return len(h.files) == n })
		before := <-h.calls
		write(t, d+"/d3/f3.yaml", "2")
		h.await("the change", func() bool { return h.files[d+"/d3/f3.yaml"] == "2" })
		after := <-h.calls
		costs[n] = calls{Lstats: after.Lstats - before.Lstats, Lists: after.Lists - before.Lists, Reads: after.Reads - before.Reads}
		if last := h.rec.updates[len(h.rec.updates)-1]; len(last) != 1 {
			t.Errorf("%d files were handed over, want 1", len(last))
		}
	}
	if costs[10] != costs[2000] {
		t.Errorf("one change costs %+v at 10 files, %+v at 2000", costs[10], costs[2000])
	}
	if c := costs[2000]; c.Lists != 0 || c.Reads != 1 || c.Lstats > 30 {
		t.Errorf("one change costs %+v", c)
	}
}

func TestRescanReadsNothing(t *testing.T) {
	d := t.TempDir()
	for i := range 50 {
		write(t, fmt.Sprintf("%s/f%d.yaml", d, i), "1")
	}
	tr := newTree(Options{Paths: []string{d}}.withDefaults(), nil)
	must(t, tr.refresh(t.Context()))
	for _, n := range tr.nodes {
		n.recheck = false // as when the files are old
	}
	reads := tr.Reads
	must(t, tr.probe(t.Context()))
	if len(tr.marked) > 0 || tr.Reads != reads {
		t.Errorf("a rescan of unchanged files marks %d and reads %d", len(tr.marked), tr.Reads-reads)
	}
}

func TestStdin(t *testing.T) {
	read := 0
	s, rec := newSource(Options{Paths: []string{"-"}})
	s.stdin = func() ([]byte, error) { read++; return []byte("1"), nil }
	snap, err := s.Load(t.Context())
	if err != nil || rec.state(snap)["-"] != "1" {
		t.Fatalf("Load: %v, %v", rec.state(snap), err)
	}
	s.stdin = func() ([]byte, error) { return readBounded(strings.NewReader("12345"), 0, 4) }
	if _, err := s.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("too much on standard input: %v", err)
	}
}

// TestStdinThatDoesNotEnd keeps standard input open: the other inputs are read, what is wrong with them is told with it,
// and its end is taken up.
func TestStdinThatDoesNotEnd(t *testing.T) {
	d := t.TempDir()
	write(t, d+"/a.yaml", "BAD")
	ended := make(chan struct{})
	h := start(t, Options{Paths: []string{"-", d}}, func(s *Source) {
		s.stdinLimit = 10 * time.Millisecond
		s.stdin = sync.OnceValues(func() ([]byte, error) { <-ended; return []byte("2"), nil })
	})
	h.awaitErr("standard input has not ended", "-")
	replace(t, d+"/a.yaml", "1")
	write(t, d+"/b.yaml", "1")
	before := h.rev
	h.await("want the other files to be read", func() bool { return h.rev != before })
	close(ended)
	h.awaitFiles("-", "2", d+"/a.yaml", "1", d+"/b.yaml", "1")
}

// TestLoadSaysThatItWaits loads standard input that does not end: it is said if nothing comes, and not if something came.
func TestLoadSaysThatItWaits(t *testing.T) {
	for _, came := range []bool{false, true} {
		waits, ended := make(chan struct{}), make(chan struct{})
		s, _ := newSource(Options{Paths: []string{"-"}, Waiting: func() { close(waits) }})
		s.stdinLimit = 10 * time.Millisecond
		s.stdinCame.Store(came)
		s.stdin = sync.OnceValues(func() ([]byte, error) {
			if came {
				time.Sleep(5 * s.stdinLimit)
			} else {
				<-waits
			}
			close(ended)
			return []byte("1"), nil
		})
		if _, err := s.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-ended
		select {
		case <-waits:
			if came {
				t.Error("it says that it waits, though something came")
			}
		default:
		}
	}
}

func TestLoad(t *testing.T) {
	d := t.TempDir()
	write(t, d+"/a.yaml", "1")
	s, rec := newSource(Options{Paths: []string{d}})
	snap, err := s.Load(t.Context())
	if err != nil || rec.state(snap)[d+"/a.yaml"] != "1" || !strings.HasPrefix(snap.Revision.ID, "sha256:") {
		t.Errorf("Load: %v, %v", rec.state(snap), err)
	}
	write(t, d+"/a.yaml", "BAD")
	var p spec.Problems
	if _, err := s.Load(t.Context()); !errors.As(err, &p) {
		t.Errorf("Load of bad input: %v", err)
	}
	s, _ = newSource(Options{Paths: []string{d + "/nowhere"}})
	if _, err := s.Load(t.Context()); !errors.As(err, &p) {
		t.Errorf("Load of nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Load(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Load without time: %v", err)
	}
}

func TestRevision(t *testing.T) {
	d, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	git(t, d, "init", "-q", "-b", "main")
	write(t, d+"/m/a.yaml", "1")
	write(t, d+"/m/b.yaml", "1")
	write(t, d+"/README", "1")
	git(t, d, "add", ".")
	git(t, d, "commit", "-qm", "one")
	one := git(t, d, "rev-parse", "HEAD")
	h := start(t, Options{Paths: []string{d + "/m"}})
	expect := func(want string, files map[string]string) {
		t.Helper()
		h.await("revision "+want, func() bool { return h.rev.String() == want && h.err == nil && maps.Equal(h.files, files) })
	}
	a, b := d+"/m/a.yaml", d+"/m/b.yaml"
	expect(one, map[string]string{a: "1", b: "1"})
	h.quiet(func() { write(t, d+"/m/README", "x") })
	write(t, a, "2")
	expect(one+"-dirty", map[string]string{a: "2", b: "1"})
	write(t, a, "1")
	expect(one, map[string]string{a: "1", b: "1"})
	must(t, os.Remove(b))
	expect(one+"-dirty", map[string]string{a: "1"})
	git(t, d, "checkout", "-q", ".")
	expect(one, map[string]string{a: "1", b: "1"})
	write(t, d+"/m/c.yaml", "untracked")
	expect(one+"-dirty", map[string]string{a: "1", b: "1", d + "/m/c.yaml": "untracked"})
	git(t, d, "add", "m/c.yaml")
	git(t, d, "commit", "-qm", "two")
	two := git(t, d, "rev-parse", "HEAD")
	expect(two, map[string]string{a: "1", b: "1", d + "/m/c.yaml": "untracked"})
	git(t, d, "checkout", "-q", one)
	expect(one, map[string]string{a: "1", b: "1"})
	relink(t, "a.yaml", d+"/m/l.yaml")
	git(t, d, "add", ".")
	git(t, d, "commit", "-qm", "a symlink")
	three := git(t, d, "rev-parse", "HEAD")
	expect(three, map[string]string{a: "1", b: "1"}) // a file that a symlink reaches too counts once
	relink(t, "b.yaml", d+"/m/l.yaml")
	h.await("a symlink that differs from its commit", func() bool { return h.rev.String() == three+"-dirty" })
	must(t, os.Remove(d+"/m/l.yaml"))
	expect(three+"-dirty", map[string]string{a: "1", b: "1"})
	git(t, d, "checkout", "-q", ".")
	expect(three, map[string]string{a: "1", b: "1"})
}

// TestChart makes a directory a Helm chart and takes it back: what is in templates counts only without Chart.yaml, also for
// whether the work tree is as its commit.
func TestChart(t *testing.T) {
	d, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	git(t, d, "init", "-q", "-b", "main")
	write(t, d+"/a.yaml", "1")
	write(t, d+"/web/templates/deep/t.yaml", "t")
	h := start(t, Options{Paths: []string{d}})
	h.awaitFiles(d+"/a.yaml", "1", d+"/web/templates/deep/t.yaml", "t")
	write(t, d+"/web/Chart.yaml", "c")
	h.awaitFiles(d+"/a.yaml", "1", d+"/web/Chart.yaml", "c")
	git(t, d, "add", ".")
	git(t, d, "commit", "-qm", "a chart")
	commit := git(t, d, "rev-parse", "HEAD")
	h.await("the commit", func() bool { return h.rev.String() == commit })
	h.quiet(func() {
		write(t, d+"/web/templates/deep/t.yaml", "BAD")
		write(t, d+"/b.txt", "")
		replace(t, d+"/a.yaml", "1")
	})
	git(t, d, "checkout", "-q", ".")
	must(t, os.Remove(d+"/web/Chart.yaml"))
	h.awaitFiles(d+"/a.yaml", "1", d+"/web/templates/deep/t.yaml", "t")
	write(t, d+"/web/values.yaml", "v") // a chart that is named by itself, and templates that are
	write(t, d+"/web/Chart.yaml", "c")
	for path, want := range map[string]string{"/web": "[Chart.yaml values.yaml]", "/web/templates": "[deep/t.yaml]"} {
		src, rec := newSource(Options{Paths: []string{d + path}})
		snap, err := src.Load(t.Context())
		must(t, err)
		var names []string
		for name := range rec.state(snap) {
			names = append(names, strings.TrimPrefix(name, d+path+"/"))
		}
		if slices.Sort(names); fmt.Sprint(names) != want {
			t.Errorf("-f %s reads %v", path, names)
		}
	}
}

// TestContentHash proves that the hash kept up to date by changes is that of a fresh reading.
func TestContentHash(t *testing.T) {
	d := t.TempDir()
	write(t, d+"/a.yaml", "1")
	h := start(t, Options{Paths: []string{d}})
	h.awaitFiles(d+"/a.yaml", "1")
	first := h.rev
	write(t, d+"/b/b.yaml", "2")
	h.awaitFiles(d+"/a.yaml", "1", d+"/b/b.yaml", "2")
	if h.rev == first {
		t.Error("other content, same revision")
	}
	must(t, os.RemoveAll(d+"/b"))
	h.awaitFiles(d+"/a.yaml", "1")
	if h.rev != first {
		t.Errorf("revision %s, want %s again", h.rev, first)
	}
}

// TestRandom makes random changes. Whenever things come to rest, what was sent is what a fresh Load finds.
func TestRandom(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 7))
			top := filepath.Join(t.TempDir(), "r")
			d := top + "/d"
			write(t, d+"/keep.yaml", "k")
			write(t, top+"/other/o.yaml", "o")
			opts := Options{Paths: []string{d}, StrictTree: true} // a symlink that led to something is otherwise judged by what was there
			h := start(t, opts)
			h.await("the start", func() bool { return h.files != nil })
			names := []string{"a.yaml", "b.yaml", "x", "y", "x/a.yaml", "x/b.json", "x/y", "x/y/c.yml", "y/a.yaml", "y/z", "y/z/d.yaml", "l.yaml", "x/l", "y/Chart.yaml", "y/templates", "y/templates/t.yaml"}
			for round := range 25 {
				for range 1 + rnd.IntN(6) {
					randomChange(rnd, d, top, names)
				}
				src, rec := newSource(opts)
				snap, err := src.Load(t.Context())
				want := rec.state(snap)
				h.await(fmt.Sprintf("round %d, want %v, %v", round, want, err), func() bool {
					if err != nil {
						return h.err != nil && h.err.Error() == err.Error()
					}
					return h.err == nil && maps.Equal(h.files, want)
				})
			}
		})
	}
}

// randomChange makes one of the changes that a person or a program may make; many fail, which is no matter.
func randomChange(rnd *rand.Rand, d, top string, names []string) {
	pick := func() string { return d + "/" + names[rnd.IntN(len(names))] }
	p := pick()
	switch rnd.IntN(9) {
	case 0, 1, 2:
		_ = os.MkdirAll(filepath.Dir(p), 0o755)
		_ = os.WriteFile(p, []byte(fmt.Sprint(rnd.IntN(5))), 0o644)
	case 3:
		_ = os.WriteFile(d+"/.tmp", []byte(fmt.Sprint(rnd.IntN(5))), 0o644)
		_ = os.Rename(d+"/.tmp", p)
	case 4:
		_ = os.RemoveAll(p)
	case 5:
		_ = os.Rename(p, pick())
	case 6:
		target := []string{top + "/other", "../other/o.yaml", "x", "a.yaml", "nowhere.yaml", ".."}[rnd.IntN(6)]
		_ = os.Symlink(target, d+"/.link")
		_ = os.Rename(d+"/.link", p)
	case 7:
		_ = os.MkdirAll(p, 0o755)
	case 8:
		_ = os.Rename(d, d+".away")
		if rnd.IntN(3) > 0 {
			_ = os.MkdirAll(d, 0o755)
			_ = os.WriteFile(d+"/keep.yaml", []byte("k"), 0o644)
			_ = os.RemoveAll(d + ".away")
		} else {
			_ = os.Rename(d+".away", d)
		}
	}
}
