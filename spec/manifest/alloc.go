package manifest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"weir/backends/dataplane"
)

// pool hands out the values of a range (addresses, ports) to claims. The result depends only on the existing claims and
// on the values that were set by hand. Neither order nor history matters, so that every node and every restart agrees.
//
// Each claim has its own order of preference among all values. Each pair of claims has an order of rank. Both come from
// hashes of their names. A claim holds the first of its preferences that is neither set by hand nor held by a claim of
// higher rank. This is the only stable matching between claims and values. Any sequence of "take the next, evict the
// claim of lower rank" ends in it. So an added or removed claim moves others only if they want the same value.
//
// A pool is not safe for concurrent use.
type pool[V comparable] struct {
	size  uint64
	value func(uint64) V

	set     map[V]owner
	held    map[V]*claim[V]
	waiting map[V][]*claim[V] // claims that prefer this value to the one they hold
	claims  map[owner]*claim[V]
	// setInside counts the set values that lie in the range.
	setInside uint64
	inside    func(V) bool
}

// owner is a Service and one of its needs.
type owner struct {
	service dataplane.ServiceName
	need    need
}

// need is a port number of a Service, or one of the following constants.
type need int32

const (
	needIPv4 need = -1 - iota
	needIPv6
	needHealth
)

type claim[V comparable] struct {
	owner             owner
	start, step, rank uint64
	// tries counts the preferences that were tried, including the one held.
	tries uint64
	value V
}

func newPool[V comparable](size uint64, value func(uint64) V, inside func(V) bool) *pool[V] {
	return &pool[V]{
		size: size, value: value, inside: inside,
		set: map[V]owner{}, held: map[V]*claim[V]{}, waiting: map[V][]*claim[V]{}, claims: map[owner]*claim[V]{},
	}
}

func (p *pool[V]) newClaim(o owner) *claim[V] {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", o.service, o.need))
	c := &claim[V]{owner: o, rank: binary.BigEndian.Uint64(sum[16:])}
	c.start = binary.BigEndian.Uint64(sum[0:]) % p.size
	c.step = 1 + binary.BigEndian.Uint64(sum[8:])%max(p.size-1, 1)
	for gcd(c.step, p.size) != 1 {
		c.step++
	}
	return c
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// preference returns the k-th choice of a claim, from 0. Since the step and the size have no common divisor, it visits
// every value once.
func (p *pool[V]) preference(c *claim[V], k uint64) V {
	hi, lo := bits.Mul64(c.step, k)
	return p.value((c.start + bits.Rem64(hi, lo, p.size)) % p.size)
}

// outranks reports whether c wins against o if both want the same value.
func (c *claim[V]) outranks(o *claim[V]) bool {
	if c.rank != o.rank {
		return c.rank > o.rank
	}
	if n := strings.Compare(c.owner.service.String(), o.owner.service.String()); n != 0 {
		return n < 0
	}
	return c.owner.need < o.owner.need
}

// full reports whether there are fewer values than claims.
func (p *pool[V]) full() bool { return uint64(len(p.claims))+p.setInside > p.size }

// place finds a value for a claim that holds none, and for every claim that it evicts. It calls moved for every claim
// whose value changed.
func (p *pool[V]) place(u *undo, c *claim[V], moved func(owner)) {
	for c.tries < p.size {
		v := p.preference(c, c.tries)
		assign(u, &c.tries, c.tries+1)
		if _, taken := p.set[v]; taken {
			p.wait(u, v, c)
			continue
		}
		holder := p.held[v]
		if holder != nil && holder.outranks(c) {
			p.wait(u, v, c)
			continue
		}
		p.hold(u, v, c, moved)
		if holder == nil {
			return
		}
		p.wait(u, v, holder)
		c = holder
	}
}

func (p *pool[V]) hold(u *undo, v V, c *claim[V], moved func(owner)) {
	put(u, p.held, v, c)
	assign(u, &c.value, v)
	moved(c.owner)
}

func (p *pool[V]) wait(u *undo, v V, c *claim[V]) {
	put(u, p.waiting, v, append(slices.Clip(p.waiting[v]), c))
}

// unwait removes a claim from the waiting lists of its preferences in the range [from, to).
func (p *pool[V]) unwait(u *undo, c *claim[V], from, to uint64) {
	for k := from; k < to; k++ {
		v := p.preference(c, k)
		rest := slices.DeleteFunc(slices.Clone(p.waiting[v]), func(w *claim[V]) bool { return w == c })
		if len(rest) == 0 {
			remove(u, p.waiting, v)
		} else {
			put(u, p.waiting, v, rest)
		}
	}
}

// offer gives a free value to the waiting claim of the highest rank, and then does the same with that claim's former
// value.
func (p *pool[V]) offer(u *undo, v V, moved func(owner)) {
	for len(p.waiting[v]) > 0 {
		best := p.waiting[v][0]
		for _, w := range p.waiting[v][1:] {
			if w.outranks(best) {
				best = w
			}
		}
		k := uint64(0)
		for p.preference(best, k) != v {
			k++
		}
		old := best.value
		p.unwait(u, best, k, best.tries-1)
		assign(u, &best.tries, k+1)
		p.hold(u, v, best, moved)
		remove(u, p.held, old)
		v = old
	}
}

// add adds a claim, which must not exist yet. The caller must then place it.
func (p *pool[V]) add(u *undo, o owner) *claim[V] {
	c := p.newClaim(o)
	put(u, p.claims, o, c)
	return c
}

func (p *pool[V]) release(u *undo, o owner, moved func(owner)) {
	c, ok := p.claims[o]
	if !ok {
		return
	}
	remove(u, p.claims, o)
	p.unwait(u, c, 0, c.tries-1)
	remove(u, p.held, c.value)
	p.offer(u, c.value, moved)
}

// reserve marks a value as set by hand, and returns another owner that has set it too.
func (p *pool[V]) reserve(u *undo, v V, o owner, moved func(owner)) (owner, bool) {
	if other, ok := p.set[v]; ok {
		return other, false
	}
	put(u, p.set, v, o)
	if p.inside(v) {
		assign(u, &p.setInside, p.setInside+1)
	}
	if c, ok := p.held[v]; ok {
		remove(u, p.held, v)
		p.wait(u, v, c)
		p.place(u, c, moved)
	}
	return o, true
}

func (p *pool[V]) unreserve(u *undo, v V, moved func(owner)) {
	remove(u, p.set, v)
	if p.inside(v) {
		assign(u, &p.setInside, p.setInside-1)
	}
	p.offer(u, v, moved)
}

// addressPool returns a pool for a service CIDR. It leaves out the network, the first and the last address, and the low
// end: a sixteenth of the range, but at least 16 and at most 256 addresses. Users set addresses by hand there.
func addressPool(cidr netip.Prefix) *pool[netip.Addr] {
	hostBits := min(cidr.Addr().BitLen()-cidr.Bits(), 62)
	all := uint64(1) << hostBits
	first := staticBand(all, 16, 16, 256)
	if all < 64 {
		first = 2
	}
	base := cidr.Masked().Addr()
	return newPool(all-1-first, func(i uint64) netip.Addr { return offset(base, first+i) }, func(a netip.Addr) bool {
		return cidr.Contains(a) && !a.Less(offset(base, first)) && a.Less(offset(base, all-1))
	})
}

// portPool returns a pool for node ports. It leaves out the low end of the range, as addressPool does.
func portPool(low, high uint16) *pool[uint16] {
	all := uint64(high) - uint64(low) + 1
	first := staticBand(all, 32, 16, 128)
	if all < 64 {
		first = 0
	}
	return newPool(all-first, func(i uint64) uint16 { return uint16(uint64(low) + first + i) }, func(v uint16) bool {
		return uint64(v) >= uint64(low)+first && v <= high
	})
}

// staticBand returns the size of the part of a range that the API server reserves for values set by hand.
func staticBand(all, share, least, most uint64) uint64 { return min(max(all/share, least), most) }

func offset(a netip.Addr, by uint64) netip.Addr {
	b := a.As16()
	low := binary.BigEndian.Uint64(b[8:])
	binary.BigEndian.PutUint64(b[8:], low+by) // the base is aligned and the offset within 62 bits, so there is no carry
	if a.Is4() {
		return netip.AddrFrom4([4]byte(b[12:]))
	}
	return netip.AddrFrom16(b)
}
