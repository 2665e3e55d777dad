package liveness

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/join"
	"weir/spec/join/jointest"
	"weir/spec/probe"
)

// BenchmarkTCP measures what a TCP probe costs, together with everything around it: µs/probe of CPU, of which the server in this
// process has a part.
func BenchmarkTCP(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	const n = 2000
	var addrs []string
	for i := range n {
		addrs = append(addrs, netip.AddrFrom4([4]byte{127, 1, byte(i >> 7), byte(1 + i&0x7f)}).String())
	}
	p := &probe.Probe{Kind: probe.TCP, Period: time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}
	p.Port.Number = ln.Addr().(*net.TCPAddr).AddrPort().Port()
	svc := asked(p, "", addrs...)
	files := jointest.NewSource()
	files.Snapshot.Weir.StateDir = b.TempDir()
	files.Declare(web, svc)
	l := New(Options{})
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go func() { _ = join.New(files).Filtered(l).Watch(ctx, func(spec.Update) {}) }()
	<-files.Started
	files.Say(spec.Delta{Services: []dataplane.ServiceName{web}, All: true})
	time.Sleep(2 * time.Second)
	var before, after syscall.Rusage
	for b.Loop() {
		start := l.asked()
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
		time.Sleep(5 * time.Second)
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
		cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
		b.ReportMetric(float64(cpu.Microseconds())/float64(l.asked()-start), "µs/probe")
	}
	b.ReportMetric(0, "ns/op")
}

// asked returns how many results there were.
func (l *Layer) asked() (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.services {
		for _, c := range s.results {
			n += c
		}
	}
	return n
}
