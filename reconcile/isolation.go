package reconcile

import (
	"cmp"
	"slices"
	"time"

	"weir/backends"
)

// How long the isolated wait before they are tried again: doubling from the first to the last.
const (
	firstRetry = time.Second
	lastRetry  = 5 * time.Minute
)

// culprit is what a refused change is blamed on: the Service that wants it, or the item itself if none does.
type culprit struct {
	service backends.ServiceName
	item    backends.ID
}

func culpritsOf(id backends.ID, owners []backends.PortKey) []culprit {
	if len(owners) == 0 {
		return []culprit{{item: id}}
	}
	culprits := make([]culprit, len(owners))
	for i, o := range owners {
		culprits[i] = culprit{service: o.Service}
	}
	return slices.Compact(culprits) // owners are sorted, the ports of a Service together
}

// penalty is how a culprit is held back.
type penalty struct {
	err          error
	since, retry time.Time
	delay        time.Duration
	// held says that no change of the culprit is tried before then. A Service that could be put back to what the kernel
	// accepted of it before is not held: that state is kept up in the meantime.
	held bool
}

// isolation holds culprits back, each with a backoff of its own, so that they do not hold back anybody else.
type isolation map[culprit]*penalty

// blame holds a culprit back, longer than the last time. It says whether that is news in the round that began at now.
func (s isolation) blame(c culprit, err error, now time.Time) bool {
	p := s[c]
	switch {
	case p == nil:
		p = &penalty{since: now, delay: firstRetry}
		s[c] = p
	case p.retry.After(now):
		return false
	default:
		p.delay, p.held = min(2*p.delay, lastRetry), false
	}
	p.err, p.retry = err, now.Add(p.delay)
	return true
}

// waits says whether the culprit's time to be tried again has not come in a round that began at now.
func (s isolation) waits(c culprit, now time.Time) bool {
	p := s[c]
	return p != nil && p.retry.After(now)
}

// holds says whether the culprit's changes are to be left out of a round that began at now.
func (s isolation) holds(c culprit, now time.Time) bool { return s.waits(c, now) && s[c].held }

// holdsAll says whether a change is to be left out: everybody who wants it is held back.
func (s isolation) holdsAll(id backends.ID, owners []backends.PortKey, now time.Time) bool {
	if len(s) == 0 {
		return false
	}
	if len(owners) == 0 {
		return s.holds(culprit{item: id}, now)
	}
	return !slices.ContainsFunc(owners, func(o backends.PortKey) bool {
		return !s.holds(culprit{service: o.Service}, now)
	})
}

// acquit frees those who were tried in a successful round that began at now and not blamed again.
func (s isolation) acquit(now time.Time) {
	for c, p := range s {
		if !p.retry.After(now) {
			delete(s, c)
		}
	}
}

// list returns the isolated, Services first, each kind in order.
func (s isolation) list(origin func(backends.ServiceName) string) []Isolated {
	list := make([]Isolated, 0, len(s))
	for c, p := range s {
		i := Isolated{Service: c.service, Item: c.item, Err: p.err, Since: p.since, Retry: p.retry}
		if c.item == "" {
			i.Origin = origin(c.service)
		}
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b Isolated) int { return cmp.Or(cmp.Compare(a.Item, b.Item), a.Service.Compare(b.Service)) })
	return list
}
