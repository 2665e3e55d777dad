package iptables

import (
	"fmt"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// A packet whose destination is the endpoint that sent it has equal source and destination addresses. This program
// returns 1 for such a packet, once per family: it compares the addresses in the IP header word by word.
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
		items = append(items, b.baseMangle(f)...)
	}
	return items
}

func (b *Backend) baseNAT(f dataplane.Family) []backends.Item {
	at, n := xtables.At(f, "nat"), &b.names
	services := []string{"-j " + n.addrRoot}
	services = append(services, b.nodePortJumps(f)...)

	items := []backends.Item{
		xtables.Item(at + n.addrRoot), xtables.Item(at + n.portRoot),
		xtables.Chain(at, n.services, services...),
		xtables.Item(at + "PREROUTING -j " + n.services),
		xtables.Item(at + "OUTPUT -m mark ! --mark " + fmt.Sprintf("%#x", dataplane.ProbeMark) + " -j " + n.services), // probes go to the endpoint itself
		xtables.Item(at + "POSTROUTING -j " + n.postrouting),
	}
	hairpin := "-m conntrack --ctstate DNAT -j " + n.hairpinRoot
	if b.bpf {
		program := hairpinProgram4
		if f == dataplane.IPv6 {
			program = hairpinProgram6
		}
		hairpin = "! -o lo -m conntrack --ctstate DNAT -m bpf --bytecode " + program + " " + b.masquerade
	} else {
		items = append(items, xtables.Item(at+n.hairpinRoot))
	}
	post := []string{b.translated + " -j " + n.masquerade}
	masquerade := []string{xtables.ClearMark(b.cfg.MasqueradeMark)}
	if !b.toListeners { // no packet to a listener leaves the node, and weir must recognise its own connections by their source
		post, masquerade = append(post, hairpin), append(masquerade, b.masquerade)
		for _, p := range b.cfg.Bridged { // an answer between neighbours on a bridge would not pass through the node
			if dataplane.FamilyOf(p.Addr()) == f {
				net := xtables.PrefixText(p)
				post = append(post, "-s "+net+" -d "+net+" -m conntrack --ctstate DNAT "+b.masquerade)
			}
		}
	}
	return append(items, xtables.Chain(at, n.postrouting, post...), xtables.Chain(at, n.masquerade, masquerade...))
}

func (b *Backend) baseFilter(f dataplane.Family) []backends.Item {
	at, n := xtables.At(f, "filter"), &b.names
	fresh := "-m conntrack --ctstate NEW -j " + n.filter
	output, forward := []string{fresh}, []string{fresh}
	if !b.cfg.TCPBeLiberal {
		// A packet that conntrack considers invalid is not translated back, and would reset its connection: where it is
		// forwarded, because the client answers with a reset, and where the connection is masqueraded, because the node does.
		forward = append(forward, "-m conntrack --ctstate INVALID -j DROP")
		output = append(output, xtables.InvalidReset)
	}
	if !b.toListeners { // nothing to a listener is forwarded
		forward = append(forward, b.translated+" -j ACCEPT")
	}
	forward = append(forward, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")

	var listeners []backends.Item
	if b.toListeners {
		listeners = []backends.Item{xtables.Item(at + n.listeners)}
		output = append(output, b.answersOfOthers()...)
	}
	return append([]backends.Item{
		xtables.Item(at + n.addrRoot), xtables.Item(at + n.portRoot), xtables.Item(at + n.health),
		xtables.Chain(at, n.filter, append([]string{"-j " + n.addrRoot}, b.nodePortJumps(f)...)...),
		xtables.Chain(at, n.input, fresh, "-j "+n.health), xtables.Chain(at, n.forward, forward...), xtables.Chain(at, n.output, output...),
		xtables.Item(at + "INPUT -j " + n.input),
		xtables.Item(at + "FORWARD -j " + n.forward),
		xtables.Item(at + "OUTPUT -j " + n.output),
	}, listeners...)
}

// answersOfOthers returns the rules for answers in redirected connections that weir did not send. For a TCP connection
// the first answer is enough.
func (b *Backend) answersOfOthers() []string {
	rest := " -m mark ! --mark " + xtables.MarkText(b.cfg.MasqueradeMark) + " -m conntrack --ctstate DNAT --ctdir REPLY -j " + b.names.listeners
	return []string{"-p tcp -m tcp --tcp-flags SYN,ACK SYN,ACK" + rest, "-p udp" + rest}
}

// baseMangle returns the guard of the loopback addresses of IPv4. Node ports on them need route_localnet, which would let
// neighbours reach servers that listen there. The kernel itself guards ::1. The guard comes before any translation, so that
// neighbours reach neither the node ports of these addresses nor what other programs translate.
func (b *Backend) baseMangle(f dataplane.Family) []backends.Item {
	if f != dataplane.IPv4 || !b.cfg.LocalhostNodePorts {
		return nil
	}
	at := xtables.At(f, "mangle")
	return []backends.Item{
		xtables.Chain(at, b.names.prerouting, xtables.LoopbackGuard...),
		xtables.Item(at + "PREROUTING -j " + b.names.prerouting),
	}
}

// nodePortJumps returns the rules that send traffic for the node's own addresses to the node ports.
func (b *Backend) nodePortJumps(f dataplane.Family) []string {
	if b.cfg.NodePortAddresses == nil {
		jump := "-m addrtype --dst-type LOCAL -j " + b.names.portRoot
		if !b.cfg.ServesLocalhost(f) {
			jump = "! -d " + dataplane.Loopback(f).String() + " " + jump
		}
		return []string{jump}
	}
	var jumps []string
	for _, a := range b.cfg.NodePortAddresses {
		if dataplane.FamilyOf(a) != f || a.IsLoopback() && !b.cfg.ServesLocalhost(f) {
			continue
		}
		jumps = append(jumps, "-d "+xtables.HostText(a)+" -j "+b.names.portRoot)
	}
	return jumps
}
