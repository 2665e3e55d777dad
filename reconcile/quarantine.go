package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/dataplane"
)

// The backoff of a suspect. It doubles from the first to the last.
const (
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
)

// suspect is the assumed cause of a refused change: the Service that wants it, or the item itself if no Service does.
type suspect struct {
	service dataplane.ServiceName
	item    backends.ID
}

func suspectsOf(id backends.ID, owners []dataplane.ServicePortName) []suspect {
	if len(owners) == 0 {
		return []suspect{{item: id}}
	}
	suspects := make([]suspect, len(owners))
	for i, o := range owners {
		suspects[i] = suspect{service: o.Service}
	}
	return slices.Compact(suspects) // owners are sorted, so the ports of a Service are adjacent
}

// backoff is the current retry delay of a suspect, and its reason.
type backoff struct {
	err          error
	since, retry time.Time
	delay        time.Duration
	// held reports whether all changes of the suspect wait until the retry. A Service that was put back to its last
	// accepted state is not held: that state is maintained in the meantime.
	held bool
	// scaffolding says that every Service needs what the kernel refused.
	scaffolding bool
}

// quarantine holds suspects back. Each has its own backoff, so that no suspect delays another.
type quarantine struct {
	log      hclog.Logger
	suspects map[suspect]*backoff
}

func newQuarantine(log hclog.Logger) *quarantine {
	return &quarantine{log: log, suspects: map[suspect]*backoff{}}
}

// of returns the backoff of a Service, or nil if it is not held back.
func (q *quarantine) of(name dataplane.ServiceName) *backoff {
	return q.suspects[suspect{service: name}]
}

// fail makes a suspect wait, longer than the last time. It reports whether this is its first failure in the round that
// began at now.
func (q *quarantine) fail(s suspect, err error, now time.Time) bool {
	b := q.suspects[s]
	switch {
	case b == nil:
		b = &backoff{since: now, delay: firstRetry}
		q.suspects[s] = b
	case b.retry.After(now):
		return false
	default:
		b.delay, b.held = min(2*b.delay, lastRetry), false
	}
	b.err, b.retry = err, now.Add(b.delay)
	if s.item != "" {
		q.log.Warn("held back: an item of no Service", "item", s.item, "error", err, "retry", b.delay.String())
	} else {
		q.log.Warn("held back; nothing else is affected", "service", s.service.String(), "error", err, "retry", b.delay.String())
	}
	return true
}

// hold leaves out the changes of a failed suspect until its retry. It reports whether they were included before.
func (q *quarantine) hold(s suspect) bool {
	b := q.suspects[s]
	before := b.held
	b.held = true
	return !before
}

// retryNow makes a Service's retry due at once. It reports whether the Service was held back.
func (q *quarantine) retryNow(name dataplane.ServiceName) bool {
	b := q.of(name)
	delete(q.suspects, suspect{service: name})
	return b != nil
}

// scaffolding returns why something that every Service needs is not in the kernel, nil if it all is. Of several the first by
// name is named.
func (q *quarantine) scaffolding() error {
	var first suspect
	for s, b := range q.suspects {
		if b.scaffolding && (first.item == "" || s.item < first.item) {
			first = s
		}
	}
	if first.item == "" {
		return nil
	}
	return fmt.Errorf("no Service works as it should without %s: %w", first.item, q.suspects[first].err)
}

// waits reports whether the suspect's retry is after the round that began at now.
func (q *quarantine) waits(s suspect, now time.Time) bool {
	b := q.suspects[s]
	return b != nil && b.retry.After(now)
}

// holds reports whether the suspect's changes are left out of a round that began at now.
func (q *quarantine) holds(s suspect, now time.Time) bool {
	return q.waits(s, now) && q.suspects[s].held
}

// holdsAll reports whether a change is left out, because all Services that want it are held back.
func (q *quarantine) holdsAll(id backends.ID, owners []dataplane.ServicePortName, now time.Time) bool {
	if len(q.suspects) == 0 {
		return false
	}
	if len(owners) == 0 {
		return q.holds(suspect{item: id}, now)
	}
	return !slices.ContainsFunc(owners, func(o dataplane.ServicePortName) bool {
		return !q.holds(suspect{service: o.Service}, now)
	})
}

// retries returns the Services whose retry is due in a round that begins at now.
func (q *quarantine) retries(now time.Time) []dataplane.ServiceName {
	var names []dataplane.ServiceName
	for s, b := range q.suspects {
		if s.item == "" && !b.retry.After(now) {
			names = append(names, s.service)
		}
	}
	return names
}

// clear frees the suspects that a successful round, which began at now, tried without a new failure.
func (q *quarantine) clear(now time.Time) {
	maps.DeleteFunc(q.suspects, func(_ suspect, b *backoff) bool { return !b.retry.After(now) })
}

// forget frees all suspects.
func (q *quarantine) forget() { clear(q.suspects) }

// list returns everything that is held back, Services first, each kind in order.
func (q *quarantine) list(origin func(dataplane.ServiceName) string) []HeldBack {
	list := make([]HeldBack, 0, len(q.suspects))
	for s, b := range q.suspects {
		h := HeldBack{Service: s.service, Item: s.item, Err: b.err, Since: b.since, Retry: b.retry}
		if s.item == "" {
			h.Origin = origin(s.service)
		}
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b HeldBack) int { return cmp.Or(cmp.Compare(a.Item, b.Item), a.Service.Compare(b.Service)) })
	return list
}
