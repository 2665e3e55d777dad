package reconcile

import (
	"weir/backends"
)

// Tracker holds what the kernel should hold and what it does hold, and knows at any moment where the two differ.
//
// Goals: an edit of either side costs O(1) per item it touches, whatever the number of items; a full read of the kernel
// replaces the observed side only, so that drift appears in the same pending set as any other difference; memory is a few
// pointers per item, and an item that both sides hold alike is held once.
//
// Where they conflict: the order of a plan is worth more than the speed of a large one, so Pending sorts; and an item
// that many own is worth less than one that is owned once, so only the first owner is kept inline.
//
// Several owners may want an item with the same ID. If they want it alike, it is shared and goes with its last owner. If
// they differ, the owner that sorts first has its way, whatever the order in which they came, and the others are told by
// Conflicts: the outcome must not depend on history.
//
// A Tracker is not safe for concurrent use, and touches no kernel.
type Tracker struct {
	records map[backends.ID]*record
	owners  map[backends.PortKey]*owner
	base    *owner
	pending map[*record]struct{}
	// disputed holds the records whose owners differ.
	disputed map[*record]struct{}
	desired  int
}

// record is both sides of one item.
type record struct {
	id                backends.ID
	desired, observed backends.Item
	// first and more are the owners; more is nil for the many items that have only one.
	first *owner
	more  map[*owner]backends.Item
	// last is who owned the item last, for a pending delete to name.
	last *owner
}

// owner is a Service port and the items it wants.
type owner struct {
	key     backends.PortKey
	records []*record
}

// Conflict is an item that several Service ports want differently.
type Conflict struct {
	ID backends.ID
	// Winner has its way, Losers do not.
	Winner backends.PortKey
	Losers []backends.PortKey
}

// NewTracker returns an empty Tracker.
func NewTracker() *Tracker {
	return &Tracker{
		records:  map[backends.ID]*record{},
		owners:   map[backends.PortKey]*owner{},
		base:     &owner{},
		pending:  map[*record]struct{}{},
		disputed: map[*record]struct{}{},
	}
}
