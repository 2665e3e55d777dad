package userspace

import (
	"sync/atomic"
)

// admission bounds the open connections of one Service port and, through its parent, of the whole process. So a flood
// is refused, and does not take the descriptors that other Services need.
type admission struct {
	parent  *admission
	limit   int64
	open    atomic.Int64
	refused atomic.Int64
	// admitted counts the connections that were admitted.
	admitted atomic.Int64
	// failed counts the connections for which no endpoint answered.
	failed atomic.Int64
}

// enter admits a connection, or counts a refusal and returns false.
func (a *admission) enter() bool {
	if a.open.Add(1) > a.limit {
		a.open.Add(-1)
		a.refused.Add(1)
		return false
	}
	if a.parent != nil && !a.parent.enter() {
		a.open.Add(-1)
		a.refused.Add(1)
		return false
	}
	a.admitted.Add(1)
	return true
}

func (a *admission) leave() {
	a.open.Add(-1)
	if a.parent != nil {
		a.parent.leave()
	}
}
