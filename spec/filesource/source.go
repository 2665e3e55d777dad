package filesource

import (
	"context"
	"crypto/sha256"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/spec"
	"weir/spec/gitrev"
	"weir/spec/manifest"
)

// stdinName is the path that stands for standard input.
const stdinName = "-"

// Source reads and watches files. It implements spec.Source; Load and Watch share no state but standard input, which is
// read once.
type Source struct {
	opts  Options
	stdin func() ([]byte, error)

	newSet     func() updater
	newWatcher func() (watcher, error)
	mounts     func(context.Context, hclog.Logger) (changed <-chan struct{}, wait func())
	// passed, if set, is told after each pass what has been done so far. For tests.
	passed func(calls)
}

var _ spec.Source = (*Source)(nil)

// New returns a Source. It touches nothing yet.
func New(o Options) *Source {
	o = o.withDefaults()
	s := &Source{opts: o, newWatcher: newWatcher, mounts: watchMounts}
	s.stdin = sync.OnceValues(func() ([]byte, error) { return readBounded(os.Stdin, 0, o.MaxFileSize) })
	s.newSet = func() updater {
		mo := manifest.Options{Weir: o.Weir}
		if o.Config != "" {
			mo.ConfigFile = clean(o.Config)
		}
		return manifest.NewSet(mo)
	}
	return s
}

// Load implements spec.Source. It does not wait for a Git operation to end, since a Git hook may be what runs it.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) {
	t := newTree(s.opts, nil)
	if err := s.readStdin(ctx, t); err != nil {
		return nil, err
	}
	sess := newSession(t, s.newSet())
	return sess.load(ctx, func(ctx context.Context) error { return sleep(ctx, sess.weir().SettleTime) })
}

// Watch implements spec.Source. What it does not get notified of, such as a change on a network file system, it finds
// within RescanInterval.
func (s *Source) Watch(ctx context.Context, out chan<- spec.Update) error {
	w, err := s.newWatcher()
	if err != nil {
		s.opts.Log.Warn("the kernel cannot notify of file changes; polling instead", "error", err,
			"remedy", "raise the sysctl fs.inotify.max_user_instances")
	}
	defer w.close()
	t := newTree(s.opts, newWatchSet(w.notifier, s.opts.Log))
	if err := s.readStdin(ctx, t); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mounts, wait := s.mounts(ctx, s.opts.Log)
	defer wait()
	defer cancel()
	l := &loop{Source: s, session: newSession(t, s.newSet()), events: w.events, errors: w.errors, mounted: mounts, out: out}
	return l.run(ctx)
}

// readStdin reads standard input, if it was asked for, as a file that never changes. A reader that nobody writes to
// cannot be stopped: ctx ends the wait for it, and the reading ends with the process.
func (s *Source) readStdin(ctx context.Context, t *tree) error {
	i := t.rootOf(stdinName)
	if i < 0 {
		return nil
	}
	delete(t.marked, stdinName)
	done := make(chan struct{})
	var data []byte
	var err error
	go func() {
		defer close(done)
		data, err = s.stdin()
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err != nil {
		t.fault(stdinName, place{}, err)
		return nil
	}
	n := &node{kind: isFile, root: i, sum: sha256.Sum256(data), blob: gitrev.BlobID(data)}
	n.place.hint.size = int64(len(data))
	t.total.add(t.key(stdinName, n), n.sum)
	t.put(stdinName, n)
	t.setContent(stdinName, content{data: slices.Clip(data), sum: n.sum})
	return nil
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
