package probe_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"weir/spec/probe"
)

// serverVariable has the test binary serve instead: the servers of a benchmark are another process, so that what probes cost is
// not what the servers cost.
const serverVariable = "WEIR_TEST_PROBED"

func TestMain(m *testing.M) {
	if kind := os.Getenv(serverVariable); kind != "" {
		serveForever(kind)
		return
	}
	os.Exit(m.Run())
}

// serveForever serves until the standard input ends.
func serveForever(kind string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if kind == "grpc" {
		srv := grpc.NewServer()
		grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
		srv.Serve(l)
		return
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			if kind == "http" {
				if head(c) != "" {
					io.WriteString(c, ok)
				}
			}
			io.Copy(io.Discard, c)
		}()
	}
}

// probed starts a server in a process of its own and returns its address.
func probed(t testing.TB, kind string) netip.AddrPort {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverVariable+"="+kind)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return netip.MustParseAddrPort(strings.TrimSpace(line))
}

func cpu() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// each runs the Probe n times, eight at once, and fails at the first that fails.
func each(t testing.TB, p *probe.Probe, to probe.Target, n int) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for next.Add(1) <= int64(n) {
				if r := p.Run(t.Context(), to); r.Verdict != probe.Success {
					t.Errorf("%s: %s", r.Verdict, r.Message)
					next.Store(int64(n))
				}
			}
		})
	}
	all.Wait()
}

// BenchmarkProbe measures what one probe costs its process, and how much of a core 10,000 TCP probes in 10 s are, or 1,000
// HTTP probes in 1 s. Nothing is held afterwards: with -benchtime 1000000x, after a million.
func BenchmarkProbe(b *testing.B) {
	for _, kind := range []string{"tcp", "http", "grpc"} {
		b.Run(kind, func(b *testing.B) {
			p := &probe.Probe{Kind: map[string]probe.Kind{"tcp": probe.TCP, "http": probe.HTTP, "grpc": probe.GRPC}[kind], Path: "/", Timeout: 10 * time.Second}
			to := probe.Target{Address: probed(b, kind)}
			each(b, p, to, 10)
			b.ReportAllocs()
			b.ResetTimer()
			before := cpu()
			each(b, p, to, b.N)
			spent := cpu() - before
			b.ReportMetric(float64(spent.Microseconds())/float64(b.N), "cpu-µs/probe")
			b.ReportMetric(100*spent.Seconds()*1000/float64(b.N), "%core@1000/s")
			b.StopTimer()
			awaitNothingHeld(b, to, b.N)
		})
	}
}

// TestNothingIsHeld runs many probes of each kind and then has as many descriptors, goroutines and sockets as before.
func TestNothingIsHeld(t *testing.T) {
	const n = 500
	for kind, k := range map[string]probe.Kind{"tcp": probe.TCP, "http": probe.HTTP, "grpc": probe.GRPC} {
		t.Run(kind, func(t *testing.T) {
			p := &probe.Probe{Kind: k, Path: "/", Timeout: 10 * time.Second}
			to := probe.Target{Address: probed(t, kind)}
			each(t, p, to, n)
			awaitNothingHeld(t, to, n)
		})
	}
}

// awaitNothingHeld fails unless soon nothing is left of n probes.
func awaitNothingHeld(t testing.TB, to probe.Target, n int) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		files, goroutines, held := descriptors(t), runtime.NumGoroutine(), sockets(t, to.Address.Port())
		if files <= 20 && goroutines <= 12 && held <= 2 { // the listener of the server is one
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %d probes there are %d descriptors, %d goroutines and %d sockets", n, files, goroutines, held)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func descriptors(t testing.TB) int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// sockets counts the TCP sockets with that port, in whatever state.
func sockets(t testing.TB, port uint16) int {
	n := 0
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) > 3 && (strings.HasSuffix(f[1], fmt.Sprintf(":%04X", port)) || strings.HasSuffix(f[2], fmt.Sprintf(":%04X", port))) {
				n++
			}
		}
	}
	return n
}
