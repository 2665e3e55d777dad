package main

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"weir/reconcile"
	"weir/reconcile/review"
	"weir/reconcile/status"
	"weir/spec"
)

// recordOf is what the Engine has brought this node to.
func recordOf(engine *reconcile.Engine, t *target, revision spec.Revision) *review.Record {
	return &review.Record{
		Node: t.Node.Name, Zone: t.Node.Zone, Families: t.Node.Families, Revision: revision.String(),
		State: review.State{Mode: t.Mode, Entries: engine.Wanted()},
	}
}

// saveRecord notes what was applied, so that a later plan can name what it finds. That this fails harms nothing else.
func saveRecord(log hclog.Logger, stateDir string, r *review.Record) {
	if err := status.SaveRecord(stateDir, r); err != nil {
		log.Warn("cannot note what was applied; plans will name removed Services by their addresses", "error", err)
	}
}

// recordFile has the record of what was applied written, one at a time. The first is there when save returns; no change
// waits for the later ones.
type recordFile struct {
	saved   bool
	busy    atomic.Bool
	writing sync.WaitGroup
}

// save says whether the record that take returns is being written; it is not while another one is.
func (f *recordFile) save(log hclog.Logger, stateDir string, take func() *review.Record) bool {
	if !f.saved {
		f.saved = true
		saveRecord(log, stateDir, take())
		return true
	}
	if !f.busy.CompareAndSwap(false, true) {
		return false
	}
	f.writing.Go(func() {
		defer f.busy.Store(false)
		saveRecord(log, stateDir, take())
	})
	return true
}
