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

// read returns the items in the kernel that are not leaving, and notes those that are.
func (b *Backend) read(ctx context.Context) ([]backends.Item, error) {
	state, err := b.kernel.Read(ctx)
	if err != nil {
		return nil, err
	}
	rules, err := b.readTables(ctx)
	if err != nil {
		return nil, err
	}
	items := b.note(state)
	for _, r := range rules {
		items = append(items, r)
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
	// What is set but not owned counts as long as weir is here.
	items = append(items, Link{})
	if t := state.Timeouts.only(b.timeouts()); t != (Timeouts{}) {
		items = append(items, t)
	}
	for _, s := range b.sysctls() {
		if s.Value, err = b.sysctl.Get(s.Name); err == nil {
			items = append(items, s)
		}
	}
	return items, nil
}

// note tells what is leaving from what is not, and returns the latter.
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
		b.known[s.ServerKey] = s.insists()
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
