package spec

// Outbox holds what the receiver of a Source has not taken yet: at most the latest Snapshot, with the Deltas of all since
// the one that was taken, and after it the latest error. The zero value is empty.
type Outbox struct {
	good, bad *Update
}

// Put adds u. An error that was not taken is dropped when a Snapshot follows it, a Snapshot never.
func (o *Outbox) Put(u Update) {
	if u.Err != nil {
		o.bad = &u
		return
	}
	if o.good != nil {
		u.Delta = o.good.Delta.Merge(u.Delta)
	}
	o.good, o.bad = &u, nil
}

// Next returns what to send, or nil.
func (o *Outbox) Next() *Update {
	if o.good != nil {
		return o.good
	}
	return o.bad
}

// Offer returns what a select statement needs to send what is next: nil, which blocks, if there is nothing.
func (o *Outbox) Offer(out chan<- Update) (chan<- Update, Update) {
	if u := o.Next(); u != nil {
		return out, *u
	}
	return nil, Update{}
}

// Sent removes what Next returned.
func (o *Outbox) Sent() {
	if o.good != nil {
		o.good = nil
		return
	}
	o.bad = nil
}

// Merge returns the Delta of d, then next.
func (d Delta) Merge(next Delta) Delta {
	m := Delta{All: d.All || next.All, Config: d.Config || next.Config, Nodes: d.Nodes || next.Nodes}
	if m.All {
		return m
	}
	known := make(map[Name]bool, len(d.Services))
	for _, names := range [][]Name{d.Services, next.Services} {
		for _, n := range names {
			if !known[n] {
				known[n] = true
				m.Services = append(m.Services, n)
			}
		}
	}
	return m
}
