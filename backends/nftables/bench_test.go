package nftables

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/netlab"

	"golang.org/x/sys/unix"
)

// sizes returns the numbers of Services of the benchmarks, each with five endpoints on other nodes. WEIR_BENCH_MAX
// bounds them.
func sizes() []int {
	bound, err := strconv.Atoi(os.Getenv("WEIR_BENCH_MAX"))
	if err != nil {
		bound = 50_000
	}
	var out []int
	for _, n := range []int{10, 1_000, 10_000, 50_000} {
		if n <= bound {
			out = append(out, n)
		}
	}
	return out
}

func benchEntry(n, generation int) *dataplane.ServicePort {
	ip := netip.AddrFrom4([4]byte{10, byte(96 + n>>16), byte(n >> 8), byte(n)})
	e := &dataplane.ServicePort{
		Key: dataplane.ServicePortName{
			Service: dataplane.ServiceName{Namespace: fmt.Sprintf("team-%d", n%50), Name: fmt.Sprintf("service-%d", n)},
			Port:    "http", Protocol: dataplane.TCP, Family: dataplane.IPv4,
		},
		ClusterIP: ip, Port: 80, HasEndpoints: true,
	}
	for i := range 5 {
		m := n*5 + i
		port := uint16(8080)
		if i == 4 {
			port += uint16(generation)
		}
		a := netip.AddrFrom4([4]byte{10, byte(128 + m>>16), byte(m >> 8), byte(m)})
		e.Endpoints = append(e.Endpoints, remote(a, port))
	}
	return e
}

func benchItems(b testing.TB, be *Backend, n int) map[backends.ID]backends.Item {
	items := make(map[backends.ID]backends.Item, 2*n)
	for _, i := range be.Base() {
		items[i.ID()] = i
	}
	for s := range n {
		rendered, err := be.Render(benchEntry(s, 0))
		if err != nil {
			b.Fatal(err)
		}
		for _, i := range rendered {
			items[i.ID()] = i
		}
	}
	return items
}

func creation(items map[backends.ID]backends.Item) backends.Plan {
	p := backends.Plan{Backend: "nftables", Changes: make([]backends.Change, 0, len(items))}
	for id, i := range items {
		p.Changes = append(p.Changes, backends.Change{Op: backends.Create, ID: id, New: i})
	}
	return p
}

func ipv4Config() dataplane.Config {
	cfg := testConfig()
	cfg.Families = []dataplane.Family{dataplane.IPv4}
	return cfg
}

// BenchmarkProgram programs all Services on an empty node: render, plan and apply.
func BenchmarkProgram(b *testing.B) {
	for _, n := range sizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				r := newRig(b, ipv4Config(), netlab.Topology{Pods: 1})
				b.StartTimer()
				start := cpuTime(b)
				items := benchItems(b, r.b, n)
				rendered := cpuTime(b)
				r.apply(creation(items))
				b.ReportMetric(float64((rendered - start).Milliseconds()), "render-cpu-ms")
				b.ReportMetric(float64((cpuTime(b) - rendered).Milliseconds()), "apply-cpu-ms")
				b.StopTimer()
				_ = r.b.Close() // while any process listens, in any namespace, the kernel notifies of every element
				b.StartTimer()
			}
		})
	}
}

// BenchmarkComments measures what the name of the Service on dispatching elements costs.
func BenchmarkComments(b *testing.B) {
	for _, comments := range []bool{true, false} {
		b.Run(fmt.Sprint(comments), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				r := newRig(b, ipv4Config(), netlab.Topology{Pods: 1})
				p := creation(benchItems(b, r.b, 10_000))
				for i, c := range p.Changes {
					if f, ok := c.New.(frontItem); ok && !comments {
						p.Changes[i].New = f.uncommented()
					}
				}
				b.StartTimer()
				r.apply(p)
				b.StopTimer()
				_ = r.b.Close()
				b.StartTimer()
			}
		})
	}
}

func (i frontItem) uncommented() frontItem {
	var elements []element
	for e := range i.elements() {
		e.comment = ""
		elements = append(elements, e)
	}
	return newFrontItem(i.key(), elements)
}

// BenchmarkChange replaces one endpoint of one Service, while the watch for other writers is on.
func BenchmarkChange(b *testing.B) {
	for _, n := range sizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, ipv4Config(), netlab.Topology{Pods: 1})
			items := benchItems(b, r.b, n)
			r.apply(creation(items))
			generation := 0
			for b.Loop() {
				generation++
				rendered, err := r.b.Render(benchEntry(n/2, generation%1000))
				if err != nil {
					b.Fatal(err)
				}
				var p backends.Plan
				for _, i := range rendered {
					if f, ok := i.(frontItem); ok {
						p.Changes = append(p.Changes, backends.Change{Op: backends.Update, ID: i.ID(), Old: items[i.ID()], New: f})
						items[i.ID()] = i
					}
				}
				r.apply(p)
			}
		})
	}
}

// BenchmarkNothing asks whether another process wrote. A full sync without a change does nothing else.
func BenchmarkNothing(b *testing.B) {
	for _, n := range sizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, ipv4Config(), netlab.Topology{Pods: 1})
			r.apply(creation(benchItems(b, r.b, n)))
			r.observed()
			for b.Loop() {
				if r.moved() {
					b.Fatal("another process wrote")
				}
			}
		})
	}
}

// BenchmarkObserve reads everything back, as weir does only after another process wrote.
func BenchmarkObserve(b *testing.B) {
	for _, n := range sizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, ipv4Config(), netlab.Topology{Pods: 1})
			items := benchItems(b, r.b, n)
			r.apply(creation(items))
			for b.Loop() {
				if have := r.observed(); len(have) != len(items) {
					b.Fatalf("%d items, want %d", len(have), len(items))
				}
			}
		})
	}
}

// BenchmarkRepair finds and repairs a change that another process made to one endpoint. It reads no more than that.
func BenchmarkRepair(b *testing.B) {
	needNFT(b)
	for _, n := range sizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, ipv4Config(), netlab.Topology{Pods: 1})
			want := benchItems(b, r.b, n)
			r.apply(creation(want))
			r.observed()
			for b.Loop() {
				b.StopTimer()
				r.nft("delete element ip weir endpoints { 10.96.0.1 . tcp . 80 . 0x0 }")
				b.StartTimer()
				r.moved()
				items, ok, err := r.b.Reread(context.Background(), backendtest.LastObserved(want))
				if err != nil || !ok || len(items) != 1 {
					b.Fatal(len(items), ok, err)
				}
				p := backends.Plan{}
				for id, i := range items {
					p.Changes = append(p.Changes, backends.Change{Op: backends.Update, ID: id, Old: i, New: want[id]})
				}
				r.apply(p)
			}
		})
	}
}

// BenchmarkConnect opens connections through the last of 10 Services and of many, in turn, and reports the medians.
func BenchmarkConnect(b *testing.B) {
	all := sizes()
	few, many := all[0], all[len(all)-1]
	probes := map[int]func() time.Duration{few: connector(b, few), many: connector(b, many)}
	took := map[int][]time.Duration{}
	for b.Loop() {
		for n, probe := range probes {
			took[n] = append(took[n], probe())
		}
	}
	median := func(n int) float64 {
		slices.Sort(took[n])
		return float64(took[n][len(took[n])/2].Microseconds())
	}
	b.ReportMetric(median(few), fmt.Sprintf("µs-at-%d", few))
	b.ReportMetric(median(many), fmt.Sprintf("µs-at-%d", many))
	b.ReportMetric(median(many)/median(few), "ratio")
}

// connector returns a function that connects once through the last of n Services.
func connector(b *testing.B, n int) func() time.Duration {
	r := newRig(b, ipv4Config(), netlab.Topology{Pods: 1})
	serve(b, r.lab, "pod1")
	items := benchItems(b, r.b, n-1)
	e := entry(dataplane.IPv4, 65535, dataplane.TCP, endpoint(netlab.PodIPv4(1), labPort))
	rendered, err := r.b.Render(e)
	if err != nil {
		b.Fatal(err)
	}
	for _, i := range rendered {
		items[i.ID()] = i
	}
	r.apply(creation(items))
	to := netip.AddrPortFrom(e.ClusterIP, 80)
	client := r.lab.Host(netlab.Client)
	return func() time.Duration {
		start := time.Now()
		if got := client.Probe(netlab.TCP, to, patience); got.Outcome != netlab.Answered {
			b.Fatal(got)
		}
		return time.Since(start)
	}
}

// BenchmarkNFT loads the same ruleset as text with the nft program, for comparison.
func BenchmarkNFT(b *testing.B) {
	needNFT(b)
	for _, n := range sizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newRig(b, ipv4Config(), netlab.Topology{Pods: 1})
			r.apply(creation(benchItems(b, r.b, n)))
			// nft itself parses numgen as an integer, which no map key can be, so the text writes the slot differently.
			text := strings.NewReplacer("table ip weir", "table ip again", "numgen random mod 5", "meta mark").
				Replace(r.nft("list", "table", "ip", "weir"))
			file := filepath.Join(b.TempDir(), "ruleset")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				r.nft("-f", file)
				b.StopTimer()
				r.nft("delete", "table", "ip", "again")
				b.StartTimer()
			}
		})
	}
}

// BenchmarkMemory reports the memory of the process after all Services are programmed: the Items, which the desired and
// the observed side share, and the buffers of the sockets.
func BenchmarkMemory(b *testing.B) {
	for _, n := range sizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var items map[backends.ID]backends.Item
			for b.Loop() {
				r := newRig(b, ipv4Config(), netlab.Topology{Pods: 1})
				items = benchItems(b, r.b, n)
				r.apply(creation(items))
			}
			b.ReportMetric(residentMB(b, "VmHWM:"), "peak-MB")
			runtime.GC()
			b.ReportMetric(residentMB(b, "VmRSS:"), "rss-MB")
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			b.ReportMetric(float64(m.HeapAlloc)/1e6, "heap-MB")
			runtime.KeepAlive(items)
		})
	}
}

// BenchmarkPacking reports the memory of the frontends of all Services as Items, and as elements that are not packed.
func BenchmarkPacking(b *testing.B) {
	for _, n := range sizes() {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var packed []backends.Item
			var unpacked [][]element
			for b.Loop() {
				packed, unpacked = nil, nil
				before := heapMB()
				for _, i := range benchItems(b, New(ipv4Config()), n) {
					if f, ok := i.(frontItem); ok {
						packed = append(packed, f)
					}
				}
				withItems := heapMB()
				for _, i := range packed {
					elements := slices.Collect(i.(frontItem).elements())
					unpacked = append(unpacked, append(make([]element, 0, len(elements)), elements...))
				}
				b.ReportMetric(withItems-before, "packed-MB")
				b.ReportMetric(heapMB()-withItems, "unpacked-MB")
			}
			runtime.KeepAlive(packed)
			runtime.KeepAlive(unpacked)
		})
	}
}

func heapMB() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / 1e6
}

// cpuTime returns the CPU time of the process, which hardly depends on other load on the machine.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func residentMB(b *testing.B, field string) float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	for line := range bytes.Lines(status) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == field {
			kb, _ := strconv.Atoi(f[1])
			return float64(kb) / 1e3
		}
	}
	return 0
}
