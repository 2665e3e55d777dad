package ipvs

import (
	"context"
	"fmt"
	"iter"
	"net/netip"

	"weir/backends"
)

// Observe implements backends.Backend.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		items, err := b.read(ctx)
		if err != nil {
			yield(nil, fmt.Errorf("cannot read IPVS: %w", err))
			return
		}
		for _, i := range items {
			if !yield(i, nil) {
				return
			}
		}
	}
}

// read returns the items in the kernel that are not leaving, and records those that are.
func (b *Backend) read(ctx context.Context) ([]backends.Item, error) {
	state, err := b.kernel.Read(ctx)
	if err != nil {
		return nil, err
	}
	items := b.note(state)
	for rule, err := range b.rules.Observe(ctx) {
		if err != nil {
			return nil, err
		}
		items = append(items, rule)
	}
	for _, s := range state.Sets {
		items = append(items, s)
	}
	for _, m := range state.Members {
		if !b.guardsLeaving(m) {
			items = append(items, m)
		}
	}
	if !state.Link {
		return items, nil
	}
	// Settings without an owner count as weir's as long as weir's interface exists.
	items = append(items, Link{})
	if t := state.Timeouts.only(b.timeouts()); t != (Timeouts{}) {
		items = append(items, t)
	}
	return items, nil
}

// note records the leaving objects, and returns the others.
func (b *Backend) note(state *State) []backends.Item {
	b.draining, b.leaving = map[ServerKey]struct{}{}, map[netip.Addr]struct{}{}
	var items []backends.Item
	staying, leaving := map[ServerKey]bool{}, map[ServerKey]bool{}
	for _, d := range state.Destinations {
		if d.Until > 0 {
			leaving[d.Server] = true
			b.draining[d.Server] = struct{}{}
			continue
		}
		staying[d.Server] = true
		items = append(items, d)
	}
	for _, s := range state.Servers {
		b.known[s.ServerKey] = s.ignoresZeroWeight()
		if staying[s.ServerKey] || !leaving[s.ServerKey] {
			items = append(items, s)
		}
	}
	for _, a := range state.Addresses {
		if a.Leaving {
			b.leaving[a.Addr] = struct{}{}
		} else {
			items = append(items, a)
		}
	}
	return items
}
