package reconcile

import (
	"context"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/spec"
)

// Flows removes connection tracking entries that lead to the wrong place, which the kernel keeps for protocols without a
// handshake.
type Flows interface {
	// Clean looks at the flows of the Entries given and of no others, and returns how many it removed. A flow to a front
	// address of an Entry in current goes if it leads to anything but an endpoint of that Entry; a flow to a front address
	// of an Entry in gone goes in any case, unless an Entry in current has the same address. It does nothing twice: when
	// it fails it is called again with the same Entries and more.
	Clean(ctx context.Context, current, gone []*backends.Entry) (int, error)
}

// Options is what an Engine starts with. Backend may be nil until SetBackend.
type Options struct {
	Mode    string
	Backend backends.Backend
	Node    Node
	// Flows may be nil: then no conntrack entry is touched.
	Flows Flows
	Log   hclog.Logger
}

// Request asks for a round.
type Request struct {
	// Reason is for logs and plans, such as "services changed".
	Reason string
	// Full asks to compare with the kernel rather than with what is remembered of it.
	Full bool
}

// Engine makes one round of reconciliation at a time. It has no timers and no goroutines, and is not safe for concurrent
// use.
type Engine struct {
	log hclog.Logger
}

// NewEngine returns an Engine that has no snapshot yet.
func NewEngine(o Options) *Engine {
	return &Engine{log: o.Log}
}

// SetSnapshot makes the snapshot the one that the next round works for. The delta is to the snapshot given before.
func (e *Engine) SetSnapshot(snap *spec.Snapshot, delta spec.Delta) {}

// SetNode makes the next round resolve every Service for the node.
func (e *Engine) SetNode(node Node) {}

// SetBackend hands over to another backend. In the same mode it only has other settings: what is known of the kernel is
// kept, everything is rendered anew and the difference applied. In another mode the new backend is applied in full before
// the old one is taken down; until that succeeds the old one is kept up to date.
func (e *Engine) SetBackend(mode string, b backends.Backend) {}

// Mode returns the proxy mode in force.
func (e *Engine) Mode() string { return "" }

// Round makes what the snapshot asks for true.
func (e *Engine) Round(ctx context.Context, req Request) Report { return Report{} }

// Plan reads the kernel and returns what a round would do. Nothing is changed.
func (e *Engine) Plan(ctx context.Context, reason string) (backends.Plan, error) {
	return backends.Plan{}, nil
}

// Cleanup removes everything that the backend owns. Nothing else is done with the Engine thereafter.
func (e *Engine) Cleanup(ctx context.Context) Report { return Report{} }

// PlanCleanup returns what Cleanup would do. Nothing else but Cleanup is done with the Engine thereafter.
func (e *Engine) PlanCleanup(ctx context.Context) (backends.Plan, error) { return backends.Plan{}, nil }

// Notices returns what the authors of Services should know of how they were resolved.
func (e *Engine) Notices() []spec.Problem { return nil }
