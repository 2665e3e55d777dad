package reconcile

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"

	"weir/backends"
)

// Tracker holds what the kernel should hold and what it does hold, and knows at any moment where the two differ.
//
// Goals: an edit of either side costs O(1) per item it touches, whatever the number of items; a full read of the kernel
// replaces the observed side only, so that drift appears in the same pending set as any other difference; memory is a few
// pointers per item, and an item that both sides hold alike is held once.
//
// Where they conflict: the order of a plan is worth more than the speed of a large one, so Pending sorts; and an item
// that many own is worth less than one that is owned once, so only a lone owner is kept inline.
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
	// first and more are the owners. more is nil for the many items that have only one, and otherwise holds all, first
	// included, each with the item it wants.
	first *owner
	more  map[*owner]backends.Item
	// last is who owned the item last, for a pending delete to name.
	last *owner
}

// owner is a Service port and the items it wants.
type owner struct {
	// key is an array of one, so that a slice of it can be handed out: most items have one owner only.
	key     [1]backends.PortKey
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

// Set says which items a Service port wants, in place of those it wanted before. The error is a backend's that gave two
// different items one ID; nothing is changed then.
func (t *Tracker) Set(key backends.PortKey, items []backends.Item) error {
	o := t.owners[key]
	if o == nil {
		o = &owner{key: [1]backends.PortKey{key}}
	}
	if err := t.set(o, items); err != nil {
		return fmt.Errorf("%v: %w", key, err)
	}
	t.owners[key] = o
	return nil
}

// SetBase says which items are wanted on nobody's account.
func (t *Tracker) SetBase(items []backends.Item) error { return t.set(t.base, items) }

// Remove says that a Service port wants nothing any more.
func (t *Tracker) Remove(key backends.PortKey) {
	if o := t.owners[key]; o != nil {
		_ = t.set(o, nil)
		delete(t.owners, key)
	}
}

// Clear says that nothing is wanted any more.
func (t *Tracker) Clear() {
	for key := range t.owners {
		t.Remove(key)
	}
	_ = t.set(t.base, nil)
}

// Owns says whether the Service port wants anything.
func (t *Tracker) Owns(key backends.PortKey) bool { return t.owners[key] != nil }

// Owned yields the Service ports that want anything, in no order.
func (t *Tracker) Owned(yield func(backends.PortKey) bool) {
	for key := range t.owners {
		if !yield(key) {
			return
		}
	}
}

// Len returns how many items are wanted.
func (t *Tracker) Len() int { return t.desired }

// ItemsOf returns what the kernel should hold for a Service port.
func (t *Tracker) ItemsOf(key backends.PortKey) []backends.Item {
	o := t.owners[key]
	if o == nil {
		return nil
	}
	items := make([]backends.Item, len(o.records))
	for i, r := range o.records {
		items[i] = r.desired
	}
	return items
}

func (t *Tracker) set(o *owner, items []backends.Item) error {
	items, err := unique(items)
	if err != nil {
		return err
	}
	before := o.records
	o.records = make([]*record, 0, len(items))
	for _, item := range items {
		r := t.record(item.ID())
		t.own(r, o, item)
		o.records = append(o.records, r)
	}
	for _, r := range before {
		if _, still := slices.BinarySearchFunc(o.records, r.id, byID); !still {
			t.disown(r, o)
		}
	}
	return nil
}

func byID(r *record, id backends.ID) int { return cmp.Compare(r.id, id) }

// unique sorts by ID, drops repetitions, and refuses two items that share an ID and nothing else.
func unique(items []backends.Item) ([]backends.Item, error) {
	sorted := slices.Clone(items)
	slices.SortStableFunc(sorted, func(a, b backends.Item) int { return cmp.Compare(a.ID(), b.ID()) })
	for i := 1; i < len(sorted); i++ {
		if sorted[i].ID() == sorted[i-1].ID() && !same(sorted[i], sorted[i-1]) {
			return nil, fmt.Errorf("item %s was rendered twice, differently:\n%s\n%s", sorted[i].ID(), sorted[i-1], sorted[i])
		}
	}
	return slices.CompactFunc(sorted, func(a, b backends.Item) bool { return a.ID() == b.ID() }), nil
}

func (t *Tracker) record(id backends.ID) *record {
	r := t.records[id]
	if r == nil {
		r = &record{id: id}
		t.records[id] = r
	}
	return r
}

// own makes o an owner of r that wants item.
func (t *Tracker) own(r *record, o *owner, item backends.Item) {
	switch {
	case r.first == nil || r.more == nil && r.first == o:
		r.first = o
		t.want(r, item)
		return
	case r.more == nil:
		r.more = map[*owner]backends.Item{r.first: r.desired}
	}
	agreed := same(item, r.desired)
	if agreed {
		item = r.desired
	}
	r.more[o] = item
	if _, disputed := t.disputed[r]; disputed || !agreed {
		t.settle(r)
	}
}

// disown takes o from the owners of r.
func (t *Tracker) disown(r *record, o *owner) {
	if r.more == nil {
		r.first, r.last = nil, o
		t.want(r, nil)
		return
	}
	delete(r.more, o)
	if r.first == o {
		for r.first = range r.more {
			break
		}
	}
	if _, disputed := t.disputed[r]; disputed {
		t.settle(r)
	}
	if len(r.more) == 1 {
		r.more = nil
	}
}

// settle decides between owners who may want r differently.
func (t *Tracker) settle(r *record) {
	winner, differ := r.first, false
	for o, item := range r.more {
		if t.before(o, winner) {
			winner = o
		}
		differ = differ || !same(item, r.more[r.first])
	}
	if differ {
		t.disputed[r] = struct{}{}
	} else {
		delete(t.disputed, r)
	}
	t.want(r, r.more[winner])
}

// before puts the scaffolding first, then goes by the keys.
func (t *Tracker) before(a, b *owner) bool {
	if a == t.base || b == t.base {
		return a == t.base && b != t.base
	}
	return a.key[0].Compare(b.key[0]) < 0
}

// want sets the desired side of r.
func (t *Tracker) want(r *record, item backends.Item) {
	if r.desired != nil {
		t.desired--
	}
	if item != nil {
		t.desired++
	}
	r.desired = item
	if t.touch(r) && item != nil {
		r.desired = r.observed
	}
}

// see sets the observed side of r.
func (t *Tracker) see(r *record, item backends.Item) {
	r.observed = item
	if t.touch(r) && item != nil {
		r.observed = r.desired
	}
}

// touch keeps the pending set right after either side of r changed, and says whether the sides are equal now, so that one
// Item can stand for both.
func (t *Tracker) touch(r *record) bool {
	if !same(r.desired, r.observed) {
		t.pending[r] = struct{}{}
		return false
	}
	delete(t.pending, r)
	r.last = nil
	if r.desired == nil {
		delete(t.records, r.id)
	}
	return true
}

// same compares by content: an Item need not be comparable.
func same(a, b backends.Item) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	if reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b {
		return true // most are, and their strings are long
	}
	return a.String() == b.String()
}

// ReplaceObserved makes items the whole of what the kernel holds. It returns the IDs that differ now and did not before, in no
// order.
func (t *Tracker) ReplaceObserved(items []backends.Item) []backends.ID {
	seen := make(map[*record]struct{}, len(items))
	var drift []backends.ID
	update := func(r *record, item backends.Item) {
		_, before := t.pending[r]
		t.see(r, item)
		if _, now := t.pending[r]; now && !before {
			drift = append(drift, r.id)
		}
	}
	for _, item := range items {
		r := t.record(item.ID())
		seen[r] = struct{}{}
		update(r, item)
	}
	for _, r := range t.records {
		if _, ok := seen[r]; !ok && r.observed != nil {
			update(r, nil)
		}
	}
	return drift
}

// Reobserve makes items what the kernel holds of their IDs, nil for one that is gone. It returns the IDs that differ now and
// did not before, in no order.
func (t *Tracker) Reobserve(items map[backends.ID]backends.Item) []backends.ID {
	var drift []backends.ID
	for id, item := range items {
		r := t.record(id)
		_, before := t.pending[r]
		t.see(r, item)
		if _, now := t.pending[r]; now && !before {
			drift = append(drift, id)
		}
	}
	return drift
}

// Item implements backends.Held.
func (t *Tracker) Item(id backends.ID) backends.Item {
	if r := t.records[id]; r != nil {
		return r.observed
	}
	return nil
}

// Items implements backends.Held.
func (t *Tracker) Items(yield func(backends.Item) bool) {
	for _, r := range t.records {
		if r.observed != nil && !yield(r.observed) {
			return
		}
	}
}

// Confirm records that the kernel made the changes.
func (t *Tracker) Confirm(changes []backends.Change) {
	for _, c := range changes {
		t.see(t.record(c.ID), c.New)
	}
	if len(t.pending) == 0 {
		t.pending = map[*record]struct{}{} // walking a map costs what it held at most, not what it holds
	}
}

// Pending returns the changes that would make the observed side equal to the desired one, sorted by ID. Those for which
// skip returns true are left out; it may be nil.
func (t *Tracker) Pending(skip func(backends.ID, []backends.PortKey) bool) []backends.Change {
	changes := make([]backends.Change, 0, len(t.pending))
	for r := range t.pending {
		c := backends.Change{ID: r.id, Old: r.observed, New: r.desired, Owners: t.ownersOf(r)}
		switch {
		case r.observed == nil:
			c.Op = backends.Create
		case r.desired == nil:
			c.Op = backends.Delete
		default:
			c.Op = backends.Update
		}
		if skip == nil || !skip(r.id, c.Owners) {
			changes = append(changes, c)
		}
	}
	slices.SortFunc(changes, func(a, b backends.Change) int { return cmp.Compare(a.ID, b.ID) })
	return changes
}

// ownersOf returns the keys of r's owners in order, or of its last one if it has none. They are only to be read.
func (t *Tracker) ownersOf(r *record) []backends.PortKey {
	lone := r.first
	if lone == nil {
		lone = r.last
	}
	if r.more == nil {
		if lone == nil || lone == t.base {
			return nil
		}
		return lone.key[:]
	}
	var keys []backends.PortKey
	for o := range r.more {
		if o != t.base {
			keys = append(keys, o.key[0])
		}
	}
	slices.SortFunc(keys, backends.PortKey.Compare)
	return keys
}

// Conflicts returns the items that several want differently, sorted by ID.
func (t *Tracker) Conflicts() []Conflict {
	var conflicts []Conflict
	for r := range t.disputed {
		c := Conflict{ID: r.id}
		keys := t.ownersOf(r)
		for o, item := range r.more {
			if o != t.base && !same(item, r.desired) {
				c.Losers = append(c.Losers, o.key[0])
			}
		}
		if r.more[t.base] == nil {
			c.Winner = keys[0]
		}
		slices.SortFunc(c.Losers, backends.PortKey.Compare)
		conflicts = append(conflicts, c)
	}
	slices.SortFunc(conflicts, func(a, b Conflict) int { return cmp.Compare(a.ID, b.ID) })
	return conflicts
}
