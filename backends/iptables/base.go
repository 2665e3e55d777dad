package iptables

import (
	"fmt"
	"slices"
	"strings"

	"weir/backends"
)

// The constant chains.
const (
	servicesChain    = "WEIR-SERVICES"
	postroutingChain = "WEIR-POSTROUTING"
	masqueradeChain  = "WEIR-MASQUERADE"
	inputChain       = "WEIR-INPUT"
	forwardChain     = "WEIR-FORWARD"
	outputChain      = "WEIR-OUTPUT"
	filterChain      = "WEIR-FILTER"
)

// tables are the tables that hold chains of weir, in the order in which they are read and written.
var tables = []string{"nat", "filter"}

// A packet that was sent by the endpoint it is now addressed to has equal source and destination addresses. This program
// returns 1 for it, once per family: it compares the addresses in the IP header word by word.
var (
	hairpinProgram4 = compareProgram(12, 16, 1)
	hairpinProgram6 = compareProgram(8, 24, 4)
)

// compareProgram returns the classic BPF program, as iptables-save prints it, that compares two fields of the packet.
func compareProgram(src, dst, words int) string {
	var ops []string
	for i := range words {
		fail := (words-1-i)*4 + 1
		ops = append(ops, fmt.Sprintf("32 0 0 %d", src+4*i), "7 0 0 0", fmt.Sprintf("32 0 0 %d", dst+4*i),
			fmt.Sprintf("29 0 %d 0", fail))
	}
	ops = append(ops, "6 0 0 1", "6 0 0 0")
	return fmt.Sprintf("\"%d,%s\"", len(ops), strings.Join(ops, ","))
}

// Base implements backends.Backend.
func (b *Backend) Base() []backends.Item {
	var items []backends.Item
	for _, f := range b.cfg.Families {
		items = append(items, b.baseNAT(f)...)
		items = append(items, b.baseFilter(f)...)
	}
	return items
}

func (b *Backend) baseNAT(f backends.Family) []backends.Item {
	at := tag(f) + " nat "
	services := []string{"-j " + addrRoot}
	services = append(services, b.nodePortJumps(f)...)

	items := []backends.Item{
		item(at + addrRoot), item(at + portRoot),
		body(at, servicesChain, services),
		item(at + "PREROUTING -j " + servicesChain),
		item(at + "OUTPUT -j " + servicesChain),
		item(at + "POSTROUTING -j " + postroutingChain),
	}
	hairpin := "-m conntrack --ctstate DNAT -j " + hairpinRoot
	if b.features.BPF {
		program := hairpinProgram4
		if f == backends.IPv6 {
			program = hairpinProgram6
		}
		hairpin = "! -o lo -m conntrack --ctstate DNAT -m bpf --bytecode " + program + " " + b.masquerade()
	} else {
		items = append(items, item(at+hairpinRoot))
	}
	post := []string{"-m mark --mark " + b.mark() + " -j " + masqueradeChain, hairpin}
	return append(items,
		body(at, postroutingChain, post),
		body(at, masqueradeChain, []string{"-j MARK --set-xmark " + b.markBit() + "/0x0", b.masquerade()}))
}

func (b *Backend) baseFilter(f backends.Family) []backends.Item {
	at := tag(f) + " filter "
	fresh := "-m conntrack --ctstate NEW -j " + filterChain

	var martian []string
	if f == backends.IPv4 && b.cfg.LocalhostNodePorts {
		// Node ports on loopback addresses need route_localnet, which would let neighbours reach what listens there.
		martian = []string{"! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP"}
	}
	input := append(slices.Clone(martian), fresh, "-j "+healthChain)
	output := append(slices.Clone(martian), fresh)
	forward := []string{fresh}
	if !b.cfg.TCPBeLiberal {
		// A packet that conntrack takes for invalid is not translated back, and would reset the connection it belongs to.
		forward = append(forward, "-m conntrack --ctstate INVALID -j DROP")
	}
	forward = append(forward, "-m mark --mark "+b.mark()+" -j ACCEPT", "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")

	return []backends.Item{
		item(at + addrRoot), item(at + portRoot), item(at + healthChain),
		body(at, filterChain, append([]string{"-j " + addrRoot}, b.nodePortJumps(f)...)),
		body(at, inputChain, input), body(at, forwardChain, forward), body(at, outputChain, output),
		item(at + "INPUT -j " + inputChain),
		item(at + "FORWARD -j " + forwardChain),
		item(at + "OUTPUT -j " + outputChain),
	}
}

// nodePortJumps are the rules that send traffic for the node's own addresses to the node ports.
func (b *Backend) nodePortJumps(f backends.Family) []string {
	if b.cfg.NodePortAddresses == nil {
		switch {
		case f == backends.IPv6:
			return []string{"! -d ::1/128 -m addrtype --dst-type LOCAL -j " + portRoot}
		case !b.cfg.LocalhostNodePorts:
			return []string{"! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j " + portRoot}
		}
		return []string{"-m addrtype --dst-type LOCAL -j " + portRoot}
	}
	var jumps []string
	for _, a := range b.cfg.NodePortAddresses {
		if backends.FamilyOf(a) != f || a.IsLoopback() && (f == backends.IPv6 || !b.cfg.LocalhostNodePorts) {
			continue
		}
		jumps = append(jumps, "-d "+hostText(a)+" -j "+portRoot)
	}
	return jumps
}

// markBit is the masquerade mark, and mark the match for it.
func (b *Backend) markBit() string { return fmt.Sprintf("%#x", b.cfg.MasqueradeMark) }
func (b *Backend) mark() string    { return b.markBit() + "/" + b.markBit() }

// body makes the Item of a chain with its rules.
func body(at, chain string, rules []string) item {
	n := len(at) + len(chain)
	for _, r := range rules {
		n += len("\n-A  ") + len(chain) + len(r)
	}
	text := make([]byte, 0, n)
	text = append(append(text, at...), chain...)
	for _, r := range rules {
		text = append(append(append(append(text, "\n-A "...), chain...), ' '), r...)
	}
	return item(text)
}
