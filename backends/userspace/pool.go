package userspace

import (
	"cmp"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weir/backends/dataplane"
)

// The time for which pick avoids an endpoint that failed. It doubles with every failure in a row.
const (
	firstPenalty = time.Second
	maxPenalty   = time.Minute
)

// maxSticky bounds the clients that session affinity remembers for one Service port, so that a scan from many addresses
// does not take more memory. Beyond the bound the pool forgets, among a few clients, the one that expires first.
const maxSticky = 65536

// pool chooses endpoints for the connections of one Service port. Round robin gives every endpoint its share. The pool
// avoids an endpoint that did not answer for a while. Then it tries one connection at a time until the endpoint answers
// again. It is safe for concurrent use.
type pool struct {
	mu       sync.Mutex
	affinity time.Duration
	members  []*member // in the order of their turns; each occurs as often as its weight says
	known    map[netip.AddrPort]*member
	next     int
	sticky   map[netip.Addr]sticky
	now      func() time.Time
}

// pools are the pools of one listener: one for all clients, and one for clients on this node. Policy Local does not
// apply to the latter if the listener itself has to distinguish them.
type pools struct{ all, local *pool }

func newPools(item *listen) *pools {
	ps := &pools{newPool(time.Now), newPool(time.Now)}
	ps.set(item)
	return ps
}

func (ps *pools) set(item *listen) {
	// An endpoint of the other pool keeps its connections. Flows have no end of their own to wait for, so that those of
	// clients elsewhere follow a policy that turns to Local.
	kept := item.draining
	if item.protocol != dataplane.UDP {
		kept = slices.Concat(kept, addresses(item.localClientEndpoints))
	}
	ps.all.set(item.endpoints, kept, item.affinity)
	ps.local.set(item.localClientEndpoints, slices.Concat(item.draining, addresses(item.endpoints)), item.affinity)
}

func addresses(endpoints []dataplane.Endpoint) []netip.AddrPort {
	addrs := make([]netip.AddrPort, len(endpoints))
	for i, e := range endpoints {
		addrs[i] = e.Addr
	}
	return addrs
}

// of returns the pool for a client.
func (ps *pools) of(client netip.Addr, item *listen) *pool {
	if contains(item.localClients, client) {
		return ps.local
	}
	return ps.all
}

// member is one endpoint. The pool's lock guards its fields.
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

// set replaces the endpoints. It keeps the state of those that stay. Endpoints with weight 0, and those in draining,
// are no longer chosen.
func (p *pool) set(endpoints []dataplane.Endpoint, draining []netip.AddrPort, affinity time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.known
	p.known = make(map[netip.AddrPort]*member, len(endpoints)+len(draining))
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
	for _, a := range draining {
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

// turns returns every endpoint as often as its weight says, spread out: endpoints with weights 3 and 1 take turns a a b
// a rather than a a a b. Weights are divided by their greatest common divisor and bounded.
func turns(endpoints []dataplane.Endpoint) []netip.AddrPort {
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

// pick returns the endpoint that a connection of the client should try next, and skips those that it has tried. It
// returns false if all have been tried. The caller must report the outcome of every pick with succeeded, failed or
// leave.
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

// The order in which pick prefers members. A member that is due for a test comes first, since otherwise it would never
// be tested while others work. A member in backoff comes last, if the alternative is to refuse the connection.
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

// succeeded records that the endpoint answered, and binds the client to it if there is session affinity.
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

// leave records that the client did not wait for the answer of the endpoint.
func (p *pool) leave(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.known[addr]; m != nil {
		m.probing = false
	}
}

// failed records that the endpoint did not answer.
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

// has reports whether the endpoint may keep its connections.
func (p *pool) has(addr netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.known[addr] != nil
}

// chooses reports whether the endpoint may be picked, and has not failed.
func (p *pool) chooses(addr netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.known[addr]
	return m != nil && m.failures == 0 && slices.Contains(p.members, m)
}
