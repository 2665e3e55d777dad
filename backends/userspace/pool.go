package userspace

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weir/backends"
)

// The time that an endpoint which failed is passed over: doubled with every failure in a row.
const (
	firstPenalty = time.Second
	maxPenalty   = time.Minute
)

// maxSticky bounds the clients that session affinity remembers for one Service port; beyond it the one that expires first
// among a few is forgotten, so that a scan from many addresses costs no more memory than this.
const maxSticky = 65536

// pool chooses endpoints for the connections of one Service port. Round robin gives every endpoint its share; an endpoint
// that did not answer is passed over for a while, and then one connection at a time finds out whether it answers again.
// It is safe for concurrent use.
type pool struct {
	mu       sync.Mutex
	affinity time.Duration
	members  []*member // in the order of their turns, as often as their weight says
	known    map[netip.AddrPort]*member
	next     int
	sticky   map[netip.Addr]sticky
	now      func() time.Time
}

// pools are the choices of one listener: one for everybody, and one for clients on this node, to whom policy Local does not
// apply where the listener has to tell them itself.
type pools struct{ all, near *pool }

func newPools(item *listen) *pools {
	ps := &pools{newPool(time.Now), newPool(time.Now)}
	ps.set(item)
	return ps
}

func (ps *pools) set(item *listen) {
	// Who is an endpoint for others keeps what it has.
	ps.all.set(item.endpoints, slices.Concat(item.keeping, addresses(item.nearEndpoints)), item.affinity)
	ps.near.set(item.nearEndpoints, slices.Concat(item.keeping, addresses(item.endpoints)), item.affinity)
}

func addresses(endpoints []backends.Endpoint) []netip.AddrPort {
	addrs := make([]netip.AddrPort, len(endpoints))
	for i, e := range endpoints {
		addrs[i] = e.Addr
	}
	return addrs
}

// of returns the pool for a client.
func (ps *pools) of(client netip.Addr, item *listen) *pool {
	if contains(item.near, client) {
		return ps.near
	}
	return ps.all
}

// member is one endpoint. Its fields are guarded by the pool's lock.
type member struct {
	addr     netip.AddrPort
	failures int
	retryAt  time.Time
	probing  bool
}

type sticky struct {
	to    netip.AddrPort
	until time.Time
}

func newPool(now func() time.Time) *pool {
	return &pool{now: now, sticky: map[netip.Addr]sticky{}}
}

// set replaces the endpoints. What is known of those that stay is kept. Those with weight 0, and those in keeping, are not
// chosen any more.
func (p *pool) set(endpoints []backends.Endpoint, keeping []netip.AddrPort, affinity time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.known
	p.known = make(map[netip.AddrPort]*member, len(endpoints)+len(keeping))
	learn := func(a netip.AddrPort) {
		if m := before[a]; m != nil {
			p.known[a] = m
		} else if p.known[a] == nil {
			p.known[a] = &member{addr: a}
		}
	}
	for _, e := range endpoints {
		learn(e.Addr)
	}
	for _, a := range keeping {
		learn(a)
	}
	p.members = nil
	for _, turn := range turns(endpoints) {
		p.members = append(p.members, p.known[turn])
	}
	p.next = min(p.next, max(0, len(p.members)-1))
	p.affinity = affinity
	if affinity == 0 {
		clear(p.sticky)
	}
}

// turns returns every endpoint as often as its weight says, spread out: endpoints with weights 3 and 1 take turns a a b a
// rather than a a a b. Weights are reduced by their greatest common divisor and bounded.
func turns(endpoints []backends.Endpoint) []netip.AddrPort {
	const maxTurns = 1024
	divisor, total := 0, 0
	for _, e := range endpoints {
		divisor = gcd(divisor, int(e.Weight))
		total += int(e.Weight)
	}
	if total == 0 {
		return nil
	}
	if limit := (total + maxTurns - 1) / maxTurns; divisor < limit {
		divisor = limit
	}
	type slot struct {
		at   float64
		addr netip.AddrPort
	}
	var slots []slot
	for _, e := range endpoints {
		if e.Weight == 0 {
			continue
		}
		n := max(1, int(e.Weight)/divisor)
		for i := range n {
			slots = append(slots, slot{(float64(i) + 0.5) / float64(n), e.Addr})
		}
	}
	slices.SortStableFunc(slots, func(a, b slot) int { return cmp.Compare(a.at, b.at) })
	order := make([]netip.AddrPort, len(slots))
	for i, s := range slots {
		order[i] = s.addr
	}
	return order
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// pick returns the endpoint that a connection of the client should try next, passing over those it has tried. It returns
// false if all have been tried. The caller must report the outcome of every pick with succeeded,
// failed or leave.
func (p *pool) pick(client netip.Addr, tried []netip.AddrPort) (netip.AddrPort, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if s, ok := p.sticky[client]; ok && p.affinity > 0 && len(tried) == 0 && now.Before(s.until) {
		if m := p.known[s.to]; m != nil && m.failures == 0 && slices.Contains(p.members, m) {
			return m.addr, true
		}
	}
	best, bestRank := -1, 0
	for i := range p.members {
		at := (p.next + i) % len(p.members)
		m := p.members[at]
		if slices.Contains(tried, m.addr) {
			continue
		}
		rank := m.rank(now)
		if best < 0 || rank < bestRank {
			best, bestRank = at, rank
		}
		if rank == rankHealthy {
			break
		}
	}
	if best < 0 {
		return netip.AddrPort{}, false
	}
	m := p.members[best]
	p.next = (best + 1) % len(p.members)
	if bestRank == rankDue {
		m.probing = true
	}
	return m.addr, true
}

// How eager pick is to take a member: one that is due for a test comes first, since otherwise it would never be tested
// while others are well; one under penalty comes last, when the alternative is to refuse the connection.
const (
	rankDue = iota
	rankHealthy
	rankPenalty
)

func (m *member) rank(now time.Time) int {
	switch {
	case m.failures == 0:
		return rankHealthy
	case !m.probing && !now.Before(m.retryAt):
		return rankDue
	}
	return rankPenalty
}

// succeeded reports that the endpoint answered, and remembers it for the client if there is session affinity.
func (p *pool) succeeded(client netip.Addr, addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.known[addr]; m != nil {
		m.failures, m.probing = 0, false
	}
	if p.affinity > 0 {
		p.remember(client, sticky{addr, p.now().Add(p.affinity)})
	}
}

func (p *pool) remember(client netip.Addr, s sticky) {
	if _, known := p.sticky[client]; !known && len(p.sticky) >= maxSticky {
		const sample = 8
		var victim netip.Addr
		seen := 0
		for addr, other := range p.sticky {
			if seen == 0 || other.until.Before(p.sticky[victim].until) {
				victim = addr
			}
			if seen++; seen == sample {
				break
			}
		}
		delete(p.sticky, victim)
	}
	p.sticky[client] = s
}

// leave reports that the client did not wait to see whether the endpoint answers.
func (p *pool) leave(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.known[addr]; m != nil {
		m.probing = false
	}
}

// failed reports that the endpoint did not answer.
func (p *pool) failed(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.known[addr]
	if m == nil {
		return
	}
	penalty := min(firstPenalty<<min(m.failures, 10), maxPenalty)
	m.failures++
	m.retryAt = p.now().Add(penalty)
	m.probing = false
}

// has says whether the endpoint may keep what it has.
func (p *pool) has(addr netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[addr] != nil
}
