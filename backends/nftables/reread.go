package nftables

import (
	"context"
	"fmt"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/nfnl"
)

// Reread implements backends.Watcher. The notifications tell which chains, sets and elements other processes wrote.
func (b *Backend) Reread(ctx context.Context, last backends.LastObserved) (map[backends.ID]backends.Item, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.open()
	if err != nil {
		return nil, false, fmt.Errorf("nftables: %w", err)
	}
	if b.watch.beginRead(ctx, c) != nil || b.watch.touched.everything {
		return nil, false, nil
	}
	items := map[backends.ID]backends.Item{}
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		r := rereader{
			observer: observer{b: b, c: c, table: table{f, b.name}}, touched: &b.watch.touched, last: last, items: items,
			keys: map[frontKey]map[elementKey]struct{}{}, fresh: collected{},
		}
		if ok, err := r.read(ctx); !ok || err != nil {
			return nil, false, err
		}
	}
	b.watch.endRead()
	return items, true, nil
}

// rereader reads the touched objects of one family.
type rereader struct {
	observer
	touched *touched
	last    backends.LastObserved
	items   map[backends.ID]backends.Item

	// whole holds the sets of which every element was read. keys holds the elements that were read of the other sets,
	// by frontend.
	whole [numSets]bool
	keys  map[frontKey]map[elementKey]struct{}
	// fresh holds the elements that were found.
	fresh collected
}

// read returns false if only a full read will do.
func (r *rereader) read(ctx context.Context) (bool, error) {
	if ok, err := r.allChains(ctx); !ok || err != nil {
		return false, err
	}
	if ok, err := r.definitions(ctx); !ok || err != nil {
		return false, err
	}
	if err := r.wholeSets(ctx); err != nil {
		return false, fmt.Errorf("nftables: read elements: %w", err)
	}
	if err := r.singleElements(ctx); err != nil {
		return false, fmt.Errorf("nftables: read elements: %w", err)
	}
	r.compose()
	return true, nil
}

// definitions reads the definitions of the touched sets.
func (r *rereader) definitions(ctx context.Context) (bool, error) {
	some := false
	for s := range r.touched.sets {
		if s.fam == r.fam {
			r.items[setItemID(s.fam, s.name)], some = nil, true
		}
	}
	if !some {
		return true, nil
	}
	found, fault, err := r.sets(ctx)
	if err != nil || fault != "" {
		return false, err
	}
	for _, item := range found {
		if _, touched := r.items[item.ID()]; touched {
			r.items[item.ID()] = item
		}
	}
	return true, nil
}

// allChains reads all chains, which are few, if any was touched. It returns false if one may have been renamed, because
// then any element may lead to another name.
func (r *rereader) allChains(ctx context.Context) (bool, error) {
	if _, touched := r.touched.chains[r.fam]; !touched {
		return true, nil
	}
	last, kept := 0, 0
	r.last.Items(func(i backends.Item) bool {
		if c, ok := i.(*chainItem); ok && c.fam == r.fam {
			r.items[c.ID()] = nil
			last++
		}
		return true
	})
	found, err := r.chains(ctx)
	if err != nil {
		return false, fmt.Errorf("nftables: read chains: %w", err)
	}
	for _, item := range found {
		if _, ok := r.items[item.ID()]; ok {
			kept++
		}
		r.items[item.ID()] = item
	}
	return kept == last || kept == len(found), nil
}

func (r *rereader) wholeSets(ctx context.Context) error {
	for s := range r.touched.sets {
		id, known := setByName(s.name)
		if s.fam != r.fam || !known || sets[id].dynamic {
			continue
		}
		r.whole[id] = true
		found, err := r.set(ctx, id, r.fresh)
		if err != nil {
			return err
		}
		for _, item := range found {
			r.items[item.ID()] = item
		}
	}
	return nil
}

// singleElements reads the touched elements of the sets that are not read whole.
func (r *rereader) singleElements(ctx context.Context) error {
	for s, keys := range r.touched.elements {
		id, known := setByName(s.name)
		if s.fam != r.fam || !known || r.whole[id] {
			continue
		}
		for key := range keys {
			if err := r.singleElement(ctx, id, []byte(key)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rereader) singleElement(ctx context.Context, id setID, key []byte) error {
	if !sets[id].front {
		if m, ok := parseMember(r.fam, id, key); ok {
			r.items[m.ID()] = nil
		}
	} else if k, e, ok := parseFrontKey(r.fam, id, key); ok {
		if r.keys[k] == nil {
			r.keys[k] = map[elementKey]struct{}{}
		}
		r.keys[k][e] = struct{}{}
	}
	return nfnl.ReadElement(ctx, r.c, r.kernel(), sets[id].name, key, func(x nfnl.Element) {
		if i := sortElement(r.fam, id, x, r.fresh); i != nil {
			r.items[i.ID()] = i
		}
	})
}

// compose assembles the frontends from what was read, and from what was known of the rest.
func (r *rereader) compose() {
	if slices.Contains(r.whole[:], true) {
		r.last.Items(r.dropRead)
	}
	for k := range r.keys {
		if _, ok := r.fresh[k]; !ok {
			r.fresh[k] = nil
		}
	}
	for k := range r.fresh {
		elements, id := r.fresh.elements(nil, k), k.id()
		if last, ok := r.last.Item(id).(frontItem); ok {
			for e := range last.elements() {
				if _, read := r.keys[k][e.elementKey]; !read && !r.whole[e.set] {
					elements = append(elements, e)
				}
			}
		}
		if r.items[id] = nil; len(elements) > 0 {
			r.items[id] = newFrontItem(k, elements)
		}
	}
}

// dropRead drops a last observed Item, or elements of it, whose set was read whole, unless the read returned them.
func (r *rereader) dropRead(i backends.Item) bool {
	switch i := i.(type) {
	case memberItem:
		if _, found := r.items[i.ID()]; !found && i.fam == r.fam && r.whole[i.set] {
			r.items[i.ID()] = nil
		}
	case frontItem:
		if i.family() != r.fam {
			break
		}
		k := i.key()
		if _, found := r.fresh[k]; found {
			break
		}
		for e := range i.elements() {
			if r.whole[e.set] {
				r.fresh[k] = nil
			}
		}
	}
	return true
}
