package probe_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir/spec"
	"weir/spec/apisource/apitest"
	"weir/spec/manifest"
	"weir/spec/probe"
)

// question and answer are those of probepeer.
type question struct {
	Probe     *corev1.Probe    `json:"probe,omitempty"`
	Container corev1.Container `json:"container"`
	PodIP     string           `json:"podIP,omitempty"`
	Pod       *corev1.Pod      `json:"pod,omitempty"`
}

type answer struct {
	Verdict string      `json:"verdict"`
	Message string      `json:"message"`
	Refused []string    `json:"refused"`
	Pod     *corev1.Pod `json:"pod"`
}

// peerCase is a server and what to ask it.
type peerCase struct {
	name  string
	probe corev1.Probe
	at    string // the server's address
	// saw returns what the server has been asked, if it tells.
	saw func() string
}

// peerServers are the servers of one test, at an address of the loopback.
type peerServers struct {
	*testing.T
	ip    string
	cases []peerCase
}

func (s *peerServers) listen() net.Listener {
	s.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(s.ip, "0"))
	if err != nil {
		s.Skip("there is no ", s.ip)
	}
	s.Cleanup(func() { l.Close() })
	return l
}

// serve calls handle with each connection, after the head of its request if it has one.
func (s *peerServers) serve(handle func(net.Conn, string)) string {
	l := s.listen()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				handle(c, head(c))
			}()
		}
	}()
	return l.Addr().String()
}

// head reads the head of a request.
func head(c net.Conn) string {
	var all []byte
	one := make([]byte, 1)
	for !bytes.HasSuffix(all, []byte("\r\n\r\n")) {
		if _, err := c.Read(one); err != nil {
			break
		}
		all = append(all, one[0])
	}
	return string(all)
}

func (s *peerServers) add(name, at string, p corev1.Probe) {
	p.TimeoutSeconds = 20 // so that no verdict depends on how busy the machine is
	if waits.MatchString(name) {
		p.TimeoutSeconds = 1
	}
	s.cases = append(s.cases, peerCase{name: name, probe: p, at: at})
}

// waits finds the names of cases that end with their timeout.
var waits = regexp.MustCompile(`never comes|header that never ends|drips|silent|to no TLS|an old cipher|a server without it|an alert|gRPC: (nobody|TLS to|no TLS to|a server of HTTP)`)

func httpGet(at, path string) corev1.Probe {
	_, port, _ := net.SplitHostPort(at)
	return corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.Parse(port), Scheme: corev1.URISchemeHTTP}}}
}

func overTLS(p corev1.Probe) corev1.Probe {
	p.HTTPGet.Scheme = corev1.URISchemeHTTPS
	return p
}

// says adds a server that answers HTTP requests with the same bytes.
func (s *peerServers) says(name, text string) {
	at := s.serve(func(c net.Conn, _ string) { io.WriteString(c, text) })
	s.add(name, at, httpGet(at, "/"))
}

// then adds a server that answers and then does something else before it closes.
func (s *peerServers) then(name, text string, do func(net.Conn)) {
	at := s.serve(func(c net.Conn, _ string) {
		io.WriteString(c, text)
		do(c)
	})
	s.add(name, at, httpGet(at, "/"))
}

const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func (s *peerServers) statuses() {
	at := s.serve(func(c net.Conn, head string) {
		var code int
		fmt.Sscanf(head, "GET /%d", &code)
		if code == 204 || code == 304 {
			fmt.Fprintf(c, "HTTP/1.1 %d Text\r\n\r\n", code)
			return
		}
		fmt.Fprintf(c, "HTTP/1.1 %d Text\r\nContent-Length: 2\r\n\r\nok", code)
	})
	for code := range 1100 {
		if code >= 100 && code < 600 || code%100 == 0 {
			s.add(fmt.Sprint("status ", code), at, httpGet(at, fmt.Sprint("/", code)))
		}
	}
	for _, code := range []string{"20", "2000", "abc", "+20", "-20", "200.0", "0200", ""} {
		s.says("status "+code, "HTTP/1.1 "+code+" OK\r\nContent-Length: 0\r\n\r\n")
	}
}

func (s *peerServers) redirects() {
	closed := s.listen()
	closed.Close()
	secure := s.secure(&tls.Config{Certificates: []tls.Certificate{certificate(s.T, time.Hour)}})
	other := s.serve(func(c net.Conn, _ string) { io.WriteString(c, ok) })
	failing := s.serve(func(c net.Conn, _ string) { io.WriteString(c, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n") })
	locations := map[string]string{
		"itself": "/itself", "nothing": "", "good": "/ok", "relative": "ok", "bad": "/500", "other port": "http://" + other + "/", "failing port": "http://" + failing + "/",
		"closed port": "http://" + closed.Addr().String() + "/", "TLS": "https://" + secure + "/", "no TLS": "https://" + other + "/", "name": "http://example.invalid/", "metadata": "http://169.254.169.254/latest/meta-data/",
		"localhost": "http://localhost:" + port(other) + "/", "no scheme": "//" + other + "/ok", "other scheme": "ftp://" + other + "/", "file": "file:///etc/passwd", "no URL": "http://%zz/", "script": "javascript:alert(1)",
		"user": "http://a:b@" + other + "/", "no port": "http://" + bracketed(s.ip) + "/", "bad port": "http://" + bracketed(s.ip) + ":99999/", "upper": "HTTP://" + strings.ToUpper(other) + "/", "fragment": "/ok#x", "spaces": "/ok ok", "umlaut": "/ök",
		"zone": "http://[fe80::1%25lo]/", "mapped": "http://[::ffff:127.0.0.1]:" + port(other) + "/", "decimal": "http://2130706433:" + port(other) + "/", "trailing dot": "http://" + bracketed(s.ip) + ".:" + port(other) + "/",
	}
	hops := func(n int) string { return fmt.Sprint("/hop", n) }
	at := s.serve(func(c net.Conn, head string) {
		var code, n int
		var key string
		path := strings.TrimPrefix(strings.SplitN(head+" ", " ", 3)[1], "/")
		switch {
		case strings.HasPrefix(path, "500"):
			io.WriteString(c, "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")
		case strings.HasPrefix(path, "hop0"), strings.HasPrefix(path, "ok"), strings.HasPrefix(path, "%C3%B6k"):
			io.WriteString(c, ok)
		case strings.HasPrefix(path, "hop"):
			fmt.Sscanf(path, "hop%d", &n)
			fmt.Fprintf(c, "HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n", hops(n-1))
		case path == "itself":
			io.WriteString(c, "HTTP/1.1 302 Found\r\nLocation: /itself\r\nContent-Length: 0\r\n\r\n")
		default:
			fmt.Sscanf(path, "%d", &code)
			key = strings.ReplaceAll(strings.TrimPrefix(path, fmt.Sprint(code, "-")), "_", " ")
			location := "Location: " + locations[key] + "\r\n"
			if key == "missing" {
				location = ""
			}
			fmt.Fprintf(c, "HTTP/1.1 %d Redirect\r\n%sContent-Length: 0\r\n\r\n", code, location)
		}
	})
	for _, code := range []int{300, 301, 302, 303, 304, 305, 306, 307, 308, 201} {
		for key := range locations {
			if code == 302 || key == "good" || key == "bad" || key == "metadata" || key == "nothing" {
				s.add(fmt.Sprintf("redirect %d to %s", code, key), at, httpGet(at, fmt.Sprintf("/%d-%s", code, strings.ReplaceAll(key, " ", "_"))))
			}
		}
		s.add(fmt.Sprintf("redirect %d without a location", code), at, httpGet(at, fmt.Sprintf("/%d-missing", code)))
	}
	for _, n := range []int{1, 8, 9, 10, 11, 30} {
		s.add(fmt.Sprint(n, " redirects"), at, httpGet(at, hops(n)))
	}
	p := httpGet(at, hops(2))
	p.HTTPGet.HTTPHeaders = []corev1.HTTPHeader{{Name: "Host", Value: "example.com"}}
	s.add("redirects with a Host header", at, p)
}

func port(at string) string {
	_, p, _ := net.SplitHostPort(at)
	return p
}

func bracketed(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

func (s *peerServers) bodies() {
	const many = "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
	for _, n := range []int{0, 1, 10<<10 - 1, 10 << 10, 10<<10 + 1, 1 << 20} {
		s.says(fmt.Sprint("a body of ", n), fmt.Sprintf(many, n)+strings.Repeat("x", n))
		s.says(fmt.Sprint("a body of ", n, " until the end"), "HTTP/1.1 200 OK\r\n\r\n"+strings.Repeat("x", n))
		s.says(fmt.Sprint("a failure with a body of ", n), strings.Replace(fmt.Sprintf(many, n), "200", "500", 1)+strings.Repeat("x", n))
	}
	s.says("a body that is cut", fmt.Sprintf(many, 100)+"short")
	s.says("a long body that is cut after what is read", fmt.Sprintf(many, 20<<10)+strings.Repeat("x", 11<<10))
	s.says("a failure that is cut", strings.Replace(fmt.Sprintf(many, 100), "200", "500", 1)+"short")
	s.says("chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
	s.says("chunks that are cut", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
	s.says("chunks that are none", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
	s.says("a wrong gzip", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope")
	s.then("a body that never ends", "HTTP/1.1 200 OK\r\n\r\n", func(c net.Conn) {
		block := bytes.Repeat([]byte("x"), 32<<10)
		for range 32 << 10 {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	})
	s.then("a body that never comes", fmt.Sprintf(many, 2), hang)
	s.then("a body that drips", fmt.Sprintf(many, 1<<20), func(c net.Conn) {
		for range 200 {
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	s.then("a body that is reset", fmt.Sprintf(many, 100)+"x", func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) })
	s.then("a failure whose body never comes", strings.Replace(fmt.Sprintf(many, 2), "200", "503", 1), hang)
}

// hang waits until the other side is gone.
func hang(c net.Conn) { io.Copy(io.Discard, c) }

func (s *peerServers) garbage() {
	s.says("nothing", "")
	s.says("one byte", "H")
	s.says("an SSH server", "SSH-2.0-OpenSSH_9.2p1\r\n")
	s.says("HTTP/0.9", "<html>ok</html>")
	s.says("HTTP/1.0", "HTTP/1.0 200 OK\r\n\r\nok")
	s.says("HTTP/2.0", "HTTP/2.0 200 OK\r\n\r\nok")
	s.says("HTTP/3", "HTTP/3 200 OK\r\n\r\nok")
	s.says("an HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	s.says("no reason", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n")
	s.says("only line feeds", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok")
	s.says("a header that is cut", "HTTP/1.1 200 OK\r\nContent-Le")
	s.says("a header without a colon", "HTTP/1.1 200 OK\r\nNonsense\r\n\r\n")
	s.says("a header with a blank", "HTTP/1.1 200 OK\r\nA B: c\r\nContent-Length: 0\r\n\r\n")
	s.says("a header with a zero", "HTTP/1.1 200 OK\r\nA: b\x00c\r\nContent-Length: 0\r\n\r\n")
	s.says("a folded header", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n")
	s.says("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")
	s.says("a length that is none", "HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok")
	s.says("two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok")
	s.says("a length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")
	s.says("another encoding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok")
	s.says("100 before the answer", "HTTP/1.1 100 Continue\r\n\r\n"+ok)
	s.says("103 before the answer", "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"+ok)
	s.says("five times 100", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 5)+ok)
	s.says("six times 100", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 6)+ok)
	s.says("many headers", "HTTP/1.1 200 OK\r\n"+strings.Repeat("A: b\r\n", 1000)+"Content-Length: 0\r\n\r\n")
	s.says("a long header", "HTTP/1.1 200 OK\r\nA: "+strings.Repeat("b", 100_000)+"\r\nContent-Length: 0\r\n\r\n")
	s.says("two answers", ok+ok)
	s.says("a trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n0\r\nA: b\r\n\r\n")
	s.then("an answer that never comes", "", hang)
	s.then("a header that never ends", "HTTP/1.1 200 OK\r\nA: ", hang)
	s.then("a header that drips", "HTTP/1.1 200 OK\r\n", func(c net.Conn) {
		for range 200 {
			if _, err := io.WriteString(c, "A: b\r\n"); err != nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	slow := s.serve(func(c net.Conn, _ string) {
		time.Sleep(100 * time.Millisecond)
		io.WriteString(c, ok)
	})
	s.add("an answer that is slow and in time", slow, httpGet(slow, "/"))
	s.then("a reset", "", func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) })
	closed := s.listen()
	closed.Close()
	s.add("nobody listens", closed.Addr().String(), httpGet(closed.Addr().String(), "/"))
	rnd := make([]byte, 4096)
	rand.Read(rnd)
	s.says("random bytes", string(rnd))
}

// requests have the server say what it was asked.
func (s *peerServers) requests() {
	var mu sync.Mutex
	seen := map[string][]string{}
	ask := func(name string, change func(*corev1.HTTPGetAction)) {
		at := s.serve(func(c net.Conn, head string) {
			mu.Lock()
			seen[name] = append(seen[name], head)
			mu.Unlock()
			io.WriteString(c, ok)
		})
		p := httpGet(at, "/")
		change(p.HTTPGet)
		s.add(name, at, p)
		s.cases[len(s.cases)-1].saw = func() string {
			mu.Lock()
			defer mu.Unlock()
			text := strings.Join(seen[name], "\n")
			delete(seen, name)
			return text
		}
	}
	for _, path := range []string{"/", "", "x", "/a b", "/%zz", "/a?b=c&d", "?q", "//evil/x", "http://evil/x", "/a#b", "/ä", "/%2f", "/a/../b", "mailto:x", "/\x01", "*", ":80", "/a:b", "user@host/x", "http://u:p@evil/", "/a%00", "%", "/ ", "?", "#", "./x"} {
		ask(fmt.Sprintf("path %q", path), func(g *corev1.HTTPGetAction) { g.Path = path })
	}
	for i, headers := range [][]corev1.HTTPHeader{
		{{Name: "Host", Value: "example.com"}}, {{Name: "host", Value: "a.b:80"}}, {{Name: "Host", Value: ""}}, {{Name: "Host", Value: "a b"}}, {{Name: "X-A", Value: "1"}, {Name: "x-a", Value: "2"}},
		{{Name: "User-Agent", Value: "me"}}, {{Name: "User-Agent", Value: ""}}, {{Name: "Accept", Value: ""}}, {{Name: "Accept", Value: "text/plain"}}, {{Name: "Accept-Encoding", Value: "gzip"}}, {{Name: "Connection", Value: "keep-alive"}},
		{{Name: "Content-Length", Value: "5"}}, {{Name: "Transfer-Encoding", Value: "chunked"}}, {{Name: "X", Value: "a\r\nb: c"}}, {{Name: "X", Value: "\x00"}}, {{Name: "Authorization", Value: "Bearer x"}}, {{Name: "X", Value: "ä"}}, {{Name: "Cookie", Value: "a=b"}}, {{Name: "Expect", Value: "100-continue"}}, {{Name: "Upgrade", Value: "websocket"}},
	} {
		ask(fmt.Sprint("headers ", i), func(g *corev1.HTTPGetAction) { g.HTTPHeaders = headers })
	}
}

// secure serves HTTP over TLS.
func (s *peerServers) secure(c *tls.Config) string {
	l := s.listen()
	srv := &http.Server{TLSConfig: c, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }), ErrorLog: quiet}
	go srv.ServeTLS(l, "", "")
	s.Cleanup(func() { srv.Close() })
	return l.Addr().String()
}

func (s *peerServers) ciphers() {
	good := certificate(s.T, time.Hour)
	old := certificate(s.T, -time.Hour)
	for name, c := range map[string]*tls.Config{
		"a certificate nobody signed":      {Certificates: []tls.Certificate{good}},
		"a certificate that has expired":   {Certificates: []tls.Certificate{old}},
		"TLS 1.3":                          {Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS13},
		"TLS 1.2":                          {Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12},
		"TLS 1.1":                          {Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"TLS 1.0":                          {Certificates: []tls.Certificate{good}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10},
		"a client certificate":             {Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAnyClientCert},
		"a client certificate with TLS1.2": {Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12},
		"HTTP/1.1 only":                    {Certificates: []tls.Certificate{good}, NextProtos: []string{"http/1.1"}},
		"HTTP/2 only":                      {Certificates: []tls.Certificate{good}, NextProtos: []string{"h2"}},
		"another protocol only":            {Certificates: []tls.Certificate{good}, NextProtos: []string{"smtp"}},
		"a name that must be asked for":    {GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) { return named(h, &good) }},
		"an old cipher":                    {Certificates: []tls.Certificate{good}, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_RC4_128_SHA}},
	} {
		at := s.secure(c)
		s.add("TLS: "+name, at, overTLS(httpGet(at, "/")))
		s.add("no TLS: "+name, at, httpGet(at, "/"))
	}
	plain := s.serve(func(c net.Conn, _ string) { io.WriteString(c, ok) })
	s.add("TLS: a server without it", plain, overTLS(httpGet(plain, "/")))
	silent := s.serve(func(c net.Conn, _ string) { hang(c) })
	s.add("TLS: a server that is silent", silent, overTLS(httpGet(silent, "/")))
	alert := s.serve(func(c net.Conn, _ string) { c.Write([]byte{21, 3, 3, 0, 2, 2, 40}) })
	s.add("TLS: an alert", alert, overTLS(httpGet(alert, "/")))
	for name, http1 := range map[string]bool{"a server of HTTP/2 without TLS": false, "a server of both without TLS": true} {
		l := s.listen()
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }), Protocols: new(http.Protocols), ErrorLog: quiet}
		srv.Protocols.SetUnencryptedHTTP2(true)
		srv.Protocols.SetHTTP1(http1)
		go srv.Serve(l)
		s.Cleanup(func() { srv.Close() })
		p := httpGet(l.Addr().String(), "/")
		s.add(name+" over HTTP/1.1", l.Addr().String(), p)
		over2 := httpGet(l.Addr().String(), "/")
		over2.HTTPGet.Protocol = new(corev1.HTTPProtocolHTTP2)
		s.add(name+" over HTTP/2", l.Addr().String(), over2)
	}
	over2 := httpGet(plain, "/")
	over2.HTTPGet.Protocol = new(corev1.HTTPProtocolHTTP2)
	s.add("a server of HTTP/1.1 over HTTP/2", plain, over2)
}

func named(h *tls.ClientHelloInfo, c *tls.Certificate) (*tls.Certificate, error) {
	if h.ServerName == "" {
		return nil, fmt.Errorf("no name")
	}
	return c, nil
}

func (s *peerServers) sockets() {
	socket := func(at string) corev1.Probe {
		return corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.Parse(port(at))}}}
	}
	open := s.serve(func(c net.Conn, _ string) { hang(c) })
	s.add("TCP: open", open, socket(open))
	idle := s.listen().Addr().String()
	s.add("TCP: nobody accepts", idle, socket(idle))
	resets := s.serve(func(c net.Conn, _ string) { c.(*net.TCPConn).SetLinger(0) })
	s.add("TCP: reset", resets, socket(resets))
	closed := s.listen()
	closed.Close()
	s.add("TCP: closed", closed.Addr().String(), socket(closed.Addr().String()))
	s.add("TCP: a port by its name", open, corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("main")}}})
	s.add("TCP: a name that no port has", open, corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("other")}}})
	s.add("HTTP: a name that no port has", open, corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Scheme: "HTTP", Port: intstr.FromString("other")}}})
}

// healthFunc is a health service that answers as it likes.
type healthFunc func(context.Context) (*grpc_health_v1.HealthCheckResponse, error)

type healthServer struct {
	grpc_health_v1.UnimplementedHealthServer
	check healthFunc
}

func (h healthServer) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return h.check(ctx)
}

func (s *peerServers) grpc() {
	start := func(register func(*grpc.Server), options ...grpc.ServerOption) string {
		l := s.listen()
		srv := grpc.NewServer(options...)
		register(srv)
		go srv.Serve(l)
		s.Cleanup(srv.Stop)
		return l.Addr().String()
	}
	ask := func(name, at, service string, overTLS bool) {
		_, p, _ := net.SplitHostPort(at)
		mode := corev1.GRPCProbeModePlaintext
		if overTLS {
			mode = corev1.GRPCProbeModeTLS
		}
		s.add("gRPC: "+name, at, corev1.Probe{ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(intstr.Parse(p).IntVal), Service: &service, Mode: &mode}}})
	}
	h := health.NewServer()
	for status := range grpc_health_v1.HealthCheckResponse_ServingStatus_name {
		h.SetServingStatus(fmt.Sprint("s", status), grpc_health_v1.HealthCheckResponse_ServingStatus(status))
	}
	register := func(srv *grpc.Server) { grpc_health_v1.RegisterHealthServer(srv, h) }
	at := start(register)
	for _, service := range []string{"", "s0", "s1", "s2", "s3", "unknown", "a b", "ä"} {
		ask("service "+service, at, service, false)
	}
	ask("TLS to a server without it", at, "", true)
	good := certificate(s.T, time.Hour)
	secure := start(register, grpc.Creds(credentials.NewServerTLSFromCert(&good)))
	ask("TLS", secure, "", true)
	ask("no TLS to a server with it", secure, "", false)
	ask("no health service", start(func(*grpc.Server) {}), "", false)
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		at := start(func(srv *grpc.Server) {
			grpc_health_v1.RegisterHealthServer(srv, healthServer{check: func(context.Context) (*grpc_health_v1.HealthCheckResponse, error) {
				return nil, status.Error(code, "no")
			}})
		})
		ask(code.String(), at, "", false)
	}
	ask("an answer that never comes", start(func(srv *grpc.Server) {
		grpc_health_v1.RegisterHealthServer(srv, healthServer{check: func(ctx context.Context) (*grpc_health_v1.HealthCheckResponse, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
	}), "", false)
	ask("a status of the future", start(func(srv *grpc.Server) {
		grpc_health_v1.RegisterHealthServer(srv, healthServer{check: func(context.Context) (*grpc_health_v1.HealthCheckResponse, error) {
			return &grpc_health_v1.HealthCheckResponse{Status: 17}, nil
		}})
	}), "", false)
	ask("a server of HTTP/1.1", s.serve(func(c net.Conn, _ string) { io.WriteString(c, ok) }), "", false)
	ask("a server that is silent", s.serve(func(c net.Conn, _ string) { hang(c) }), "", false)
	closed := s.listen()
	closed.Close()
	ask("nobody listens", closed.Addr().String(), "", false)
}

// TestVerdictsPeer asks servers of all kinds, and the kubelet's own code asks them too: the verdicts are the same, and so are the
// requests but for who asks.
func TestVerdictsPeer(t *testing.T) {
	apitest.Binary(t, "probepeer")
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			t.Parallel()
			s := &peerServers{T: t, ip: ip}
			s.statuses()
			s.redirects()
			s.bodies()
			s.garbage()
			s.requests()
			s.ciphers()
			s.sockets()
			s.grpc()
			results := make([]probe.Result, len(s.cases))
			saw := make([]string, len(s.cases))
			for _, waiting := range []bool{false, true} {
				var all sync.WaitGroup
				few := make(chan bool, 32)
				for i, c := range s.cases {
					if waits.MatchString(c.name) != waiting {
						continue
					}
					few <- true
					all.Go(func() {
						defer func() { <-few }()
						results[i] = written(t, c).Run(t.Context(), probe.Target{Address: netip.MustParseAddrPort(c.at)})
					})
				}
				all.Wait()
			}
			var questions []question
			for i, c := range s.cases {
				if c.saw != nil {
					saw[i] = c.saw()
				}
				questions = append(questions, question{Probe: &c.probe, PodIP: ip, Container: containerAt(c.at)})
			}
			counts := map[string]int{}
			for i, a := range apitest.Ask[question, answer](t, "probepeer", questions) {
				c, r := s.cases[i], results[i]
				counts[a.Verdict]++
				if r.Verdict.String() != a.Verdict {
					t.Errorf("%s: got %s (%s), and the kubelet says %s (%s)", c.name, r.Verdict, r.Message, a.Verdict, a.Message)
				}
				if limit := time.Duration(c.probe.TimeoutSeconds)*time.Second + 10*time.Second; r.Took > limit {
					t.Errorf("%s: took %s", c.name, r.Took)
				}
				if c.saw == nil {
					continue
				}
				want := strings.Replace(c.saw(), "User-Agent: kube-probe/.\r\n", "User-Agent: kube-probe/1.37 weir\r\n", 1)
				if saw[i] != want {
					t.Errorf("%s: the request is\n%q, and the kubelet's\n%q", c.name, saw[i], want)
				}
			}
			if len(s.cases) < 700 || counts["success"] < 100 || counts["failure"] < 100 || counts["unknown"] < 5 {
				t.Errorf("%d cases, %v", len(s.cases), counts)
			}
			t.Logf("%d cases: %v", len(s.cases), counts)
		})
	}
}

func containerAt(at string) corev1.Container {
	p := netip.MustParseAddrPort(at)
	return corev1.Container{Name: "c", Ports: []corev1.ContainerPort{{Name: "main", ContainerPort: int32(p.Port())}}}
}

// written returns the Probe as it is read in the template of a pod.
func written(t *testing.T, c peerCase) *probe.Probe {
	pod := podOf(c.probe)
	pod.Spec.Containers[0].Ports = containerAt(c.at).Ports
	snap, err := read(t, pod)
	if err != nil {
		t.Errorf("%s: %v", c.name, err)
		return &probe.Probe{}
	}
	for tpl := range snap.Templates.All() {
		return tpl.Probes[0]
	}
	t.Errorf("%s: there is no template", c.name)
	return &probe.Probe{}
}

func podOf(p corev1.Probe) *corev1.Pod {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i", ReadinessProbe: &p}}}}
	pod.APIVersion, pod.Kind = "v1", "Pod"
	pod.Name, pod.Namespace, pod.Labels = "web", "default", map[string]string{"app": "web"}
	return pod
}

func read(t *testing.T, pod *corev1.Pod) (*spec.Snapshot, error) {
	data, err := json.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	set := manifest.NewSet(manifest.Options{Overrides: spec.Overrides{}.AllowingEmpty()})
	snap, _, err := set.Update(t.Context(), spec.Revision{}, []manifest.File{{Path: "pod.json", Data: data}})
	return snap, err
}

// certificate returns one that is valid for so long from now on.
func certificate(t *testing.T, valid time.Duration) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(valid), DNSNames: []string{"elsewhere.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestReadinessProbePeer has an API server's own code validate and complete random probes: what it refuses is refused at the same
// fields, and the defaults are the same.
func TestReadinessProbePeer(t *testing.T) {
	apitest.Binary(t, "probepeer")
	pods := randomPods(t, 2000)
	questions := make([]question, len(pods))
	for i, pod := range pods {
		questions[i] = question{Pod: pod}
	}
	refused := 0
	for i, a := range apitest.Ask[question, answer](t, "probepeer", questions) {
		snap, err := read(t, pods[i])
		got := fieldsOf(err)
		if want := sorted(a.Refused); !slices.Equal(got, want) {
			t.Errorf("%s\nis refused for %q, and by the API server for %q: %v", describe(pods[i]), got, want, err)
			continue
		}
		if err != nil {
			refused++
			continue
		}
		again, err := read(t, a.Pod)
		if err != nil {
			t.Errorf("%s with defaults: %v", describe(a.Pod), err)
			continue
		}
		for tpl := range snap.Templates.All() {
			other := again.Templates.Get(templateName)
			if !tpl.Probes[0].Equal(other.Probes[0]) {
				t.Errorf("%s\ngot  %+v\nwant %+v", describe(pods[i]), tpl.Probes[0], other.Probes[0])
			}
		}
	}
	t.Logf("%d of %d are refused", refused, len(pods))
	if refused < len(pods)/10 || refused > len(pods)*9/10 {
		t.Errorf("%d of %d are refused", refused, len(pods))
	}
}
