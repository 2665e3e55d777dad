package spec

import (
	"errors"
	"sync"
)

// Outbox coalesces Updates until the receiver is ready. It holds at most the latest Snapshot and the latest error after
// it. The Delta of that Snapshot covers everything since the last one that was taken. Put is a sink for a Source. All
// methods may be called from any goroutine.
type Outbox struct {
	mu        sync.Mutex
	good, bad *Update
	ready     chan struct{}
}

// NewOutbox returns an empty Outbox.
func NewOutbox() *Outbox { return &Outbox{ready: make(chan struct{}, 1)} }

// Put adds u. A Snapshot replaces an earlier error that was not taken; an error never replaces a Snapshot.
func (o *Outbox) Put(u Update) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if u.Err == nil && u.Snapshot == nil {
		u.Err = errors.New("the source sent an update without a snapshot")
	}
	switch {
	case u.Err != nil:
		o.bad = &u
	case o.good != nil:
		u.Delta = o.good.Delta.Merge(u.Delta)
		fallthrough
	default:
		o.good, o.bad = &u, nil
	}
	o.ring()
}

// Ready returns a channel that receives a value when there may be an Update to take. The channel of a nil Outbox never
// does.
func (o *Outbox) Ready() <-chan struct{} {
	if o == nil {
		return nil
	}
	return o.ready
}

// Take returns the next Update, if there is one, and removes it.
func (o *Outbox) Take() (u Update, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.good != nil:
		u, o.good = *o.good, nil
	case o.bad != nil:
		u, o.bad = *o.bad, nil
	default:
		return Update{}, false
	}
	if o.bad != nil {
		o.ring()
	}
	return u, true
}

func (o *Outbox) ring() {
	select {
	case o.ready <- struct{}{}:
	default:
	}
}
