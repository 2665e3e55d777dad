package dns

import (
	"context"
	"iter"

	"weir/backends"
	"weir/backends/dataplane"
)

// NoDataPath is the Backend of a node whose data path belongs to another program: it programs nothing, so that every name
// follows the input alone.
type NoDataPath struct{}

// Base implements backends.Backend.
func (NoDataPath) Base() []backends.Item { return nil }

// Render implements backends.Backend.
func (NoDataPath) Render(*dataplane.ServicePort) ([]backends.Item, error) { return nil, nil }

// Observe implements backends.Backend.
func (NoDataPath) Observe(context.Context) iter.Seq2[backends.Item, error] {
	return func(func(backends.Item, error) bool) {}
}

// Apply implements backends.Backend.
func (NoDataPath) Apply(context.Context, backends.Plan) backends.Result { return backends.Result{} }

// Close implements backends.Backend.
func (NoDataPath) Close() error { return nil }

// Optional implements backends.Backend.
func (NoDataPath) Optional() backends.Optional { return backends.Optional{} }
