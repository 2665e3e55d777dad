// Package iptables programs Services as iptables rules, in chains of its own that all begin with WEIR-.
package iptables

import (
	"context"
	"iter"

	"weir/backends"
)

// Backend implements backends.Backend and backends.Generation.
type Backend struct {
	cfg    backends.Config
	kernel Kernel
}

// New returns a Backend that programs the families of cfg through kernel.
func New(cfg backends.Config, kernel Kernel) *Backend {
	return &Backend{cfg: cfg, kernel: kernel}
}

// Base implements backends.Backend.
func (b *Backend) Base() []backends.Item { return nil }

// Render implements backends.Backend.
func (b *Backend) Render(e *backends.Entry) ([]backends.Item, error) { return nil, nil }

// Observe implements backends.Backend.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(func(backends.Item, error) bool) {}
}

// Apply implements backends.Backend.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result { return backends.Result{} }

// Generation implements backends.Generation.
func (b *Backend) Generation(ctx context.Context) (uint64, error) { return b.kernel.Generation(ctx) }
