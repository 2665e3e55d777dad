package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sync/singleflight"
)

// The times of Upstreams.
const (
	// patience is how long a resolver may take before the next one is asked.
	patience = 250 * time.Millisecond
	// deadFor is how long a resolver that did not answer is asked last.
	deadFor = 5 * time.Second
	// wholePatience limits the time for one question.
	wholePatience = 4 * time.Second
	// maxStale is how long an answer is kept after its TTL, for the case that no resolver answers (RFC 8767).
	maxStale = time.Hour
	// staleTTL is the TTL of such an answer, in seconds.
	staleTTL = 30
	// maxTTL and maxNegativeTTL limit how long an answer is kept, in seconds. CoreDNS has the same.
	maxTTL         = 3600
	maxNegativeTTL = 1800
	// maxCached is the number of answers that are kept.
	maxCached = 10000
	// maxCachedSize is the size of the longest answer that is kept, in bytes.
	maxCachedSize = 4096
)

// Upstreams forwards questions to other resolvers and keeps their answers. It is safe for concurrent use.
type Upstreams struct {
	cache *lru.Cache[cacheKey, *cached]

	lookups, hits, stale atomic.Uint64

	// asking has one call for all that ask the same at the same time.
	asking singleflight.Group

	mu     sync.Mutex
	routes map[string][]*upstream
}

type upstream struct {
	addr      netip.AddrPort
	deadUntil time.Time
}

type cacheKey struct {
	name string // in lower case
	kind dnsmessage.Type
	do   bool
}

// cached is an answer with the ID 0.
type cached struct {
	msg     []byte
	at      time.Time
	expires time.Time
}

// NewUpstreams returns Upstreams without a server.
func NewUpstreams() *Upstreams {
	cache, err := lru.New[cacheKey, *cached](maxCached)
	if err != nil {
		panic(err) // the size is a constant
	}
	return &Upstreams{cache: cache}
}

// Set replaces the servers. The key of a route is a domain in lower case without a dot at its end, whose names are asked for
// there; that of all other names is "". Servers that stay keep their state. Kept answers of domains whose servers changed go.
func (u *Upstreams) Set(routes map[string][]netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	known := map[netip.AddrPort]*upstream{}
	for _, servers := range u.routes {
		for _, s := range servers {
			known[s.addr] = s
		}
	}
	was := u.routes
	u.routes = map[string][]*upstream{}
	for domain, servers := range routes {
		for _, addr := range servers {
			if known[addr] == nil {
				known[addr] = &upstream{addr: addr}
			}
			u.routes[domain] = append(u.routes[domain], known[addr])
		}
	}
	// Other resolvers of the node give the same answers.
	others := maps.Clone(u.routes)
	delete(was, "")
	delete(others, "")
	if !maps.EqualFunc(was, others, slices.Equal[[]*upstream]) {
		u.cache.Purge()
	}
}

// route returns the servers for a name in lower case: those of the longest domain that it is in.
func (u *Upstreams) route(name string) []*upstream {
	name = strings.TrimSuffix(name, ".")
	for {
		if servers, ok := u.routes[name]; ok || name == "" {
			return servers
		}
		_, name, _ = strings.Cut(name, ".")
	}
}

// errNoAnswer means that no resolver answered and nothing was kept.
var errNoAnswer = errors.New("no resolver answers")

// Forward implements Forwarder.
func (u *Upstreams) Forward(ctx context.Context, msg []byte, q dnsmessage.Question) ([]byte, error) {
	parsed, _, _ := parse(msg)
	key := cacheKey{strings.ToLower(q.Name.String()), q.Type, parsed.dnssecOK}
	now := time.Now()
	u.lookups.Add(1)
	kept, ok := u.cache.Get(key)
	if ok && now.Before(kept.expires) {
		u.hits.Add(1)
		return kept.answer(msg, now, false), nil
	}
	fresh, err := u.ask(ctx, key, msg)
	if err == nil {
		return withQuestion(fresh, msg), nil
	}
	if ok && now.Before(kept.expires.Add(maxStale)) {
		u.stale.Add(1)
		return kept.answer(msg, now, true), nil
	}
	return nil, err
}

// ask asks the servers, once for all that ask the same.
func (u *Upstreams) ask(ctx context.Context, key cacheKey, msg []byte) ([]byte, error) {
	asked := u.asking.DoChan(fmt.Sprint(key), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wholePatience)
		defer cancel()
		return u.askAll(ctx, key, msg)
	})
	select {
	case r := <-asked:
		answer, _ := r.Val.([]byte)
		return answer, r.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// askAll asks one server after the other, those that answered last first, twice round.
func (u *Upstreams) askAll(ctx context.Context, key cacheKey, msg []byte) ([]byte, error) {
	var failure error = errNoAnswer
	for range 2 {
		for _, s := range u.order(key.name) {
			answer, err := exchange(ctx, s.addr, msg)
			if err == nil {
				u.keep(key, answer)
				return answer, nil
			}
			failure = fmt.Errorf("%w: %s: %w", errNoAnswer, s.addr, err)
			u.mu.Lock()
			s.deadUntil = time.Now().Add(deadFor)
			u.mu.Unlock()
			if ctx.Err() != nil {
				return nil, failure
			}
		}
	}
	return nil, failure
}

func (u *Upstreams) order(name string) []*upstream {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	var alive, dead []*upstream
	for _, s := range u.route(name) {
		if now.Before(s.deadUntil) {
			dead = append(dead, s)
		} else {
			alive = append(alive, s)
		}
	}
	return append(alive, dead...)
}

// exchange asks one server over UDP, and over TCP if the answer does not fit. Each question has a port and an ID of its own,
// so that only the server that was asked can answer.
func exchange(ctx context.Context, server netip.AddrPort, msg []byte) ([]byte, error) {
	answer, err := exchangeOver(ctx, "udp", server, msg, patience)
	if err == nil && answer[2]&0x02 != 0 { // truncated
		return exchangeOver(ctx, "tcp", server, msg, 4*patience)
	}
	return answer, err
}

// AnswersFor reports whether a server answers for the names of Services in a domain.
func AnswersFor(ctx context.Context, server netip.AddrPort, domain string) bool {
	name, err := dnsmessage.NewName("dns-version." + strings.TrimSuffix(domain, ".") + ".")
	if err != nil {
		return false
	}
	m := dnsmessage.Message{Header: dnsmessage.Header{RecursionDesired: true}, Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET}}}
	msg, err := m.Pack()
	if err != nil {
		return false
	}
	reply, err := exchangeOver(ctx, "udp", server, msg, 4*patience)
	return err == nil && m.Unpack(reply) == nil && len(m.Answers) > 0
}

func exchangeOver(ctx context.Context, network string, server netip.AddrPort, msg []byte, wait time.Duration) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	ask := make([]byte, 2, 2+len(msg))
	binary.BigEndian.PutUint16(ask, uint16(len(msg)))
	ask = append(ask, msg...)
	rand.Read(ask[2:4]) // never fails
	if network == "udp" {
		_, err = conn.Write(ask[2:])
	} else {
		_, err = conn.Write(ask)
	}
	if err != nil {
		return nil, err
	}
	for {
		answer, err := readMessage(conn, network)
		if err != nil {
			return nil, err
		}
		if answers(ask[2:], answer) {
			return answer, nil
		}
		if network == "tcp" {
			return nil, errors.New("the answer is not to the question")
		}
	}
}

func readMessage(conn net.Conn, network string) ([]byte, error) {
	if network == "udp" {
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		return buf[:n], err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(conn, buf)
	return buf, err
}

// answers reports whether a message is the answer to a question.
func answers(ask, answer []byte) bool {
	var p, a dnsmessage.Parser
	hq, err1 := p.Start(ask)
	ha, err2 := a.Start(answer)
	if err1 != nil || err2 != nil || hq.ID != ha.ID || !ha.Response {
		return false
	}
	q1, err1 := p.Question()
	q2, err2 := a.Question()
	return err1 == nil && err2 == nil && q1.Type == q2.Type && q1.Class == q2.Class && strings.EqualFold(q1.Name.String(), q2.Name.String())
}

// keep stores an answer for as long as its records may be kept. A failure is not stored.
func (u *Upstreams) keep(key cacheKey, answer []byte) {
	ttl, ok := lifetime(answer)
	if !ok || ttl == 0 || len(answer) > maxCachedSize {
		return
	}
	now := time.Now()
	u.cache.Add(key, &cached{msg: answer, at: now, expires: now.Add(time.Duration(ttl) * time.Second)})
}

// lifetime returns how many seconds an answer may be kept: the least TTL of its records, and of a negative answer what the
// SOA record says (RFC 2308).
func lifetime(msg []byte) (ttl uint32, ok bool) {
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || h.Truncated || h.RCode != dnsmessage.RCodeSuccess && h.RCode != dnsmessage.RCodeNameError || p.SkipAllQuestions() != nil {
		return 0, false
	}
	ttl, positive := uint32(maxTTL), false
	for {
		r, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			break
		}
		if err != nil || p.SkipAnswer() != nil {
			return 0, false
		}
		ttl, positive = min(ttl, r.TTL), true
	}
	if positive && h.RCode == dnsmessage.RCodeSuccess {
		return ttl, true
	}
	for {
		r, err := p.AuthorityHeader()
		if err != nil {
			return 0, false // without a SOA record, a negative answer is not kept
		}
		if r.Type != dnsmessage.TypeSOA {
			if p.SkipAuthority() != nil {
				return 0, false
			}
			continue
		}
		soa, err := p.SOAResource()
		return min(r.TTL, soa.MinTTL, maxNegativeTTL), err == nil
	}
}

// answer returns a kept answer for a question, with the TTLs that are left.
func (c *cached) answer(msg []byte, now time.Time, stale bool) []byte {
	age := uint32(now.Sub(c.at) / time.Second)
	aged := withQuestion(c.msg, msg)
	eachTTL(aged, func(ttl uint32) uint32 {
		if stale {
			return staleTTL
		}
		return ttl - min(age, ttl)
	})
	return aged
}

// withQuestion returns a copy of an answer with the ID and the case of the name of the question.
func withQuestion(answer, ask []byte) []byte {
	out := append([]byte(nil), answer...)
	copy(out[:2], ask[:2])
	for i := 12; i < len(ask) && i < len(out) && ask[i] != 0; {
		end := i + 1 + int(ask[i])
		if ask[i] >= 64 || end > len(ask) || end > len(out) {
			break
		}
		copy(out[i:end], ask[i:end])
		i = end
	}
	return out
}

// eachTTL replaces the TTL of each record of a message, except for the pseudo record OPT. It changes nothing from the first
// malformed record on.
func eachTTL(msg []byte, next func(uint32) uint32) {
	records := 0
	for at := 6; at < 12; at += 2 {
		records += int(binary.BigEndian.Uint16(msg[at:]))
	}
	at := skipName(msg, 12) + 4
	for range records {
		at = skipName(msg, at)
		if at < 0 || at+10 > len(msg) {
			return
		}
		if dnsmessage.Type(binary.BigEndian.Uint16(msg[at:])) != dnsmessage.TypeOPT {
			binary.BigEndian.PutUint32(msg[at+4:], next(binary.BigEndian.Uint32(msg[at+4:])))
		}
		at += 10 + int(binary.BigEndian.Uint16(msg[at+8:]))
	}
}

// skipName returns where a name ends, or a negative number if it is malformed.
func skipName(msg []byte, at int) int {
	for at >= 0 && at < len(msg) {
		switch n := int(msg[at]); {
		case n == 0:
			return at + 1
		case n >= 0xc0:
			return at + 2
		case n >= 64:
			return -100
		default:
			at += 1 + n
		}
	}
	return -100
}
