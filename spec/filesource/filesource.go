// Package filesource is a spec.Source over directories and files of YAML, typically a Git checkout or a mounted
// ConfigMap. New returns a Source, for Options. Load reads everything once. Watch also follows changes: inotify reports
// them, and a comparison by stat finds those that inotify does not report.
//
// It knows files, symlinks, mounts and Git checkouts, but not YAML: spec/manifest turns the content into Snapshots. A
// hostile tree cannot make it open a device or a FIFO, or follow a symlink out of the given paths. cmd/weir imports it.
package filesource

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/spec"
	"weir/spec/gitrev"
	"weir/spec/manifest"
	"weir/spec/stall"
)

// stdinName is the path that stands for standard input.
const stdinName = "-"

// Source reads and watches files. It implements spec.Source. Load and Watch share no state except standard input, which
// is read once.
type Source struct {
	opts  Options
	stdin func() ([]byte, error)
	// stdinCame reports whether standard input has given anything.
	stdinCame atomic.Bool
	// stdinLimit is how long a Watch waits for standard input before it goes on without it, and a Load before it says that
	// it waits.
	stdinLimit time.Duration

	skim       func(name string, data []byte) []spec.Skipped
	newSet     func(spec.ObjectChoice) updater
	newStuck   func() *stuck
	newWatcher func() (watcher, error)
	mounts     func(context.Context, hclog.Logger) (changed <-chan struct{}, wait func())
	// kept receives what an earlier process kept.
	kept chan *spec.Snapshot
	// passed, if set, receives the counted calls after each pass. For tests.
	passed func(calls)
}

var _ spec.Source = (*Source)(nil)

// New returns a Source. It reads nothing yet.
func New(o Options) *Source {
	o = o.withDefaults()
	s := &Source{opts: o, newWatcher: newWatcher, mounts: watchMounts, newStuck: newStuck, skim: manifest.Skim, stdinLimit: stall.Limit, kept: make(chan *spec.Snapshot, 1)}
	s.newSet = func(objects spec.ObjectChoice) updater {
		mo := manifest.Options{Overrides: o.Overrides, StrictTree: o.StrictTree, Choice: objects}
		if o.Config != "" {
			mo.ConfigFile = clean(o.Config)
		}
		if o.Lock != "" {
			mo.LockFile = clean(o.Lock)
		}
		return manifest.NewSet(mo)
	}
	s.stdin = sync.OnceValues(func() ([]byte, error) { return readBounded(readerFunc(s.readStdinPart), 0, o.MaxFileSize) })
	return s
}

// Load implements spec.Source. It does not wait for a Git operation to end, because a Git hook may run it.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) {
	o := &oversight{stuck: s.newStuck()}
	t := s.newTree(o, nil)
	if _, err := s.readStdin(ctx, t, 0); err != nil {
		return nil, err
	}
	var snap *spec.Snapshot
	var err error
	done := make(chan struct{})
	go func() {
		sess := newSession(t, s.newSet)
		snap, err = sess.load(ctx, func(ctx context.Context) error { return sleep(ctx, sess.weir().SettleTime) })
		close(done)
	}()
	if err := o.oversee(ctx, done, func(error) {}); err != nil {
		return nil, asProblem(err)
	}
	return snap, err
}

// Watch implements spec.Source. It finds changes without a notification, such as those on a network file system, within
// RescanInterval. If a call to the file system does not come back, what is on that file system stays as it was last good, an
// Err names it, and the Snapshots of everything else are marked as outdated.
func (s *Source) Watch(ctx context.Context, sink func(spec.Update)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mounts, wait := s.mounts(ctx, s.opts.Log)
	defer wait()
	defer cancel()
	stuck := s.newStuck()
	var before *session
	for {
		sess, err := s.watch(ctx, before, stuck, mounts, sink)
		if sess == nil {
			return err
		}
		s.opts.Log.Warn("reading the input hangs; what hangs stays as it was last good until it answers, or is taken out of the input", "error", err)
		before = sess
	}
}

// watch is one attempt of Watch. It goes on where the attempt before was given up. If it is given up itself, it returns its
// session, and why.
func (s *Source) watch(ctx context.Context, before *session, stuck *stuck, mounts <-chan struct{}, sink func(spec.Update)) (*session, error) {
	w, err := s.newWatcher()
	if err != nil {
		s.opts.Log.Warn("the kernel cannot notify of file changes; polling instead", "error", err,
			"remedy", "raise the sysctl fs.inotify.max_user_instances")
	}
	o := &oversight{stuck: stuck}
	t := s.newTree(o, newWatchSet(w.notifier, s.opts.Log))
	late, err := s.readStdin(ctx, t, s.stdinLimit)
	if err != nil {
		w.close()
		return nil, err
	}
	sess := newSession(t, s.newSet)
	if before != nil {
		sess.inherit(before)
	}
	l := &loop{Source: s, session: sess, events: w.events, errors: w.errors, mounted: mounts, stuck: stuck, stdinEnds: late, sink: sink}
	done := make(chan struct{})
	go func() {
		err = l.run(ctx)
		close(done)
	}()
	gaveUp := o.oversee(ctx, done, func(err error) { sink(spec.Update{Err: asProblem(err)}) })
	switch {
	case gaveUp == nil:
		w.close()
		return nil, err
	case ctx.Err() != nil:
		go w.close() // which may hang as well
		return nil, gaveUp
	}
	go w.close()
	return sess, gaveUp
}

func (s *Source) newTree(o *oversight, w *watchSet) *tree {
	t := newTree(s.opts, w)
	t.oversight, t.skim = o, s.skim
	if w != nil {
		w.oversight = o
	}
	return t
}

// errStdinOpen means that standard input has not ended yet.
var errStdinOpen = errors.New("standard input has not ended")

// readStdin reads standard input, if requested, as a file that never changes. A read from a pipe without a writer
// cannot be stopped: ctx ends the wait for it, and the read ends with the process. After limit, if that is not 0, the
// other inputs are read without it, and readStdin returns a channel that is closed when takeStdin can be called.
func (s *Source) readStdin(ctx context.Context, t *tree, limit time.Duration) (late <-chan struct{}, err error) {
	if t.rootOf(stdinName) < 0 {
		return nil, nil
	}
	delete(t.marked, stdinName)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = s.stdin() // takeStdin has the result
	}()
	var over <-chan time.Time
	if limit > 0 {
		over = time.After(limit)
	} else if s.opts.Waiting != nil {
		waits := time.AfterFunc(s.stdinLimit, func() {
			if !s.stdinCame.Load() {
				s.opts.Waiting()
			}
		})
		defer waits.Stop()
	}
	select {
	case <-done:
		s.takeStdin(t)
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-over:
		t.fault(stdinName, place{}, errStdinOpen)
		return done, nil
	}
	return nil, nil
}

// readStdinPart is a Read of standard input.
func (s *Source) readStdinPart(p []byte) (int, error) {
	n, err := os.Stdin.Read(p)
	s.stdinCame.Store(n > 0 || s.stdinCame.Load())
	return n, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// takeStdin takes standard input, which was read to its end.
func (s *Source) takeStdin(t *tree) {
	data, err := s.stdin()
	if err != nil {
		t.fault(stdinName, place{}, err)
		return
	}
	n := &node{kind: isFile, root: t.rootOf(stdinName), sum: sha256.Sum256(data), blob: gitrev.BlobID(data)}
	n.place.hint.size = int64(len(data))
	t.total.add(t.key(stdinName, n), n.sum)
	n.used = true
	t.put(stdinName, n)
	t.stdin = slices.Clip(data)
	t.setContent(stdinName, content{data: t.stdin, sum: n.sum})
}

// lockName returns the name of the file given with --lock, or "".
func (t *tree) lockName() string {
	if t.opts.Lock == "" {
		return ""
	}
	return clean(t.opts.Lock)
}

// configName returns the name of the file given with --config, or "".
func (t *tree) configName() string {
	if t.opts.Config == "" {
		return ""
	}
	return clean(t.opts.Config)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
