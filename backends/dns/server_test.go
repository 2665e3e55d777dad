package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/dataplane"
)

// serve starts a Server on a port of loopback and returns its address.
func serve(t *testing.T, s *Server) netip.AddrPort {
	t.Helper()
	s.Log = hclog.NewNullLogger()
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.LocalAddr().(*net.UDPAddr).AddrPort()
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := s.Serve(ctx, at)
		for errors.Is(err, syscall.EADDRINUSE) && ctx.Err() == nil { // by another test, for a moment
			time.Sleep(5 * time.Millisecond)
			err = s.Serve(ctx, at)
		}
		if ctx.Err() == nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
	return at
}

// ask asks over UDP or TCP until an answer comes, since the server may just be starting.
func ask(t *testing.T, network string, at netip.AddrPort, name string, kind dnsmessage.Type, edit func(*dnsmessage.Message)) *dnsmessage.Message {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	if edit != nil {
		edit(&m)
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		reply, err := send(network, at, msg)
		if err == nil {
			var r dnsmessage.Message
			if err := r.Unpack(reply); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return &r
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", name, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func send(network string, at netip.AddrPort, msg []byte) ([]byte, error) {
	conn, err := net.Dial(network, at.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if network == "tcp" {
		msg = append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
	}
	if _, err := conn.Write(msg); err != nil {
		return nil, err
	}
	return readMessage(conn, network)
}

func TestServer(t *testing.T) {
	zone := newTestZone()
	big := &dataplane.Names{Service: dataplane.ServiceName{Namespace: "default", Name: "big"}}
	for i := range 1000 {
		a := netip.AddrFrom4([4]byte{10, 2, byte(i >> 8), byte(i)})
		big.Endpoints = append(big.Endpoints, dataplane.NamedEndpoint{Host: strings.ReplaceAll(a.String(), ".", "-"), Addr: a, Ports: []NamedPort{{}}})
	}
	at := serve(t, &Server{Resolver: &Resolver{Zone: append(zone, big), Domain: "cluster.local.", Pods: PodsDisabled}})
	edns := func(size uint16) func(*dnsmessage.Message) {
		return func(m *dnsmessage.Message) {
			m.Additionals = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("."), Type: dnsmessage.TypeOPT, Class: dnsmessage.Class(size)}, Body: &dnsmessage.OPTResource{}}}
		}
	}
	for _, network := range []string{"udp", "tcp"} {
		m := ask(t, network, at, "Web.default.svc.cluster.local.", dnsmessage.TypeA, nil)
		if len(m.Answers) != 1 || !m.Authoritative || m.RecursionAvailable || m.Questions[0].Name.String() != "Web.default.svc.cluster.local." ||
			m.Answers[0].Header.Name.String() != "Web.default.svc.cluster.local." {
			t.Errorf("%s: %+v", network, m)
		}
		if m := ask(t, network, at, "no.default.svc.cluster.local.", dnsmessage.TypeA, nil); m.RCode != dnsmessage.RCodeNameError || len(m.Authorities) != 1 {
			t.Errorf("%s: %+v", network, m)
		}
		if m := ask(t, network, at, "www.example.com.", dnsmessage.TypeA, nil); m.RCode != dnsmessage.RCodeRefused {
			t.Errorf("%s: %v", network, m.RCode)
		}
	}
	for _, tt := range []struct {
		network string
		edit    func(*dnsmessage.Message)
		most    int // answers, of 16 bytes each
		least   int
		cut     bool
	}{
		{"udp", nil, 30, 25, true}, {"udp", edns(4096), 75, 70, true}, {"udp", edns(900), 54, 45, true}, {"tcp", nil, 1000, 1000, false},
	} {
		m := ask(t, tt.network, at, "big.default.svc.cluster.local.", dnsmessage.TypeA, tt.edit)
		if n := len(m.Answers); n > tt.most || n < tt.least || m.Truncated != tt.cut {
			t.Errorf("%s: %d answers, truncated %v; want %d to %d, %v", tt.network, n, m.Truncated, tt.least, tt.most, tt.cut)
		}
	}
}

// TestServerRefusesMalformed sends what is not a question. What can be answered is answered with the reason, and nothing else.
func TestServerRefusesMalformed(t *testing.T) {
	s := &Server{Resolver: &Resolver{Zone: newTestZone(), Domain: "cluster.local."}, Log: hclog.NewNullLogger()}
	good, err := (&dnsmessage.Message{Header: dnsmessage.Header{ID: 1},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("web.default.svc.cluster.local."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}).Pack()
	if err != nil {
		t.Fatal(err)
	}
	edit := func(at int, b byte) []byte {
		msg := append([]byte(nil), good...)
		msg[at] = b
		return msg
	}
	for _, tt := range []struct {
		what string
		msg  []byte
		want string
	}{
		{"a question", good, "RCodeSuccess"}, {"an answer", edit(2, 0x80), "nothing"}, {"nothing", nil, "nothing"}, {"half a header", good[:7], "nothing"},
		{"half a question", good[:20], "RCodeFormatError"}, {"two questions", edit(5, 2), "RCodeFormatError"}, {"no question", edit(5, 0), "RCodeFormatError"},
		{"an update", edit(2, 5<<3), "RCodeNotImplemented"}, {"of class CH", edit(len(good)-1, 3), "RCodeRefused"},
	} {
		reply, _ := s.answer(nil, tt.msg, &client{})
		got := "nothing"
		var p dnsmessage.Parser
		if reply != nil {
			h, err := p.Start(reply)
			if err != nil {
				t.Fatal(err)
			}
			got = h.RCode.String()
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.what, got, tt.want)
		}
	}
}

// resolver is a resolver elsewhere that counts its questions.
func resolver(t *testing.T, answer func(q dnsmessage.Question) *dnsmessage.Message) (netip.AddrPort, *atomic.Int64) {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	asked := new(atomic.Int64)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			asked.Add(1)
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			r := answer(m.Questions[0])
			if r == nil {
				continue
			}
			r.Header.ID, r.Header.Response, r.Header.RecursionAvailable, r.Questions = m.ID, true, true, m.Questions
			if reply, err := r.Pack(); err == nil {
				conn.WriteToUDPAddrPort(reply, from)
			}
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), asked
}

func TestUpstreams(t *testing.T) {
	silent, silentAsked := resolver(t, func(dnsmessage.Question) *dnsmessage.Message { return nil })
	alive := atomic.Bool{}
	alive.Store(true)
	good, asked := resolver(t, func(q dnsmessage.Question) *dnsmessage.Message {
		if !alive.Load() {
			return nil
		}
		ttl := uint32(60)
		if strings.HasPrefix(q.Name.String(), "short") {
			ttl = 1
		}
		return &dnsmessage.Message{Answers: []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: ttl}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}}}}
	})
	up := NewUpstreams()
	up.Set(map[string][]netip.AddrPort{"": {silent, good}})
	at := serve(t, &Server{Resolver: &Resolver{Zone: newTestZone(), Domain: "cluster.local."}, Forwarder: up})
	one := func(name string) *dnsmessage.Message {
		t.Helper()
		return ask(t, "udp", at, name, dnsmessage.TypeA, nil)
	}
	if m := one("www.example.com."); len(m.Answers) != 1 || !m.RecursionAvailable {
		t.Fatalf("%+v", m)
	}
	for i := range 20 { // the silent one costs once, and what is kept is not asked for again
		if m := one("WWW.example.com."); len(m.Answers) != 1 || m.Questions[0].Name.String() != "WWW.example.com." {
			t.Fatalf("%+v", m)
		}
		if m := one(fmt.Sprintf("w%d.example.com.", i)); len(m.Answers) != 1 {
			t.Fatalf("%+v", m)
		}
	}
	if silentAsked.Load() > 2 || asked.Load() != 21 {
		t.Errorf("asked %d times, the silent one %d times", asked.Load(), silentAsked.Load())
	}
	if m := one("elsewhere.default.svc.cluster.local."); len(m.Answers) != 2 || !m.Authoritative {
		t.Errorf("%+v", m)
	}
	one("short.example.com.")
	alive.Store(false)
	if m := one("new.example.com."); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("no resolver answers: %v", m.RCode)
	}
	// After its TTL, an answer that was kept is better than none.
	eventually(t, "it is stale", func() bool {
		m := one("short.example.com.")
		if len(m.Answers) != 1 {
			t.Fatalf("%+v", m)
		}
		return m.Answers[0].Header.TTL == staleTTL
	})
	if m := one("web.default.svc.cluster.local."); len(m.Answers) != 1 {
		t.Errorf("the zone does not need resolvers: %+v", m)
	}
}

// TestStubDomains asks other resolvers for the names of a domain, and forgets their answers when they change.
func TestStubDomains(t *testing.T) {
	answering := func(last byte) netip.AddrPort {
		at, _ := resolver(t, func(q dnsmessage.Question) *dnsmessage.Message {
			return &dnsmessage.Message{Answers: []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: 60}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, last}}}}}
		})
		return at
	}
	other, corp, lab := answering(1), answering(2), answering(3)
	up := NewUpstreams()
	at := serve(t, &Server{Resolver: &Resolver{Zone: newTestZone(), Domain: "cluster.local.", Hosts: map[string][]netip.Addr{"printer.corp.example": addrs("192.0.2.9", "2001:db8::9")}}, Forwarder: up})
	expect := func(name string, last byte) {
		t.Helper()
		m := ask(t, "udp", at, name, dnsmessage.TypeA, nil)
		if len(m.Answers) != 1 || m.Answers[0].Body.(*dnsmessage.AResource).A[3] != last {
			t.Errorf("%s: %+v", name, m)
		}
	}
	up.Set(map[string][]netip.AddrPort{"": {other}, "corp.example": {corp}, "lab.corp.example": {lab}})
	expect("www.example.com.", 1)
	expect("WWW.Corp.Example.", 2)
	expect("corp.example.", 2)
	expect("a.b.lab.corp.example.", 3)
	expect("notcorp.example.", 1)
	expect("printer.corp.example.", 9)
	up.Set(map[string][]netip.AddrPort{"": {other}, "corp.example": {lab}})
	expect("www.corp.example.", 3)
	expect("a.b.lab.corp.example.", 3)
	if m := ask(t, "udp", at, "4.3.2.1.in-addr.arpa.", dnsmessage.TypePTR, nil); m.RCode != dnsmessage.RCodeSuccess || m.Authoritative {
		t.Errorf("an address that no Service has is asked for elsewhere: %+v", m)
	}
}

// FuzzServer sends anything to a server. It must not panic, and its answer must be one.
func FuzzServer(f *testing.F) {
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.db.default.svc.cluster.local.", "1.0.96.10.in-addr.arpa."} {
		m := dnsmessage.Message{Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeSRV, Class: dnsmessage.ClassINET}}}
		msg, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(msg)
	}
	s := &Server{Resolver: &Resolver{Zone: newTestZone(), Domain: "cluster.local.", Pods: PodsInsecure}, Log: hclog.NewNullLogger()}
	f.Fuzz(func(t *testing.T, msg []byte) {
		reply, _ := s.answer(nil, msg, &client{})
		if reply == nil {
			return
		}
		if len(reply) > max(maxUDPSize, len(msg)+16) {
			t.Errorf("an answer of %d bytes", len(reply))
		}
		var m dnsmessage.Message
		if err := m.Unpack(reply); err != nil {
			t.Error(err)
		}
	})
}

// FuzzCache keeps anything as an answer.
func FuzzCache(f *testing.F) {
	m := dnsmessage.Message{Header: dnsmessage.Header{Response: true}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("a.b."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
		Answers: []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName("a.b."), Class: dnsmessage.ClassINET, TTL: 60}, Body: &dnsmessage.AResource{}}}}
	msg, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg, msg[:21])
	f.Fuzz(func(t *testing.T, answer, ask []byte) {
		ttl, ok := lifetime(answer)
		if !ok || len(ask) < 12 {
			return
		}
		if ttl > maxTTL {
			t.Errorf("kept for %d s", ttl)
		}
		c := &cached{msg: answer, at: time.Now()}
		if got := c.answer(ask, time.Now().Add(time.Minute), true); len(got) != len(answer) {
			t.Error("another length")
		}
	})
}
