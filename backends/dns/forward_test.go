package dns

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// upstreamTest is a resolver that does to each question what a test says.
type upstreamTest struct {
	at    netip.AddrPort
	asked atomic.Int64
	conn  *net.UDPConn
	do    atomic.Pointer[behavior]
}

// behavior answers a question by calling send as often as it likes, with what the right answer was made into.
type behavior func(ask, right []byte, send func([]byte))

// rightly answers every question as it should be.
var rightly behavior = func(_, right []byte, send func([]byte)) { send(right) }

// silently answers nothing.
var silently behavior = func(_, _ []byte, _ func([]byte)) {}

func newUpstream(t *testing.T, do behavior) *upstreamTest {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	u := &upstreamTest{at: conn.LocalAddr().(*net.UDPAddr).AddrPort(), conn: conn}
	u.do.Store(&do)
	go func() {
		for {
			buf := make([]byte, 4096)
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			u.asked.Add(1)
			go (*u.do.Load())(buf[:n], rightAnswer(buf[:n], 60), func(reply []byte) { conn.WriteToUDPAddrPort(reply, from) })
		}
	}()
	return u
}

// rightAnswer is 192.0.2.1 for every name that does not begin with "none".
func rightAnswer(ask []byte, ttl uint32) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(ask); err != nil {
		return nil
	}
	name := m.Questions[0].Name
	m.Response, m.RecursionAvailable = true, true
	if strings.HasPrefix(name.String(), "none") {
		m.RCode = dnsmessage.RCodeNameError
		m.Authorities = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}, Body: &dnsmessage.SOAResource{NS: name, MBox: name, MinTTL: 7}}}
	} else {
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: ttl}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}}}
	}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}

// edited returns a copy of a message that was changed.
func edited(msg []byte, edit func([]byte)) []byte {
	msg = append([]byte(nil), msg...)
	edit(msg)
	return msg
}

func upstreams(all ...*upstreamTest) *Upstreams {
	u := NewUpstreams()
	var at []netip.AddrPort
	for _, one := range all {
		at = append(at, one.at)
	}
	u.Set(map[string][]netip.AddrPort{"": at})
	return u
}

// forward asks for the A records of a name. It returns the answer and how long it took.
func forward(t *testing.T, u *Upstreams, name string) (*dnsmessage.Message, time.Duration, error) {
	t.Helper()
	return forwardWithin(t, wholePatience+time.Minute, u, name)
}

func forwardWithin(t *testing.T, limit time.Duration, u *Upstreams, name string) (*dnsmessage.Message, time.Duration, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	q := dnsmessage.Question{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	ask := dnsmessage.Message{Header: dnsmessage.Header{ID: 4711, RecursionDesired: true}, Questions: []dnsmessage.Question{q}}
	msg, err := ask.Pack()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	reply, err := u.Forward(ctx, msg, q)
	took := time.Since(began)
	if err != nil {
		return nil, took, err
	}
	var m dnsmessage.Message
	if err := m.Unpack(reply); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if m.ID != 4711 || m.Questions[0].Name.String() != name {
		t.Errorf("%s: the answer is to %d %s", name, m.ID, m.Questions[0].Name)
	}
	return &m, took, nil
}

// isRight reports whether an answer is that of a resolver which behaves.
func isRight(m *dnsmessage.Message) bool {
	if m == nil || m.RCode != dnsmessage.RCodeSuccess || len(m.Answers) != 1 {
		return false
	}
	a, ok := m.Answers[0].Body.(*dnsmessage.AResource)
	return ok && a.A == [4]byte{192, 0, 2, 1}
}

// TestLyingUpstreams has a resolver lie in every way beside one that does not. A lie is never the answer, and is never kept.
func TestLyingUpstreams(t *testing.T) {
	t.Parallel()
	poison := func(msg []byte) []byte { return edited(msg, func(m []byte) { m[len(m)-1] = 66 }) }
	for what, lie := range map[string]behavior{
		"nothing": silently,
		"another ID": func(_, right []byte, send func([]byte)) {
			for id := range 200 {
				send(poison(edited(right, func(m []byte) { binary.BigEndian.PutUint16(m, binary.BigEndian.Uint16(m)+1+uint16(id)) })))
			}
		},
		"another question": func(_, right []byte, send func([]byte)) { send(poison(edited(right, func(m []byte) { m[13] ^= 1 }))) },
		"another type": func(_, right []byte, send func([]byte)) {
			send(poison(edited(right, func(m []byte) { m[12+17+1] = 28 })))
		},
		"a question":             func(ask, _ []byte, send func([]byte)) { send(ask) },
		"no question":            func(_, right []byte, send func([]byte)) { send(edited(right[:12], func(m []byte) { clear(m[4:]) })) },
		"half an answer":         func(_, right []byte, send func([]byte)) { send(right[:len(right)-3]) },
		"garbage":                func(_, _ []byte, send func([]byte)) { send([]byte("HTTP/1.1 400 Bad Request\r\n")); send(nil) },
		"more records than sent": func(_, right []byte, send func([]byte)) { send(poison(edited(right, func(m []byte) { m[7] = 9 }))) },
		"failure":                func(_, right []byte, send func([]byte)) { send(edited(right, func(m []byte) { m[3] |= 2 })) },
		"refusal":                func(_, right []byte, send func([]byte)) { send(edited(right, func(m []byte) { m[3] |= 5 })) },
		"truncated, without TCP": func(_, right []byte, send func([]byte)) { send(edited(right, func(m []byte) { m[2] |= 2 })) },
		"another source":         func(_, right []byte, _ func([]byte)) {}, // below
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			liar, honest := newUpstream(t, lie), newUpstream(t, rightly)
			if what == "another source" {
				spoofed(t, liar)
			}
			u := upstreams(liar, honest)
			for _, name := range []string{"www.example.com.", "www.example.com.", "www.example.net."} {
				if m, _, err := forward(t, u, name); err != nil || !isRight(m) {
					t.Errorf("%s: %v %+v", name, err, m)
				}
			}
			if liar.asked.Load() == 0 {
				t.Error("the liar was not asked")
			}
			only := upstreams(liar)
			if m, _, err := forwardWithin(t, 2*patience, only, "www.example.com."); err == nil && m.RCode != dnsmessage.RCodeServerFailure && m.RCode != dnsmessage.RCodeRefused {
				t.Errorf("the liar alone: %+v", m)
			}
			if n := only.cache.Len(); n != 0 {
				t.Errorf("%d lies are kept", n)
			}
		})
	}
}

// spoofed has another socket answer in the place of a resolver.
func spoofed(t *testing.T, liar *upstreamTest) {
	t.Helper()
	other, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	var do behavior = silently
	liar.do.Store(&do)
	front, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { front.Close() })
	liar.at = front.LocalAddr().(*net.UDPAddr).AddrPort()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := front.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			liar.asked.Add(1)
			right := rightAnswer(buf[:n], 60)
			right[len(right)-1] = 66
			other.WriteToUDPAddrPort(right, from)
		}
	}()
}

// TestHonestUpstreams takes answers that are right in an unusual way.
func TestHonestUpstreams(t *testing.T) {
	t.Parallel()
	for what, do := range map[string]behavior{
		"after lies": func(ask, right []byte, send func([]byte)) {
			send([]byte("garbage"))
			send(edited(right, func(m []byte) { m[0]++ }))
			send(right)
		},
		"in lower case": func(_, right []byte, send func([]byte)) {
			send(edited(right, func(m []byte) { copy(m[12:], bytes.ToLower(m[12:29])) }))
		},
		"twice": func(_, right []byte, send func([]byte)) { send(right); send(right) },
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			u := upstreams(newUpstream(t, do))
			for _, name := range []string{"www.Example.com.", "WWW.example.com.", "ab.example.com."} {
				if m, _, err := forward(t, u, name); err != nil || !isRight(m) {
					t.Errorf("%s: %v %+v", name, err, m)
				}
			}
		})
	}
}

// TestSlowUpstream has a resolver answer when another one has been asked too, because weir ran out of patience.
func TestSlowUpstream(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 10)
	other := newUpstream(t, func(_, _ []byte, _ func([]byte)) { asked <- struct{}{} })
	slow := newUpstream(t, func(_, right []byte, send func([]byte)) {
		select {
		case <-asked:
			send(right)
		case <-t.Context().Done():
		}
	})
	u := upstreams(slow, other)
	for _, name := range []string{"www.Example.com.", "WWW.example.com.", "ab.example.com."} {
		if m, _, err := forward(t, u, name); err != nil || !isRight(m) {
			t.Errorf("%s: %v %+v", name, err, m)
		}
	}
}

// TestAsk asks for records of each type, for a name that does not exist, and where no server answers.
func TestAsk(t *testing.T) {
	name := dnsmessage.MustNewName("a.example.")
	header := dnsmessage.ResourceHeader{Name: name, Class: dnsmessage.ClassINET, TTL: 60}
	bodies := map[dnsmessage.Type]dnsmessage.ResourceBody{
		dnsmessage.TypeA:     &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}},
		dnsmessage.TypeAAAA:  &dnsmessage.AAAAResource{AAAA: [16]byte{0x20, 1, 0xd, 0xb8, 15: 1}},
		dnsmessage.TypeCNAME: &dnsmessage.CNAMEResource{CNAME: name},
		dnsmessage.TypeNS:    &dnsmessage.NSResource{NS: name},
		dnsmessage.TypePTR:   &dnsmessage.PTRResource{PTR: name},
		dnsmessage.TypeTXT:   &dnsmessage.TXTResource{TXT: []string{"a\x1b", "b"}},
		dnsmessage.TypeSRV:   &dnsmessage.SRVResource{Priority: 1, Weight: 2, Port: 3, Target: name},
		dnsmessage.TypeSOA:   &dnsmessage.SOAResource{NS: name, MBox: name, Serial: 1, Refresh: 2, Retry: 3, Expire: 4, MinTTL: 5},
	}
	up := newUpstream(t, func(ask, right []byte, send func([]byte)) {
		var m dnsmessage.Message
		if err := m.Unpack(right); err == nil && len(m.Answers) > 0 {
			m.Answers = []dnsmessage.Resource{{Header: header, Body: bodies[m.Questions[0].Type]}}
			right, _ = m.Pack()
		}
		send(right)
	})
	u := upstreams(up)
	for kind, want := range map[dnsmessage.Type]string{
		dnsmessage.TypeA:     "A\t192.0.2.1",
		dnsmessage.TypeAAAA:  "AAAA\t2001:db8::1",
		dnsmessage.TypeCNAME: "CNAME\ta.example.",
		dnsmessage.TypeNS:    "NS\ta.example.",
		dnsmessage.TypePTR:   "PTR\ta.example.",
		dnsmessage.TypeTXT:   `TXT	"a\x1bb"`,
		dnsmessage.TypeSRV:   "SRV\t1 2 3 a.example.",
		dnsmessage.TypeSOA:   "SOA\ta.example. a.example. 1 2 3 4 5",
	} {
		records, exists, err := u.Ask(t.Context(), "a.example.", kind)
		if want = "a.example.\t60\tIN\t" + want; err != nil || !exists || len(records) != 1 || records[0] != want {
			t.Errorf("%s: %q, %v, %v; want %q", kind, records, exists, err, want)
		}
	}
	if records, exists, err := u.Ask(t.Context(), "none.example.", dnsmessage.TypeA); len(records) > 0 || exists || err != nil {
		t.Errorf("of a name that does not exist: %q, %v, %v", records, exists, err)
	}
	if _, _, err := NewUpstreams().Ask(t.Context(), "a.example.", dnsmessage.TypeA); err == nil {
		t.Error("without servers there is an answer")
	}
	if _, _, err := u.Ask(t.Context(), strings.Repeat("a", 300), dnsmessage.TypeA); err == nil {
		t.Error("a name that is too long has an answer")
	}
}

// TestTruncatedUpstream asks again over TCP.
func TestTruncatedUpstream(t *testing.T) {
	t.Parallel()
	cut := func(_, right []byte, send func([]byte)) {
		send(edited(right[:12+17+4], func(m []byte) { m[2] |= 2; clear(m[6:12]) }))
	}
	var server *upstreamTest
	var listener *net.TCPListener
	for try := 0; listener == nil; try++ { // another program may have the port over TCP
		server = newUpstream(t, cut)
		var err error
		if listener, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(server.at)); err != nil && try == 10 {
			t.Fatal(err)
		}
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			var size [2]byte
			io.ReadFull(conn, size[:])
			ask := make([]byte, binary.BigEndian.Uint16(size[:]))
			io.ReadFull(conn, ask)
			right := rightAnswer(ask, 60)
			conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(right))), right...))
			conn.Close()
		}
	}()
	if m, _, err := forward(t, upstreams(server), "www.example.com."); err != nil || !isRight(m) {
		t.Errorf("%v %+v", err, m)
	}
}

// TestDeadUpstream loses time to a dead resolver once, also when it is tried again, and finds that it is back.
func TestDeadUpstream(t *testing.T) {
	t.Parallel()
	first, second := newUpstream(t, silently), newUpstream(t, rightly)
	u := upstreams(first, second)
	if m, took, err := forward(t, u, "a.example.com."); err != nil || !isRight(m) || took < patience {
		t.Fatalf("%v after %v: %+v", err, took, m)
	}
	// Each question waits at least for patience if the dead one is asked before the other.
	dead := func(name string) {
		t.Helper()
		before := second.asked.Load()
		if m, _, err := forward(t, u, name); err != nil || !isRight(m) {
			t.Fatalf("%v: %+v", err, m)
		}
		if second.asked.Load() == before {
			t.Errorf("%s: the other one was not asked", name)
		}
		if servers, _ := u.order(name); servers[0].addr != second.at {
			t.Errorf("%s: the dead one is asked first", name)
		}
	}
	asked := first.asked.Load()
	dead("b.example.com.")
	if first.asked.Load() != asked {
		t.Error("the dead one is asked before its time")
	}
	retry := func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		for _, s := range u.routes[""] {
			if !s.deadUntil.IsZero() {
				s.deadUntil = time.Now().Add(-time.Second)
			}
		}
	}
	retry()
	dead("c.example.com.")
	eventually(t, "the dead one is tried", func() bool { return first.asked.Load() > asked })
	back := rightly
	first.do.Store(&back)
	eventually(t, "it is back", func() bool {
		retry()
		forward(t, u, "d"+time.Now().Format("150405.000000")+".example.com.")
		servers, _ := u.order("e.example.com.")
		return servers[0].addr == first.at && u.routes[""][0].deadUntil.IsZero()
	})
	gone := silently
	second.do.Store(&gone)
	first.do.Store(&back)
	if m, _, err := forward(t, u, "f.example.com."); err != nil || !isRight(m) {
		t.Errorf("%v: %+v", err, m)
	}
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

// age makes what is kept older.
func (u *Upstreams) age(by time.Duration) {
	for _, key := range u.cache.Keys() {
		kept, _ := u.cache.Peek(key)
		older := &cached{msg: kept.msg, at: kept.at.Add(-by), expires: kept.expires.Add(-by)}
		older.given.Store(kept.given.Load())
		u.cache.Add(key, older)
	}
}

// TestCachedAnswers follows a positive and a negative answer through their time, and the hour after it.
func TestCachedAnswers(t *testing.T) {
	t.Parallel()
	const some, none = "some.example.com.", "none.example.com."
	server := newUpstream(t, rightly)
	u := upstreams(server)
	ttls := func() (positive, negative uint32) {
		t.Helper()
		p, _, err1 := forward(t, u, some)
		n, _, err2 := forward(t, u, none)
		if err1 != nil || err2 != nil || !isRight(p) || n.RCode != dnsmessage.RCodeNameError || len(n.Authorities) != 1 {
			t.Fatalf("%v %v %+v %+v", err1, err2, p, n)
		}
		return p.Answers[0].Header.TTL, n.Authorities[0].Header.TTL
	}
	expect := func(what string, positive, negative uint32, asked int64) {
		t.Helper()
		p, n := ttls()
		if got := server.asked.Load(); p != positive || n != negative || got != asked {
			t.Errorf("%s: TTL %d and %d, asked %d times; want %d, %d, %d", what, p, n, got, positive, negative, asked)
		}
	}
	expect("fresh", 60, 60, 2)
	u.age(6 * time.Second)
	expect("kept", 54, 54, 2)
	u.age(2 * time.Second) // a negative answer is kept for 7 seconds, as its SOA record says
	expect("one of them is over", 52, 60, 3)
	gone := silently
	server.do.Store(&gone)
	u.age(61 * time.Second)
	if p, n := ttls(); p != staleTTL || n != staleTTL {
		t.Errorf("stale: TTL %d and %d", p, n)
	}
	u.age(maxStale)
	for _, name := range []string{some, none} {
		if m, _, err := forward(t, u, name); err == nil {
			t.Errorf("%s: after an hour: %+v", name, m)
		}
	}
	back := rightly
	server.do.Store(&back)
	eventually(t, "fresh again", func() bool {
		m, _, err := forward(t, u, some)
		return err == nil && isRight(m) && m.Answers[0].Header.TTL > staleTTL
	})
}

// TestStaleIsQuick gives a stale answer after patience, and at once if it is known that no resolver answers.
func TestStaleIsQuick(t *testing.T) {
	t.Parallel()
	failing := behavior(func(_, right []byte, send func([]byte)) { send(edited(right, func(m []byte) { m[3] |= 2 })) })
	for what, do := range map[string]behavior{"silence": silently, "failure": failing} {
		server := newUpstream(t, rightly)
		u := upstreams(server)
		forward(t, u, "www.example.com.")
		server.do.Store(&do)
		u.age(2 * time.Minute)
		for range 3 {
			if m, took, err := forward(t, u, "www.example.com."); err != nil || !isRight(m) || m.Answers[0].Header.TTL != staleTTL || took > wholePatience {
				t.Errorf("%s: after %v: %v %+v", what, took, err, m)
			}
		}
		if what == "silence" && !u.allDead("www.example.com.") {
			t.Error("a silent resolver is not known as dead")
		}
	}
}

// TestPrefetch asks for names that are asked often ahead of their end, and for no others.
func TestPrefetch(t *testing.T) {
	t.Parallel()
	server := newUpstream(t, rightly)
	u := upstreams(server)
	const often, seldom = "often.example.com.", "seldom.example.com."
	for range oftenAsked {
		forward(t, u, often)
	}
	forward(t, u, seldom)
	u.age(50 * time.Second)
	forward(t, u, often)
	if n := u.prefetched.Load(); n != 0 {
		t.Errorf("%d are asked for long before their end", n)
	}
	u.age(5 * time.Second)
	for range 100 { // once, however often it is asked for meanwhile
		if m, _, err := forward(t, u, often); err != nil || !isRight(m) {
			t.Fatalf("%v %+v", err, m)
		}
	}
	forward(t, u, seldom)
	eventually(t, "it is fresh", func() bool {
		m, _, _ := forward(t, u, often)
		return isRight(m) && m.Answers[0].Header.TTL > 50
	})
	if n := server.asked.Load(); n != 3 {
		t.Errorf("asked %d times", n)
	}
	if n := u.prefetched.Load(); n != 1 {
		t.Errorf("%d are asked for ahead", n)
	}
	// Those that nobody waits for are bounded.
	u.refreshing.Store(maxRefreshed)
	if u.refresh(context.Background(), cacheKey{name: often, kind: dnsmessage.TypeA}, nil) {
		t.Error("one too many")
	}
}
