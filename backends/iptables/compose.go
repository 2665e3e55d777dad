package iptables

import (
	"slices"
	"sort"
	"strings"

	"weir/backends"
)

// change is a Change with its ID taken apart.
type change struct {
	backends.Change
	place place
}

func (c change) isShared() bool { return shared(c.place.chain) }
func (c change) isHook() bool   { return !owned(c.place.chain) }
func (c change) isRule() bool   { return c.place.rule != "" }

// input is what one run of iptables-restore is given, and where each line of it comes from.
type input struct {
	text   []byte
	tables int
	// lines and owner are parallel: from this line on, up to the next entry, the lines are of this Change. "" stands for
	// the lines that belong to none.
	lines []int
	owner []backends.ID
	// second is the first line of the second transaction, 0 if there is none.
	second int
	line   int

	added, removed []backends.ID
}

// at returns the Change that a line belongs to, and whether the line is in the first transaction.
func (in *input) at(line int) (id backends.ID, first bool) {
	if line <= 0 || line > in.line {
		return "", false
	}
	i := sort.SearchInts(in.lines, line+1) - 1
	if i < 0 {
		return "", false
	}
	return in.owner[i], in.second == 0 || line < in.second
}

func (in *input) write(id backends.ID, parts ...string) {
	in.line++
	if n := len(in.owner); n == 0 || in.owner[n-1] != id {
		in.lines = append(in.lines, in.line)
		in.owner = append(in.owner, id)
	}
	for _, p := range parts {
		in.text = append(in.text, p...)
	}
	in.text = append(in.text, '\n')
}

// compose writes the Changes of one family for iptables-restore --noflush.
func (b *Backend) compose(f backends.Family, changes []change) *input {
	in := &input{}
	for _, table := range tables {
		var of []change
		for _, c := range changes {
			if c.place.family == f && c.place.table == table && b.needed(c) {
				of = append(of, c)
			}
		}
		if len(of) == 0 {
			continue
		}
		if in.tables++; in.tables == 2 {
			in.second = in.line + 1
		}
		in.reserve(of)
		in.write("", "*", table)
		in.compose(of)
		in.write("", "COMMIT")
	}
	return in
}

// reserve makes room for the text of a table, which may be of many megabytes.
func (in *input) reserve(changes []change) {
	const verbs = 48 // what is written besides the Item, and around the table
	size := verbs
	for _, c := range changes {
		if c.New != nil {
			size += len(c.New.String()) + verbs
		} else {
			size += len(c.ID) + verbs
		}
	}
	in.text = slices.Grow(in.text, size)
}

// needed says whether a Change is still to be made.
func (b *Backend) needed(c change) bool {
	if b.present == nil || !c.isShared() && !c.isHook() || c.Op == backends.Update {
		return true
	}
	_, present := b.present[c.ID]
	return present == (c.Op == backends.Delete)
}

// compose writes one table. Chains are there before anything leads to them, and nothing leads to them when they go. In a
// chain that is declared, nothing is left of what was in it.
//
// iptables-nft keeps the names of the chains that it met in a sorted list, and walks it from the front for every name in
// every line. So that the list is short where it is walked, chains are declared from the last name to the first, each
// followed by what it holds and by the rules that lead to it; the shared chains, which those rules are in, come first
// here and by name. In any other order the time grows with the square of the number of chains.
func (in *input) compose(changes []change) {
	t := sortTable(changes)
	in.deleteRules(t, changes)
	var later []*change
	ready := make(map[string]bool, len(t.declared))
	for _, c := range t.chains {
		in.write(c.ID, ":", c.place.chain, " - [0:0]")
		ready[c.place.chain] = true
		if c.Op == backends.Delete {
			continue
		}
		if t.needsLater(c, ready) {
			later = append(later, c)
			continue
		}
		in.body(c)
		in.appendRules(t.leading[c.place.chain])
	}
	for _, c := range later {
		in.body(c)
		in.appendRules(t.leading[c.place.chain])
	}
	in.appendRules(t.rules)
	for _, c := range slices.Backward(changes) {
		if c.Op == backends.Delete && !c.isHook() && !c.isRule() {
			in.write(c.ID, "-X ", c.place.chain)
		}
	}
	in.record(changes)
}

// table is the Changes of one table, sorted out for compose.
type table struct {
	chains   []*change // the shared chains, then the others, each from the last name to the first
	declared map[string]bool
	leading  map[string][]*change // by the chain in chains that the rules lead to
	rules    []*change            // all other rules that are to be there
}

func sortTable(changes []change) table {
	t := table{declared: make(map[string]bool), leading: make(map[string][]*change)}
	for i := range changes {
		if c := &changes[i]; !c.isHook() && !c.isRule() {
			t.chains = append(t.chains, c)
			t.declared[c.place.chain] = true
		}
	}
	slices.SortStableFunc(t.chains, func(a, b *change) int {
		if a.isShared() != b.isShared() {
			if a.isShared() {
				return -1
			}
			return 1
		}
		return strings.Compare(b.place.chain, a.place.chain)
	})
	for i := range changes {
		c := &changes[i]
		if c.Op == backends.Delete || !c.isRule() {
			continue
		}
		if to, _ := target(c.place.rule); t.declared[to] && !c.isHook() && !shared(to) {
			t.leading[to] = append(t.leading[to], c)
		} else {
			t.rules = append(t.rules, c)
		}
	}
	return t
}

// needsLater says whether a chain leads to one that is declared below it.
func (t table) needsLater(c *change, ready map[string]bool) bool {
	for rule := range strings.Lines(c.New.String()) {
		if to, _ := target(strings.TrimSuffix(rule, "\n")); t.declared[to] && !ready[to] {
			return true
		}
	}
	return false
}

func (in *input) deleteRules(t table, changes []change) {
	for _, c := range changes {
		gone := c.isRule() && (c.Op == backends.Delete || c.Op == backends.Update)
		if gone && !t.declared[c.place.chain] {
			in.write(c.ID, "-D ", c.place.chain, " ", c.place.rule)
		}
	}
}

func (in *input) appendRules(rules []*change) {
	for _, c := range rules {
		if c.isHook() {
			in.write(c.ID, "-I ", c.place.chain, " 1 ", c.place.rule)
		} else {
			in.write(c.ID, "-A ", c.place.chain, " ", c.place.rule)
		}
	}
}

// body writes the rules of a chain.
func (in *input) body(c *change) {
	_, rules, ok := strings.Cut(c.New.String(), "\n")
	if !ok {
		return
	}
	in.write(c.ID, rules)
	in.line += strings.Count(rules, "\n")
}

func (in *input) record(changes []change) {
	for _, c := range changes {
		switch {
		case !c.isShared() && !c.isHook():
		case c.Op == backends.Delete:
			in.removed = append(in.removed, c.ID)
		default:
			in.added = append(in.added, c.ID)
		}
	}
}
