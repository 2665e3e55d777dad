package xtables

import (
	"fmt"

	"weir/backends"
	"weir/backends/dataplane"
)

// Answered returns the Items for a ServicePort that weir answers itself: its packets, of both directions, are not tracked, so
// that no rule translates them. Questions that come in and answers that go out are accepted before the rules of others, which
// may expect connections. What comes in from the port is not, because IPv6 does not tell whether it is from this node.
// The chains have this name, and for answers the name with "-OUT". They are shared ones, because several ServicePorts may be
// answered.
func Answered(p *dataplane.ServicePort, chain string) []backends.Item {
	f, protocol, comment := p.Key.Family, ProtocolName(p.Key.Protocol), p.Key.Service.String()
	if p.Key.Port != "" {
		comment += ":" + p.Key.Port
	}
	rule := func(addr, port, target string) string {
		return fmt.Sprintf(" %s %s -p %s -m %s %s %d -m comment --comment %q -j %s", addr, HostText(p.ClusterIP), protocol, protocol, port, p.Port, comment, target)
	}
	var items []backends.Item
	add := func(table string, texts ...string) {
		for _, text := range texts {
			items = append(items, Item(At(f, table)+text))
		}
	}
	out := chain + "-OUT"
	const notrack, accept = "CT --notrack", "ACCEPT"
	add("raw", chain, chain+rule("-d", "--dport", notrack), chain+rule("-s", "--sport", notrack), "PREROUTING -j "+chain, "OUTPUT -j "+chain)
	add("filter", chain, chain+rule("-d", "--dport", accept), "INPUT -j "+chain, out, out+rule("-s", "--sport", accept), "OUTPUT -j "+out)
	return items
}
