package main

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"

	"weir/backends"
	"weir/reconcile"
)

// manyServices is the number of Services from which a round that resolves or reads all of them leaves enough garbage to
// return it to the system at once.
const manyServices = 500

// How much garbage may come on top of the memory in use before the collector runs, in percent. GOGC wins over all of
// them. Go's default of 100 would double the heap, and a node's memory belongs to its pods. During the start, less than
// gcPercentStart would cost more time than it saves memory; afterwards there is little garbage. Writing everything
// again takes no more memory than the start did. But a mode that carries traffic loses half of its UDP packets if its
// small heap is collected for every few kilobytes.
const (
	gcPercentStart   = 25
	gcPercentIdle    = 10
	gcPercentResync  = 50
	gcPercentTraffic = 100
	// gcPercentValidate is for reading a large tree once, of which most stays in use.
	gcPercentValidate = 50
)

// memory is an Observer that keeps the process small: it limits the garbage, and returns free memory to the system.
type memory struct {
	reconcile.NopObserver
	started bool // a round has succeeded
	// freePending means that a large round may have left garbage that could not be freed at its end, for example
	// because its record was being written.
	freePending bool
	collector   *collector
}

func newMemory() *memory {
	m := &memory{collector: newCollector()}
	m.collector.pace(gcPercentStart)
	return m
}

// RoundStarts implements reconcile.Observer. It allows more garbage while a round may write everything again.
func (m *memory) RoundStarts(r reconcile.Request) {
	if m.started && r.Full {
		m.collector.bound(gcPercentResync)
	}
}

// Applied implements reconcile.Observer.
func (m *memory) Applied(r reconcile.Report) {
	if r.Err != nil {
		if m.started {
			m.rest(r.Traits)
		}
		return
	}
	m.started = true
	large := r.Resolved >= manyServices || r.Observed && !r.Touched && r.Services >= manyServices
	if large || m.freePending && r.Full {
		debug.FreeOSMemory()
		m.freePending = large
	}
	m.rest(r.Traits)
}

// rest has the collector work as it is best between rounds.
func (m *memory) rest(t backends.Traits) {
	if t.CarriesTraffic {
		m.collector.pace(gcPercentTraffic)
	} else {
		m.collector.bound(gcPercentIdle)
	}
}

// setGCPercent is debug.SetGCPercent, unless the user has set it.
func setGCPercent(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// collector limits the garbage in one of two ways.
type collector struct {
	mu sync.Mutex
	// percent is that of bound, or 0 while Go has its own pace. followed reports whether limit is called after each collection.
	percent  int
	followed bool
	samples  []metrics.Sample
}

// collectorMetrics are what limit looks at, in bytes (runtime/metrics).
var collectorMetrics = [...]string{
	"/gc/heap/live:bytes", "/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
	"/memory/classes/heap/free:bytes", "/memory/classes/heap/objects:bytes",
}

func newCollector() *collector {
	c := &collector{samples: make([]metrics.Sample, len(collectorMetrics))}
	for i, name := range collectorMetrics {
		c.samples[i].Name = name
	}
	return c
}

// pace has Go collect at its own pace.
func (c *collector) pace(percent int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	setGCPercent(percent)
	if c.percent != 0 {
		debug.SetMemoryLimit(math.MaxInt64)
	}
	c.percent = 0
}

// bound has Go collect when the garbage has come to that many percent of the heap, and at no other time. At its own pace it also
// does every two minutes, even if next to nothing was allocated, which at 50,000 Services is most of what weir costs while nothing
// happens. A limit of memory brings that about, which is set again after each collection.
func (c *collector) bound(percent int) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		setGCPercent(percent)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.percent == 0 {
		debug.SetGCPercent(-1)
	}
	c.percent = percent
	c.limit()
	if !c.followed {
		c.followed = true
		c.follow()
	}
}

// follow calls limit after each collection.
func (c *collector) follow() {
	runtime.AddCleanup(new([64]byte), func(c *collector) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.percent != 0 {
			c.limit()
		}
		c.follow()
	}, c)
}

// limit leaves the heap the percentage on top of what the last collection left of it. The lock is held.
func (c *collector) limit() {
	metrics.Read(c.samples)
	value := func(i int) int64 { return int64(c.samples[i].Value.Uint64()) }
	heap, other := value(0)*int64(100+c.percent)/100, value(1)-value(2)-value(3)-value(4)
	// Go begins to collect that much before the limit (memoryLimitHeapGoal in runtime/mgcpacer.go).
	const share, least = 97, 1 << 20
	debug.SetMemoryLimit(other + max(heap*100/share, heap+least))
}
