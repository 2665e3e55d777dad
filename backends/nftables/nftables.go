// Package nftables programs Services with nf_tables over netlink. All Services live in maps and the rules are the same
// for any number of them, so that a change is a few set elements in one transaction. No nft binary is needed.
package nftables

import (
	"context"
	"errors"
	"iter"

	"weir/backends"
)

// Backend is the nftables backend. It owns the tables `ip weir` and `ip6 weir` of the network namespace that it was first
// used in, and nothing else.
type Backend struct {
	cfg backends.Config
}

var (
	_ backends.Backend    = (*Backend)(nil)
	_ backends.Generation = (*Backend)(nil)
)

// New returns a Backend for the configuration. It opens nothing: the kernel is reached at the first use, in the network
// namespace of the calling thread.
func New(cfg backends.Config) *Backend { return &Backend{cfg: cfg} }

// Close gives back the sockets. What the kernel holds stays.
func (b *Backend) Close() error { return nil }

// Warnings says in which points of the configuration this backend cannot do what was asked.
func Warnings(cfg backends.Config) []string { return nil }

// Probe says whether this kernel and this process can run the backend, and if not, why.
func Probe(ctx context.Context) error { return errors.New("nftables: not there yet") }

// Base returns the tables, maps and chains that are there without any Service.
func (b *Backend) Base() []backends.Item { return nil }

// Render returns the Items of one Entry.
func (b *Backend) Render(e *backends.Entry) ([]backends.Item, error) { return nil, nil }

// Observe reads weir's tables.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {}
}

// Apply executes a Plan.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	return backends.Result{Err: errors.New("nftables: not there yet")}
}

// Generation moves when somebody else wrote to weir's tables.
func (b *Backend) Generation(ctx context.Context) (uint64, error) {
	return 0, errors.New("nftables: not there yet")
}
