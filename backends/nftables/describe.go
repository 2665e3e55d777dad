package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weir/backends"
)

var _ backends.Describer = (*Backend)(nil)

// Describe implements backends.Describer. Everything about a front is in the Item of that front; its members of other sets
// are found by their addresses.
func (b *Backend) Describe(items []backends.Item) []backends.Front {
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
	var fronts []backends.Front
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

func frontOf(i frontItem, members map[memberItem]bool, chains map[backends.ID]bool) backends.Front {
	k := i.key()
	f := backends.Front{Family: k.family(), Protocol: k.protocol(), Port: k.port(), Own: []backends.ID{i.ID()}}
	if k.scope() == addrScope {
		f.Addr = k.addr()
	}
	var slots []slot
	byIdentity := map[string]netip.AddrPort{}
	var sticky []element
	i.elements(func(e element) {
		if n := len(e.comment); n > 0 && n < maxComment-2 { // a longer one may have been cut
			f.Service = e.comment
		}
		switch e.set {
		case services, nodePorts:
			f.Affinity = affinityOf(e.value)
			f.Shared = appendChains(f.Shared, f.Family, e.value, chains)
		case noEndpoints, nodePortNoEndpoints:
			f.Refusal = "reject"
			if e.value == drop {
				f.Refusal = "drop"
			}
		case endpoints, nodePortEndpoints:
			slots = append(slots, slot{isLocal(e), endpointOf(e.value)})
		case stickySlots, nodePortStickySlots:
			sticky = append(sticky, e)
		case stickyEndpoints, nodePortStickyEndpoints:
			byIdentity[e.suffix] = endpointOf(e.value)
		case allowedSources:
			f.Sources = append(f.Sources, rangeText(e, f.Family))
		}
	})
	for _, e := range sticky {
		slots = append(slots, slot{isLocal(e), byIdentity[e.value]})
	}
	f.Endpoints = shares(slots, false)
	if local := shares(slots, true); len(local) > 0 || f.Refusal != "" && len(slots) > 0 {
		f.Endpoints, f.Inside = local, f.Endpoints
	}
	if f.Addr.IsValid() {
		f.Shared = appendMember(f.Shared, newMember(clusterIPs, f.Addr), members)
	}
	for _, s := range slots {
		f.Shared = appendMember(f.Shared, newMember(hairpin, s.addr.Addr()), members)
	}
	return f
}

func isLocal(e element) bool { return binary.BigEndian.Uint32([]byte(e.suffix)) >= localSlots }

func endpointOf(value string) netip.AddrPort {
	n := len(value) - 2
	if n < 0 {
		return netip.AddrPort{}
	}
	a, _ := netip.AddrFromSlice([]byte(value[:n]))
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(value[n:])))
}

func affinityOf(verdict string) time.Duration {
	if s, ok := parseShape(chainOf(verdict)); ok {
		return s.timeout
	}
	return 0
}

// chainOf returns the chain that a verdict leads to, or "".
func chainOf(verdict string) string {
	if verdict == "" || int8(verdict[0]) != verdictGoto {
		return ""
	}
	return verdict[1:]
}

func appendChains(ids []backends.ID, f backends.Family, verdict string, chains map[backends.ID]bool) []backends.ID {
	s, ok := parseShape(chainOf(verdict))
	if !ok {
		return ids
	}
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
func shares(slots []slot, local bool) []backends.Share {
	count, n := map[netip.AddrPort]int{}, 0
	for _, s := range slots {
		if s.local == local {
			count[s.addr]++
			n++
		}
	}
	var all []backends.Share
	for a, c := range count {
		all = append(all, backends.Share{Addr: a, Of: float64(c) / float64(n)})
	}
	slices.SortFunc(all, func(a, b backends.Share) int { return a.Addr.Compare(b.Addr) })
	return all
}

// rangeText writes a range as a prefix if it is one.
func rangeText(e element, fam backends.Family) string {
	n := addrLen(fam)
	if len(e.suffix) != 2*n {
		return fmt.Sprintf("%x", e.suffix)
	}
	from, _ := netip.AddrFromSlice([]byte(e.suffix[:n]))
	for bits := range n*8 + 1 {
		if p, err := from.Prefix(bits); err == nil && rangeOf(p) == e.suffix {
			return p.String()
		}
	}
	return e.suffixText(fam)
}
