package iptables

import (
	"strconv"
	"strings"

	"weir/backends"
)

// item is an Item in its canonical form, in the words of iptables-save. There are four kinds, told apart by their text:
//
//	ip4 nat WEIR-SVC-…                        a chain with its rules in order, one on each line after the first
//	-A WEIR-SVC-… -p tcp …
//	ip4 nat WEIR-IP-10.96.0.0/16              a shared chain, without its rules
//	ip4 nat WEIR-IP-10.96.0.0/16 -d … -j …    a rule in a shared chain; their order means nothing
//	ip4 nat PREROUTING -j WEIR-SERVICES       a hook: a rule in a built-in chain, ahead of all rules that would keep
//	                                          packets from it
//
// The first line is the ID. A second and third copy of a rule have the IDs "… (2)" and "… (3)", and a hook that is out of
// place has the line misplaced below it.
type item string

// misplaced marks a hook that packets may not reach.
const misplaced = "\n(behind rules that end the walk)"

// ID implements backends.Item.
func (i item) ID() backends.ID {
	id, _, _ := strings.Cut(string(i), "\n")
	return backends.ID(id)
}

// String implements backends.Item.
func (i item) String() string { return string(i) }

// place is what an ID says.
type place struct {
	family backends.Family
	table  string
	chain  string
	rule   string // without the number of a copy; "" for a chain
}

// parse takes an ID apart.
func parse(id backends.ID) (place, bool) {
	tag, rest, ok1 := strings.Cut(string(id), " ")
	table, rest, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || tag != "ip4" && tag != "ip6" {
		return place{}, false
	}
	p := place{family: backends.IPv4, table: table}
	if tag == "ip6" {
		p.family = backends.IPv6
	}
	p.chain, p.rule, _ = strings.Cut(rest, " ")
	p.rule = cutCopy(p.rule)
	return p, p.chain != ""
}

// cutCopy removes the number of a copy. A rule cannot end so by itself: iptables-save quotes what holds a space.
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

// tag is how IDs name a family.
func tag(f backends.Family) string {
	if f == backends.IPv6 {
		return "ip6"
	}
	return "ip4"
}

// owned says whether a chain is this backend's.
func owned(chain string) bool {
	if !strings.HasPrefix(chain, "WEIR-") {
		return false
	}
	for _, prefix := range elsewhere {
		if strings.HasPrefix(chain, prefix) {
			return false
		}
	}
	return true
}

// shared says whether the rules of an owned chain are Items of their own.
func shared(chain string) bool {
	switch chain {
	case addrRoot, portRoot, hairpinRoot, healthChain:
		return true
	}
	return strings.HasPrefix(chain, addrRoot+"-") || strings.HasPrefix(chain, portRoot+"-") ||
		strings.HasPrefix(chain, hairpinRoot+"-")
}
