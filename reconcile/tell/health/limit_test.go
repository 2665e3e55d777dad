package health

import (
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// TestHalfRequests: clients that open connections and never end their requests keep nobody else from an answer, and do not
// take more descriptors than they may.
func TestHalfRequests(t *testing.T) {
	s := newTestServer(t, &Proxy{}, NewMetrics(Build{Version: "v1"}))
	if err := s.Configure(Config{HealthzBindAddress: "127.0.0.1:0", Mode: "iptables"}); err != nil {
		t.Fatal(err)
	}
	addr := s.HealthzAddr().String()
	var conns []net.Conn
	for range 2 * maxConns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("GET /healthz HTTP/1.1\r\n")); err != nil && !errorIsReset(err) {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if code, _ := get(t, "http://"+addr+"/healthz"); code != http.StatusOK {
		t.Errorf("beside half requests: %d", code)
	}
	// All were accepted before the answered one, so half of them have ended; the others are still waited for.
	for i, c := range conns[:maxConns] {
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Fatalf("connection %d of %d is still open: %v", i, len(conns), err)
		}
	}
}

func errorIsReset(err error) bool {
	return strings.Contains(err.Error(), "reset") || strings.Contains(err.Error(), "broken pipe")
}

// TestTotalLimit: many servers together keep to what is left of the descriptors.
func TestTotalLimit(t *testing.T) {
	total := newConnLimit(3)
	var accepted []net.Conn
	for i := range 5 {
		ln := limit(&fakeListener{conns: make(chan net.Conn, 1)}, total).(*limited)
		ln.Listener.(*fakeListener).conns <- &fakeConn{name: strconv.Itoa(i)}
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		accepted = append(accepted, c)
	}
	var open []string
	for _, c := range accepted {
		if f := c.(*countedConn).Conn.(*fakeConn); !f.closed {
			open = append(open, f.name)
		}
	}
	if !slices.Equal(open, []string{"2", "3", "4"}) {
		t.Errorf("open: %v, want the newest three", open)
	}
	for _, c := range accepted {
		c.Close()
	}
	if len(total.open) != 0 || total.order.Len() != 0 {
		t.Errorf("%d and %d connections count though all are closed", len(total.open), total.order.Len())
	}
}

// TestNoDescriptors: a server that has no descriptor left for a connection closes its oldest and tries again.
func TestNoDescriptors(t *testing.T) {
	real, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	full := &fullListener{Listener: real}
	total := newConnLimit(maxConns)
	oldest := &fakeConn{}
	total.add(&countedConn{Conn: oldest, limits: [2]*connLimit{newConnLimit(1), total}})
	var log lockedBuilder
	logger := hclog.New(&hclog.LoggerOptions{Output: &log})
	srv := newHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { plain(w, "ok") }), logger)
	defer srv.Close()
	go serve(srv, full, total, logger)
	if code, body := get(t, "http://"+real.Addr().String()); code != http.StatusOK || body != "ok" {
		t.Errorf("%d %q", code, body)
	}
	if !oldest.closed {
		t.Error("the oldest connection is still open")
	}
	if !strings.Contains(log.String(), "[WARN]  http: Accept error: ") {
		t.Errorf("net/http does not log as weir does: %s", log.String())
	}
}

type fakeListener struct {
	net.Listener
	conns chan net.Conn
}

func (l *fakeListener) Accept() (net.Conn, error) { return <-l.conns, nil }

type fakeConn struct {
	net.Conn
	name   string
	closed bool
}

func (c *fakeConn) Close() error {
	c.closed = true
	return nil
}

// fullListener fails once as if the process had no descriptor left.
type fullListener struct {
	net.Listener
	failed bool
}

func (l *fullListener) Accept() (net.Conn, error) {
	if !l.failed {
		l.failed = true
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
