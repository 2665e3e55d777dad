package probe_test

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/netlab"
	"weir/spec/probe"
)

// TestStart has a TCP probe of this machine answered without waiting, whether a server listens or not.
func TestStart(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
		if err != nil {
			netlab.Missing(t, "without %s: %v", ip, err)
		}
		to := probe.Target{Address: l.Addr().(*net.TCPAddr).AddrPort()}
		p := &probe.Probe{Kind: probe.TCP, Timeout: 10 * time.Second}
		if r, wait := p.Start(to); wait != nil || r.Verdict != probe.Success {
			t.Errorf("%s: %+v, waits: %v", to.Address, r, wait != nil)
		}
		l.Close()
		if r, wait := p.Start(to); wait != nil || r.Verdict != probe.Failure || r.Message != "connection refused" {
			t.Errorf("nobody at %s: %+v, waits: %v", to.Address, r, wait != nil)
		}
	}
}

// TestMeetsItself has one port for all clients, where no server listens. A connection to it would be one of the socket to itself.
func TestMeetsItself(t *testing.T) {
	netlab.RequireRoot(t, "have a namespace for one thread")
	results := make(chan probe.Result, 2)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, and so does the namespace
		defer close(results)
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("40000 40000"), 0); err != nil {
			t.Error(err)
		}
		p := &probe.Probe{Kind: probe.TCP, Timeout: 10 * time.Second}
		r, _ := p.Start(probe.Target{Address: netip.MustParseAddrPort("127.0.0.1:40000")})
		results <- r
		p = &probe.Probe{Kind: probe.HTTP, Path: "/", Timeout: 10 * time.Second}
		results <- p.Run(t.Context(), probe.Target{Address: netip.MustParseAddrPort("127.0.0.1:40000")})
	}()
	for r := range results {
		if r.Verdict != probe.Failure || r.Message != "connection refused" {
			t.Errorf("%+v", r)
		}
	}
}
