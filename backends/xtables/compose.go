package xtables

import (
	"slices"
	"sort"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
)

// change is a Change with its ID parsed.
type change struct {
	backends.Change
	place        Place
	shared, hook bool // of the chain of this Change
}

func (c change) isRule() bool { return c.place.Rule != "" }

// input is the standard input of one run of iptables-restore, and the origin of each of its lines.
type input struct {
	text   []byte
	tables int
	// lines and owner are parallel: from this line on, up to the next entry, the lines belong to this Change. "" means
	// that they belong to none.
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
func (t *Tables) compose(f dataplane.Family, changes []change) *input {
	in := &input{}
	for _, table := range t.layout.Names {
		var of []change
		for _, c := range changes {
			if c.place.Family != f || c.place.Table != table {
				continue
			}
			if c, needed := t.needed(c); needed {
				of = append(of, c)
			}
		}
		if len(of) == 0 {
			continue
		}
		of = append(of, replaced(of)...)
		if in.tables++; in.tables == 2 {
			in.second = in.line + 1
		}
		in.reserve(of)
		in.write("", "*", table)
		in.compose(t.sortTable(of), of)
		in.write("", "COMMIT")
	}
	return in
}

// reserve allocates the text of a table, which may have many megabytes.
func (in *input) reserve(changes []change) {
	const verbs = 48 // the text besides the Item, and around the table
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

// needed reports whether a Change still has to be made, and returns what remains of it.
func (t *Tables) needed(c change) (change, bool) {
	if t.present == nil || !c.shared && !c.hook {
		return c, true
	}
	_, present := t.present[c.ID]
	if c.Op == backends.Update {
		if !present {
			c.Op = backends.Create // another process deleted the old rule
		}
		return c, true
	}
	return c, present == (c.Op == backends.Delete)
}

// replaced returns the hooks that must be placed again because a copy of them is deleted. -D deletes the first of equal
// rules, and the remaining one may be behind a terminal rule.
func replaced(changes []change) (again []change) {
	touched := make(map[backends.ID]bool)
	for _, c := range changes {
		if c.hook {
			touched[c.ID] = true
		}
	}
	for _, c := range changes {
		if !c.hook || c.Op != backends.Delete {
			continue
		}
		hook := Item(At(c.place.Family, c.place.Table) + c.place.Chain + " " + c.place.Rule)
		if !touched[hook.ID()] {
			touched[hook.ID()] = true
			c.Change = backends.Change{Op: backends.Update, ID: hook.ID(), New: hook}
			again = append(again, c)
		}
	}
	return again
}

// compose writes one table. A chain is declared before any rule leads to it, and no rule leads to it when it is
// deleted. Declaring a chain removes its old rules.
//
// iptables-nft keeps the names of the chains that it met in a sorted list, and searches the list from the front for
// every name in every line. The order keeps this list short. Chains are declared from the last name to the first, each
// followed by its rules and by the rules that lead to it. The shared chains, which hold those rules, come first here
// and by name. In any other order the time grows with the square of the number of chains.
func (in *input) compose(t sorted, changes []change) {
	in.deleteRules(t, changes)
	var later []*change
	ready := make(map[string]bool, len(t.declared))
	for _, c := range t.chains {
		in.write(c.ID, ":", c.place.Chain, " - [0:0]")
		ready[c.place.Chain] = true
		if c.Op == backends.Delete {
			continue
		}
		if t.needsLater(c, ready) {
			later = append(later, c)
			continue
		}
		in.body(c)
		in.appendRules(t.leading[c.place.Chain])
	}
	for _, c := range later {
		in.body(c)
		in.appendRules(t.leading[c.place.Chain])
	}
	in.appendRules(t.rules)
	for _, c := range slices.Backward(changes) {
		if _, held := t.held[c.ID]; c.Op == backends.Delete && !c.hook && !c.isRule() && !held {
			in.write(c.ID, "-X ", c.place.Chain)
		}
	}
	in.record(changes)
}

// sorted holds the Changes of one table, in the order of compose.
type sorted struct {
	chains   []*change // the shared chains, then the others, each from the last name to the first
	declared map[string]bool
	leading  map[string][]*change // by the chain that the rules lead to
	rules    []*change            // all other rules to add
	held     map[backends.ID]struct{}
}

func (tables *Tables) sortTable(changes []change) sorted {
	shared := tables.layout.shared
	t := sorted{declared: make(map[string]bool), leading: make(map[string][]*change), held: tables.held}
	for i := range changes {
		if c := &changes[i]; !c.hook && !c.isRule() {
			t.chains = append(t.chains, c)
			t.declared[c.place.Chain] = true
		}
	}
	slices.SortStableFunc(t.chains, func(a, b *change) int {
		if a.shared != b.shared {
			if a.shared {
				return -1
			}
			return 1
		}
		return strings.Compare(b.place.Chain, a.place.Chain)
	})
	for i := range changes {
		c := &changes[i]
		if c.Op == backends.Delete || !c.isRule() {
			continue
		}
		if to, _ := target(c.place.Rule); t.declared[to] && !c.hook && !shared(to) {
			t.leading[to] = append(t.leading[to], c)
		} else {
			t.rules = append(t.rules, c)
		}
	}
	return t
}

// needsLater reports whether a chain leads to one that is declared below it.
func (t sorted) needsLater(c *change, ready map[string]bool) bool {
	for rule := range strings.Lines(c.New.String()) {
		if to, _ := target(strings.TrimSuffix(rule, "\n")); t.declared[to] && !ready[to] {
			return true
		}
	}
	return false
}

func (in *input) deleteRules(t sorted, changes []change) {
	for _, c := range changes {
		gone := c.isRule() && (c.Op == backends.Delete || c.Op == backends.Update)
		if gone && !t.declared[c.place.Chain] {
			in.write(c.ID, "-D ", c.place.Chain, " ", c.place.Rule)
		}
	}
}

func (in *input) appendRules(rules []*change) {
	for _, c := range rules {
		if c.hook {
			in.write(c.ID, "-I ", c.place.Chain, " 1 ", c.place.Rule)
		} else {
			in.write(c.ID, "-A ", c.place.Chain, " ", c.place.Rule)
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
		case !c.shared && !c.hook:
		case c.Op == backends.Delete:
			in.removed = append(in.removed, c.ID)
		default:
			in.added = append(in.added, c.ID)
		}
	}
}
