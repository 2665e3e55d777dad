package filesource

import "time"

const (
	// settleMax limits how long a series of changes delays a read.
	settleMax = 2 * time.Second
	// lockMax limits how long .git/index.lock delays a read.
	lockMax = 30 * time.Second
)

// settle decides when changes have settled. The zero value is settled.
type settle struct {
	first, last time.Time
}

// touch records a change.
func (s *settle) touch(now time.Time) {
	if s.first.IsZero() {
		s.first = now
	}
	s.last = now
}

// waiting reports whether there are unread changes.
func (s *settle) waiting() bool { return !s.first.IsZero() }

// due returns when to read: after a quiet time, but at the latest settleMax after the first change.
func (s *settle) due(quiet time.Duration) time.Time {
	return earlier(s.last.Add(quiet), s.first.Add(max(settleMax, quiet)))
}

// expired reports whether the limit has passed since the first change, so that the read must not wait any longer.
func (s *settle) expired(now time.Time, limit time.Duration) bool {
	return now.Sub(s.first) >= limit
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
