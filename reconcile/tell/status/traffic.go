package status

import (
	"context"
	"errors"

	"weir/backends"
)

// errNoCounters means that the backend in force counts no connections.
var errNoCounters = errors.New("weir counts no connections in this proxy mode")

// Metered sets the counter of connections of the mode in force; nil means none.
func (b *Board) Metered(counter backends.ConnectionCounter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.counter = counter
}

// Measure adds the counters of the Services in s. It takes as long as a full read of the kernel.
func (b *Board) Measure(ctx context.Context, s *Status) error {
	b.mu.Lock()
	counter, servicePorts := b.counter, b.sorted()
	b.mu.Unlock()
	if counter == nil {
		return errNoCounters
	}
	counts, err := counter.Connections(ctx, servicePorts)
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
