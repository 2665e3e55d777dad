package reconcile

import (
	"time"

	"weir/backends"
	"weir/backends/dataplane"
)

// Report describes what one round of the Engine did. It is a value: logs, metrics and status are made from it, and
// nothing flows back.
type Report struct {
	// Notices holds the Services whose notices this round found to differ from before when it resolved them for the
	// node, with all that Resolve and the owners of addresses give now.
	Notices []ServiceNotices
	// Reason is why the round was run, as its Request said.
	Reason string
	// Mode is the proxy mode in force after the round, and Traits are its traits.
	Mode   string
	Traits backends.Traits
	// Revision is that of the snapshot in use, or "" if there was none yet.
	Revision string
	// Start is when the round began.
	Start time.Time
	// Stages is how long each part took.
	Stages Stages
	// limited is the part of Stages.Flows that is limited to a share of the time already, by leaveShare.
	limited time.Duration
	// Observed reports whether the kernel was read. Touched reports whether only the objects that another process wrote
	// were read.
	Observed, Touched bool
	// Full reports whether the round compared everything: the kernel was read, or its generation shows that no other
	// process wrote.
	Full bool

	// Created, Updated and Deleted count the changes that the kernel confirmed.
	Created, Updated, Deleted int
	// Drifted counts the items that differed in the kernel from what it had confirmed. Repaired counts those of them
	// that this round repaired.
	Drifted, Repaired int
	// Flows counts the stale conntrack entries that were removed.
	Flows int

	// Resolved counts the Services that were resolved again, and Services all of them.
	Resolved, Services int
	// Items counts the items of the desired state.
	Items int
	// Changed holds the ServicePorts that are new or changed since the last Report, and Gone those that were removed.
	// An Observer that follows all Reports, such as the health check server, needs no other list.
	Changed []*dataplane.ServicePort
	Gone    []dataplane.ServicePortName

	// HeldBack holds the Services whose desired state is not in the kernel, sorted by name.
	HeldBack []HeldBack
	// Conflicts holds the kernel objects that several Service ports want with different content.
	Conflicts []conflict
	// FlowsErr is why stale conntrack entries could not be removed. It does not fail the round. The next round retries.
	FlowsErr error
	// Err is why the round failed. Nil means that everything except the HeldBack is in force.
	Err error
}

// Stages holds how long the parts of a round took.
type Stages struct {
	Observe, Resolve, Plan, Apply, Flows, Total time.Duration
}

// Seconds returns the stages by their names in metrics and JSON.
func (s Stages) Seconds() map[string]float64 {
	return map[string]float64{"observe": s.Observe.Seconds(), "resolve": s.Resolve.Seconds(), "plan": s.Plan.Seconds(),
		"apply": s.Apply.Seconds(), "flows": s.Flows.Seconds(), "total": s.Total.Seconds()}
}

// HeldBack is a Service that is held back, so that the others can be programmed.
type HeldBack struct {
	// Service is zero for an item that belongs to no Service. Item then names it.
	Service dataplane.ServiceName
	Item    backends.ID
	// Origin is the place where the Service was written.
	Origin string
	Err    error
	// Since is when it first failed, and Retry when it is retried.
	Since, Retry time.Time
}

// String returns the name of the Service, or the item if it belongs to none.
func (i HeldBack) String() string {
	if i.Item != "" {
		return string(i.Item)
	}
	return i.Service.String()
}

// Changes returns how many changes the kernel confirmed.
func (r *Report) Changes() int { return r.Created + r.Updated + r.Deleted }

// NextRetry returns when the first of the HeldBack is retried, or the zero time.
func (r *Report) NextRetry() time.Time {
	var next time.Time
	for _, i := range r.HeldBack {
		if next.IsZero() || i.Retry.Before(next) {
			next = i.Retry
		}
	}
	return next
}

func (r *Report) count(c backends.Change) {
	switch c.Op {
	case backends.Create:
		r.Created++
	case backends.Update:
		r.Updated++
	case backends.Delete:
		r.Deleted++
	}
}
