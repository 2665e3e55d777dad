package reconcile

import (
	"context"
	"slices"

	"weir/backends"
)

// Comparison is what a dry run found: the plan, and both sides of it.
type Comparison struct {
	Plan    backends.Plan
	Backend backends.Backend
	// Entries are what was asked for and can be rendered, sorted by key.
	Entries []*backends.Entry
	// Desired and Observed are all Items of both sides, sorted by ID.
	Desired, Observed []backends.Item
	// Isolated is what cannot be rendered for this node, and is left out of the plan.
	Isolated []Isolated
	// Owners says for which Service ports an Item is desired.
	Owners func(backends.ID) []backends.PortKey
}

// Compare reads the kernel and returns what a round would do, as Plan does, together with what that was concluded from.
// Nothing is changed. The Comparison is valid until the Engine is used again.
func (e *Engine) Compare(ctx context.Context, reason string) (*Comparison, error) {
	plan, err := e.Plan(ctx, reason)
	if err != nil {
		return nil, err
	}
	c := &Comparison{Plan: plan, Isolated: e.Isolated(), Owners: func(backends.ID) []backends.PortKey { return nil }}
	d := e.next
	if d == nil {
		d = e.active
	}
	if d == nil {
		return c, nil
	}
	c.Backend = d.backend
	for _, name := range e.names() {
		c.Entries = append(c.Entries, d.rendered[name]...)
	}
	c.Desired, c.Observed = d.tracker.sides()
	c.Owners = func(id backends.ID) []backends.PortKey {
		if r := d.tracker.records[id]; r != nil && r.desired != nil {
			return d.tracker.ownersOf(r)
		}
		return nil
	}
	return c, nil
}

// Wanted returns the Entries that the Engine works for, sorted by key.
func (e *Engine) Wanted() []*backends.Entry {
	var entries []*backends.Entry
	for _, name := range e.names() {
		entries = append(entries, e.services[name].entries...)
	}
	return entries
}

// sides returns all desired and all observed Items, sorted by ID.
func (t *Tracker) sides() (desired, observed []backends.Item) {
	ids := make([]backends.ID, 0, len(t.records))
	for id := range t.records {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		r := t.records[id]
		if r.desired != nil {
			desired = append(desired, r.desired)
		}
		if r.observed != nil {
			observed = append(observed, r.observed)
		}
	}
	return desired, observed
}
