// Package lastgood keeps the last Snapshot of a Source on disk, so that a node can start while its input is invalid,
// missing or out of reach. Source wraps another Source: it sends the kept Snapshot, marked as stale, if the wrapped one
// begins with an error or does not answer in time, and writes new Snapshots to the file.
//
// The file is checked by a checksum, belongs to one input and one node, and is ignored if anything about it is wrong. The
// package neither reads manifests nor talks to an API. cmd/weir wraps its Sources in it.
package lastgood

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/spec"
	"weir/spec/stall"
)

// Options configure a Source.
type Options struct {
	// Source is the wrapped Source, whose Snapshots are kept.
	Source spec.Source
	// Input is the name of the Source's input in messages, such as "the Kubernetes API".
	Input string
	// File returns the path of the file for a configuration; nil if none is known. The directory is created if it does not
	// exist.
	File func(settings *spec.Snapshot) string
	// Cluster and Node identify the owner of the file. A file of another cluster or node is not used. Cluster returns
	// "" if the cluster is not known yet.
	Cluster func() string
	Node    string
	// Overrides win over the kept WeirConfiguration.
	Overrides spec.Overrides
	// Usable, if set, returns why the kept Snapshot must not be used, or nil. It may take its time.
	Usable func(ctx context.Context, kept *spec.Snapshot) error
	// Former, if set, is the last Snapshot of a Source that this one replaces. It is kept in the place of what the file has, so
	// that a start finds it while this Source has not answered.
	Former *spec.Snapshot
	// Served, if set, is called once with the kept Snapshot when it was sent.
	Served func(kept *spec.Snapshot)
	// Grace is how long a start waits for the wrapped Source before it uses the file; an error ends the wait. Default:
	// 5 s.
	Grace time.Duration
	// Interval is the least time between two writes. Default: 10 s.
	Interval time.Duration
	// Appends has only what changed written to the file, where that is little. The Deltas of the Source must name all that the
	// file has: those of files do not tell that an object has moved.
	Appends bool
	// Share limits the time spent on writing to one part in Share. Default: 50.
	Share int
	// Log may be nil.
	Log hclog.Logger
}

// Source is a spec.Source that begins with the kept Snapshot if the wrapped Source has not produced one yet.
type Source struct{ o Options }

var _ spec.Source = (*Source)(nil)

// New returns a Source.
func New(o Options) *Source {
	if o.Grace <= 0 {
		o.Grace = 5 * time.Second
	}
	if o.Interval <= 0 {
		o.Interval = 10 * time.Second
	}
	if o.Share <= 0 {
		o.Share = 50
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return &Source{o}
}

// Load implements spec.Source. It does not use the kept Snapshot.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) { return s.o.Source.Load(ctx) }

const (
	// writeLimit is how long a write may take. It is generous, because a large file on a slow disk is no hung mount.
	writeLimit = time.Minute
	// maxRest is the longest wait after a failed write.
	maxRest = time.Minute
)

// Watch implements spec.Source. The Revision of a kept Snapshot is marked as stale. At the end the newest Snapshot is
// written.
func (s *Source) Watch(ctx context.Context, sink func(spec.Update)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := &watch{Source: s, ctx: ctx, sink: sink}
	if s.o.Former != nil {
		w.locked(func() {
			w.served, w.unsaved, w.changed.all = true, s.o.Former, true
			w.save()
		})
	}
	grace := time.AfterFunc(s.o.Grace, func() { w.locked(func() { w.serve(nil) }) })
	err := s.o.Source.Watch(ctx, func(u spec.Update) { w.locked(func() { w.take(u) }) })
	grace.Stop()
	w.finish()
	return err
}

// watch is one Watch. Updates of the wrapped Source, the end of the grace period, and the ends of a read and of a write
// are handled under its lock. An Update never waits for the disk.
type watch struct {
	*Source
	ctx  context.Context
	mu   sync.Mutex
	sink func(spec.Update)
	// answered reports whether the wrapped Source has sent a Snapshot, and served whether the file was looked for.
	answered, served bool
	// compared reports whether earlier, what an earlier run kept, was read to be compared with the first Snapshot. resent
	// reports whether a Snapshot was refused because of it, so that the next one is no change to one that was sent.
	compared, resent bool
	earlier          *spec.Snapshot
	// looking reports whether the file is being looked for. Meanwhile held holds the last error, which is sent after the
	// kept Snapshot.
	looking bool
	// again reports whether a further error came meanwhile.
	again   bool
	held    *spec.Update
	working sync.WaitGroup

	// unsaved is the next Snapshot to write, or nil, and changed is what differs in it from what was written last. kept belongs to
	// the write that is going on.
	unsaved *spec.Snapshot
	changed change
	kept    kept
	// pause ends the rest after a write. It is nil before the first write. paced reports whether a write or its rest is
	// going on.
	pause *time.Timer
	paced bool
	gate  stall.Gate
	told  string // the last logged reason why nothing can be kept
	// failures is the number of writes that failed in a row.
	failures int
}

// locked calls do, unless the Watch has ended.
func (w *watch) locked(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sink != nil {
		do()
	}
}

func (w *watch) take(u spec.Update) {
	if u.Err == nil && !w.answered {
		if lost := w.lost(u.Snapshot); lost != nil {
			w.resent = true
			u = spec.Update{Err: lost, Revision: u.Revision, Settings: u.Snapshot}
		} else if w.resent {
			u.Delta = spec.Delta{All: true, Config: true, Nodes: true}
		}
	}
	if u.Err != nil {
		w.again = w.looking
		w.serve(u.Settings)
		if w.looking {
			w.held = &u
			return
		}
	} else {
		w.answered, w.held, w.unsaved, w.earlier = true, nil, u.Snapshot, nil
		w.changed.add(u.Delta)
		if !w.paced { // the first write does not wait, because a node may lose its power in its first seconds
			w.save()
		}
	}
	w.sink(u)
}

// serve starts to look for the kept Snapshot, once, if the wrapped Source has sent none.
func (w *watch) serve(settings *spec.Snapshot) {
	if w.answered || w.served || w.looking {
		return
	}
	w.served, w.looking = true, true
	w.working.Go(func() {
		cluster := w.o.Cluster() // which may read files
		var snap *spec.Snapshot
		if cluster != "" {
			snap = w.restore(w.ctx, w.o.File(settings), cluster)
		}
		w.locked(func() {
			w.looking = false
			if w.served = cluster != ""; !w.served && w.again { // otherwise the next error tries again
				w.again = false
				w.serve(settings)
				return
			}
			w.found(snap)
		})
	})
}

// found sends the kept Snapshot, unless it is nil or the wrapped Source has answered meanwhile, and then the error that
// came before.
func (w *watch) found(snap *spec.Snapshot) {
	if snap != nil && !w.answered {
		w.sink(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}, Revision: snap.Revision})
		if w.o.Served != nil {
			w.o.Served(snap)
		}
	}
	if w.held != nil {
		w.sink(*w.held)
		w.held = nil
	}
}

// save starts to write the unsaved Snapshot, if there is one.
func (w *watch) save() {
	snap, changed := w.unsaved, w.changed
	w.unsaved, w.paced = nil, snap != nil
	if snap == nil {
		return
	}
	w.changed = change{}
	w.working.Go(func() {
		started := time.Now()
		err := w.keep(context.WithoutCancel(w.ctx), snap, changed)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.changed.all = w.changed.all || err != nil
		if err != nil && w.unsaved == nil {
			w.unsaved = snap
		}
		w.tell(err)
		w.pause = time.AfterFunc(w.rest(err, time.Since(started)), func() { w.locked(w.save) })
	})
}

// rest returns how long to wait after a write that took a while. It doubles with each failed write in a row.
func (w *watch) rest(err error, took time.Duration) time.Duration {
	rest := w.o.Interval
	if err == nil || errors.Is(err, errUnknownOwner) {
		w.failures = 0
	} else {
		for range w.failures {
			rest = min(2*rest, max(w.o.Interval, maxRest))
		}
		w.failures = min(w.failures+1, 10)
	}
	return max(rest, time.Duration(w.o.Share)*took)
}

// tell logs once why nothing can be kept, and once that it can be again.
func (w *watch) tell(err error) {
	text := ""
	if err != nil && !errors.Is(err, errUnknownOwner) {
		text = err.Error()
	}
	switch {
	case text == w.told:
	case text != "":
		w.o.Log.Warn("the last good state of "+w.o.Input+" cannot be kept for the next start; trying again", "error", text)
	case err == nil:
		w.o.Log.Info("the last good state of " + w.o.Input + " is kept for the next start again")
	}
	w.told = text
}

// finish writes the unsaved Snapshot, if there is one. It does not wait long for a file system that does not answer.
func (w *watch) finish() {
	w.locked(func() { w.sink = nil })
	_, err := stall.Do(context.Background(), stall.Limit, "the last write to the state directory", func() (struct{}, error) {
		w.working.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.pause != nil {
			w.pause.Stop()
		}
		if w.unsaved == nil {
			return struct{}{}, nil
		}
		return struct{}{}, w.keep(context.Background(), w.unsaved, w.changed)
	})
	if err != nil && !errors.Is(err, errUnknownOwner) {
		w.o.Log.Warn("the last good state of "+w.o.Input+" is not kept for the next start", "error", err)
	}
}

// restore returns the kept Snapshot, or nil.
func (s *Source) restore(ctx context.Context, file, cluster string) *spec.Snapshot {
	snap, h, err := load(ctx, file, header{Cluster: cluster, Node: s.o.Node})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		s.o.Log.Info("no last good state of "+s.o.Input+" was kept by an earlier run", "file", file)
		return nil
	case ctx.Err() != nil:
		return nil
	case err != nil:
		s.o.Log.Warn("the kept state of "+s.o.Input+" is not used", "file", file, "error", err)
		return nil
	}
	snap.Weir = s.o.Overrides.Apply(snap.Weir)
	if s.o.Usable != nil {
		if err := s.o.Usable(ctx, snap); err != nil {
			if ctx.Err() == nil {
				s.o.Log.Warn("the kept state of "+s.o.Input+" is not used", "file", file, "saved", h.Saved.Format(time.RFC3339), "error", err)
			}
			return nil
		}
	}
	what := []any{"revision", h.Revision, "services", snap.Services.Len()}
	if h.Revision == "" && snap.Services.Len() == 0 { // it has pods only
		what = []any{"pods", snap.Pods.Len()}
	}
	s.o.Log.Warn(s.o.Input+" cannot be used yet; using its last good state, which an earlier run kept",
		append([]any{"file", file, "saved", h.Saved.Format(time.RFC3339)}, what...)...)
	return snap
}

// errUnknownOwner means that the cluster is not known, so that the file could not be matched later.
var errUnknownOwner = errors.New("it is not known yet which cluster this is")

// keep writes a Snapshot, or what has changed in it.
func (w *watch) keep(ctx context.Context, snap *spec.Snapshot, changed change) error {
	cluster := w.o.Cluster()
	if cluster == "" {
		return errUnknownOwner
	}
	h := header{Cluster: cluster, Node: w.o.Node, Revision: snap.Revision.ID, Dirty: snap.Revision.Dirty, Signer: snap.Revision.Signer, ProxyOnly: snap.Revision.ProxyOnly, Saved: time.Now().UTC()}
	file := w.o.File(snap)
	return w.gate.Do(ctx, writeLimit, "writing "+file, func() error {
		changed.all = changed.all || !w.o.Appends
		return w.kept.update(file, h, snap, changed)
	})
}
