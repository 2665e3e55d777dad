package main

import (
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
func saveRecord(log hclog.Logger, engine *reconcile.Engine, t *target, snap *spec.Snapshot) {
	if err := status.SaveRecord(snap.Weir.StateDir, recordOf(engine, t, snap.Revision)); err != nil {
		log.Warn("cannot note what was applied; plans will name removed Services by their addresses", "error", err)
	}
}
