package garbage

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// TestBound holds some memory and makes much more garbage. What the process has of the system stays below the percentage,
// without more collections than that takes. The bound follows a heap that grows or shrinks.
func TestBound(t *testing.T) {
	t.Cleanup(func() { Pace(100) })
	const mega, percent = 1 << 20, 10
	hold := func(megabytes int) [][]byte {
		held := make([][]byte, megabytes)
		for i := range held {
			held[i] = make([]byte, mega)
		}
		return held
	}
	var stats runtime.MemStats
	// used returns the memory that is neither free nor returned, in bytes: what earlier tests left of other objects is no room.
	used := func() uint64 {
		runtime.ReadMemStats(&stats)
		return stats.Sys - stats.HeapIdle
	}
	for _, megabytes := range []int{100, 300, 10} {
		held := hold(megabytes)
		runtime.GC()
		Bound(percent)
		first, most := used(), uint64(0)
		live, before := stats.HeapAlloc, stats.NumGC
		const due, piece = 50, 16 << 10
		garbage := int(live*percent/100) * due
		for i := range garbage / piece {
			sink = make([]byte, piece)
			if i%64 == 0 {
				most = max(most, used())
			}
		}
		used()
		times := int(stats.NumGC - before)
		t.Logf("%d MB: %d MB used, at most %d, collected %d times, due %d times", live/mega, first/mega, most/mega, times, due)
		if most > first+live*2*percent/100+4*mega {
			t.Errorf("%d MB are in use, and it came to %d MB", first/mega, most/mega)
		}
		if times > 2*due || times == 0 {
			t.Errorf("%d MB are in use: collected %d times, due %d times", live/mega, times, due)
		}
		runtime.KeepAlive(held)
	}
	if limit := debug.SetMemoryLimit(-1); limit > int64(used()+stats.HeapAlloc*2*percent/100+4*mega) {
		t.Errorf("the limit does not come down again: %d MB, of which %d MB are used", limit/mega, used()/mega)
	}
	Pace(100)
	if limit := debug.SetMemoryLimit(-1); limit < 1<<60 {
		t.Errorf("a limit stays: %d MB", limit/mega)
	}
}

// sink has the compiler allocate what is assigned to it.
var sink []byte
