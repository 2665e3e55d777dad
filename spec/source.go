package spec

import (
	"context"

	"weir/backends/dataplane"
)

// Source produces Snapshots, from files or from an API.
//
// A Source never sends half a list. If it cannot read its input, it sends an Err; its last Snapshot stands until the
// next one. A Source leaves objects of unknown kinds out of the Snapshot.
type Source interface {
	// Load reads everything once. The error is Problems if the input was read and is invalid.
	Load(ctx context.Context) (*Snapshot, error)

	// Watch calls sink for the first state, with Delta.All, and then for every change, until ctx is done. It retries
	// after every failure, and returns only ctx's error.
	//
	// Watch calls sink from one goroutine at a time, and not after it has returned. A sink never blocks: it takes every
	// Update, and the receiver coalesces them. A Source should still make one Update of a burst where that is cheap.
	Watch(ctx context.Context, sink func(Update)) error
}

// Update is one message of a Source. It holds either a Snapshot with its Delta, or an Err. After an Err the receiver
// keeps the Snapshot that it has.
type Update struct {
	Snapshot *Snapshot
	Delta    Delta
	// Err is Problems if the input was read and is invalid.
	Err error
	// Settings has, with an Err, the configuration of the refused input: Config, ConfigOrigin, Weir and WeirOrigin. It is nil if that
	// is invalid too, or is not known.
	Settings *Snapshot
	// Revision is the revision of the input that was read, accepted or not.
	Revision Revision
}

// Delta is the difference between a Snapshot and the one before it.
type Delta struct {
	// All reports whether everything may differ; the other fields then mean nothing.
	All bool
	// Services lists the Services that were added, changed or removed; a removed one is not in the Snapshot. It also
	// lists names of undeclared Services whose Slices changed.
	Services []dataplane.ServiceName
	// Pods lists the pods that were added, changed or removed, by namespace and name. The join replaces them by the Services
	// that select them.
	Pods []dataplane.ServiceName
	// Templates lists the templates that were added, changed or removed, by namespace and key. The join replaces them too.
	Templates []dataplane.ServiceName
	// Urgent reports whether an endpoint went, so that connections to it fail: that is not to wait for the end of a period.
	Urgent bool
	// Config and Nodes report whether these parts of the Snapshot changed.
	Config, Nodes bool
}

// Empty reports whether nothing changed except, perhaps, the Revision.
func (d Delta) Empty() bool {
	return !d.All && len(d.Services) == 0 && len(d.Pods)+len(d.Templates) == 0 && !d.Config && !d.Nodes
}

// Merge returns the Delta of both changes, first d and then next.
func (d Delta) Merge(next Delta) Delta {
	m := Delta{All: d.All || next.All, Urgent: d.Urgent || next.Urgent, Config: d.Config || next.Config, Nodes: d.Nodes || next.Nodes}
	if m.All {
		return m
	}
	m.Services, m.Pods, m.Templates = both(d.Services, next.Services), both(d.Pods, next.Pods), both(d.Templates, next.Templates)
	return m
}

// both returns the names of a and b, each once.
func both(a, b []dataplane.ServiceName) (all []dataplane.ServiceName) {
	known := make(map[dataplane.ServiceName]bool, len(a))
	for _, names := range [][]dataplane.ServiceName{a, b} {
		for _, n := range names {
			if !known[n] {
				known[n] = true
				all = append(all, n)
			}
		}
	}
	return all
}
