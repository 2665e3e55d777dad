package nftables

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/nfnl"

	"golang.org/x/sys/unix"
)

// observeAttempts bounds how often a read begins anew because another process wrote meanwhile.
const observeAttempts = 5

// Observe reads weir's tables in both families, including families that are not configured.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		items, err := b.readAll(ctx)
		if err != nil {
			yield(nil, fmt.Errorf("nftables: read the tables %q: %w", b.name, err))
			return
		}
		for _, i := range items {
			if !yield(i, nil) {
				return
			}
		}
	}
}

func (b *Backend) readAll(ctx context.Context) ([]backends.Item, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.open()
	if err != nil {
		return nil, err
	}
	_ = b.watch.beginRead(ctx, c) // if it fails, everything counts as written again
	items, err := b.observe(ctx, c)
	if err == nil {
		b.watch.endRead()
	}
	return items, err
}

// observe returns the Items as they are at one moment.
func (b *Backend) observe(ctx context.Context, c nfnl.Conn) ([]backends.Item, error) {
	for range observeAttempts {
		before, err := nfnl.Generation(ctx, c)
		if err != nil {
			return nil, err
		}
		var items []backends.Item
		for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
			var of []backends.Item
			if of, err = (&observer{b: b, c: c, table: table{f, b.name}}).items(ctx); err != nil {
				break
			}
			items = append(items, of...)
		}
		if err != nil && !errors.Is(err, nfnl.ErrInterrupted) {
			return nil, err
		}
		after, err := nfnl.Generation(ctx, c)
		if err != nil {
			return nil, err
		}
		if before == after {
			return items, nil
		}
	}
	return nil, nfnl.ErrInterrupted
}

// observer reads one family.
type observer struct {
	b *Backend
	c nfnl.Conn
	table
}

func (o *observer) items(ctx context.Context) ([]backends.Item, error) {
	top, ok, err := o.top(ctx)
	if err != nil || !ok {
		return nil, err
	}
	setItems, fault, err := o.sets(ctx)
	if err != nil {
		return nil, err
	}
	if fault != "" {
		top.fault, top.rebuild = fault, true
		return []backends.Item{top}, nil
	}
	chains, err := o.chains(ctx)
	if err != nil {
		return nil, err
	}
	data, err := o.elements(ctx, setItems)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]backends.Item{top}, setItems, chains, data), nil
}

func (o *observer) top(ctx context.Context) (tableItem, bool, error) {
	item := tableItem{table: o.table}
	flags, found, err := nfnl.ReadTable(ctx, o.c, o.kernel())
	if flags != 0 {
		item.fault = fmt.Sprintf("flags %#x", flags)
	}
	return item, found, err
}

// sets returns the definitions of the sets. It also returns the fault of one of weir's own sets that cannot be repaired
// in place.
func (o *observer) sets(ctx context.Context) (items []backends.Item, fault string, err error) {
	found, err := nfnl.ReadSets(ctx, o.c, o.kernel())
	for _, s := range found {
		if s.Flags&unix.NFT_SET_ANONYMOUS != 0 {
			continue // part of a rule
		}
		item := setItem{fam: o.fam, name: s.Name}
		id, known := setByName(s.Name)
		if !known {
			item.foreign = "not weir's"
		} else if !sameDefinition(sets[id].definition(o.fam), s) {
			fault = fmt.Sprintf("the definition of set %s is not weir's", s.Name)
		}
		items = append(items, item)
	}
	return items, fault, err
}

func (o *observer) chains(ctx context.Context) ([]backends.Item, error) {
	chains, err := nfnl.ReadChains(ctx, o.c, o.kernel())
	if err != nil {
		return nil, err
	}
	rules, err := nfnl.ReadRules(ctx, o.c, o.kernel())
	if err != nil {
		return nil, err
	}
	of := map[string][]nfnl.Rule{}
	for _, r := range rules {
		of[r.Chain] = append(of[r.Chain], r)
	}
	slices.SortFunc(chains, func(a, b nfnl.Chain) int { return strings.Compare(a.Name, b.Name) })
	items := make([]backends.Item, len(chains))
	for i, c := range chains {
		items[i] = o.chainItem(c, of[c.Name])
	}
	return items, nil
}

// chainItem returns the chain as an Item. Its text equals that of the chain that weir wants under this name exactly if
// the rules are the same.
func (o *observer) chainItem(c nfnl.Chain, rules []nfnl.Rule) *chainItem {
	texts := map[string]string{}
	want := o.b.wantedChain(o.fam, c.Name)
	if want != nil {
		for _, r := range want.rules {
			if encoded, err := r.encode(o.fam, c.Name); err == nil {
				texts[encoded.Canonical()] = r.line()
			}
		}
	}
	lines := make([]string, len(rules))
	for i, r := range rules {
		line, known := texts[r.Canonical()]
		if !known {
			line = foreignRule(r)
		}
		lines[i] = line
	}
	head := ""
	if c.Hook != nil {
		head = hookText(*c.Hook, c.Policy)
	}
	if c.Flags != 0 {
		head += fmt.Sprintf("; flags %#x", c.Flags)
	}
	item := &chainItem{fam: o.fam, name: c.Name, text: chainText(o.fam, c.Name, head, lines), hooked: c.Hook != nil}
	if want != nil && item.text == newChainItem(o.fam, *want).text {
		item.want = want // it can replace the desired one
	}
	return item
}

// foreignRule describes a rule that is not weir's by the names of its expressions and a hash.
func foreignRule(r nfnl.Rule) string {
	var names []string
	r.EachExpression(func(name string, _ []byte) { names = append(names, name) })
	return "not weir's: " + strings.Join(names, " ") + " " + hash(r.Canonical())
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}

// elements reads every set that holds configuration. found are the sets that exist.
func (o *observer) elements(ctx context.Context, found []backends.Item) ([]backends.Item, error) {
	var items []backends.Item
	fronts := collected{}
	for id := range sets {
		if sets[id].dynamic || sets[id].redirects && !o.b.redirects() || sets[id].rare && !slices.Contains(found, backends.Item(setItem{fam: o.fam, name: sets[id].name})) {
			continue
		}
		members, err := o.set(ctx, setID(id), fronts)
		if err != nil {
			return nil, err
		}
		items = append(items, members...)
	}
	var buffer []element
	for k := range fronts {
		buffer = fronts.elements(buffer[:0], k)
		items = append(items, newFrontItem(k, buffer))
	}
	return items, nil
}

// set reads the elements of a set. It adds them to their frontends, and returns those that are Items by themselves.
func (o *observer) set(ctx context.Context, id setID, fronts collected) ([]backends.Item, error) {
	var items []backends.Item
	err := nfnl.EachElement(ctx, o.c, o.kernel(), sets[id].name, func(x nfnl.Element) {
		if i := sortElement(o.fam, id, x, fronts); i != nil {
			items = append(items, i)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("set %s: %w", sets[id].name, err)
	}
	return items, nil
}

// sortElement adds an element to its frontend, or returns it as an Item by itself. It returns nil for the former, and for
// an element that does not fit its set.
func sortElement(f dataplane.Family, id setID, x nfnl.Element, fronts collected) backends.Item {
	if x.Key == nil || !sets[id].front {
		if m, ok := parseMember(f, id, x.Key); ok {
			return m
		}
		return nil
	}
	if k, e, ok := parseFrontElement(f, id, x); ok {
		fronts.add(k, e)
	}
	return nil
}
