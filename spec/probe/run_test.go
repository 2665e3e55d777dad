package probe_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/backends/netlab"
	"weir/spec/probe"
)

// counted is a server that counts its connections and the bytes that it could send.
type counted struct {
	at    netip.AddrPort
	conns atomic.Int64
	sent  atomic.Int64
}

func (s *counted) Write(c net.Conn, data []byte) error {
	n, err := c.Write(data)
	s.sent.Add(int64(n))
	return err
}

func serving(t *testing.T, handle func(*counted, net.Conn)) *counted {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s := &counted{at: l.Addr().(*net.TCPAddr).AddrPort()}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.conns.Add(1)
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				handle(s, c)
			}()
		}
	}()
	return s
}

func run(t *testing.T, p probe.Probe, at netip.AddrPort) probe.Result {
	if p.Timeout == 0 {
		p.Timeout = 5 * time.Second
	}
	return p.Run(t.Context(), probe.Target{Address: at})
}

// TestAttacks has servers that mean harm: each probe ends in time, has read little, and has connected to nothing else.
func TestAttacks(t *testing.T) {
	block := []byte(strings.Repeat("x", 64<<10))
	flood := func(before, each string) func(*counted, net.Conn) {
		return func(s *counted, c net.Conn) {
			head(c)
			for err := s.Write(c, []byte(before)); err == nil; {
				err = s.Write(c, []byte(each))
			}
		}
	}
	elsewhere := serving(t, func(_ *counted, c net.Conn) { io.WriteString(c, ok) })
	redirect := func(to string) func(*counted, net.Conn) {
		return func(s *counted, c net.Conn) {
			next := to
			if h := head(c); to == "/" && !strings.HasPrefix(h, "GET /x") {
				next = "/x"
			}
			s.Write(c, fmt.Appendf(nil, "HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n", next))
		}
	}
	drip := func(before, each string) func(*counted, net.Conn) {
		return func(s *counted, c net.Conn) {
			head(c)
			for err := s.Write(c, []byte(before)); err == nil; time.Sleep(time.Millisecond) {
				err = s.Write(c, []byte(each))
			}
		}
	}
	silent := func(_ *counted, c net.Conn) { io.Copy(io.Discard, c) }
	other := net.JoinHostPort("127.0.0.2", strconv.Itoa(int(elsewhere.at.Port())))
	kinds := map[string]probe.Probe{
		"HTTP": {Kind: probe.HTTP, Path: "/"}, "HTTPS": {Kind: probe.HTTP, Path: "/", TLS: true}, "HTTP/2": {Kind: probe.HTTP, Path: "/", HTTP2: true}, "HTTP/2 with TLS": {Kind: probe.HTTP, Path: "/", HTTP2: true, TLS: true},
		"gRPC": {Kind: probe.GRPC}, "gRPC with TLS": {Kind: probe.GRPC, TLS: true}, "TCP": {Kind: probe.TCP, Send: "a", Expect: strings.Repeat("never", 100)},
	}
	var all sync.WaitGroup
	few := make(chan bool, 16)
	for name, attack := range map[string]func(*counted, net.Conn){
		"never closes": silent,
		"1 GB":         flood("HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", string(block)),
		"headers":      flood("HTTP/1.1 200 OK\r\n", strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 60)),
		"one header":   flood("HTTP/1.1 200 OK\r\nA: ", string(block)),
		"answers":      flood("", "HTTP/1.1 100 Continue\r\n\r\n"),
		"frames":       flood("\x00\x00\x00\x04\x00\x00\x00\x00\x00", "\x00\x00\x08\x06\x00\x00\x00\x00\x00pingping"),
		"settings":     flood("", "\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
		"records":      flood("", "\x16\x03\x03\x40\x00"+strings.Repeat("\x02", 1<<14)),
		"chunks":       flood("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;"+strings.Repeat("x", 1000)+"\r\na\r\n"),
		"drips":        drip("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", "x"),
		"drips before": drip("HTTP/1.1 200 OK\r\n", "A: b\r\n"),
		"drips zeros":  drip("", "\x00"),
		"redirects":    redirect("/"),
		"metadata":     redirect("http://169.254.169.254/latest/meta-data/"),
		"other host":   redirect("http://" + other + "/"),
		"user":         redirect("http://127.0.0.1@" + other + "/"),
		"other name":   redirect("http://localhost:" + strconv.Itoa(int(elsewhere.at.Port())) + "/"),
	} {
		for kind, p := range kinds {
			what, s := name+" over "+kind, serving(t, attack)
			p.Timeout = 300 * time.Millisecond
			few <- true
			all.Go(func() {
				defer func() { <-few }()
				start := time.Now()
				r := run(t, p, s.at)
				if took := time.Since(start); took > p.Timeout+5*time.Second || r.Took > took {
					t.Errorf("%s: took %s, and says %s", what, took, r.Took)
				}
				if len(r.Message) > 300 || strings.ContainsFunc(r.Message, func(r rune) bool { return r < ' ' }) {
					t.Errorf("%s: the message is %q", what, r.Message)
				}
				if n := s.conns.Load(); n > 11 && p.Kind != probe.GRPC {
					t.Errorf("%s: connected %d times", what, n)
				}
				if n := s.sent.Load(); n > 16<<20 { // what is on its way in the buffers of both sides counts too
					t.Errorf("%s: the server could send %d bytes", what, n)
				}
			})
		}
	}
	all.Wait()
	if n := elsewhere.conns.Load(); n > 0 {
		t.Errorf("another host was connected to %d times", n)
	}
}

// TestHosts has probes that ask another host: only what is allowed is connected to.
func TestHosts(t *testing.T) {
	other := serving(t, func(_ *counted, c net.Conn) {
		head(c)
		io.WriteString(c, ok)
	})
	at := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.9"), other.at.Port()) // where nobody listens
	for _, tt := range []struct {
		host  string
		allow []string
		want  probe.Verdict
	}{
		{"127.0.0.1", nil, probe.Unknown}, {"localhost", nil, probe.Unknown}, {"127.0.0.1", []string{"127.0.0.2"}, probe.Unknown},
		{"127.0.0.1", []string{"127.0.0.1"}, probe.Success}, {"127.0.0.1", []string{"127.0.0.0/29"}, probe.Success}, {"127.0.0.9", nil, probe.Failure}, {"", nil, probe.Failure},
		{"localhost", []string{"localhost"}, probe.Success}, {"localhost", []string{"127.0.0.1"}, probe.Unknown}, {"127.0.0.1:1@x", []string{"localhost"}, probe.Unknown},
	} {
		for _, kind := range []probe.Kind{probe.HTTP, probe.TCP} {
			before := other.conns.Load()
			p := probe.Probe{Kind: kind, Path: "/", Host: tt.host, Timeout: 5 * time.Second}
			hosts, err := probe.ParsePolicy(tt.allow)
			if err != nil {
				t.Fatal(err)
			}
			r := p.Run(t.Context(), probe.Target{Address: at, Policy: hosts})
			if r.Verdict != tt.want {
				t.Errorf("%s of %q with %v: %s (%s)", kind, tt.host, tt.allow, r.Verdict, r.Message)
			}
			if tt.want == probe.Unknown && (other.conns.Load() != before || !strings.Contains(r.Message, "liveness.allowHosts")) {
				t.Errorf("%s of %q with %v: %d connections, %q", kind, tt.host, tt.allow, other.conns.Load()-before, r.Message)
			}
		}
	}
}

// TestAnswers has what a HealthCheckPolicy can ask and a readinessProbe cannot.
func TestAnswers(t *testing.T) {
	moved := serving(t, func(_ *counted, c net.Conn) {
		if strings.HasPrefix(head(c), "GET /there") {
			io.WriteString(c, ok)
			return
		}
		io.WriteString(c, "HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n")
	})
	body := serving(t, func(_ *counted, c net.Conn) {
		head(c)
		fmt.Fprintf(c, "HTTP/1.1 201 Created\r\nContent-Length: 2004\r\n\r\n%s and", strings.Repeat(".", 2000))
	})
	greets := serving(t, func(_ *counted, c net.Conn) {
		line, _ := bufio.NewReader(c).ReadString('\n')
		if line == "PING\r\n" {
			io.WriteString(c, "+PONG\r\n")
		}
		io.Copy(io.Discard, c)
	})
	speaks := serving(t, func(_ *counted, c net.Conn) { io.WriteString(c, "220 mail ready\r\n") })
	proxied := serving(t, func(_ *counted, c net.Conn) {
		r := bufio.NewReader(c)
		line, _ := r.ReadString('\n')
		from, to := c.RemoteAddr().(*net.TCPAddr), c.LocalAddr().(*net.TCPAddr)
		if line != fmt.Sprintf("PROXY TCP4 127.0.0.1 127.0.0.1 %d %d\r\n", from.Port, to.Port) {
			return
		}
		if _, err := http.ReadRequest(r); err == nil {
			io.WriteString(c, ok)
		}
	})
	for _, tt := range []struct {
		name string
		p    probe.Probe
		at   *counted
		want probe.Verdict
		says string
	}{
		{"a redirect that is followed", probe.Probe{Kind: probe.HTTP, Path: "/"}, moved, probe.Success, "status 200"},
		{"a redirect that is not followed", probe.Probe{Kind: probe.HTTP, Path: "/", Statuses: []probe.Statuses{{Min: 200, Max: 200}}}, moved, probe.Failure, "status 302"},
		{"a redirect that is success", probe.Probe{Kind: probe.HTTP, Path: "/", Statuses: []probe.Statuses{{Min: 200, Max: 204}, {Min: 302, Max: 302}}}, moved, probe.Success, "status 302"},
		{"a body", probe.Probe{Kind: probe.HTTP, Path: "/", Expect: "and"}, body, probe.Success, "status 201"},
		{"a body that comes too late", probe.Probe{Kind: probe.HTTP, Path: "/", Expect: "and", ExpectWithin: 1024}, body, probe.Failure, `status 201, and the answer has no "and"`},
		{"another body", probe.Probe{Kind: probe.HTTP, Path: "/", Expect: "nor"}, body, probe.Failure, `status 201, and the answer has no "nor"`},
		{"a greeting", probe.Probe{Kind: probe.TCP, Expect: "220 "}, speaks, probe.Success, "220"},
		{"another greeting", probe.Probe{Kind: probe.TCP, Expect: "250 "}, speaks, probe.Failure, "answered 220"},
		{"a longer greeting", probe.Probe{Kind: probe.TCP, Expect: "220 mail ready\r\n250"}, speaks, probe.Failure, "answered no more than 220 mail ready"},
		{"a question", probe.Probe{Kind: probe.TCP, Send: "PING\r\n", Expect: "+PONG"}, greets, probe.Success, "+PONG"},
		{"a question with any answer", probe.Probe{Kind: probe.TCP, Send: "PING\r\n"}, greets, probe.Success, ""},
		{"a question without answer", probe.Probe{Kind: probe.TCP, Send: "QUIT\r\n", Timeout: 200 * time.Millisecond}, greets, probe.Failure, "no answer within 200ms"},
		{"the PROXY protocol", probe.Probe{Kind: probe.HTTP, Path: "/", ProxyHeader: true}, proxied, probe.Success, "status 200"},
		{"no PROXY protocol", probe.Probe{Kind: probe.HTTP, Path: "/"}, proxied, probe.Failure, ""},
	} {
		r := run(t, tt.p, tt.at.at)
		if r.Verdict != tt.want || tt.says != "" && !strings.HasPrefix(r.Message, tt.says) {
			t.Errorf("%s: %s (%s), want %s (%s)", tt.name, r.Verdict, r.Message, tt.want, tt.says)
		}
	}
}

func TestPorts(t *testing.T) {
	s := serving(t, func(_ *counted, c net.Conn) { io.Copy(io.Discard, c) })
	to := probe.Target{Address: netip.AddrPortFrom(s.at.Addr(), 1), Ports: []probe.NamedPort{{Name: "", Number: 2}, {Name: "db", Number: s.at.Port()}}}
	for _, tt := range []struct {
		port probe.Port
		form probe.Form
		want probe.Verdict
	}{
		{probe.Port{}, 0, probe.Failure}, {probe.Port{Number: s.at.Port()}, 0, probe.Success}, {probe.Port{Name: "db"}, probe.Annotation, probe.Success},
		{probe.Port{Name: "other"}, probe.Annotation, probe.Unknown}, {probe.Port{Name: "db"}, probe.ReadinessProbe, probe.Unknown},
	} {
		p := &probe.Probe{Kind: probe.TCP, Port: tt.port, Timeout: 5 * time.Second, Origin: probe.Origin{Form: tt.form}}
		r := p.Run(t.Context(), to)
		if r.Verdict != tt.want {
			t.Errorf("port %s of a %s: %s (%s)", tt.port, tt.form, r.Verdict, r.Message)
		}
		if has := p.Address(to).IsValid(); has != (tt.want != probe.Unknown) {
			t.Errorf("port %s of a %s has address %s", tt.port, tt.form, p.Address(to))
		}
	}
	mapped := probe.Target{Address: netip.AddrPortFrom(netip.AddrFrom16(s.at.Addr().As16()), s.at.Port())}
	if r := (&probe.Probe{Kind: probe.HTTP, Path: "/", Timeout: 100 * time.Millisecond}).Run(t.Context(), mapped); !strings.HasPrefix(r.Message, "no answer") {
		t.Errorf("an address in IPv6 form: %+v", r)
	}
}

func TestExec(t *testing.T) {
	p := &probe.Probe{Kind: probe.Exec, Command: []string{"a", "b"}, Timeout: 100 * time.Millisecond, Origin: probe.Origin{Container: "c"}}
	for _, tt := range []struct {
		name   string
		run    func(context.Context, string, []string) (int, []byte, error)
		want   probe.Verdict
		wanted string
	}{
		{"no runtime", nil, probe.Unknown, "no runtime is there to run the command"},
		{"0", func(context.Context, string, []string) (int, []byte, error) { return 0, []byte("fine\n"), nil }, probe.Success, "fine"},
		{"3", func(_ context.Context, c string, words []string) (int, []byte, error) {
			return 3, []byte(c + words[1]), nil
		}, probe.Failure, "the command ended with 3: cb"},
		{"an error", func(context.Context, string, []string) (int, []byte, error) {
			return 0, nil, errors.New("no such container")
		}, probe.Unknown, "no such container"},
		{"no end", func(ctx context.Context, _ string, _ []string) (int, []byte, error) {
			<-ctx.Done()
			return 0, nil, ctx.Err()
		}, probe.Failure, "the command did not end within 100ms"},
		{"much output", func(context.Context, string, []string) (int, []byte, error) {
			return 0, []byte(strings.Repeat("x", 1<<20)), nil
		}, probe.Success, strings.Repeat("x", 256) + " ..."},
	} {
		r := p.Run(t.Context(), probe.Target{Exec: tt.run})
		if r.Verdict != tt.want || r.Message != tt.wanted {
			t.Errorf("%s: %s (%s)", tt.name, r.Verdict, r.Message)
		}
	}
}

// TestMark has the sockets of all kinds marked, and closed by a reset. A process that may set no mark asks without.
func TestMark(t *testing.T) {
	netlab.RequireRoot(t, "set a mark")
	ended := make(chan error, 10)
	s := serving(t, func(_ *counted, c net.Conn) {
		head(c)
		io.WriteString(c, ok)
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	for _, p := range []probe.Probe{{Kind: probe.HTTP, Path: "/"}, {Kind: probe.TCP, Send: "\r\n\r\n"}} {
		p.Timeout = 5 * time.Second
		if r := p.Run(t.Context(), probe.Target{Address: s.at, Mark: 0x80}); r.Verdict != probe.Success {
			t.Errorf("%s: %+v", p.Kind, r)
		}
		if err := <-ended; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: the connection ended with %v", p.Kind, err)
		}
	}
}

// TestConnectionsAreNotShared runs probes over HTTP/2 at once: each has a connection of its own, with its own mark, and leaves
// nothing behind.
func TestConnectionsAreNotShared(t *testing.T) {
	for _, secure := range []bool{false, true} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		var conns, open atomic.Int64
		srv := &http.Server{Protocols: new(http.Protocols), ErrorLog: quiet, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor != 2 {
				w.WriteHeader(http.StatusTeapot)
			}
		}), ConnState: func(_ net.Conn, s http.ConnState) {
			switch s {
			case http.StateNew:
				conns.Add(1)
				open.Add(1)
			case http.StateClosed:
				open.Add(-1)
			}
		}}
		srv.Protocols.SetHTTP2(true)
		srv.Protocols.SetUnencryptedHTTP2(true)
		if secure {
			srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate(t, time.Hour)}}
			go srv.ServeTLS(l, "", "")
		} else {
			go srv.Serve(l)
		}
		p := &probe.Probe{Kind: probe.HTTP, Path: "/", TLS: secure, HTTP2: true, Timeout: 10 * time.Second}
		each(t, p, probe.Target{Address: l.Addr().(*net.TCPAddr).AddrPort()}, 50)
		for end := time.Now().Add(10 * time.Second); open.Load() > 0 && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
		if n := conns.Load(); n != 50 || open.Load() != 0 {
			t.Errorf("50 probes (TLS: %v) have %d connections, of which %d are open", secure, n, open.Load())
		}
		srv.Close()
	}
}
