package xtables

import (
	"strconv"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
)

// Item is a backends.Item in the syntax of iptables-save. Its text shows which of four kinds it is:
//
//	ip4 nat CHAIN                  a chain with its rules in order, one on each line after the first
//	-A CHAIN -p tcp …
//	ip4 nat SHARED                 a shared chain, without its rules
//	ip4 nat SHARED -d … -j …       a rule in a shared chain; their order means nothing
//	ip4 nat PREROUTING -j CHAIN    a hook: a rule in a built-in chain, which every packet reaches
//
// The first line is the ID. A second and third copy of a rule have the IDs "… (2)" and "… (3)", and a hook that packets
// may not reach has the line unreachable below it.
type Item string

// unreachable marks a hook that packets may not reach.
const unreachable = "\n(unreachable: an earlier rule is terminal)"

// ID implements backends.Item.
func (i Item) ID() backends.ID {
	id, _, _ := strings.Cut(string(i), "\n")
	return backends.ID(id)
}

// String implements backends.Item.
func (i Item) String() string { return string(i) }

// At returns the beginning of the IDs of a table: "ip4 nat ".
func At(f dataplane.Family, table string) string { return Tag(f) + " " + table + " " }

// Chain makes the Item of a chain with its rules. at is the beginning of its ID, as At returns it.
func Chain(at, name string, rules ...string) Item {
	n := len(at) + len(name)
	for _, r := range rules {
		n += len("\n-A  ") + len(name) + len(r)
	}
	text := make([]byte, 0, n)
	text = append(append(text, at...), name...)
	for _, r := range rules {
		text = append(append(append(append(text, "\n-A "...), name...), ' '), r...)
	}
	return Item(text)
}

// Place is a parsed ID.
type Place struct {
	Family dataplane.Family
	Table  string
	Chain  string
	Rule   string // without the number of a copy; "" for a chain
}

// Parse parses an ID. It returns false if the ID is not of an Item.
func Parse(id backends.ID) (Place, bool) {
	tag, rest, ok1 := strings.Cut(string(id), " ")
	table, rest, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || tag != "ip4" && tag != "ip6" {
		return Place{}, false
	}
	p := Place{Family: dataplane.IPv4, Table: table}
	if tag == "ip6" {
		p.Family = dataplane.IPv6
	}
	p.Chain, p.Rule, _ = strings.Cut(rest, " ")
	p.Rule = cutCopy(p.Rule)
	return p, p.Chain != ""
}

// cutCopy removes the number of a copy. No rule ends like that itself, because iptables-save quotes words that hold a
// space.
func cutCopy(rule string) string {
	if !strings.HasSuffix(rule, ")") {
		return rule
	}
	if at := strings.LastIndex(rule, " ("); at > 0 {
		if _, err := strconv.Atoi(rule[at+2 : len(rule)-1]); err == nil {
			return rule[:at]
		}
	}
	return rule
}

func numbered(id string, copies int) string { return id + " (" + strconv.Itoa(copies) + ")" }
