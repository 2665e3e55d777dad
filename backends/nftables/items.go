package nftables

import (
	"strings"

	"weir/backends"
)

// The names of weir's tables.
const (
	backendTable = "weir"
	layerTable   = "weir-userspace"
)

// table names one table of the kernel: those of different families and of a Backend and a Layer have nothing in common.
type table struct {
	fam  backends.Family
	name string
}

const tableComment = "Kubernetes Services, programmed by weir; what others write here is removed"

// tableItem is a table. fault is empty for one that is as it should be.
type tableItem struct {
	table
	fault string
	// rebuild says that the table cannot be mended: a map has the wrong type.
	rebuild bool
}

// ID implements backends.Item.
func (i tableItem) ID() backends.ID { return backends.ID(familyName(i.fam) + " a table " + i.name) }

// String implements backends.Item.
func (i tableItem) String() string {
	s := familyName(i.fam) + " table " + i.name
	if i.fault != "" {
		s += ": " + i.fault
	}
	return s
}

// setItem is the definition of a map or set.
type setItem struct {
	fam  backends.Family
	name string
	// foreign is what is known of a set that is not weir's.
	foreign string
}

func setItemID(f backends.Family, name string) backends.ID {
	return backends.ID(familyName(f) + " b set " + name)
}

// ID implements backends.Item.
func (i setItem) ID() backends.ID { return setItemID(i.fam, i.name) }

// String implements backends.Item.
func (i setItem) String() string {
	if i.foreign != "" {
		return familyName(i.fam) + " set " + i.name + ": " + i.foreign
	}
	id, _ := setByName(i.name)
	return sets[id].text(i.fam)
}

func setByName(name string) (setID, bool) {
	for id := range sets {
		if sets[id].name == name {
			return setID(id), true
		}
	}
	return 0, false
}

// chainItem is a chain with its rules.
type chainItem struct {
	fam  backends.Family
	name string
	text string
	// hooked says that the kernel enters the chain.
	hooked bool
	// want is nil for a chain, or the state of one, that weir did not ask for.
	want *chain
}

func chainItemID(f backends.Family, name string) backends.ID {
	return backends.ID(familyName(f) + " c chain " + name)
}

// ID implements backends.Item.
func (i *chainItem) ID() backends.ID { return chainItemID(i.fam, i.name) }

// String implements backends.Item.
func (i *chainItem) String() string { return i.text }

func newChainItem(f backends.Family, c chain) *chainItem {
	lines := make([]string, len(c.rules))
	for i, r := range c.rules {
		lines[i] = r.line()
	}
	head := ""
	if c.hook != nil {
		head = c.hook.text(1)
	}
	return &chainItem{fam: f, name: c.name, text: chainText(f, c.name, head, lines), hooked: c.hook != nil, want: &c}
}

func (r rule) line() string {
	if r.comment == "" {
		return r.text
	}
	return r.text + " # " + r.comment
}

func chainText(f backends.Family, name, head string, lines []string) string {
	text := familyName(f) + " chain " + name
	if head != "" {
		text += "\n  " + head
	}
	if len(lines) > 0 {
		text += "\n  " + strings.Join(lines, "\n  ")
	}
	return text
}
