// Package garbage limits how much garbage the process has before Go collects it. Go has one limit for a process, and so has this
// package one state: the last call of Pace or Bound counts. If the user has set GOGC, nothing is changed.
package garbage

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
)

// bounded is the percentage that Bound was called with.
var bounded struct {
	mu sync.Mutex
	// percent is 0 while Go has its own pace. followed reports whether limit is called after each collection.
	percent  int
	followed bool
	samples  []metrics.Sample
}

// sampled are what limit looks at, in bytes (runtime/metrics).
var sampled = [...]string{
	"/gc/heap/live:bytes", "/memory/classes/total:bytes", "/memory/classes/heap/released:bytes",
	"/memory/classes/heap/free:bytes", "/memory/classes/heap/objects:bytes",
}

func init() {
	for _, name := range sampled {
		bounded.samples = append(bounded.samples, metrics.Sample{Name: name})
	}
}

// Pace has Go collect at its own pace, when the garbage has come to about that many percent of the memory in use.
func Pace(percent int) {
	bounded.mu.Lock()
	defer bounded.mu.Unlock()
	setGCPercent(percent)
	if bounded.percent != 0 {
		debug.SetMemoryLimit(math.MaxInt64)
	}
	bounded.percent = 0
}

// Bound has Go collect when the garbage has come to that many percent of the heap, and at no other time. At its own pace it also
// does every two minutes, even if next to nothing was allocated, which at 50,000 Services is most of what weir costs while nothing
// happens. A limit of memory brings that about, which is set again after each collection. If the user has set GOMEMLIMIT, Bound
// leaves it alone and does what Pace does.
func Bound(percent int) {
	if os.Getenv("GOGC") != "" || os.Getenv("GOMEMLIMIT") != "" {
		setGCPercent(percent)
		return
	}
	bounded.mu.Lock()
	defer bounded.mu.Unlock()
	if bounded.percent == 0 {
		debug.SetGCPercent(-1)
	}
	bounded.percent = percent
	limit()
	if !bounded.followed {
		bounded.followed = true
		follow()
	}
}

// setGCPercent is debug.SetGCPercent, unless the user has set it.
func setGCPercent(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// follow calls limit after each collection.
func follow() {
	runtime.AddCleanup(new([64]byte), func(struct{}) {
		bounded.mu.Lock()
		defer bounded.mu.Unlock()
		if bounded.percent != 0 {
			limit()
		}
		follow()
	}, struct{}{})
}

// limit leaves the heap the percentage on top of what the last collection left of it. The lock is held.
func limit() {
	metrics.Read(bounded.samples)
	value := func(i int) int64 { return int64(bounded.samples[i].Value.Uint64()) }
	heap, other := value(0)*int64(100+bounded.percent)/100, value(1)-value(2)-value(3)-value(4)
	// Go begins to collect that much before the limit (memoryLimitHeapGoal in runtime/mgcpacer.go).
	const share, least = 97, 1 << 20
	debug.SetMemoryLimit(other + max(heap*100/share, heap+least))
}
