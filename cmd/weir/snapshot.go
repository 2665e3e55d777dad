package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/reconcile/tell/changes"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/stall"
)

// recordOf returns the state that the Engine has brought this node to.
func recordOf(engine *reconcile.Engine, t *nodeConfig, snap *spec.Snapshot) *changes.Record {
	return &changes.Record{
		Node: t.Node.Name, Zone: t.Node.Zone, Families: t.Node.Families, Revision: snap.Revision.String(), Pods: changes.PodsOf(snap.Found),
		State: changes.State{Mode: t.Mode, ServicePorts: engine.Wanted()},
	}
}

// saveRecord writes what was applied, so that a later plan can name kernel objects. A failure has no other effect.
func saveRecord(ctx context.Context, gate *stall.Gate, limit time.Duration, stateDir string, take func() *changes.Record) error {
	return gate.Do(ctx, limit, "writing to "+stateDir, func() error { return status.SaveRecord(stateDir, take()) })
}

// warnUnrecorded logs why the record was not written.
func warnUnrecorded(log hclog.Logger, err error) {
	log.Warn("the record of the applied state cannot be written; plans will name removed Services by their addresses", "error", err)
}

// recorder is an Observer that brings the record up to date after each full sync, not after each change, because the record only
// supplies what the kernel does not hold: names and probes.
type recorder struct {
	reconcile.NopObserver
	ctx      context.Context
	log      hclog.Logger
	board    *status.Board
	file     recordFile
	stateDir string
	stale    bool // the record is older than what was applied
	// changed are the ServicePorts that differ from those in the record, nil for one that is gone.
	changed map[dataplane.ServicePortName]*dataplane.ServicePort
}

// Configured implements reconcile.Observer.
func (o *recorder) Configured(snap *spec.Snapshot, _ reconcile.Settings) {
	o.stateDir = snap.Weir.StateDir
}

// Applied implements reconcile.Observer.
func (o *recorder) Applied(r reconcile.Report) {
	o.stale = o.stale || len(r.Changed)+len(r.Gone) > 0 || o.file.failed.Load()
	if o.changed == nil {
		o.changed = map[dataplane.ServicePortName]*dataplane.ServicePort{}
	}
	for _, p := range r.Changed {
		o.changed[p.Key] = p
	}
	for _, key := range r.Gone {
		o.changed[key] = nil
	}
	if o.stale && r.Full && r.Err == nil && o.file.save(o.ctx, o.log, o.stateDir, o.board, o.changed) {
		o.stale, o.changed = false, nil
	}
}

// laterLimit is how long a record may take that nothing waits for: a large one on a slow disk is no hung mount.
const laterLimit = time.Minute

// recordFile writes records, one at a time. save waits for the first one only, so that no change waits for a later one.
type recordFile struct {
	saved   bool
	record  status.RecordFile // of the writer
	busy    atomic.Bool
	failed  atomic.Bool // the last write failed
	told    string      // the last logged reason, of the writer
	gate    stall.Gate
	writing sync.WaitGroup
}

// wait waits for the record that is being written, but not long for a file system that does not answer.
func (f *recordFile) wait() {
	// The record only supplies names, so nothing depends on it.
	_, _ = stall.Do(context.Background(), stall.Limit, "the last record", func() (struct{}, error) {
		f.writing.Wait()
		return struct{}{}, nil
	})
}

// save reports whether it brings the record up to date with a Board. It does not while another one is being written.
func (f *recordFile) save(ctx context.Context, log hclog.Logger, stateDir string, board *status.Board, changed map[dataplane.ServicePortName]*dataplane.ServicePort) bool {
	if !f.busy.CompareAndSwap(false, true) {
		return false
	}
	if f.failed.Load() {
		changed = nil
	}
	write := func(ctx context.Context, limit time.Duration) {
		defer f.busy.Store(false)
		f.tell(log, f.gate.Do(ctx, limit, "writing to "+stateDir, func() error { return f.record.Update(stateDir, board, changed) }))
	}
	if !f.saved {
		f.saved = true
		write(ctx, stall.Limit)
		return true
	}
	f.writing.Go(func() { write(context.WithoutCancel(ctx), laterLimit) })
	return true
}

// tell logs once why no record can be written, and once that it can be again.
func (f *recordFile) tell(log hclog.Logger, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == f.told:
	case err != nil:
		warnUnrecorded(log, err)
	default:
		log.Info("the record of the applied state is written again")
	}
	f.told = text
	f.failed.Store(err != nil)
}
