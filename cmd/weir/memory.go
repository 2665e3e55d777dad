package main

import (
	"runtime/debug"

	"weir/backends"
	"weir/cmd/weir/internal/garbage"
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
}

func newMemory() *memory {
	garbage.Pace(gcPercentStart)
	return &memory{}
}

// RoundStarts implements reconcile.Observer. It allows more garbage while a round may write everything again.
func (m *memory) RoundStarts(r reconcile.Request) {
	if m.started && r.Full {
		garbage.Bound(gcPercentResync)
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
		garbage.Pace(gcPercentTraffic)
	} else {
		garbage.Bound(gcPercentIdle)
	}
}
