package status

import (
	"context"
	"errors"

	"weir/backends"
)

// errNoCounters says that the backend in force is no Meter.
var errNoCounters = errors.New("weir counts no connections in this proxy mode")

// Metered tells which backend is in force; one that is no backends.Meter counts nothing.
func (b *Board) Metered(backend backends.Backend) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.meter, _ = backend.(backends.Meter)
}

// Measure adds the counters of the Services in s. It takes as long as a full read of the kernel.
func (b *Board) Measure(ctx context.Context, s *Status) error {
	b.mu.Lock()
	meter, entries := b.meter, b.sorted()
	b.mu.Unlock()
	if meter == nil {
		return errNoCounters
	}
	counts, err := meter.Traffic(ctx, entries)
	if err != nil {
		return err
	}
	for i := range s.Services {
		for j := range s.Services[i].Ports {
			p := &s.Services[i].Ports[j]
			if n, ok := counts[p.key]; ok {
				p.Connections = &n
			}
		}
	}
	return nil
}
