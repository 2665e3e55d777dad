package nftables

import (
	"net/netip"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/nfnl"
)

// Describe implements backends.Describer. The Item of a Frontend holds everything about it. Its members of other sets
// are found by their addresses.
func (b *Backend) Describe(items []backends.Item) []backends.ProgrammedFrontend {
	members := map[memberItem]bool{}
	chains := map[backends.ID]bool{}
	for _, i := range items {
		switch i := i.(type) {
		case memberItem:
			members[i] = true
		case *chainItem:
			chains[i.ID()] = true
		}
	}
	var fronts []backends.ProgrammedFrontend
	for _, i := range items {
		if f, ok := i.(frontItem); ok {
			fronts = append(fronts, frontOf(f, members, chains))
		}
	}
	return fronts
}

// slot is one element of a front's maps of endpoints.
type slot struct {
	local bool
	addr  netip.AddrPort
}

func frontOf(i frontItem, members map[memberItem]bool, chains map[backends.ID]bool) backends.ProgrammedFrontend {
	k := i.key()
	of := setsOf[k.scope]
	f := backends.ProgrammedFrontend{
		Frontend: dataplane.Frontend{Family: k.fam, Protocol: k.proto, Addr: k.addr, Port: k.port},
		Own:      []backends.ID{k.id()},
	}
	var slots []slot
	byIdentity := map[uint32]netip.AddrPort{}
	var sticky []element
	for e := range i.elements() {
		if n := len(e.comment); n > 0 && n < maxComment-2 { // a longer one may have been cut
			f.Service = e.comment
		}
		switch e.set {
		case of.dispatch:
			if s, ok := shapeOf(e.verdict); ok {
				f.Affinity = s.timeout
				f.Shared = appendChains(f.Shared, f.Family, s, chains)
			}
		case of.refused:
			f.Refusal = "reject"
			if e.verdict == drop {
				f.Refusal = "drop"
			}
		case of.endpoints:
			slots = append(slots, slot{e.local(), e.endpoint})
		case of.stickySlots:
			sticky = append(sticky, e)
		case of.stickyEndpoints:
			byIdentity[e.slot] = e.endpoint
		case allowedSources:
			f.Sources = append(f.Sources, rangeText(e))
		}
	}
	for _, e := range sticky {
		slots = append(slots, slot{e.local(), byIdentity[e.identity]})
	}
	f.Endpoints = shares(slots, false)
	if local := shares(slots, true); len(local) > 0 || f.Refusal != "" && len(slots) > 0 {
		f.Endpoints, f.FromNode = local, f.Endpoints
	}
	if f.Addr.IsValid() {
		f.Shared = appendMember(f.Shared, member(clusterIPs, f.Addr), members)
	}
	for _, s := range slots {
		f.Shared = appendMember(f.Shared, member(hairpin, s.addr.Addr()), members)
	}
	return f
}

// shapeOf returns the shape of the chain that a verdict leads to.
func shapeOf(v nfnl.Verdict) (shape, bool) {
	if v.Code != nfnl.Goto {
		return shape{}, false
	}
	return parseShape(v.Chain)
}

func appendChains(ids []backends.ID, f dataplane.Family, s shape, chains map[backends.ID]bool) []backends.ID {
	for _, name := range []string{s.name(), s.pick().name()} {
		if id := chainItemID(f, name); chains[id] && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

func appendMember(ids []backends.ID, m memberItem, members map[memberItem]bool) []backends.ID {
	if !members[m] || slices.Contains(ids, m.ID()) {
		return ids
	}
	return append(ids, m.ID())
}

// shares counts the slots of each endpoint.
func shares(slots []slot, local bool) []dataplane.EndpointShare {
	count, n := map[netip.AddrPort]int{}, 0
	for _, s := range slots {
		if s.local == local {
			count[s.addr]++
			n++
		}
	}
	var all []dataplane.EndpointShare
	for a, c := range count {
		all = append(all, dataplane.EndpointShare{Addr: a, Fraction: float64(c) / float64(n)})
	}
	slices.SortFunc(all, func(a, b dataplane.EndpointShare) int { return a.Addr.Compare(b.Addr) })
	return all
}

// rangeText writes a range as a prefix if it is one.
func rangeText(e element) string {
	for bits := range e.from.BitLen() + 1 {
		if p, err := e.from.Prefix(bits); err == nil && rangeOf(p) == e.elementKey {
			return p.String()
		}
	}
	return e.keyText()
}
