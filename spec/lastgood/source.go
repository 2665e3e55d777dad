package lastgood

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/spec"
)

// Options say what to keep, and where.
type Options struct {
	// Source is what to keep the Snapshots of.
	Source spec.Source
	// File is where. Its directory is made if need be.
	File string
	// Cluster and Node are what the Snapshots are for. A file that was kept for others is not used. Cluster returns "" if
	// it cannot tell.
	Cluster func() string
	Node    string
	// Grace is how long a start waits for the Source before what was kept is used; an error ends the wait. Default: 5 s.
	Grace time.Duration
	// Interval is the least time between two writes. Default: 10 s.
	Interval time.Duration
	// Log may be nil.
	Log hclog.Logger
}

// Source is a spec.Source that begins with what was kept, if the Source it stands for has nothing to say.
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
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return &Source{o}
}

// Load implements spec.Source. Nothing that was kept is used.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) { return s.o.Source.Load(ctx) }

// writeShare is the part of its time that writing may take: one in so many.
const writeShare = 50

// Watch implements spec.Source. What was kept is marked as stale in its Revision. At the end the newest Snapshot is kept.
func (s *Source) Watch(ctx context.Context, out chan<- spec.Update) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, ended := make(chan spec.Update), make(chan error, 1)
	go func() { ended <- s.o.Source.Watch(ctx, in) }()

	l := &loop{Source: s, write: time.NewTimer(0), written: make(chan bool)}
	<-l.write.C
	defer l.write.Stop()
	grace := time.NewTimer(s.o.Grace)
	defer grace.Stop()
	for {
		offer, news := l.box.Offer(out)
		select {
		case err := <-ended:
			l.finish()
			return err
		case <-grace.C:
			l.serve()
		case u := <-in:
			l.take(u)
		case <-l.write.C:
			l.save()
		case ok := <-l.written:
			l.saved(ok)
		case offer <- news:
			l.box.Sent()
		}
	}
}

// loop is one Watch. Everything in it belongs to one goroutine; another one writes, so that no news waits for a disk.
type loop struct {
	*Source
	box spec.Outbox
	// answered says that the Source has sent a Snapshot, and served that what was kept was looked for.
	answered, served bool

	// unsaved is what is to be written next, and writing what is being written; nil if there is none.
	unsaved, writing *spec.Snapshot
	// paced says that writing is not nil, or that the pause after a write has not ended; write fires when it has.
	paced   bool
	write   *time.Timer
	started time.Time
	written chan bool
}

func (l *loop) take(u spec.Update) {
	if u.Err != nil {
		l.serve()
	} else {
		l.answered, l.unsaved = true, u.Snapshot
		if !l.paced { // the first is not to wait: a node may lose its power in its first seconds
			l.save()
		}
	}
	l.box.Put(u)
}

// serve puts what was kept into the outbox, once, if the Source has nothing to say.
func (l *loop) serve() {
	if l.answered || l.served {
		return
	}
	cluster := l.o.Cluster()
	l.served = cluster != "" // else the next error is another occasion
	if snap := l.restore(cluster); snap != nil {
		l.box.Put(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}, Revision: snap.Revision})
	}
}

// save begins to write what is to be written, if anything is.
func (l *loop) save() {
	l.writing, l.unsaved, l.paced, l.started = l.unsaved, nil, l.unsaved != nil, time.Now()
	if snap := l.writing; snap != nil {
		go func() { l.written <- l.keep(snap) }()
	}
}

func (l *loop) saved(ok bool) {
	if !ok && l.unsaved == nil {
		l.unsaved = l.writing
	}
	l.writing = nil
	l.write.Reset(max(l.o.Interval, writeShare*time.Since(l.started)))
}

// finish writes what is not written.
func (l *loop) finish() {
	if l.writing != nil {
		l.saved(<-l.written)
	}
	if l.unsaved != nil {
		l.keep(l.unsaved)
	}
}

// restore returns what was kept, or nil.
func (s *Source) restore(cluster string) *spec.Snapshot {
	if cluster == "" {
		return nil
	}
	snap, h, err := load(s.o.File, header{Cluster: cluster, Node: s.o.Node})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		s.o.Log.Warn("what was kept of the Kubernetes API is not used", "file", s.o.File, "error", err)
		return nil
	}
	s.o.Log.Warn("the Kubernetes API has not answered yet; using what was kept of it", "file", s.o.File,
		"saved", h.Saved.Format(time.RFC3339), "revision", h.Revision, "services", snap.Len())
	return snap
}

// keep writes a Snapshot and says whether that worked.
func (s *Source) keep(snap *spec.Snapshot) bool {
	cluster := s.o.Cluster()
	if cluster == "" {
		return false // nobody could tell later what it is for
	}
	err := os.MkdirAll(filepath.Dir(s.o.File), 0o700)
	if err == nil {
		err = save(s.o.File, header{Cluster: cluster, Node: s.o.Node, Revision: snap.Revision.ID, Saved: time.Now().UTC()}, snap)
	}
	if err != nil {
		s.o.Log.Warn("the state of the Kubernetes API cannot be kept for the next start", "error", fmt.Errorf("%s: %w", s.o.File, err))
	}
	return err == nil
}
