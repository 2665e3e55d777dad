package reconcile

import (
	"time"

	"weir/backends"
)

// Report says what one round of the Engine did. It is a value: logs, metrics and status are made from it, and nothing
// flows back.
type Report struct {
	// Reason is why the round was run, as its Request said.
	Reason string
	// Mode is the proxy mode that is in force after the round.
	Mode string
	// Revision is that of the snapshot the round worked on, "" if there was none yet.
	Revision string
	// Start is when the round began.
	Start time.Time
	// Stages is how long each part took.
	Stages Stages
	// Observed says that the kernel was read, rather than remembered; Touched that no more was read than what somebody else
	// wrote.
	Observed, Touched bool
	// Full says that the round compared everything: the kernel was read, or its generation says that nobody else wrote.
	Full bool

	// Created, Updated and Deleted count the changes that the kernel confirmed.
	Created, Updated, Deleted int
	// Drifted counts the items that the kernel held otherwise than it had confirmed before, and Repaired how many of them
	// were put right in this round.
	Drifted, Repaired int
	// Flows counts the stale conntrack entries that were removed.
	Flows int

	// Resolved is how many Services were worked out anew, and Services how many there are.
	Resolved, Services int
	// Items counts what the kernel should hold.
	Items int
	// Changed holds the Entries that are new or changed since the last Report, and Gone those that vanished: whoever
	// follows them all (the health check server) needs no other list.
	Changed []*backends.Entry
	Gone    []backends.PortKey

	// Isolated are the Services that the kernel does not hold as they were asked for, sorted by name.
	Isolated []Isolated
	// Conflicts are the kernel objects that more than one Service port wants, each in its own way.
	Conflicts []Conflict
	// FlowsErr is why stale conntrack entries could not be removed. It does not fail the round; they are tried again.
	FlowsErr error
	// Err is why the round failed; nil means that everything but the Isolated is in force.
	Err error
}

// Stages is how long the parts of a round took.
type Stages struct {
	Observe, Resolve, Plan, Apply, Flows, Total time.Duration
}

// Seconds returns them by the names under which metrics and JSON show them.
func (s Stages) Seconds() map[string]float64 {
	return map[string]float64{"observe": s.Observe.Seconds(), "resolve": s.Resolve.Seconds(), "plan": s.Plan.Seconds(),
		"apply": s.Apply.Seconds(), "flows": s.Flows.Seconds(), "total": s.Total.Seconds()}
}

// Isolated is a Service that is held back so that the others need not be.
type Isolated struct {
	// Service is zero if what is held back belongs to none; Item then says what it is.
	Service backends.ServiceName
	Item    backends.ID
	// Origin is where the Service was written.
	Origin string
	Err    error
	// Since is when it failed first, Retry when it is tried again.
	Since, Retry time.Time
}

// String names the Service, or the item that belongs to none.
func (i Isolated) String() string {
	if i.Item != "" {
		return string(i.Item)
	}
	return i.Service.String()
}

// Changes is how many changes the kernel confirmed.
func (r *Report) Changes() int { return r.Created + r.Updated + r.Deleted }

// NextRetry returns when the first of the isolated is to be tried again, or the zero time.
func (r *Report) NextRetry() time.Time {
	var next time.Time
	for _, i := range r.Isolated {
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
