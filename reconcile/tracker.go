package reconcile

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
)

// tracker holds the desired and the observed items, and knows at any moment where the two differ.
//
// Goals: An edit of either side costs O(1) per item, whatever the number of items. A full read of the kernel replaces
// the observed side only, so that drift appears in the same pending set as any other difference. Memory is a few
// pointers per item, and an item that is equal on both sides is held once.
//
// Where they conflict, the order of a plan is worth more than the speed of a large one, so Pending sorts. Most items
// have one owner, so only a single owner is kept inline.
//
// Several owners may want an item with the same ID. If their items are equal, the item is shared and goes with its last
// owner. If they differ, the owner that sorts first wins, in whatever order they came, and Conflicts lists the others.
// The outcome must not depend on history.
//
// A tracker is not safe for concurrent use, and does not touch the kernel.
type tracker struct {
	records map[backends.ID]*record
	owners  map[dataplane.ServicePortName]*owner
	base    *owner
	pending map[*record]struct{}
	// disputed holds the records whose owners differ.
	disputed map[*record]struct{}
	desired  int
}

// record holds both sides of one item.
type record struct {
	id                backends.ID
	desired, observed backends.Item
	// first and more are the owners. more is nil for the many items with one owner. Otherwise it holds all owners,
	// first included, each with the item it wants.
	first *owner
	more  map[*owner]backends.Item
	// last is the last former owner of the item. A pending delete names it.
	last *owner
}

// owner is a Service port and the items it wants.
type owner struct {
	// key is an array of one, so that a slice of it can be returned. Most items have one owner only.
	key     [1]dataplane.ServicePortName
	records []*record
}

// conflict is an item that several Service ports want with different content.
type conflict struct {
	ID backends.ID
	// Winner's item is used, the Losers' items are not.
	Winner dataplane.ServicePortName
	Losers []dataplane.ServicePortName
}

// newTracker returns an empty tracker.
func newTracker() *tracker {
	return &tracker{
		records:  map[backends.ID]*record{},
		owners:   map[dataplane.ServicePortName]*owner{},
		base:     &owner{},
		pending:  map[*record]struct{}{},
		disputed: map[*record]struct{}{},
	}
}

// Set replaces the items that a Service port wants. It returns an error and changes nothing if a backend gave two
// different items one ID.
func (t *tracker) Set(key dataplane.ServicePortName, items []backends.Item) error {
	o := t.owners[key]
	if o == nil {
		o = &owner{key: [1]dataplane.ServicePortName{key}}
	}
	if err := t.set(o, items); err != nil {
		return fmt.Errorf("%v: %w", key, err)
	}
	t.owners[key] = o
	return nil
}

// SetBase sets the items that are wanted regardless of any Service.
func (t *tracker) SetBase(items []backends.Item) error { return t.set(t.base, items) }

// Remove records that a Service port wants nothing any more.
func (t *tracker) Remove(key dataplane.ServicePortName) {
	if o := t.owners[key]; o != nil {
		_ = t.set(o, nil)
		delete(t.owners, key)
	}
}

// Clear empties the desired side.
func (t *tracker) Clear() {
	for key := range t.owners {
		t.Remove(key)
	}
	_ = t.set(t.base, nil)
}

// Owns reports whether the Service port wants anything.
func (t *tracker) Owns(key dataplane.ServicePortName) bool { return t.owners[key] != nil }

// Len returns the number of desired items.
func (t *tracker) Len() int { return t.desired }

// ItemsOf returns the desired items of a Service port.
func (t *tracker) ItemsOf(key dataplane.ServicePortName) []backends.Item {
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

func (t *tracker) set(o *owner, items []backends.Item) error {
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

// unique sorts by ID, drops repetitions, and refuses two different items with the same ID.
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

func (t *tracker) record(id backends.ID) *record {
	r := t.records[id]
	if r == nil {
		r = &record{id: id}
		t.records[id] = r
	}
	return r
}

// own makes o an owner of r that wants item.
func (t *tracker) own(r *record, o *owner, item backends.Item) {
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

// disown removes o from the owners of r.
func (t *tracker) disown(r *record, o *owner) {
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

// settle decides between owners that may want r differently.
func (t *tracker) settle(r *record) {
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

// before sorts the scaffolding first, and the rest by key.
func (t *tracker) before(a, b *owner) bool {
	if a == t.base || b == t.base {
		return a == t.base && b != t.base
	}
	return a.key[0].Compare(b.key[0]) < 0
}

// want sets the desired side of r.
func (t *tracker) want(r *record, item backends.Item) {
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
func (t *tracker) see(r *record, item backends.Item) {
	r.observed = item
	if t.touch(r) && item != nil {
		r.observed = r.desired
	}
}

// touch updates the pending set after either side of r changed. It reports whether the sides are now equal, so that one
// Item can stand for both.
func (t *tracker) touch(r *record) bool {
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

// same compares by content, because an Item need not be comparable.
func same(a, b backends.Item) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	if reflect.ValueOf(a).Comparable() && reflect.ValueOf(b).Comparable() && a == b {
		return true // usually true, and String makes long strings
	}
	return a.String() == b.String()
}

// ReplaceObserved makes items the whole observed side. It returns the IDs that differ now and did not before, in no
// order.
func (t *tracker) ReplaceObserved(items []backends.Item) []backends.ID {
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

// Reobserve sets the observed items of these IDs; nil means that the item is gone. It returns the IDs that differ now
// and did not before, in no order.
func (t *tracker) Reobserve(items map[backends.ID]backends.Item) []backends.ID {
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

// Item implements backends.LastObserved.
func (t *tracker) Item(id backends.ID) backends.Item {
	if r := t.records[id]; r != nil {
		return r.observed
	}
	return nil
}

// Items implements backends.LastObserved.
func (t *tracker) Items(yield func(backends.Item) bool) {
	for _, r := range t.records {
		if r.observed != nil && !yield(r.observed) {
			return
		}
	}
}

// Confirm records that the kernel made the changes.
func (t *tracker) Confirm(changes []backends.Change) {
	for _, c := range changes {
		t.see(t.record(c.ID), c.New)
	}
	if len(t.pending) == 0 {
		t.pending = map[*record]struct{}{} // ranging over a map costs its peak size, so allocate a new one
	}
}

// Pending returns the changes that would make the observed side equal to the desired one, sorted by ID. It leaves out
// those for which skip returns true; skip may be nil.
func (t *tracker) Pending(skip func(backends.ID, []dataplane.ServicePortName) bool) []backends.Change {
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

// ownersOf returns the keys of r's owners in order, or of its last former owner. The caller must not change the result.
func (t *tracker) ownersOf(r *record) []dataplane.ServicePortName {
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
	var keys []dataplane.ServicePortName
	for o := range r.more {
		if o != t.base {
			keys = append(keys, o.key[0])
		}
	}
	slices.SortFunc(keys, dataplane.ServicePortName.Compare)
	return keys
}

// Conflicts returns the items that several owners want differently, sorted by ID.
func (t *tracker) Conflicts() []conflict {
	var conflicts []conflict
	for r := range t.disputed {
		c := conflict{ID: r.id}
		keys := t.ownersOf(r)
		for o, item := range r.more {
			if o != t.base && !same(item, r.desired) {
				c.Losers = append(c.Losers, o.key[0])
			}
		}
		if r.more[t.base] == nil {
			c.Winner = keys[0]
		}
		slices.SortFunc(c.Losers, dataplane.ServicePortName.Compare)
		conflicts = append(conflicts, c)
	}
	slices.SortFunc(conflicts, func(a, b conflict) int { return cmp.Compare(a.ID, b.ID) })
	return conflicts
}
