package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"weir/backends/netlab"
	"weir/cmd/weir/internal/handover"
)

// carryingModes are those in which weir carries the connections, each with an address at which the Services of carried are
// served.
var carryingModes = map[string]struct{ web, stream, dns string }{
	"userspace":          {"10.96.0.10:80", "10.96.0.10:81", "10.96.0.10:53"},
	"userspace-rootless": {"192.168.77.1:30080", "192.168.77.1:30081", "192.168.77.1:30053"},
}

// carriedService is a Service of each protocol, at addresses that are served with and without rules.
const carriedService = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  ports:
  - {name: web, port: 80, nodePort: 30080}
  - {name: stream, port: 81, nodePort: 30081}
  - {name: dns, port: 53, nodePort: 30053, protocol: UDP}
`

func carriedSlice(pods ...int) string {
	return strings.Replace(painSlice(pods...), "ports: [{port: 80}]", "ports: [{name: web, port: 80}, {name: stream, port: 81}, {name: dns, port: 53, protocol: UDP}]", 1)
}

// eachCarrying runs a test in each of the modes in which weir carries the connections. The program of the daemon is a link that
// the test may change.
func eachCarrying(t *testing.T, test func(t *testing.T, d *daemon, web, stream, dns netip.AddrPort)) {
	carry := slices.DeleteFunc(slices.Clone(modes), func(m mode) bool { return carryingModes[m.name].web == "" })
	eachMode(t, carry, func(t *testing.T, m mode) {
		at := carryingModes[m.name]
		t.Parallel()
		test(t, carrying(t, m), netip.MustParseAddrPort(at.web), netip.MustParseAddrPort(at.stream), netip.MustParseAddrPort(at.dns))
	})
}

func carrying(t *testing.T, m mode) *daemon {
	t.Helper()
	lab := netlab.New(t, netlab.Topology{Pods: 2})
	for _, pod := range []string{"pod1", "pod2"} {
		lab.Host(pod).Serve(t, netlab.TCP, 80)
		lab.Host(pod).Serve(t, netlab.UDP, 53)
		serveEcho(t, lab.Host(pod), 81)
	}
	d := newDaemon(t, lab, m)
	if !strings.Contains(carriedSlice(1), "stream") {
		t.Fatal("the slice has other ports than the test thinks")
	}
	d.write(map[string]string{"config.yaml": painConfig + "udpIdleTimeout: 3s\n", "web.yaml": carriedService, "slice.yaml": carriedSlice(1, 2)})
	d.program = filepath.Join(t.TempDir(), "weir")
	d.install(os.Getenv(binaryEnv))
	return d
}

// install puts a program at the path of the daemon's, as a package does.
func (d *daemon) install(program string) {
	d.t.Helper()
	fresh := d.program + ".new"
	if err := errors.Join(os.Symlink(program, fresh), os.Rename(fresh, d.program)); err != nil {
		d.t.Fatal(err)
	}
}

// installText puts a script, or what cannot be executed, at the path of the daemon's program.
func (d *daemon) installText(text string, mode os.FileMode) {
	d.t.Helper()
	fresh := d.program + ".new"
	if err := errors.Join(os.WriteFile(fresh, []byte(text), 0o600), os.Chmod(fresh, mode), os.Rename(fresh, d.program)); err != nil {
		d.t.Fatal(err)
	}
}

// serveEcho sends back what it gets.
func serveEcho(t *testing.T, h *netlab.Host, port uint16) {
	t.Helper()
	var ln net.Listener
	if err := h.Do(func() (err error) {
		ln, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
}

// inCharge is what weir handover says of the new process.
var inCharge = regexp.MustCompile(`process (\d+) is in charge`)

// tryHandOver runs weir handover. It follows the new process if that took over.
func (d *daemon) tryHandOver(more ...string) (out string, code int) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := d.lab.Node().Command(ctx, os.Getenv(binaryEnv), append([]string{"handover", "--state-dir", d.state}, more...)...)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := d.lab.Node().Start(cmd); err != nil {
		d.t.Fatal(err)
	}
	_ = cmd.Wait() // the exit code tells
	if m := inCharge.FindStringSubmatch(b.String()); m != nil {
		pid, _ := strconv.Atoi(m[1])
		d.follow(pid)
	}
	return b.String(), cmd.ProcessState.ExitCode()
}

// follow makes another process the daemon's, and returns the former one.
func (d *daemon) follow(pid int) {
	d.t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		d.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		for alive(pid) {
			time.Sleep(20 * time.Millisecond)
		}
		close(done)
	}()
	d.cmd, d.done, d.unread = &exec.Cmd{Process: p}, done, -1
}

// handOver replaces the process, and returns the one before.
func (d *daemon) handOver(more ...string) (before int) {
	d.t.Helper()
	before = d.cmd.Process.Pid
	if out, code := d.tryHandOver(more...); code != 0 {
		d.t.Fatalf("weir handover ends with %d: %s", code, out)
	}
	if d.cmd.Process.Pid == before {
		d.t.Fatal("the process is the same")
	}
	return before
}

// alive reports whether a process runs. One that nobody has waited for does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(stat, []byte(") Z "))
}

// stream is a connection that carries bytes all the time.
type stream struct {
	conn     net.Conn
	stopping atomic.Bool
	bytes    atomic.Int64
	done     chan error
}

// openStream has an echo server send back random bytes, a little at a time.
func openStream(t *testing.T, h *netlab.Host, to netip.AddrPort) *stream {
	t.Helper()
	conn, err := h.DialContext(t.Context(), "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{conn: conn, done: make(chan error, 1)}
	seed := rand.Uint64()
	sent := make(chan error, 1)
	go func() {
		r, buf := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), make([]byte, 3001)
		for !s.stopping.Load() {
			_, _ = r.Read(buf)
			if _, err := conn.Write(buf); err != nil {
				sent <- err
				return
			}
			time.Sleep(time.Millisecond)
		}
		sent <- conn.(*net.TCPConn).CloseWrite()
	}()
	go func() {
		r, got, want := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}), make([]byte, 3001), make([]byte, 3001)
		for {
			n, err := io.ReadFull(conn, got)
			_, _ = r.Read(want)
			switch {
			case !bytes.Equal(got[:n], want[:n]):
				s.done <- fmt.Errorf("byte %d or one of the next %d is another one", s.bytes.Load(), n)
				return
			case err == io.EOF && n == 0:
				s.done <- <-sent
				return
			case err != nil:
				s.done <- fmt.Errorf("after %d bytes: %w", s.bytes.Load()+int64(n), err)
				return
			}
			s.bytes.Add(int64(n))
		}
	}()
	t.Cleanup(func() { conn.Close() })
	return s
}

// end closes the stream, all of which must have come back.
func (s *stream) end(t *testing.T) {
	t.Helper()
	s.stopping.Store(true)
	select {
	case err := <-s.done:
		if err != nil {
			t.Errorf("a stream is broken: %v", err)
		}
		if s.bytes.Load() == 0 {
			t.Error("a stream carried nothing")
		}
	case <-time.After(patience):
		t.Errorf("a stream does not end after %d bytes", s.bytes.Load())
	}
	s.conn.Close()
}

// idleDescriptors returns how many files the process has open when it does nothing: the least of a while, because it reads files
// at times.
func (d *daemon) idleDescriptors() int {
	d.t.Helper()
	least := 1 << 20
	for range 50 {
		all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
		if err != nil {
			d.t.Fatal(err)
		}
		least = min(least, len(all))
		time.Sleep(10 * time.Millisecond)
	}
	return least
}

// TestHandoverLosesNothing replaces weir again and again, by another program each time, while connections come and go, others
// carry bytes, datagrams are asked and the input changes.
func TestHandoverLosesNothing(t *testing.T) {
	eachCarrying(t, func(t *testing.T, d *daemon, web, to, dns netip.AddrPort) {
		rounds := 20
		if testing.Short() {
			rounds = 3
		}
		copied := filepath.Join(t.TempDir(), "other")
		if out, err := exec.Command("cp", os.Getenv(binaryEnv), copied).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		d.start()
		d.awaitSync()
		client := d.lab.Host(netlab.Client)
		began := time.Now()
		l := startLoad(d.lab, web)
		var asking sync.WaitGroup
		var datagrams atomic.Int64
		asking.Go(func() { // one socket, and so one flow, all the time
			flow, err := client.Open(netlab.UDP, dns, answerWait)
			if err != nil {
				l.fail(err.Error())
				return
			}
			defer flow.Close()
			server := ""
			for !l.stopping.Load() {
				r := flow.Ask(answerWait)
				l.note("datagram", r)
				if server == "" {
					server = r.Server
				}
				if r.Server != server {
					l.fail(fmt.Sprintf("the flow of datagrams went from %s to %s", server, r.Server))
					server = r.Server
				}
				datagrams.Add(1)
				time.Sleep(time.Millisecond)
			}
		})
		asking.Go(func() { // a new socket for each
			for !l.stopping.Load() {
				l.note("new datagram", client.Probe(netlab.UDP, dns, answerWait))
				time.Sleep(time.Millisecond)
			}
		})
		var streams []*stream
		for range 4 {
			streams = append(streams, openStream(t, client, to))
		}
		var before []int
		for i := range rounds {
			d.install([]string{copied, os.Getenv(binaryEnv)}[i%2])
			d.write(map[string]string{"other.yaml": strings.NewReplacer("name: web", fmt.Sprintf("name: other-%d", i), "10.96.0.10", "10.96.0.20", "300", "301").Replace(carriedService)})
			before = append(before, d.handOver())
			want := []string{copied, os.Getenv(binaryEnv)}[i%2]
			if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", d.cmd.Process.Pid)); exe != want || err != nil {
				t.Errorf("replacement %d runs %s, %v; want %s", i, exe, err, want)
			}
			if i%5 == 0 { // the old process ends at last
				streams[0].end(t)
				streams = append(streams[1:], openStream(t, client, to))
			}
			l.more(d, 50)
		}
		d.awaitSync()
		l.more(d, 200)
		asked, took := l.asked.Load(), time.Since(began)
		l.stopping.Store(true)
		asking.Wait()
		l.end(t)
		t.Logf("%d connections and questions, %d datagrams of one flow, in %s: %.0f/s", asked, datagrams.Load(), took.Round(time.Millisecond), float64(asked)/took.Seconds())
		for _, s := range streams {
			s.end(t)
		}
		for _, pid := range before {
			d.awaitEnd(pid)
		}
		d.awaitEnd(d.handOver())
		files := d.idleDescriptors()
		for range 5 {
			d.awaitEnd(d.handOver())
		}
		if now := d.idleDescriptors(); now > files {
			t.Errorf("each successor has more descriptors: %d, five before %d", now, files)
		}
		d.terminate()
		if own := d.ownRules(); own != "" {
			t.Errorf("the last process leaves:\n%s", own)
		}
	})
}

// successorEnv is set in a test binary that is to be a successor that fails. It says how.
const successorEnv = "WEIR_TEST_SUCCESSOR"

// becomeSuccessor is for TestMain. It does not return if the process is to be a successor that fails.
func becomeSuccessor() {
	how := os.Getenv(successorEnv)
	if how == "" {
		return
	}
	p, err := handover.Inherit()
	if err != nil || p == nil {
		fmt.Fprintln(os.Stderr, "no predecessor:", err)
		os.Exit(7)
	}
	stage, end, _ := strings.Cut(how, " then ")
	for _, s := range []struct {
		name string
		take func() error
	}{
		{"inherits", func() error { return nil }},
		{"takes", func() error {
			return p.Take(time.Minute, func(name string, fd int) error { return nil }, func(string) {})
		}},
		{"is ready", func() error { return p.Ready(time.Minute) }},
	} {
		if err := s.take(); err != nil {
			fmt.Fprintln(os.Stderr, s.name, err)
			os.Exit(8)
		}
		if s.name == stage {
			break
		}
	}
	switch end {
	case "dies":
		p, _ := os.FindProcess(os.Getpid())
		_ = p.Kill()
	case "hangs":
	case "leaves":
		p.Close()
	case "complains":
		p.Trouble("it is not in the mood")
	}
	time.Sleep(time.Hour)
	runtime.KeepAlive(p) // its end is closed with it
}

// failing makes the daemon's program one that fails as a successor in a way.
func (d *daemon) failing(how string) {
	d.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	d.installText(fmt.Sprintf("#!/bin/sh\n%s='%s' exec %s \"$@\"\n", successorEnv, how, exe), 0o755)
}

// TestHandoverFails has weir replaced by programs that fail, in every way and at every stage. It goes on, nothing is lost, and it
// can still be replaced.
func TestHandoverFails(t *testing.T) {
	eachCarrying(t, func(t *testing.T, d *daemon, web, to, dns netip.AddrPort) {
		d.start()
		d.awaitSync()
		d.terminateLater()
		pid := d.cmd.Process.Pid
		l := startLoad(d.lab, web)
		s := openStream(t, d.lab.Host(netlab.Client), to)
		good := os.Getenv(binaryEnv)
		older, err := oldWeir()
		if err != nil && !errors.Is(err, errNoHistory) {
			t.Fatal(err)
		}
		type failure struct {
			prepare func()
			want    string
			flags   []string
		}
		script := func(text string) func() { return func() { d.installText(text, 0o755) } }
		fails := func(how string) func() { return func() { d.failing(how) } }
		failures := map[string]failure{
			"missing":                      {func() { _ = os.Remove(d.program) }, "no such file", nil},
			"not executable":               {func() { d.installText("x", 0o644) }, "permission denied", nil},
			"no program":                   {script("\x00\x01\x02"), "exec format error", nil},
			"ends":                         {script("#!/bin/sh\nexit 3\n"), "exit status 3", nil},
			"ends well":                    {script("#!/bin/sh\nexit 0\n"), "exit status 0", nil},
			"crashes":                      {script("#!/bin/sh\nkill -SEGV $$\n"), "segmentation", nil},
			"hangs":                        {script("#!/bin/sh\nexec sleep 1000\n"), "not ready after 1s", []string{"--timeout", "1s"}},
			"hangs with its end":           {fails("inherits then hangs"), "not ready after 1s", []string{"--timeout", "1s"}},
			"closes its end":               {fails("inherits then leaves"), "does not take over", nil},
			"complains":                    {fails("inherits then complains"), "not in the mood", nil},
			"dies when it has all":         {fails("takes then dies"), "killed", nil},
			"hangs when it has all":        {fails("takes then hangs"), "not ready after 20s", nil},
			"leaves when it has all":       {fails("takes then leaves"), "does not take over", nil},
			"dies when it shall serve":     {fails("is ready then dies"), "killed", nil},
			"hangs when it shall serve":    {fails("is ready then hangs"), "not ready after 5s", nil},
			"leaves when it shall serve":   {fails("is ready then leaves"), "does not take over", nil},
			"another flag in its own form": {script("#!/bin/sh\nexec " + good + " run --no-such-flag\n"), "exit status 2", nil},
			"does not find its input":      {script("#!/bin/sh\nexec " + good + " \"$@\" -f /nonexistent\n"), "cannot be used", nil},
		}
		if older != "" {
			failures["does not know of it"] = failure{script("#!/bin/sh\nexec " + older + " \"$@\"\n"), "exit status 1", nil}
		}
		for name, f := range failures {
			f.prepare()
			out, code := d.tryHandOver(f.flags...)
			if code != 1 || !strings.Contains(out, f.want) || !strings.Contains(out, "goes on") {
				t.Errorf("%s: exit code %d: %s; want 1 and %q", name, code, out, f.want)
			}
			if log := d.logs(); !strings.Contains(log, "not replaced; going on") {
				t.Errorf("%s: the log does not tell", name)
			}
			if d.cmd.Process.Pid != pid || !alive(pid) {
				t.Fatalf("%s: process %d does not go on", name, pid)
			}
			_ = os.Remove(d.program)
			d.install(good)
			l.more(d, 20)
			d.await("weir status", func() error {
				_, err := d.lab.Node().Exec(t.Context(), good, "status", "--state-dir", d.state)
				return err
			})
		}
		d.write(map[string]string{"broken.yaml": strings.Replace(carriedService, "10.96.0.10", "10.96.0.300", 1)})
		d.awaitLog("the input cannot be used; what is in force stays")
		if out, code := d.tryHandOver(); code != 1 || !strings.Contains(out, "the input cannot be used") || !strings.Contains(out, "broken.yaml") {
			t.Errorf("with a broken input: exit code %d: %s", code, out)
		}
		d.write(map[string]string{"broken.yaml": ""})
		d.awaitLog("valid again")
		d.awaitSync()
		l.more(d, 50)
		if children, err := exec.Command("pgrep", "-P", strconv.Itoa(pid)).Output(); err == nil {
			t.Errorf("it has left children: %s", children)
		}
		d.handOver()
		l.more(d, 50)
		l.end(t)
		s.end(t)
		d.awaitEnd(pid)
	})
}

// terminateLater ends the process with the test, whichever it is then.
func (d *daemon) terminateLater() {
	d.t.Cleanup(func() {
		if d.cmd != nil && alive(d.cmd.Process.Pid) {
			_ = d.cmd.Process.Kill()
		}
	})
}

// TestHandoverTwiceAtOnce has several ask at once: each either replaces a process that is in charge, or hears that one is being
// replaced.
func TestHandoverTwiceAtOnce(t *testing.T) {
	eachCarrying(t, func(t *testing.T, d *daemon, web, _, _ netip.AddrPort) {
		d.start()
		d.awaitSync()
		d.terminateLater()
		l := startLoad(d.lab, web)
		for range 3 {
			var all sync.WaitGroup
			var done, busy atomic.Int64
			var last atomic.Int64
			for range 5 {
				all.Go(func() {
					out, err := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), "handover", "--state-dir", d.state)
					switch m := inCharge.FindStringSubmatch(out); {
					case err == nil && m != nil:
						done.Add(1)
						pid, _ := strconv.ParseInt(m[1], 10, 64)
						last.Store(max(last.Load(), pid))
					case err != nil && strings.Contains(err.Error(), "is being replaced already"):
						busy.Add(1)
					default:
						t.Errorf("weir handover: %v: %s", err, out)
					}
				})
			}
			all.Wait()
			if done.Load() == 0 || done.Load()+busy.Load() != 5 {
				t.Errorf("of 5, %d replaced weir and %d heard that it is being replaced", done.Load(), busy.Load())
			}
			d.follow(int(last.Load()))
			l.more(d, 50)
		}
		l.end(t)
	})
}

// startedLine is the first line of a weir's log.
var startedLine = regexp.MustCompile(`starting: .*pid=(\d+)`)

// successorOf returns the weir that a process has started, or 0. Other children of the process may look like it before they are
// other programs.
func (d *daemon) successorOf(pid int) int {
	log, _ := os.ReadFile(d.log.Name())
	all := startedLine.FindAllSubmatch(log, -1)
	if len(all) == 0 {
		return 0
	}
	last := string(all[len(all)-1][1])
	status, _ := os.ReadFile("/proc/" + last + "/status")
	if !strings.Contains(string(status), fmt.Sprintf("\nPPid:\t%d\n", pid)) {
		return 0
	}
	child, _ := strconv.Atoi(last)
	return child
}

// TestHandoverKilled kills the successor at any moment, while it is started and takes over. Unless it had taken over, nobody notices.
// And it kills the process that is to be replaced: then the successor takes over, if it had begun.
func TestHandoverKilled(t *testing.T) {
	eachCarrying(t, func(t *testing.T, d *daemon, web, to, _ netip.AddrPort) {
		d.start()
		d.awaitSync()
		d.terminateLater()
		var survived, replaced int
		for i := range 25 {
			pid := d.cmd.Process.Pid
			l := startLoad(d.lab, web)
			var killed atomic.Bool
			end := make(chan struct{})
			go func() {
				defer close(end)
				wait := time.Duration(rand.IntN(300)) * time.Millisecond
				for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
					if child := d.successorOf(pid); child != 0 {
						time.Sleep(wait)
						if p, err := os.FindProcess(child); err == nil {
							killed.Store(p.Kill() == nil)
						}
						return
					}
				}
			}()
			out, code := d.tryHandOver()
			if code == 1 {
				survived++
				l.more(d, 50)
				<-end
				l.end(t)
				if d.cmd.Process.Pid != pid || !alive(pid) {
					t.Fatalf("%d: %s", i, out)
				}
				continue
			}
			replaced++
			l.stopping.Store(true)
			<-end
			l.wg.Wait()
			if code != 0 {
				t.Errorf("weir handover ends with %d: %s", code, out)
			}
			if killed.Load() { // a weir that is in charge was killed, which ends service
				d.awaitEnd(d.cmd.Process.Pid)
				d.cmd = nil
				d.start()
				d.awaitSync()
			}
		}
		t.Logf("%d times the old process went on, %d times it was replaced", survived, replaced)
		d.awaitSync()

		var went, begun int
		for range 15 {
			old := d.cmd.Process
			asked := make(chan struct{})
			go func() {
				defer close(asked)
				_, _ = d.lab.Node().Exec(context.Background(), os.Getenv(binaryEnv), "handover", "--state-dir", d.state) // killed, it does not answer
			}()
			child := 0
			for deadline := time.Now().Add(5 * time.Second); child == 0 && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				child = d.successorOf(old.Pid)
			}
			time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
			_ = old.Kill() // it may have ended
			d.awaitEnd(old.Pid)
			<-asked
			if alive(child) {
				went++
				d.follow(child)
			} else {
				begun++
				d.cmd = nil
				d.start()
			}
			d.awaitSync()
			d.await("an answer", func() error {
				if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, web, answerWait); r.Outcome != netlab.Answered {
					return fmt.Errorf("%v", r)
				}
				return nil
			})
		}
		t.Logf("after its predecessor was killed, the successor went on %d times; %d times there was none", went, begun)
		d.terminate()
		if own := d.ownRules(); own != "" {
			t.Errorf("left:\n%s", own)
		}
	})
}

// awaitEnd waits until a process has ended, whichever is the daemon's.
func (d *daemon) awaitEnd(pid int) {
	d.t.Helper()
	for deadline := time.Now().Add(patience); alive(pid); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.t.Fatalf("process %d does not end", pid)
		}
	}
}

// TestHandoverNotifies stands in for systemd: it hears from the old process which the new main process is, before that one notifies,
// and only the new one serves the watchdog then.
func TestHandoverNotifies(t *testing.T) {
	eachCarrying(t, testHandoverNotifies)
}

func testHandoverNotifies(t *testing.T, d *daemon, _, _, _ netip.AddrPort) {
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := setPassCred(conn); err != nil {
		t.Fatal(err)
	}
	type message struct {
		from int
		text string
	}
	got := make(chan message, 10000)
	go func() {
		buf, oob := make([]byte, 4096), make([]byte, 128)
		for {
			n, m, _, _, err := conn.ReadMsgUnix(buf, oob)
			if err != nil {
				return
			}
			from, _ := senderOf(oob[:m])
			got <- message{from, string(buf[:n])}
		}
	}()
	main := 0
	next := func(want string) message {
		t.Helper()
		for deadline := time.After(patience); ; {
			select {
			case m := <-got:
				if main == 0 {
					main = m.from
				}
				if m.from != main {
					t.Errorf("process %d notifies %q, and %d is the main process", m.from, m.text, main)
				}
				if strings.Contains(m.text, want) {
					return m
				}
			case <-deadline:
				t.Fatalf("%q was not sent", want)
			}
		}
	}
	line := d.line(d.args("run")...)
	cmd := d.lab.Node().Command(context.Background(), "sh", append([]string{"-c", `WATCHDOG_PID=$$ exec "$@"`, "sh"}, line...)...)
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=300000")
	d.launch(cmd)
	d.terminateLater()
	next("READY=1")
	next("WATCHDOG=1")
	for range 3 {
		old := d.handOver()
		next(fmt.Sprintf("MAINPID=%d", d.cmd.Process.Pid))
		main = d.cmd.Process.Pid
		if m := next("READY=1"); !strings.Contains(m.text, "STATUS=userspace") {
			t.Errorf("the new process notifies %q", m.text)
		}
		next("WATCHDOG=1")
		d.awaitEnd(old)
		next("WATCHDOG=1")
	}
	d.installText("#!/bin/sh\nexit 1\n", 0o755)
	if out, code := d.tryHandOver(); code != 1 {
		t.Errorf("exit code %d: %s", code, out)
	}
	next("WATCHDOG=1")
	d.terminate()
	next("STOPPING=1")
}

// setPassCred has the kernel name the senders of messages.
func setPassCred(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return errors.Join(err, failed)
}

// senderOf returns the process that sent a message.
func senderOf(oob []byte) (int, error) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(all) != 1 {
		return 0, fmt.Errorf("%d messages: %w", len(all), err)
	}
	cred, err := unix.ParseUnixCredentials(&all[0])
	if err != nil {
		return 0, err
	}
	return int(cred.Pid), nil
}

// TestHandoverDrains has open connections outlive their process: they are cut when the time that was given is over, go on after a
// first signal, and are cut by a second one.
func TestHandoverDrains(t *testing.T) {
	eachCarrying(t, func(t *testing.T, d *daemon, web, _, _ netip.AddrPort) {
		d.start()
		d.awaitSync()
		d.terminateLater()
		open := func() *netlab.Flow {
			t.Helper()
			flow, err := d.lab.Host(netlab.Client).Open(netlab.TCP, web, answerWait)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(flow.Close)
			if r := flow.Ask(answerWait); r.Outcome != netlab.Answered {
				t.Fatal(r)
			}
			return flow
		}
		asks := func(flow *netlab.Flow, want netlab.Outcome, when string) {
			t.Helper()
			if r := flow.Ask(answerWait); r.Outcome != want {
				t.Errorf("%s: %v; want %s", when, r, want)
			}
		}
		flow := open()
		d.awaitEnd(d.handOver("--drain", "500ms"))
		asks(flow, netlab.Refused, "after its time")

		flow = open()
		old := d.handOver()
		asks(flow, netlab.Answered, "after the handover")
		p, err := os.FindProcess(old)
		if err != nil {
			t.Fatal(err)
		}
		later := open()
		// A second weir finds the lock held by the one that is in charge.
		if out, err := d.run("run"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another weir (process %d)", d.cmd.Process.Pid)) {
			t.Errorf("another weir: %v, %s", err, out)
		}
		if err := p.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		asks(flow, netlab.Answered, "after a signal")
		time.Sleep(200 * time.Millisecond) // the second of two signals at once would be no signal
		asks(flow, netlab.Answered, "after a signal")
		second := time.Now()
		_ = p.Signal(os.Interrupt)
		d.awaitEnd(old)
		if took := time.Since(second); took > 20*time.Second { // the first signal leaves 30 s
			t.Errorf("it ends %s after the second signal", took)
		}
		asks(flow, netlab.Refused, "after two signals")
		asks(later, netlab.Answered, "with the successor")
		later.Close()

		// Both get the signal of a service manager. Where the successor has died, nothing keeps its place from the next one.
		flow = open()
		old = d.handOver()
		d.kill()
		if p, err = os.FindProcess(old); err != nil {
			t.Fatal(err)
		}
		_ = p.Signal(os.Interrupt)
		d.awaitEnd(old)
		asks(flow, netlab.Refused, "after the end of both")
		d.start()
		d.awaitSync()
		d.awaitEnd(d.handOver())
		d.terminate()
	})
}

// TestHandoverAnswers replaces weir while names, its own and others', and its health are asked for, in a mode of the kernel too.
func TestHandoverAnswers(t *testing.T) {
	for _, m := range modes {
		if m.name != "nftables" && m.name != "userspace" {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			d := carrying(t, m)
			serveSlowNames(t, d.lab.Host("pod1"))
			without := d.flags
			d.flags = append(slices.Clone(without), "--dns", "--dns-listen", "127.0.0.1:53", "--dns-upstream", netip.AddrPortFrom(d.lab.Host("pod1").IPv4, 54).String(), "--dns-node-resolver", "none")
			d.start()
			d.terminateLater()
			d.awaitName("web.default.svc.cluster.local.", "10.96.0.10")
			d.awaitName("example.org.", "192.0.2.1")
			var all sync.WaitGroup
			var end atomic.Bool
			var mu sync.Mutex
			asked, faults := map[string]int{}, map[string]string{}
			ask := func(what string, f func() error) {
				all.Go(func() {
					for !end.Load() {
						err := f()
						mu.Lock()
						if asked[what]++; err != nil && faults[what] == "" {
							faults[what] = err.Error()
						}
						mu.Unlock()
						time.Sleep(time.Millisecond)
					}
				})
			}
			for name, want := range map[string]string{"web.default.svc.cluster.local.": "10.96.0.10", "example.org.": "192.0.2.1"} {
				for _, network := range []string{"udp", "tcp"} {
					ask(name+" over "+network, func() error {
						rcode, addrs, err := d.lookupAt("127.0.0.1:53", network, name)
						if err == nil && strings.Join(addrs, " ") != want {
							err = fmt.Errorf("%v %v", rcode, addrs)
						}
						return err
					})
				}
			}
			for _, url := range []string{"http://127.0.0.1:10256/healthz", "http://127.0.0.1:10249/metrics"} {
				client := http.Client{Timeout: answerWait, Transport: &http.Transport{DialContext: d.lab.Node().DialContext, DisableKeepAlives: true}}
				ask(url, func() error {
					r, err := client.Get(url)
					if err != nil {
						return err
					}
					defer r.Body.Close()
					if _, err := io.ReadAll(r.Body); err != nil || r.StatusCode != http.StatusOK {
						return fmt.Errorf("%s, %w", r.Status, err)
					}
					return nil
				})
			}
			for range 8 {
				if old := d.handOver(); m.name == "nftables" {
					d.awaitEnd(old) // it has no connections
				}
				if out, err := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), "status", "--state-dir", d.state); err != nil {
					t.Errorf("weir status: %v: %s", err, out)
				}
			}
			end.Store(true)
			all.Wait()
			t.Logf("asked: %v", asked)
			for what, fault := range faults {
				t.Errorf("%s: %s", what, fault)
			}
			ifNeeded := func(what string, want int) {
				t.Helper()
				if out, code := d.tryHandOver("--if-needed"); code != want {
					t.Errorf("--if-needed %s: exit code %d, not %d: %s", what, code, want, out)
				}
				d.terminate()
			}
			ifNeeded("with names", 0)
			d.flags = without
			d.start()
			d.awaitSync()
			ifNeeded("without names", map[string]int{"nftables": 4, "userspace": 0}[m.name])
		})
	}
}

// serveSlowNames answers questions for names at port 54, each after a while.
func serveSlowNames(t *testing.T, h *netlab.Host) {
	t.Helper()
	reply := func(m []byte) []byte {
		var p dnsmessage.Message
		if p.Unpack(m) != nil || len(p.Questions) != 1 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
		p.Response, p.RecursionAvailable, p.Additionals = true, true, nil
		p.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: p.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 1},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}},
		}}
		out, _ := p.Pack()
		return out
	}
	var conn *net.UDPConn
	if err := h.Do(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(h.IPv4, 54)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		for {
			buf := make([]byte, 1500)
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			go func() { _, _ = conn.WriteToUDPAddrPort(reply(buf[:n]), from) }()
		}
	}()
}

// TestHandoverOfManyServices hands over thousands of listeners under load, and says how long it took.
func TestHandoverOfManyServices(t *testing.T) {
	const services = 2000
	eachCarrying(t, func(t *testing.T, d *daemon, web, to, _ netip.AddrPort) {
		var all strings.Builder
		for i := range services {
			fmt.Fprintf(&all, "---\napiVersion: v1\nkind: Service\nmetadata: {name: many-%d}\nspec: {clusterIP: 10.97.%d.%d, type: NodePort, ports: [{port: 80, nodePort: %d}]}\n", i, i/250, i%250+1, 30100+i)
			fmt.Fprintf(&all, "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: many-%d, labels: {kubernetes.io/service-name: many-%d}}\naddressType: IPv4\nports: [{port: 80}]\nendpoints: [{addresses: [%s]}]\n", i, i, netlab.PodIPv4(1))
		}
		d.write(map[string]string{"many.yaml": all.String()})
		d.start()
		d.awaitSync()
		d.terminateLater()
		last := fmt.Sprintf("10.97.%d.%d:80", (services-1)/250, (services-1)%250+1)
		if d.mode.rootless {
			last = fmt.Sprintf("192.168.77.1:%d", 30100+services-1)
		}
		l, many := startLoad(d.lab, web), startLoad(d.lab, netip.MustParseAddrPort(last))
		s := openStream(t, d.lab.Host(netlab.Client), to)
		for range 3 {
			l.more(d, 50)
			before := d.idleDescriptors()
			began := time.Now()
			d.handOver()
			took := time.Since(began)
			t.Logf("handed over in %s; %d descriptors before, %d after", took.Round(time.Millisecond), before, d.idleDescriptors())
		}
		many.more(d, 50)
		l.end(t)
		many.end(t)
		s.end(t)
		for _, i := range []int{0, services / 2, services - 1} {
			at := fmt.Sprintf("10.97.%d.%d:80", i/250, i%250+1)
			if d.mode.rootless {
				at = fmt.Sprintf("192.168.77.1:%d", 30100+i)
			}
			if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, netip.MustParseAddrPort(at), answerWait); r.Server != "pod1" {
				t.Errorf("%s: %v", at, r)
			}
		}
		d.awaitSync()
		d.terminate()
	})
}
