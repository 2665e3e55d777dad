package nftables

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"weir/backends"

	"golang.org/x/sys/unix"
)

var _ backends.Rereader = (*Backend)(nil)

// Reread implements backends.Rereader: the notifications say which chains, sets and elements others wrote.
func (b *Backend) Reread(ctx context.Context, held backends.Held) (map[backends.ID]backends.Item, bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := &b.watch
	if w.conn == nil || w.touched.everything {
		return nil, false, nil
	}
	c, err := b.open()
	if err != nil {
		return nil, false, fmt.Errorf("nftables: %w", err)
	}
	items := map[backends.ID]backends.Item{}
	for _, f := range []backends.Family{backends.IPv4, backends.IPv6} {
		r := rereader{
			observer: observer{b: b, c: c, table: table{f, b.name}}, touched: &w.touched, held: held, items: items,
			keys: map[frontKey]map[string]struct{}{}, fresh: map[frontKey][]element{},
		}
		if ok, err := r.read(ctx); !ok || err != nil {
			return nil, false, err
		}
	}
	w.touched = touched{}
	return items, true, nil
}

// rereader reads what was touched in one family.
type rereader struct {
	observer
	touched *touched
	held    backends.Held
	items   map[backends.ID]backends.Item

	// whole are the sets of which every element was read; keys are the elements that were read of the others, by front.
	whole [numSets]bool
	keys  map[frontKey]map[string]struct{}
	// fresh is what was found of these.
	fresh map[frontKey][]element
}

// read returns false if only a look at everything will do.
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

// definitions reads those of the touched sets.
func (r *rereader) definitions(ctx context.Context) (bool, error) {
	some := false
	for o := range r.touched.sets {
		if o.fam == r.fam {
			r.items[setItemID(o.fam, o.name)], some = nil, true
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

// allChains reads all chains, which are few, if any was touched. It returns false if one may have been renamed: then any
// element may lead to another name.
func (r *rereader) allChains(ctx context.Context) (bool, error) {
	if _, touched := r.touched.chains[r.fam]; !touched {
		return true, nil
	}
	held, kept := 0, 0
	r.held.Items(func(i backends.Item) bool {
		if c, ok := i.(*chainItem); ok && c.fam == r.fam {
			r.items[c.ID()] = nil
			held++
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
	return kept == held || kept == len(found), nil
}

func (r *rereader) wholeSets(ctx context.Context) error {
	for o := range r.touched.sets {
		id, known := setByName(o.name)
		if o.fam != r.fam || !known || sets[id].dynamic {
			continue
		}
		r.whole[id] = true
		r.items[catchallItem{r.fam, id}.ID()] = nil
		found, err := r.dumpSet(ctx, id, r.fresh)
		if err != nil {
			return err
		}
		for _, item := range found {
			r.items[item.ID()] = item
		}
	}
	return nil
}

// singleElements reads the elements that were touched of sets that are not read whole.
func (r *rereader) singleElements(ctx context.Context) error {
	for o, keys := range r.touched.elements {
		id, known := setByName(o.name)
		if o.fam != r.fam || !known || r.whole[id] {
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
	if s := sets[id]; !s.front {
		if m, ok := parseMember(r.fam, id, key); ok {
			r.items[m.ID()] = nil
		}
	} else if k, rest, ok := parseFront(r.fam, s.scope, key); ok {
		if r.keys[k] == nil {
			r.keys[k] = map[string]struct{}{}
		}
		e := element{set: id}
		if s.suffix == slotSuffix && len(rest) == 4 {
			e.suffix = slotKey(binary.NativeEndian.Uint32(rest))
		}
		r.keys[k][e.id()] = struct{}{}
	}
	e := elementsRequest(r.table, id)
	list := e.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	e.element(rawElement{key: key}, false)
	e.close(list)
	return r.c.get(ctx, unix.NFT_MSG_GETSETELEM, e.b, func(data []byte) error {
		for _, item := range r.listed(id, data, r.fresh) {
			r.items[item.ID()] = item
		}
		return nil
	})
}

// compose puts the fronts together: what was read anew, and of what was not read, what is known.
func (r *rereader) compose() {
	if slices.Contains(r.whole[:], true) {
		r.held.Items(r.heldElements)
	}
	for k := range r.keys {
		if _, ok := r.fresh[k]; !ok {
			r.fresh[k] = nil
		}
	}
	for k, elements := range r.fresh {
		id := frontItem(k).ID()
		if held, ok := r.held.Item(id).(frontItem); ok {
			held.elements(func(e element) {
				if _, read := r.keys[k][e.id()]; !read && !r.whole[e.set] {
					elements = append(elements, e)
				}
			})
		}
		if r.items[id] = nil; len(elements) > 0 {
			r.items[id] = newFrontItem(k, elements)
		}
	}
}

// heldElements sees to it that no element of a set that was read whole is taken for held only because it was.
func (r *rereader) heldElements(i backends.Item) bool {
	switch i := i.(type) {
	case memberItem:
		if _, found := r.items[i.ID()]; !found && i.family() == r.fam && r.whole[i.set()] {
			r.items[i.ID()] = nil
		}
	case frontItem:
		k := i.key()
		if _, found := r.fresh[k]; found || k.family() != r.fam {
			break
		}
		i.elements(func(e element) {
			if r.whole[e.set] {
				r.fresh[k] = nil
			}
		})
	}
	return true
}
