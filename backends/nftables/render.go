package nftables

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
)

// Bounds of one Service port.
const (
	// weightSlots bounds the number of slots over which weights are spread. Endpoints of equal weight always get one
	// slot each.
	weightSlots = 256
	// maxSlots bounds the number of slots of a frontend for each policy.
	maxSlots = localSlots - 1
	// maxComment bounds an element's comment, whose length the kernel keeps in one byte.
	maxComment = 128
)

// group holds the endpoints of one policy, as slots.
type group struct {
	slots []netip.AddrPort
	// offset is the first slot.
	offset uint32
	// seed makes the identities of endpoints differ between policies.
	seed byte
}

// Render returns the Items of one ServicePort: one for each of its Frontends, the chains for their shapes, its
// ClusterIP and its endpoints for the hairpin.
func (b *Backend) Render(e *dataplane.ServicePort) ([]backends.Item, error) {
	if err := e.Check(); err != nil {
		return nil, err
	}
	if e.Answered {
		return b.renderAnswered(e), nil
	}
	r := renderer{b: b, e: e, fam: e.Key.Family, comment: comment(e.Key)}
	items, err := r.fronts()
	if err != nil {
		return nil, err
	}
	items = append(items, member(clusterIPs, e.ClusterIP))
	if b.redirects() {
		for _, ep := range e.Endpoints {
			items = append(items, memberItem{r.fam, listeners, string(addrFront(ep.Addr.Addr(), e.Key.Protocol, ep.Addr.Port()).kernelKey())})
		}
	}
	return append(items, r.hairpins()...), nil
}

// renderAnswered returns the Items of a ServicePort that weir answers itself. Its other ports are refused as those of any
// ClusterIP.
func (b *Backend) renderAnswered(e *dataplane.ServicePort) []backends.Item {
	fam := e.Key.Family
	items := []backends.Item{
		setItem{fam: fam, name: sets[answered].name}, member(clusterIPs, e.ClusterIP),
		memberItem{fam, answered, string(addrFront(e.ClusterIP, e.Key.Protocol, e.Port).kernelKey())},
	}
	for _, c := range b.builder(fam).answering() {
		items = append(items, newChainItem(fam, c))
	}
	return items
}

// comment returns the name of the Service port, as the comment of its elements.
func comment(k dataplane.ServicePortName) string {
	s := k.Service.String()
	if k.Port != "" {
		s += ":" + k.Port
	}
	return s[:min(len(s), maxComment-2)]
}

type renderer struct {
	b       *Backend
	e       *dataplane.ServicePort
	fam     dataplane.Family
	comment string
	items   []backends.Item
	shapes  []shape
}

func (r *renderer) fronts() ([]backends.Item, error) {
	e := r.e
	internal, err := newGroup(e.InternalEndpoints(), 0, 0)
	if err != nil {
		return nil, err
	}
	r.items = make([]backends.Item, 0, 4)
	r.front(addrFront(e.ClusterIP, e.Key.Protocol, e.Port), kindCluster, internal, group{}, nil)
	if !e.External() {
		return r.items, nil
	}
	k, cluster, local := kindExternal, internal, group{}
	if e.InternalLocal || e.ExternalLocal {
		if cluster, err = newGroup(e.ClusterEndpoints(), 0, 1); err != nil {
			return nil, err
		}
	}
	if e.ExternalLocal {
		k = kindLocal
		if local, err = newGroup(e.LocalEndpoints(), localSlots, 2); err != nil {
			return nil, err
		}
	}
	for _, a := range e.ExternalIPs {
		r.front(addrFront(a, e.Key.Protocol, e.Port), k, cluster, local, nil)
	}
	for _, a := range e.LoadBalancerIPs {
		if slices.Contains(e.ExternalIPs, a) && len(e.SourceRanges) == 0 {
			continue
		}
		r.front(addrFront(a, e.Key.Protocol, e.Port), k, cluster, local, r.sources(a))
	}
	if e.NodePort != 0 {
		r.front(nodePortFront(r.fam, e.Key.Protocol, e.NodePort), k, cluster, local, nil)
	}
	return r.items, nil
}

// front adds the Items of one frontend: its elements, and the chains of its shape.
func (r *renderer) front(key frontKey, k kind, cluster, local group, sources []element) {
	elements := make([]element, 0, len(cluster.slots)+len(local.slots)+2+len(sources))
	elements = append(elements, sources...)
	of := setsOf[key.scope]
	if len(cluster.slots)+len(local.slots) > 0 {
		s := shape{key.scope, k, len(cluster.slots), len(local.slots), r.e.Affinity}
		r.shape(s)
		elements = append(elements, element{elementKey: elementKey{set: of.dispatch}, verdict: r.b.shapeChains(r.fam, s).verdict, comment: r.comment})
		elements = r.slots(elements, of, cluster)
		elements = r.slots(elements, of, local)
	}
	chosen := cluster
	if k == kindLocal {
		chosen = local
	}
	if len(chosen.slots) == 0 {
		what := gotoChain(chainReject)
		if r.e.HasEndpoints {
			what = drop
		}
		elements = append(elements, element{elementKey: elementKey{set: of.refused}, verdict: what, comment: r.comment})
	}
	item := newFrontItem(key, elements)
	for i, other := range r.items {
		// An external IP may also be the load balancer's. Then the frontend with source ranges counts.
		if f, ok := other.(frontItem); ok && f.key() == key {
			r.items[i] = item
			return
		}
	}
	r.items = append(r.items, item)
}

func (r *renderer) shape(s shape) {
	if slices.Contains(r.shapes, s) {
		return
	}
	r.shapes = append(r.shapes, s)
	r.items = append(r.items, r.b.shapeChains(r.fam, s).items...)
}

// slots adds the elements of a group.
func (r *renderer) slots(elements []element, of scopeSets, g group) []element {
	slotOf := func(set setID, n uint32) elementKey { return elementKey{set: set, slot: n} }
	if r.e.Affinity == 0 {
		for i, a := range g.slots {
			elements = append(elements, element{elementKey: slotOf(of.endpoints, g.offset+uint32(i)), endpoint: a})
		}
		return elements
	}
	ids := g.identities()
	for i, a := range g.slots {
		elements = append(elements, element{elementKey: slotOf(of.stickySlots, g.offset+uint32(i)), identity: ids[a]})
	}
	for a, id := range ids {
		elements = append(elements, element{elementKey: slotOf(of.stickyEndpoints, id), endpoint: a})
	}
	return elements
}

// identities returns a number for each endpoint. It depends on the endpoint's address alone, so that clients keep their
// endpoint when others are added or deleted. The highest bit is that of the group.
func (g group) identities() map[netip.AddrPort]uint32 {
	ids := make(map[netip.AddrPort]uint32, len(g.slots))
	taken := make(map[uint32]bool, len(g.slots))
	for _, a := range g.slots {
		if _, ok := ids[a]; ok {
			continue
		}
		h := fnv.New32a()
		h.Write([]byte{g.seed})
		h.Write(binary.BigEndian.AppendUint16(appendAddr(nil, a.Addr()), a.Port()))
		id := h.Sum32() &^ (1 << 31)
		if g.offset != 0 {
			id |= 1 << 31
		}
		for taken[id] {
			id = id&(1<<31) | (id+1)&^(1<<31)
		}
		taken[id], ids[a] = true, id
	}
	return ids
}

// sources returns the elements that restrict a load balancer address to the ServicePort's source ranges.
func (r *renderer) sources(vip netip.Addr) []element {
	if len(r.e.SourceRanges) == 0 {
		return nil
	}
	elements := []element{{elementKey: elementKey{set: restricted}, verdict: gotoChain(chainSources)}}
	ranges := disjoint(r.e.SourceRanges)
	for _, p := range ranges {
		elements = append(elements, element{elementKey: rangeOf(p)})
	}
	// The load balancer's address is often an address of the node too. It is then the source of the node's own traffic
	// to it.
	inside := func(a netip.Addr) bool {
		return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if slices.ContainsFunc(r.b.cfg.NodeAddresses, inside) && !inside(vip) {
		elements = append(elements, element{elementKey: rangeOf(netip.PrefixFrom(vip, vip.BitLen()))})
	}
	return elements
}

// disjoint removes prefixes that lie within another one, because the kernel accepts no overlapping intervals.
func disjoint(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range prefixes {
		covered := slices.ContainsFunc(prefixes, func(o netip.Prefix) bool { return o != p && o.Bits() <= p.Bits() && o.Contains(p.Addr()) })
		if !covered && !slices.Contains(prefixes[:i], p) {
			out = append(out, p)
		}
	}
	return out
}

// rangeOf returns the key for the addresses of a prefix.
func rangeOf(p netip.Prefix) elementKey {
	from := p.Masked().Addr()
	last := from.AsSlice()
	for i := p.Bits(); i < len(last)*8; i++ {
		last[i/8] |= 0x80 >> (i % 8)
	}
	to, _ := netip.AddrFromSlice(last)
	return elementKey{set: allowedSources, from: from, to: to}
}

// hairpins returns the Items for the endpoints that may be on this node.
func (r *renderer) hairpins() []backends.Item {
	var items []backends.Item
	var last netip.Addr
	for _, ep := range r.e.Endpoints {
		if a := ep.Addr.Addr(); !ep.Remote && a != last {
			items = append(items, member(hairpin, a))
			last = a
		}
	}
	return items
}

// newGroup spreads endpoints over slots, as many for each as its weight says.
func newGroup(eps []dataplane.Endpoint, offset uint32, seed byte) (group, error) {
	g := group{offset: offset, seed: seed}
	weights := slotWeights(eps)
	n := 0
	for _, w := range weights {
		n += w
	}
	if n > maxSlots {
		return g, fmt.Errorf("%d endpoints: at most %d can be programmed", len(eps), maxSlots)
	}
	g.slots = make([]netip.AddrPort, 0, n)
	for i, ep := range eps {
		for range weights[i] {
			g.slots = append(g.slots, ep.Addr)
		}
	}
	return g, nil
}

// slotWeights returns the number of slots of each endpoint: its weight, divided by the greatest common divisor. If that
// needs too many slots, it is the endpoint's rounded share of them, but at least one.
func slotWeights(eps []dataplane.Endpoint) []int {
	weights := make([]int, len(eps))
	sum, divisor := 0, 0
	for i, ep := range eps {
		weights[i] = int(ep.Weight)
		sum += weights[i]
		divisor = gcd(divisor, weights[i])
	}
	if sum == 0 {
		return weights
	}
	bound := max(weightSlots, len(eps))
	for i, w := range weights {
		switch {
		case w == 0:
		case sum/divisor <= bound:
			weights[i] = w / divisor
		default:
			weights[i] = max(1, int(math.Round(float64(w)*float64(bound)/float64(sum))))
		}
	}
	return weights
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}
