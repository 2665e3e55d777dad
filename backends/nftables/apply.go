package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"weir/backends"

	"golang.org/x/sys/unix"
)

// Bounds of what is sent.
const (
	// maxList is how long the list of elements of one message may be: an attribute has a 16-bit length.
	maxList = 60 << 10
	// refusals is how often a transaction is sent again without the changes that the kernel refused.
	refusals = 8
)

// Apply executes a Plan in one transaction, or, where that would be too large, in several: tables, maps and chains first,
// then the fronts, each of them whole within one transaction, then what is no longer needed. If the kernel finds something
// wrong, the tables are read, the plan is made anew from what they really hold, and what is still refused is left out and
// named.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	if p.Empty() {
		return backends.Result{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.open()
	if err != nil {
		return backends.Result{Err: fmt.Errorf("nftables: %w", err)}
	}
	var rejected *batchError
	switch err := b.commit(ctx, c, p.Changes, false); {
	case err == nil:
		return backends.Result{}
	case !errors.As(err, &rejected):
		return backends.Result{Err: fmt.Errorf("nftables: apply %d changes: %w", len(p.Changes), err)}
	}
	refused, err := b.applyCarefully(ctx, c, p.Changes)
	if err != nil {
		return backends.Result{Err: fmt.Errorf("nftables: apply %d changes: %w", len(p.Changes), err)}
	}
	return backends.Result{Refused: refused}
}

// applyCarefully applies what it can of changes that the kernel rejected, and returns what it cannot.
func (b *Backend) applyCarefully(ctx context.Context, c *conn, changes []backends.Change) (map[backends.ID]error, error) {
	items, err := b.observe(ctx)
	if err != nil {
		return nil, err
	}
	changes = rebase(changes, items)
	var refused map[backends.ID]error
	for range refusals {
		err := b.commit(ctx, c, changes, true)
		var rejected *batchError
		if !errors.As(err, &rejected) {
			return refused, err
		}
		bad := map[int32]error{}
		for _, r := range rejected.owned {
			bad[r.change] = r.err
		}
		if len(bad) == 0 {
			return nil, err
		}
		if refused == nil {
			refused = map[backends.ID]error{}
		}
		for i, err := range bad {
			refused[changes[i].ID] = fmt.Errorf("nftables: the kernel refuses %s: %w", changes[i].ID, err)
		}
		changes = without(changes, bad)
		if rejected.transactions > 0 {
			// Part of the changes is in force already.
			if items, err = b.observe(ctx); err != nil {
				return nil, err
			}
			changes = rebase(changes, items)
		}
	}
	return nil, errors.New("the kernel refuses ever more of the changes")
}

// rebase returns the changes that lead from items to where the given ones lead.
func rebase(changes []backends.Change, items []backends.Item) []backends.Change {
	actual := make(map[backends.ID]backends.Item, len(items))
	for _, i := range items {
		actual[i.ID()] = i
	}
	var out []backends.Change
	for _, c := range changes {
		c.Old = actual[c.ID]
		switch {
		case c.Old == nil && c.New == nil:
			continue
		case c.Old == nil:
			c.Op = backends.Create
		case c.New == nil:
			c.Op = backends.Delete
		case c.Old.String() == c.New.String():
			continue
		default:
			c.Op = backends.Update
		}
		out = append(out, c)
	}
	return out
}

func without(changes []backends.Change, drop map[int32]error) []backends.Change {
	out := make([]backends.Change, 0, len(changes))
	for i, c := range changes {
		if drop[int32(i)] == nil {
			out = append(out, c)
		}
	}
	return out
}

// commit sends the changes. With single set no two changes share a message, so that an error can be told to be that of
// one change.
func (b *Backend) commit(ctx context.Context, c *conn, changes []backends.Change, single bool) error {
	limit := c.limit
	if b.batchLimit > 0 {
		limit = min(limit, b.batchLimit)
	}
	batches, err := newAssembly(b.name, limit, single).batches(changes)
	if err != nil {
		return err
	}
	before, err := c.generation(ctx)
	if err == nil && len(changes) >= quiet {
		b.watch.pause(before, b.name)
		before, err = c.generation(ctx) // somebody may have committed until then
	}
	alone := false
	defer func() { b.watch.resume(alone) }()
	if err != nil {
		return err
	}
	for i, messages := range batches {
		if err := c.commit(ctx, messages); err != nil {
			var rejected *batchError
			if errors.As(err, &rejected) {
				rejected.transactions = i
				for n, err := range rejected.messages {
					if owner := messages[n].owner; owner >= 0 {
						rejected.owned = append(rejected.owned, ownedError{owner, err})
					}
				}
			}
			return err
		}
	}
	if after, err := c.generation(ctx); err == nil {
		alone = b.watch.committed(before, after, len(batches))
	}
	return nil
}

// assembly turns changes into the messages of transactions.
type assembly struct {
	table  string // the tables' name
	limit  int
	single bool
	change int32 // whose messages are being made

	done    [][]message
	head    []message // of the transaction being made
	size    int
	deletes lists
	adds    lists
}

// lists is the elements of a transaction that are added, or that are deleted, by set.
type lists struct {
	adding bool
	of     map[listKey]*list
}

// listKey names a list of elements to be added to a set, or taken from it.
type listKey struct {
	fam backends.Family
	set setID
}

// list is the messages for one set.
type list struct {
	messages []message
	e        *encoder
	at       int
}

func newAssembly(table string, limit int, single bool) *assembly {
	a := &assembly{table: table, limit: limit, single: single}
	a.reset()
	return a
}

func (a *assembly) reset() {
	a.deletes, a.adds = lists{of: map[listKey]*list{}}, lists{adding: true, of: map[listKey]*list{}}
}

// batches returns the transactions, at least one.
func (a *assembly) batches(changes []backends.Change) ([][]message, error) {
	s, err := sortChanges(changes)
	if err != nil {
		return nil, err
	}
	if err := a.scaffolding(changes, s); err != nil {
		return nil, err
	}
	for _, deletes := range []bool{false, true} {
		for _, i := range s.data {
			if (changes[i].Op == backends.Delete) == deletes {
				a.change = int32(i)
				a.data(changes[i])
				a.cut()
			}
		}
	}
	a.head = append(a.head, a.elements()...)
	for _, i := range s.chainDeletes {
		a.add(int32(i), flushChain(a.tableOf(changes[i]), changes[i].Old.(*chainItem).name))
	}
	for _, i := range s.chainDeletes {
		a.add(int32(i), deleteChain(a.tableOf(changes[i]), changes[i].Old.(*chainItem).name))
	}
	for _, i := range s.setDeletes {
		a.add(int32(i), deleteSet(a.tableOf(changes[i]), changes[i].Old.(setItem).name))
	}
	return append(a.done, a.head), nil
}

// sorted is a plan by what has to come after what.
type sorted struct {
	tables, sets, chains, data []int
	setDeletes, chainDeletes   []int
}

func (a *assembly) tableOf(c backends.Change) table { return table{familyOf(itemOf(c)), a.table} }

func itemOf(c backends.Change) backends.Item {
	if c.New != nil {
		return c.New
	}
	return c.Old
}

func familyOf(i backends.Item) backends.Family {
	switch i := i.(type) {
	case tableItem:
		return i.fam
	case setItem:
		return i.fam
	case *chainItem:
		return i.fam
	case frontItem:
		return i.key().family()
	case memberItem:
		return i.family()
	case catchallItem:
		return i.fam
	}
	return 0
}

// sortChanges leaves out what goes with its table anyway.
func sortChanges(changes []backends.Change) (sorted, error) {
	var s sorted
	gone := map[backends.Family]bool{}
	for _, c := range changes {
		if t, ok := c.Old.(tableItem); ok && (c.Op == backends.Delete || t.rebuild) {
			gone[t.fam] = true
		}
	}
	for i, c := range changes {
		item := itemOf(c)
		_, isTable := item.(tableItem)
		if c.Op == backends.Delete && !isTable && gone[familyOf(item)] {
			continue
		}
		switch item.(type) {
		case tableItem:
			s.tables = append(s.tables, i)
		case setItem:
			if c.Op == backends.Delete {
				s.setDeletes = append(s.setDeletes, i)
			} else {
				s.sets = append(s.sets, i)
			}
		case *chainItem:
			if c.Op == backends.Delete {
				s.chainDeletes = append(s.chainDeletes, i)
			} else {
				s.chains = append(s.chains, i)
			}
		case frontItem, memberItem, catchallItem:
			s.data = append(s.data, i)
		default:
			return s, fmt.Errorf("change %s: a %T is no item of this backend", c.ID, item)
		}
	}
	return s, nil
}

func (a *assembly) add(change int32, m message) {
	m.owner = change
	a.head = append(a.head, m)
	a.size += unix.SizeofNlMsghdr + len(m.data) + 3
}

// scaffolding makes tables, sets and chains, with the rules last: they name what came before.
func (a *assembly) scaffolding(changes []backends.Change, s sorted) error {
	for _, i := range s.tables {
		old, exists := changes[i].Old.(tableItem)
		t := a.tableOf(changes[i])
		if changes[i].Op == backends.Delete || exists && old.rebuild {
			a.add(int32(i), tableMessage(t, unix.NFT_MSG_DELTABLE, 0))
		}
		if changes[i].Op != backends.Delete {
			a.add(int32(i), tableMessage(t, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE))
		}
	}
	for _, i := range s.sets {
		item := changes[i].New.(setItem)
		id, ok := setByName(item.name)
		if !ok {
			return fmt.Errorf("change %s: no set of this backend", changes[i].ID)
		}
		a.add(int32(i), setMessage(a.tableOf(changes[i]), sets[id]))
	}
	for _, i := range s.chains {
		item, t := changes[i].New.(*chainItem), a.tableOf(changes[i])
		if item.want == nil {
			return fmt.Errorf("change %s: no chain of this backend", changes[i].ID)
		}
		if old, ok := changes[i].Old.(*chainItem); ok && item.entry() != old.entry() {
			a.add(int32(i), flushChain(t, item.name))
			a.add(int32(i), deleteChain(t, item.name))
		}
		a.add(int32(i), chainMessage(t, item.want))
		a.add(int32(i), flushChain(t, item.name))
	}
	for _, i := range s.chains {
		item := changes[i].New.(*chainItem)
		for _, r := range item.want.rules {
			m, err := ruleMessage(a.tableOf(changes[i]), item.name, r)
			if err != nil {
				return fmt.Errorf("change %s: rule %q: %w", changes[i].ID, r.text, err)
			}
			a.add(int32(i), m)
		}
	}
	return nil
}

// entry returns how the kernel enters the chain, "" if it does not.
func (i *chainItem) entry() string {
	if !i.hooked {
		return ""
	}
	return strings.SplitN(i.text, "\n", 3)[1]
}

// data makes the elements of a front or a member.
func (a *assembly) data(c backends.Change) {
	if i, ok := c.Old.(catchallItem); ok {
		a.element(a.deletes, listKey(i), rawElement{})
		return
	}
	if _, ok := itemOf(c).(memberItem); ok {
		if old, ok := c.Old.(memberItem); ok {
			a.element(a.deletes, listKey{old.family(), old.set()}, rawElement{key: old.kernelKey()})
		}
		if m, ok := c.New.(memberItem); ok {
			a.element(a.adds, listKey{m.family(), m.set()}, rawElement{key: m.kernelKey()})
		}
		return
	}
	old, _ := c.Old.(frontItem)
	item, _ := c.New.(frontItem)
	var before map[string]element
	if old != "" {
		before = map[string]element{}
		old.elements(func(e element) { before[e.id()] = e })
	}
	if item != "" {
		prefix := item.key().kernel()
		fam := item.key().family()
		item.elements(func(e element) {
			was, existed := before[e.id()]
			if existed {
				delete(before, e.id())
				if was == e {
					return
				}
				a.element(a.deletes, listKey{fam, e.set}, was.raw(prefix))
			}
			a.element(a.adds, listKey{fam, e.set}, e.raw(prefix))
		})
	}
	if len(before) > 0 {
		prefix, fam := old.key().kernel(), old.key().family()
		for _, e := range before {
			a.element(a.deletes, listKey{fam, e.set}, e.raw(prefix))
		}
	}
}

// id tells the elements of a front apart.
func (e element) id() string { return string([]byte{byte(e.set)}) + e.suffix }

// raw returns the element as the kernel has it; front is the key of its front.
func (e element) raw(front []byte) rawElement {
	suffix, end := e.nativeSuffix()
	x := rawElement{key: slices.Concat(front, suffix), comment: e.comment}
	if end != nil {
		x.end = slices.Concat(front, end)
	}
	switch sets[e.set].value {
	case verdictValue:
		x.verdict = e.value
	case addrPortValue:
		x.value = append([]byte(e.value), 0, 0)
	case markValue:
		x.value = native32(binary.BigEndian.Uint32([]byte(e.value)))
	}
	return x
}

// element appends one element to the messages of a set.
func (a *assembly) element(to lists, key listKey, x rawElement) {
	l := to.of[key]
	if l == nil {
		l = &list{}
		to.of[key] = l
	}
	if l.e == nil {
		l.e = elementsRequest(table{key.fam, a.table}, key.set)
		l.at = l.e.open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		a.size += len(l.e.b) + unix.SizeofNlMsghdr
	}
	before := len(l.e.b)
	l.e.element(x, to.adding)
	a.size += len(l.e.b) - before
	if a.single || len(l.e.b)-l.at > maxList {
		l.finish(to.adding, a.owner())
	}
}

func (a *assembly) owner() int32 {
	if a.single {
		return a.change
	}
	return -1
}

func (l *list) finish(adding bool, owner int32) {
	if l.e == nil {
		return
	}
	l.e.close(l.at)
	m := message{typ: unix.NFT_MSG_DELSETELEM, data: l.e.b, owner: owner}
	if adding {
		m.typ, m.flags = unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE
	}
	l.messages, l.e = append(l.messages, m), nil
}

// elements returns the messages of all lists, what is taken away first, and begins new lists.
func (a *assembly) elements() []message {
	var out []message
	for _, from := range []lists{a.deletes, a.adds} {
		keys := slices.SortedFunc(maps.Keys(from.of), func(x, y listKey) int {
			return int(x.fam)<<8 + int(x.set) - int(y.fam)<<8 - int(y.set)
		})
		for _, k := range keys {
			from.of[k].finish(from.adding, -1)
			out = append(out, from.of[k].messages...)
		}
	}
	a.reset()
	return out
}

// cut ends the transaction if another change might not fit.
func (a *assembly) cut() {
	if a.size < a.limit/2 {
		return
	}
	a.done = append(a.done, append(a.head, a.elements()...))
	a.head, a.size = nil, 0
}
