package filesource

import "weir/spec"

// outbox holds what the receiver has not taken yet: at most the latest Snapshot, with the Deltas of all since the one
// that was taken, and after it the latest error.
type outbox struct {
	good, bad *spec.Update
}

// put adds u. An error that was not taken is dropped when a Snapshot follows it, a Snapshot never.
func (o *outbox) put(u spec.Update) {
	if u.Err != nil {
		o.bad = &u
		return
	}
	if o.good != nil {
		u.Delta = merge(o.good.Delta, u.Delta)
	}
	o.good, o.bad = &u, nil
}

// next returns what to send, or nil.
func (o *outbox) next() *spec.Update {
	if o.good != nil {
		return o.good
	}
	return o.bad
}

// sent removes what next returned.
func (o *outbox) sent() {
	if o.good != nil {
		o.good = nil
		return
	}
	o.bad = nil
}

// merge returns the Delta of a, then b.
func merge(a, b spec.Delta) spec.Delta {
	m := spec.Delta{All: a.All || b.All, Config: a.Config || b.Config, Nodes: a.Nodes || b.Nodes}
	if m.All {
		return m
	}
	known := make(map[spec.Name]bool, len(a.Services))
	for _, names := range [][]spec.Name{a.Services, b.Services} {
		for _, n := range names {
			if !known[n] {
				known[n] = true
				m.Services = append(m.Services, n)
			}
		}
	}
	return m
}
