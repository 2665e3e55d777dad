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

	var box spec.Outbox
	var unsaved *spec.Snapshot
	answered, served := false, false
	grace, write := time.NewTimer(s.o.Grace), time.NewTimer(0)
	<-write.C
	defer grace.Stop()
	defer write.Stop()
	due := false
	serve := func() {
		if answered || served {
			return
		}
		cluster := s.o.Cluster()
		served = cluster != "" // else the next error is another occasion
		if snap := s.restore(cluster); snap != nil {
			box.Put(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}, Revision: snap.Revision})
		}
	}
	for {
		offer, news := box.Offer(out)
		select {
		case err := <-ended:
			if unsaved != nil {
				s.keep(unsaved)
			}
			return err
		case <-grace.C:
			serve()
		case u := <-in:
			if u.Err != nil {
				serve()
			} else {
				answered, unsaved = true, u.Snapshot
				if !due {
					due = true
					write.Reset(s.o.Interval)
				}
			}
			box.Put(u)
		case <-write.C:
			start := time.Now()
			if s.keep(unsaved) {
				unsaved = nil
			}
			if due = unsaved != nil; due {
				write.Reset(max(s.o.Interval, writeShare*time.Since(start)))
			}
		case offer <- news:
			box.Sent()
		}
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
	err := os.MkdirAll(filepath.Dir(s.o.File), 0o700)
	if err == nil {
		err = save(s.o.File, header{Cluster: s.o.Cluster(), Node: s.o.Node, Revision: snap.Revision.ID, Saved: time.Now().UTC()}, snap)
	}
	if err != nil {
		s.o.Log.Warn("the state of the Kubernetes API cannot be kept for the next start", "error", fmt.Errorf("%s: %w", s.o.File, err))
	}
	return err == nil
}
