package iptables

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// many makes n Services with 5 endpoints each. Their ClusterIPs are consecutive, or spread over 10.96.0.0/12 as
// allocation by hash spreads them.
func many(n int, spread bool) []*dataplane.ServicePort {
	out := make([]*dataplane.ServicePort, n)
	for i := range out {
		e := service(fmt.Sprint("service-", i), dataplane.IPv4, dataplane.TCP, i, 5)
		if spread {
			x := uint32(i) * 2654435761 >> 12
			e.ClusterIP = netip.AddrFrom4([4]byte{10, 96 + byte(x>>16), byte(x >> 8), byte(x)})
		}
		for j := range e.Endpoints {
			k := i*5 + j
			e.Endpoints[j].Addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 128 + byte(k>>16), byte(k >> 8), byte(k)}), 8080)
		}
		out[i] = e
	}
	return out
}

func benchConfig() dataplane.Config {
	c := testConfig()
	c.Families = []dataplane.Family{dataplane.IPv4}
	return c
}

func BenchmarkRender(b *testing.B) {
	entries := many(10000, true)
	b.ReportAllocs()
	for b.Loop() {
		back := New(benchConfig(), xtables.NewFake())
		items := desired(b, back, entries)
		if _, err := back.Commands(backendtest.Diff(nil, items)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRenderOnly(b *testing.B) {
	entries := many(10000, true)
	b.ReportAllocs()
	for b.Loop() {
		back := New(benchConfig(), xtables.NewFake())
		for _, e := range entries {
			if _, err := back.Render(e); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkKernel measures, in one run: a cold start, iptables-restore of the same text alone, reading it back, and
// adding one endpoint.
func BenchmarkKernel(b *testing.B) {
	for _, mode := range []xtables.Mode{xtables.NFT, xtables.Legacy} {
		for _, n := range []int{1000, 10000} {
			for _, spread := range []bool{false, true} {
				b.Run(fmt.Sprintf("%s/%d/spread=%v", mode, n, spread), func(b *testing.B) { benchKernel(b, mode, n, spread) })
			}
		}
	}
}

func benchKernel(b *testing.B, mode xtables.Mode, n int, spread bool) {
	entries := many(n, spread)
	for b.Loop() {
		bare := realKernel(b, mode)
		back := New(benchConfig(), bare)
		want := desired(b, back, entries)
		plan := backendtest.Diff(nil, want)
		runs, err := back.Commands(plan)
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := bare.Restore(b.Context(), dataplane.IPv4, []byte(runs[0].Stdin)); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "bare-s")

		back = New(benchConfig(), realKernel(b, mode))
		start = time.Now()
		if r := back.Apply(b.Context(), plan); r.Err != nil {
			b.Fatal(r.Err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "cold-s")
		start = time.Now()
		read := observed(b, back)
		b.ReportMetric(time.Since(start).Seconds(), "observe-s")
		if p := backendtest.Diff(read, want); !p.Empty() {
			b.Fatal(p)
		}
		last := *entries[n-1]
		last.Endpoints = last.Endpoints[:4]
		next := desired(b, back, append(entries[:n-1:n-1], &last))
		plan = backendtest.Diff(want, next)
		start = time.Now()
		if r := back.Apply(b.Context(), plan); r.Err != nil {
			b.Fatal(r.Err)
		}
		b.ReportMetric(float64(time.Since(start).Microseconds())/1000, "change-ms")
		b.ReportMetric(0, "ns/op")
	}
}
