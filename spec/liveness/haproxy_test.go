package liveness

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"weir/backends/dataplane"
	"weir/backends/netlab"
	"weir/spec"
	"weir/spec/join"
	"weir/spec/join/jointest"
	"weir/spec/probe"
)

// twinServer is asked by weir and by HAProxy.
type twinServer struct {
	mu     sync.Mutex
	broken bool
	since  time.Time              // when it broke or healed last
	asked  map[string][]time.Time // since then, by asker
	faults []string               // which changed its mind before it had as many answers as it needs, or not then
	up     map[string]func() bool
}

const twinThreshold, twinInterval = 2, 200 * time.Millisecond

func (s *twinServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	who := strings.TrimPrefix(r.URL.Path, "/")
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.asked[who]); s.up[who] != nil && n > 0 {
		if changed := s.up[who]() != s.broken; changed != (n >= twinThreshold) {
			s.faults = append(s.faults, fmt.Sprintf("%s after %d answers: up=%v", who, n, changed != s.broken))
		}
	}
	s.asked[who] = append(s.asked[who], time.Now())
	if s.broken {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

func (s *twinServer) turn(broken bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken, s.since, s.asked = broken, time.Now(), map[string][]time.Time{}
}

// awaitAnswers waits until each has had as many answers as it needs.
func (s *twinServer) awaitAnswers(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		enough := len(s.asked["weir"]) >= twinThreshold && len(s.asked["haproxy"]) >= twinThreshold
		s.mu.Unlock()
		if enough {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the server is not asked by both")
		}
	}
}

// between returns how often the first to have as many answers as it needs was asked until the other had them too, beyond those. It
// reports false if the machine was too busy for either to ask in time.
func (s *twinServer) between() (more int, inTime bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var second time.Time
	for _, asked := range s.asked {
		last := s.since
		for _, at := range asked[:twinThreshold] {
			if at.Sub(last) > twinInterval*5/4 {
				return 0, false
			}
			last = at
		}
		if last.After(second) {
			second = last
		}
	}
	for _, asked := range s.asked {
		n := 0
		for n < len(asked) && !asked[n].After(second) {
			n++
		}
		more = max(more, n-twinThreshold)
	}
	return more, true
}

// TestTwinOfHAProxy has HAProxy ask the same server with the same interval, fall and rise. Both change their minds in both
// directions, with the answer that the thresholds say, and within one interval of each other: whoever is first asks at most once
// more until the other has that answer too.
func TestTwinOfHAProxy(t *testing.T) {
	netlab.RequireProgram(t, "haproxy")
	server := &twinServer{asked: map[string][]time.Time{}}
	web := httptest.NewServer(server)
	defer web.Close()
	address := web.Listener.Addr().(*net.TCPAddr).AddrPort()

	dir := t.TempDir()
	socket, config := filepath.Join(dir, "s"), filepath.Join(dir, "haproxy.cfg")
	if err := os.WriteFile(config, fmt.Appendf(nil, `global
  stats socket %s
defaults
  mode http
  timeout connect 1s
  timeout client 1s
  timeout server 1s
backend twin
  option httpchk GET /haproxy
  server one %s check inter %d fall %d rise %d
`, socket, address, twinInterval.Milliseconds(), twinThreshold, twinThreshold), 0o600); err != nil {
		t.Fatal(err)
	}
	haproxy := exec.CommandContext(t.Context(), "haproxy", "-db", "-f", config)
	var said bytes.Buffer
	haproxy.Stderr = &said
	if err := haproxy.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = haproxy.Process.Kill()
		if _ = haproxy.Wait(); t.Failed() {
			t.Logf("HAProxy said:\n%s", said.String())
		}
	}()

	p := &probe.Probe{Kind: probe.HTTP, Path: "/weir", Period: twinInterval, Timeout: time.Second, SuccessThreshold: twinThreshold, FailureThreshold: twinThreshold}
	p.Port.Number = address.Port()
	files, l := jointest.NewSource(), New(Options{})
	files.Snapshot.Weir.StateDir = dir
	name := dataplane.ServiceName{Namespace: "default", Name: "web"}
	files.Declare(name, asked(p, "0", address.Addr().String()))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = join.New(files).Filtered(l).Watch(ctx, func(spec.Update) {})
	}()
	defer func() { cancel(); <-ended }()
	<-files.Started
	files.Say(spec.Delta{All: true})

	up := map[string]func() bool{
		"weir":    func() bool { st, ok := l.State(name); return ok && st.Healthy == 1 },
		"haproxy": func() bool { return strings.HasPrefix(haproxyStatus(socket), "UP") },
	}
	await := func(want bool) {
		t.Helper()
		start := time.Now()
		for who, is := range up {
			for is() != want {
				if time.Since(start) > time.Minute {
					t.Fatalf("%s does not say that the server is up=%v", who, want)
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
	await(true)
	server.awaitAnswers(t) // at its start HAProxy takes one success for all that it wants
	server.mu.Lock()
	server.up = up
	server.mu.Unlock()
	const each = 3
	var turns [2]int // those in time, down and up
	for range 50 {
		for i, broken := range []bool{true, false} {
			server.turn(broken)
			await(!broken)
			switch more, inTime := server.between(); {
			case more > 1:
				t.Errorf("broken=%v: one asks %d times more than it needs until the other knows", broken, more)
			case inTime:
				turns[i]++
			}
		}
		if min(turns[0], turns[1]) >= each {
			break
		}
	}
	if min(turns[0], turns[1]) < each {
		t.Errorf("of 50 turns in each direction, the server was asked in time in %d", turns)
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	if len(server.faults) > 0 {
		t.Errorf("not with the second answer: %q", server.faults)
	}
}

// haproxyStatus returns the status of HAProxy's only server: UP, DOWN, or either with how many checks it is away from the other.
func haproxyStatus(socket string) string {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return ""
	}
	defer conn.Close()
	_, _ = io.WriteString(conn, "show stat\n")
	r := csv.NewReader(conn)
	r.FieldsPerRecord = -1
	rows, err := r.ReadAll()
	if err != nil || len(rows) < 2 {
		return ""
	}
	for _, row := range rows[1:] {
		if len(row) > 17 && row[1] == "one" {
			return row[17]
		}
	}
	return ""
}
