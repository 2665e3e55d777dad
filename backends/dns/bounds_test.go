package dns

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/net/ipv4"

	"weir/backends/netlab"
	"weir/spec/seed"
)

// heap returns how many bytes are in use after everything else has been collected.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestMalformed sends a million malformed messages, some of them as datagrams. Memory and goroutines are afterwards what they
// were before, and a question is answered.
func TestMalformed(t *testing.T) {
	netlab.RequireFull(t)
	r := seed.Rand(t)
	var valid [][]byte
	for _, name := range []string{"web.default.svc.cluster.local.", "_http._tcp.db.default.svc.cluster.local.", "www.example.com.", "2.0.1.10.in-addr.arpa."} {
		m := dnsmessage.Message{Header: dnsmessage.Header{RecursionDesired: true},
			Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeSRV, Class: dnsmessage.ClassINET}}}
		msg, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		valid = append(valid, msg)
	}
	mangled := func(buf []byte) []byte {
		buf = append(buf[:0], valid[r.IntN(len(valid))]...)
		for range 1 + r.IntN(4) {
			buf[r.IntN(len(buf))] = byte(r.Uint32())
		}
		if r.IntN(4) == 0 {
			buf = buf[:r.IntN(len(buf))]
		}
		return buf
	}
	resolver := &Resolver{Zone: newTestZone(), Domain: "cluster.local.", Pods: PodsInsecure}
	direct := &Server{Resolver: resolver, Forwarder: NewUpstreams()}
	at := serve(t, &Server{Resolver: resolver, Forwarder: NewUpstreams(), Metrics: &Metrics{}})
	ask(t, "udp", at, "web.default.svc.cluster.local.", dnsmessage.TypeA, nil)
	before, goroutines := heap(), runtime.NumGoroutine()
	buf, reply := make([]byte, 0, maxUDPSize), make([]byte, 0, maxUDPSize)
	const datagrams = 100000
	for range seed.Steps(1000000 - datagrams) {
		buf = mangled(buf)
		if got, _ := direct.answer(reply, buf, &client{at: time.Now()}); len(got) > maxUDPSize {
			t.Fatalf("%d bytes in answer to %x", len(got), buf)
		}
	}
	sendMangled(t, at, datagrams, mangled)
	eventually(t, "the goroutines of the datagrams end", func() bool { return runtime.NumGoroutine() <= goroutines+2 })
	ask(t, "udp", at, "web.default.svc.cluster.local.", dnsmessage.TypeA, nil)
	if grown := heap() - before; grown > 1<<20 {
		t.Errorf("%d bytes more are in use", grown)
	}
}

// sendMangled sends datagrams, and takes no replies.
func sendMangled(t *testing.T, at netip.AddrPort, count int, mangled func([]byte) []byte) {
	t.Helper()
	conn, err := net.Dial("udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	batch := make([]ipv4.Message, 50)
	for range count / len(batch) {
		for i := range batch {
			batch[i].Buffers = [][]byte{append([]byte{0}, mangled(nil)...)[1:]}
		}
		if _, err := ipv4.NewPacketConn(conn.(*net.UDPConn)).WriteBatch(batch, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLimiter bounds one address and no other, and not loopback.
func TestLimiter(t *testing.T) {
	l, now := newLimiter(), time.Now()
	allowed := func(addr string, n int) (count int) {
		for range n {
			if l.allow(netip.MustParseAddr(addr), now) {
				count++
			}
		}
		return count
	}
	for _, tt := range []struct {
		addr    string
		n, want int
	}{{"10.244.0.1", 2 * clientBurst, clientBurst}, {"10.244.0.2", 10, 10}, {"127.0.0.1", 2 * clientBurst, 2 * clientBurst}, {"fd00::1", 10, 10}} {
		if got := allowed(tt.addr, tt.n); got != tt.want {
			t.Errorf("%s: %d of %d", tt.addr, got, tt.n)
		}
	}
	now = now.Add(100 * time.Millisecond)
	if got, want := allowed("10.244.0.1", clientBurst), clientRate/10; got != want {
		t.Errorf("after 100 ms: %d instead of %d", got, want)
	}
}

// TestBoundedReply is what a client beyond its rate is sent: no more than it sent.
func TestBoundedReply(t *testing.T) {
	s := &Server{Resolver: &Resolver{Zone: newTestZone(), Domain: "cluster.local."}, Forwarder: NewUpstreams()}
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 9}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName("db.default.svc.cluster.local."), Type: dnsmessage.TypeSRV, Class: dnsmessage.ClassINET}}}
	msg, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	full, _ := s.answer(nil, msg, &client{})
	q, _, _ := parse(msg)
	for what, reply := range map[string][]byte{"clipped": clip(full, 0), "not looked at": s.bounded(q)} {
		var got dnsmessage.Message
		if err := got.Unpack(reply); err != nil {
			t.Fatal(err)
		}
		if !got.Truncated || got.RCode != dnsmessage.RCodeSuccess || got.ID != 9 || len(reply) > len(msg) {
			t.Errorf("%s: %+v", what, got)
		}
	}
}

// TestMetrics counts what is answered, under the names of CoreDNS.
func TestMetrics(t *testing.T) {
	up := NewUpstreams()
	metrics := &Metrics{Upstreams: up}
	at := serve(t, &Server{Resolver: &Resolver{Zone: newTestZone(), Domain: "cluster.local."}, Forwarder: up, Metrics: metrics})
	ask(t, "udp", at, "web.default.svc.cluster.local.", dnsmessage.TypeA, nil)
	ask(t, "udp", at, "WEB.default.svc.cluster.local.", dnsmessage.TypeAAAA, nil)
	ask(t, "tcp", at, "none.default.svc.cluster.local.", dnsmessage.TypeA, nil)
	ask(t, "udp", at, "1.0.96.10.in-addr.arpa.", dnsmessage.TypePTR, nil)
	ask(t, "udp", at, "www.example.com.", dnsmessage.TypeA, nil)
	r := prometheus.NewRegistry()
	r.MustRegister(metrics)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				if l.GetName() != "server" {
					labels = append(labels, l.GetValue())
				}
			}
			fmt.Fprintf(&b, "%s{%s} %v\n", f.GetName(), strings.Join(labels, ","), m.GetCounter().GetValue()+m.GetGauge().GetValue()+float64(m.GetHistogram().GetSampleCount()))
		}
	}
	const want = `coredns_cache_entries{} 0
coredns_cache_hits_total{} 0
coredns_cache_prefetch_total{} 0
coredns_cache_requests_total{} 1
coredns_cache_served_stale_total{} 0
coredns_dns_request_duration_seconds{,.} 1
coredns_dns_request_duration_seconds{,cluster.local.} 3
coredns_dns_request_duration_seconds{,in-addr.arpa.} 1
coredns_dns_requests_total{1,tcp,A,,cluster.local.} 1
coredns_dns_requests_total{1,udp,A,,.} 1
coredns_dns_requests_total{1,udp,A,,cluster.local.} 1
coredns_dns_requests_total{1,udp,AAAA,,cluster.local.} 1
coredns_dns_requests_total{1,udp,PTR,,in-addr.arpa.} 1
coredns_dns_response_size_bytes{tcp,,cluster.local.} 1
coredns_dns_response_size_bytes{udp,,.} 1
coredns_dns_response_size_bytes{udp,,cluster.local.} 2
coredns_dns_response_size_bytes{udp,,in-addr.arpa.} 1
coredns_dns_responses_total{NOERROR,,cluster.local.} 2
coredns_dns_responses_total{NOERROR,,in-addr.arpa.} 1
coredns_dns_responses_total{NXDOMAIN,,cluster.local.} 1
coredns_dns_responses_total{SERVFAIL,,.} 1
coredns_forward_max_concurrent_rejects_total{} 0
weir_dns_not_allowed_total{} 0
weir_dns_rate_limited_total{} 0
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

// TestConnectionsOfOneClient has one client open as many connections as it can and say nothing: others are answered over TCP.
func TestConnectionsOfOneClient(t *testing.T) {
	resolver := &Resolver{Zone: newTestZone(), Domain: "cluster.local.", Pods: PodsInsecure}
	at := serve(t, &Server{Resolver: resolver, Metrics: &Metrics{}})
	ask(t, "tcp", at, "web.default.svc.cluster.local.", dnsmessage.TypeA, nil)
	greedy := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	for range 2 * maxConns {
		conn, err := greedy.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write([]byte{0, 40, 1}); err != nil {
			continue // it is reset
		}
	}
	for range 10 {
		ask(t, "tcp", at, "web.default.svc.cluster.local.", dnsmessage.TypeA, nil)
	}
}
