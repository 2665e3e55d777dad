package dns

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// The bounds on what one client is sent over UDP. A client may have forged the address of another, which the replies then go
// to. Beyond the rate a reply has no records and asks for TCP, so that it is no longer than the question, and a client that is
// what it says still gets its answer.
const (
	clientRate  = 20000 // replies each second
	clientBurst = 20000
)

// limiter bounds the replies to each address, in memory that does not grow. One goroutine at a time may use it.
type limiter struct {
	seed    maphash.Seed
	clients [1024]struct {
		tokens float32
		last   time.Time
	}
}

func newLimiter() *limiter { return &limiter{seed: maphash.MakeSeed()} }

// allow reports whether an address may be sent another reply. Addresses of loopback cannot be forged. Two addresses may share a
// bound.
func (l *limiter) allow(a netip.Addr, now time.Time) bool {
	if a.IsLoopback() {
		return true
	}
	c := &l.clients[maphash.Comparable(l.seed, a)%uint64(len(l.clients))]
	c.tokens = min(clientBurst, c.tokens+float32(now.Sub(c.last).Seconds()*clientRate))
	c.last = now
	if c.tokens < 1 {
		return false
	}
	c.tokens--
	return true
}
