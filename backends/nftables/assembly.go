package nftables

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/nfnl"

	"github.com/google/nftables/userdata"
)

// assembly turns changes into the messages of transactions.
type assembly struct {
	table  string // the tables' name
	limit  int
	single bool
	change int32 // the change whose messages are being made

	done          [][]nfnl.Message
	head          []nfnl.Message // of the transaction being made
	size          int
	deletes, adds lists
}

// lists holds the elements that a transaction adds, or deletes, by set.
type lists map[setKey]*nfnl.Elements

// setKey names one of weir's sets.
type setKey struct {
	fam dataplane.Family
	set setID
}

func newAssembly(table string, limit int, single bool) *assembly {
	return &assembly{table: table, limit: limit, single: single, deletes: lists{}, adds: lists{}}
}

// batches returns the transactions, at least one.
func (a *assembly) batches(changes []backends.Change) ([][]nfnl.Message, error) {
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
		a.add(int32(i), nfnl.FlushChain(a.tableOf(changes[i]), changes[i].Old.(*chainItem).name))
	}
	for _, i := range s.chainDeletes {
		a.add(int32(i), nfnl.DeleteChain(a.tableOf(changes[i]), changes[i].Old.(*chainItem).name))
	}
	for _, i := range s.setDeletes {
		a.add(int32(i), nfnl.DeleteSet(a.tableOf(changes[i]), changes[i].Old.(setItem).name))
	}
	return append(a.done, a.head), nil
}

// sorted is a plan, split by the order in which its changes must be made.
type sorted struct {
	tables, sets, chains, data []int
	setDeletes, chainDeletes   []int
}

func (a *assembly) tableOf(c backends.Change) nfnl.Table {
	return table{itemOf(c).family(), a.table}.kernel()
}

// itemOf returns the Item of a Change, nil if it does not belong to this backend.
func itemOf(c backends.Change) item {
	i, ok := c.New.(item)
	if !ok {
		i, _ = c.Old.(item)
	}
	return i
}

// sortChanges sorts the changes, and leaves out the deletions that the deletion of a table includes.
func sortChanges(changes []backends.Change) (sorted, error) {
	var s sorted
	gone := map[dataplane.Family]bool{}
	for _, c := range changes {
		if t, ok := c.Old.(tableItem); ok && (c.Op == backends.Delete || t.rebuild) {
			gone[t.fam] = true
		}
	}
	for i, c := range changes {
		item := itemOf(c)
		_, isTable := item.(tableItem)
		if item != nil && c.Op == backends.Delete && !isTable && gone[item.family()] {
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
		case frontItem, memberItem:
			s.data = append(s.data, i)
		default:
			return s, fmt.Errorf("change %s: no item of this backend", c.ID)
		}
	}
	return s, nil
}

func (a *assembly) add(change int32, m nfnl.Message) {
	m.Owner = change
	a.head = append(a.head, m)
	a.size += m.Size()
}

// scaffolding makes tables, sets and chains. The rules come last, because they name the others.
func (a *assembly) scaffolding(changes []backends.Change, s sorted) error {
	comment := userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, tableComment)
	for _, i := range s.tables {
		old, exists := changes[i].Old.(tableItem)
		t := a.tableOf(changes[i])
		if changes[i].Op == backends.Delete || exists && old.rebuild {
			a.add(int32(i), nfnl.DeleteTable(t))
		}
		if changes[i].Op != backends.Delete {
			a.add(int32(i), nfnl.NewTable(t, comment))
		}
	}
	for _, i := range s.sets {
		item := changes[i].New.(setItem)
		id, ok := setByName(item.name)
		if !ok {
			return fmt.Errorf("change %s: no set of this backend", changes[i].ID)
		}
		a.add(int32(i), nfnl.NewSet(a.tableOf(changes[i]), sets[id].definition(item.fam)))
	}
	for _, i := range s.chains {
		item, t := changes[i].New.(*chainItem), a.tableOf(changes[i])
		if item.want == nil {
			return fmt.Errorf("change %s: no chain of this backend", changes[i].ID)
		}
		if old, ok := changes[i].Old.(*chainItem); ok && item.entry() != old.entry() {
			a.add(int32(i), nfnl.FlushChain(t, item.name))
			a.add(int32(i), nfnl.DeleteChain(t, item.name))
		}
		a.add(int32(i), nfnl.NewChain(t, item.want.definition()))
		a.add(int32(i), nfnl.FlushChain(t, item.name))
	}
	for _, i := range s.chains {
		item := changes[i].New.(*chainItem)
		for _, r := range item.want.rules {
			encoded, err := r.encode(item.fam, item.name)
			if err != nil {
				return fmt.Errorf("change %s: %w", changes[i].ID, err)
			}
			a.add(int32(i), nfnl.AppendRule(a.tableOf(changes[i]), encoded))
		}
	}
	return nil
}

// data makes the elements of a frontend, a member or a stray element.
func (a *assembly) data(c backends.Change) {
	switch old := c.Old.(type) {
	case memberItem:
		a.delete(setKey{old.fam, old.set}, nfnl.Element{Key: old.kernelKey()})
	case frontItem:
		a.front(old, c.New)
		return
	}
	switch item := c.New.(type) {
	case memberItem:
		a.insert(setKey{item.fam, item.set}, nfnl.Element{Key: item.kernelKey()})
	case frontItem:
		a.front("", item)
	}
}

// front makes the elements that differ between two states of a frontend; "" and nil stand for no frontend.
func (a *assembly) front(old frontItem, next backends.Item) {
	var before map[elementKey]element
	var prefix []byte
	var fam dataplane.Family
	if old != "" {
		prefix, fam = old.key().kernelKey(), old.family()
		before = map[elementKey]element{}
		for e := range old.elements() {
			before[e.elementKey] = e
		}
	}
	if item, ok := next.(frontItem); ok {
		prefix, fam = item.key().kernelKey(), item.family()
		for e := range item.elements() {
			was, existed := before[e.elementKey]
			if existed {
				delete(before, e.elementKey)
				if was == e {
					continue
				}
				a.delete(setKey{fam, e.set}, was.kernelElement(prefix))
			}
			a.insert(setKey{fam, e.set}, e.kernelElement(prefix))
		}
	}
	for _, e := range before {
		a.delete(setKey{fam, e.set}, e.kernelElement(prefix))
	}
}

func (a *assembly) delete(key setKey, x nfnl.Element) { a.element(a.deletes, nfnl.DeleteFrom, key, x) }

func (a *assembly) insert(key setKey, x nfnl.Element) { a.element(a.adds, nfnl.AddTo, key, x) }

// element appends one element to the messages of a set.
func (a *assembly) element(to lists, begin func(nfnl.Table, string) *nfnl.Elements, key setKey, x nfnl.Element) {
	l := to[key]
	if l == nil {
		l = begin(table{key.fam, a.table}.kernel(), sets[key.set].name)
		to[key] = l
	}
	before := l.Size
	l.Append(x)
	a.size += l.Size - before
	if a.single {
		l.EndMessage(a.change)
	}
}

// elements returns the messages of all lists, deletions first, and begins new lists.
func (a *assembly) elements() []nfnl.Message {
	var out []nfnl.Message
	for _, from := range []lists{a.deletes, a.adds} {
		keys := slices.SortedFunc(maps.Keys(from), func(x, y setKey) int {
			return cmp.Or(cmp.Compare(x.fam, y.fam), cmp.Compare(x.set, y.set))
		})
		for _, k := range keys {
			out = append(out, from[k].Messages()...)
		}
	}
	a.deletes, a.adds = lists{}, lists{}
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
