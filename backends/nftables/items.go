package nftables

import (
	"net/netip"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/nfnl"
)

// The names of weir's tables.
const (
	backendTable  = "weir"
	redirectTable = "weir-userspace"
)

// item is the interface of all Items of this backend.
type item interface {
	backends.Item
	family() dataplane.Family
}

// table names one table. Tables of different families, and those of different names, are independent.
type table struct {
	fam  dataplane.Family
	name string
}

func (t table) family() dataplane.Family { return t.fam }

// kernel returns the table's name in the kernel.
func (t table) kernel() nfnl.Table { return nfnl.Table{Family: nfproto(t.fam), Name: t.name} }

const tableComment = "Kubernetes Services, programmed by weir; what others write here is removed"

// tableItem is a table. fault is empty if the table is as weir wants it.
type tableItem struct {
	table
	fault string
	// rebuild reports whether the table cannot be repaired, because a map has the wrong type.
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
	fam  dataplane.Family
	name string
	// foreign describes a set that is not weir's.
	foreign string
}

func setItemID(f dataplane.Family, name string) backends.ID {
	return backends.ID(familyName(f) + " b set " + name)
}

func (i setItem) family() dataplane.Family { return i.fam }

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

// chainItem is a chain with its rules.
type chainItem struct {
	fam  dataplane.Family
	name string
	text string
	// hooked reports whether the kernel enters the chain.
	hooked bool
	// want is the chain that weir asked for, nil if weir did not ask for it or not in this state.
	want *chain
}

func chainItemID(f dataplane.Family, name string) backends.ID {
	return backends.ID(familyName(f) + " c chain " + name)
}

func (i *chainItem) family() dataplane.Family { return i.fam }

// ID implements backends.Item.
func (i *chainItem) ID() backends.ID { return chainItemID(i.fam, i.name) }

// String implements backends.Item.
func (i *chainItem) String() string { return i.text }

func newChainItem(f dataplane.Family, c chain) *chainItem {
	lines := make([]string, len(c.rules))
	for i, r := range c.rules {
		lines[i] = r.line()
	}
	head := ""
	if c.hook != nil {
		head = hookText(*c.hook, nfnl.PolicyAccept)
	}
	return &chainItem{fam: f, name: c.name, text: chainText(f, c.name, head, lines), hooked: c.hook != nil, want: &c}
}

func chainText(f dataplane.Family, name, head string, lines []string) string {
	text := familyName(f) + " chain " + name
	if head != "" {
		text += "\n  " + head
	}
	if len(lines) > 0 {
		text += "\n  " + strings.Join(lines, "\n  ")
	}
	return text
}

// entry returns the hook by which the kernel enters the chain, "" if there is none.
func (i *chainItem) entry() string {
	if !i.hooked {
		return ""
	}
	return strings.SplitN(i.text, "\n", 3)[1]
}

// memberItem is an element of a set that belongs to no frontend.
type memberItem struct {
	fam dataplane.Family
	set setID
	key string // the kernel's key; "" for the catchall element, which weir never asks for
}

// member returns the Item for an address in a set. A hairpin has the address twice.
func member(id setID, a netip.Addr) memberItem {
	key := appendAddr(make([]byte, 0, 32), a)
	if id == hairpin {
		key = appendAddr(key, a)
	}
	return memberItem{dataplane.FamilyOf(a), id, string(key)}
}

// parseMember returns the Item for an element's key, and false if the key does not fit the set, which the definition of the
// set rules out. The catchall element has none.
func parseMember(f dataplane.Family, id setID, key []byte) (memberItem, bool) {
	n := addrLen(f)
	switch {
	case key == nil:
		n = 0
	case id == hairpin:
		n *= 2
	case sets[id].ports:
		n += protoPortLen
	}
	return memberItem{f, id, string(key)}, len(key) == n
}

func (i memberItem) family() dataplane.Family { return i.fam }

func (i memberItem) kernelKey() []byte {
	if i.key == "" {
		return nil
	}
	return []byte(i.key)
}

// ID implements backends.Item.
func (i memberItem) ID() backends.ID { return backends.ID(i.String()) }

// String implements backends.Item.
func (i memberItem) String() string {
	s := familyName(i.fam) + " " + sets[i.set].name
	n := addrLen(i.fam)
	switch {
	case i.key == "":
		return s + " all other keys, not weir's"
	case sets[i.set].ports:
		k, _, _ := parseFront(i.fam, addrScope, []byte(i.key))
		return s + " " + k.String()
	case i.set == hairpin && i.key[:n] != i.key[n:]:
		return s + " " + addrText(i.key[:n]) + " " + addrText(i.key[n:])
	}
	return s + " " + addrText(i.key[:n])
}

func addrText(raw string) string {
	a, _ := netip.AddrFromSlice([]byte(raw))
	return a.String()
}
