package dns

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
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

// The bounds of Upstreams.
const (
	// patience is how long a resolver may take before the next one is asked too, and a kept answer that is stale is given.
	patience = 250 * time.Millisecond
	// deadFor is how long a resolver that did not answer in time is asked last. After that it is tried beside another one.
	deadFor = 5 * time.Second
	// wholePatience limits the time for one question.
	wholePatience = 2 * time.Second
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
	// oftenAsked is how many times a kept answer is given before it is asked for again ahead of its end.
	oftenAsked = 3
	// maxRefreshed limits the answers that are asked for at the same time while no client waits for them.
	maxRefreshed = 32
)

// Upstreams forwards questions to other resolvers and keeps their answers. It is safe for concurrent use.
type Upstreams struct {
	cache *lru.Cache[cacheKey, *cached]

	lookups, hits, stale, prefetched atomic.Uint64

	// refreshing counts the answers that are asked for while no client waits for them.
	refreshing atomic.Int64

	// asking has one call for all that ask the same at the same time.
	asking singleflight.Group

	mu     sync.Mutex
	routes map[string][]*upstream
}

// upstream is a resolver. deadUntil is zero as long as it answers.
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
	// given counts how often it was given, until it is asked for ahead.
	given atomic.Int64
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
		if kept.given.Add(1) >= oftenAsked && kept.ending(now) && u.refresh(ctx, key, msg) {
			kept.given.Store(math.MinInt64)
			u.prefetched.Add(1)
		}
		return kept.answer(msg, now, false), nil
	}
	stale := ok && now.Before(kept.expires.Add(maxStale))
	if stale && u.allDead(key.name) {
		u.refresh(ctx, key, msg)
		u.stale.Add(1)
		return kept.answer(msg, now, true), nil
	}
	if stale {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	fresh, err := u.ask(ctx, key, msg)
	if stale && (err != nil || !conclusive(fresh)) {
		u.stale.Add(1)
		return kept.answer(msg, now, true), nil
	}
	if err != nil {
		return nil, err
	}
	return withQuestion(fresh, msg), nil
}

// Ask asks the servers for a name, which ends with a dot. It returns the records of the answer as a zone file has them, and whether
// the name exists.
func (u *Upstreams) Ask(ctx context.Context, name string, t dnsmessage.Type) (records []string, exists bool, err error) {
	full, err := dnsmessage.NewName(name)
	if err != nil {
		return nil, false, err
	}
	q := dnsmessage.Question{Name: full, Type: t, Class: dnsmessage.ClassINET}
	m := dnsmessage.Message{Header: dnsmessage.Header{RecursionDesired: true}, Questions: []dnsmessage.Question{q}}
	msg, err := m.Pack()
	if err != nil {
		return nil, false, err
	}
	answer, err := u.Forward(ctx, msg, q)
	if err != nil {
		return nil, false, err
	}
	if err := m.Unpack(answer); err != nil {
		return nil, false, err
	}
	for i := range m.Answers {
		records = append(records, resourceText(&m.Answers[i]))
	}
	switch m.RCode {
	case dnsmessage.RCodeSuccess:
		return records, true, nil
	case dnsmessage.RCodeNameError:
		return records, false, nil
	}
	return nil, false, fmt.Errorf("%w: %s", errNoAnswer, m.RCode)
}

// ending reports whether less than a tenth of the time of a kept answer is left, or than a second of a short one.
func (c *cached) ending(now time.Time) bool {
	whole := c.expires.Sub(c.at)
	return c.expires.Sub(now) < max(whole/10, min(whole/2, time.Second))
}

// refresh asks for an answer that no client waits for, and reports whether it does: others may be enough.
func (u *Upstreams) refresh(ctx context.Context, key cacheKey, msg []byte) bool {
	if u.refreshing.Add(1) > maxRefreshed {
		u.refreshing.Add(-1)
		return false
	}
	go func() {
		defer u.refreshing.Add(-1)
		_, _ = u.ask(context.WithoutCancel(ctx), key, msg) // the next question asks again
	}()
	return true
}

// ask asks the servers, once for all that ask the same. The servers are asked to the end even if ctx is done before.
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

// askAll asks one server after the other, the dead ones last, twice round. The next one is asked when one fails or is silent for
// patience. The first answer counts, also that of a server which is slow. An answer that is not conclusive counts if there is
// no other.
func (u *Upstreams) askAll(ctx context.Context, key cacheKey, msg []byte) ([]byte, error) {
	servers, retry := u.order(key.name)
	for _, s := range retry {
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
			defer cancel()
			if _, err := exchange(ctx, s.addr, msg); err == nil {
				u.mark(s, true)
			}
		}()
	}
	type result struct {
		from   *upstream
		answer []byte
		err    error
	}
	results := make(chan result, 2*len(servers))
	var (
		failure error = errNoAnswer
		other   []byte
		waiting int
	)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for next := 0; next < 2*len(servers) || waiting > 0; {
		if next < 2*len(servers) {
			s := servers[next%len(servers)]
			next++
			waiting++
			timer.Reset(patience)
			go func() {
				answer, err := exchange(ctx, s.addr, msg)
				results <- result{s, answer, err}
			}()
		}
		select {
		case <-ctx.Done():
			next, waiting = 2*len(servers), 0
		case <-timer.C:
			u.mark(servers[(next-1)%len(servers)], false)
		case r := <-results:
			waiting--
			switch {
			case r.err != nil:
				failure = fmt.Errorf("%w: %s: %w", errNoAnswer, r.from.addr, r.err)
				u.mark(r.from, false)
			case conclusive(r.answer):
				u.mark(r.from, true)
				u.keep(key, r.answer)
				return r.answer, nil
			default:
				u.mark(r.from, true)
				other = r.answer
			}
		}
	}
	if other != nil {
		return other, nil
	}
	return nil, failure
}

// conclusive reports whether an answer says what a name has, or that it does not exist. Any other says something of the server,
// and another server may know better.
func conclusive(answer []byte) bool {
	rcode := dnsmessage.RCode(answer[3] & 0xf)
	return rcode == dnsmessage.RCodeSuccess || rcode == dnsmessage.RCodeNameError
}

func (u *Upstreams) mark(s *upstream, alive bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.deadUntil = (time.Time{}); !alive {
		s.deadUntil = time.Now().Add(deadFor)
	}
}

// order returns the servers to ask for a name, and the dead ones to try beside them.
func (u *Upstreams) order(name string) (servers, retry []*upstream) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	var dead []*upstream
	for _, s := range u.route(name) {
		if s.deadUntil.IsZero() {
			servers = append(servers, s)
		} else {
			dead = append(dead, s)
		}
	}
	for _, s := range dead {
		if len(servers) > 0 && now.After(s.deadUntil) {
			s.deadUntil = now.Add(deadFor)
			retry = append(retry, s)
		}
	}
	return append(servers, dead...), retry
}

// allDead reports whether every server for a name is dead.
func (u *Upstreams) allDead(name string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return !slices.ContainsFunc(u.route(name), func(s *upstream) bool { return s.deadUntil.IsZero() })
}

// exchange asks one server over UDP, and over TCP if the answer does not fit. Each question has a port and an ID of its own,
// so that only the server that was asked can answer.
func exchange(ctx context.Context, server netip.AddrPort, msg []byte) ([]byte, error) {
	answer, err := exchangeOver(ctx, "udp", server, msg, wholePatience)
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

// answers reports whether a message is the answer to a question, and well formed.
func answers(ask, answer []byte) bool {
	var p, a dnsmessage.Parser
	hq, err1 := p.Start(ask)
	ha, err2 := a.Start(answer)
	if err1 != nil || err2 != nil || hq.ID != ha.ID || !ha.Response {
		return false
	}
	q1, err1 := p.Question()
	q2, err2 := a.Question()
	if err2 == nil && !ha.Truncated {
		err2 = errors.Join(a.SkipAllQuestions(), a.SkipAllAnswers(), a.SkipAllAuthorities(), a.SkipAllAdditionals())
	}
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
