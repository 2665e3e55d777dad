package filesource

import "time"

const (
	// settleMax bounds how long changes that keep coming delay a reading.
	settleMax = 2 * time.Second
	// lockMax bounds how long .git/index.lock does.
	lockMax = 30 * time.Second
)

// settle says when changes have come to rest. The zero value is at rest.
type settle struct {
	first, last time.Time
}

// touch notes a change.
func (s *settle) touch(now time.Time) {
	if s.first.IsZero() {
		s.first = now
	}
	s.last = now
}

// waiting says that there are changes that were not read.
func (s *settle) waiting() bool { return !s.first.IsZero() }

// due returns when to read: after a quiet time, at the latest settleMax after the first change.
func (s *settle) due(quiet time.Duration) time.Time {
	return earlier(s.last.Add(quiet), s.first.Add(max(settleMax, quiet)))
}

// expired says that the limit has passed since the first change, so that nothing is a reason to wait any longer.
func (s *settle) expired(now time.Time, limit time.Duration) bool {
	return now.Sub(s.first) >= limit
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
