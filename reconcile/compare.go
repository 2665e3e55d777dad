package reconcile

import (
	"context"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
)

// Comparison is the result of a dry run: the plan, and both sides of it.
type Comparison struct {
	Plan backends.Plan
	// Backend is nil if there is no data path.
	Backend backends.Backend
	// ServicePorts are the desired ones that can be rendered, sorted by key.
	ServicePorts []*dataplane.ServicePort
	// Desired and Observed are all Items of both sides, sorted by ID.
	Desired, Observed []backends.Item
	// HeldBack lists what cannot be rendered for this node. It is not part of the plan.
	HeldBack []HeldBack
	// Owners returns the Service ports that want an Item.
	Owners func(backends.ID) []dataplane.ServicePortName
}

// Compare reads the kernel and returns what a round would do, as Plan does, with both sides of the comparison. It
// changes nothing. The Comparison is valid until the Engine is used again.
func (e *Engine) Compare(ctx context.Context, reason string) (*Comparison, error) {
	plan, err := e.Plan(ctx, reason)
	if err != nil {
		return nil, err
	}
	c := &Comparison{Plan: plan, HeldBack: e.HeldBack(), Owners: func(backends.ID) []dataplane.ServicePortName { return nil }}
	d := e.next
	if d == nil {
		d = e.active
	}
	if d == nil {
		return c, nil
	}
	c.Backend = d.Backend
	for _, name := range e.names() {
		c.ServicePorts = append(c.ServicePorts, d.desired.current[name]...)
	}
	c.Desired, c.Observed = d.tracker.sides()
	c.Owners = func(id backends.ID) []dataplane.ServicePortName {
		if r := d.tracker.records[id]; r != nil && r.desired != nil {
			return d.tracker.ownersOf(r)
		}
		return nil
	}
	return c, nil
}

// Wanted returns the desired ServicePorts, sorted by key.
func (e *Engine) Wanted() []*dataplane.ServicePort {
	var servicePorts []*dataplane.ServicePort
	for _, name := range e.names() {
		servicePorts = append(servicePorts, e.services[name].servicePorts...)
	}
	return servicePorts
}

// sides returns all desired and all observed Items, sorted by ID.
func (t *tracker) sides() (desired, observed []backends.Item) {
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
