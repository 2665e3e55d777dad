package reconcile

import (
	"iter"
	"time"
)

// job is a task that the Loop does at a certain time. A new job is a line here and a line in duties.
type job uint8

// The jobs. Those due at the same time are done in this order.
const (
	jobConfigure job = iota // ask Configure again after it failed
	jobPoll                 // ask whether another process wrote
	jobReap                 // delete drained objects
	jobFullSync
	jobRetry         // after a round that failed
	jobRetryHeldBack // the first retry of a Service that is held back
	jobRound         // the requested round
	numJobs
)

// agenda holds the time at which each job is due. The zero time means never.
type agenda [numJobs]time.Time

// set makes a job due at a time, instead of any earlier setting. The zero time cancels it.
func (a *agenda) set(j job, at time.Time) { a[j] = at }

// has reports whether a job is scheduled.
func (a *agenda) has(j job) bool { return !a[j].IsZero() }

// due yields the jobs that are due, and removes each from the agenda first. It includes jobs that an earlier one makes
// due.
func (a *agenda) due(now time.Time) iter.Seq[job] {
	return func(yield func(job) bool) {
		for j := range numJobs {
			if !a.has(j) || a[j].After(now) {
				continue
			}
			a.set(j, time.Time{})
			if !yield(j) {
				return
			}
		}
	}
}

// next returns when the first job is due. If there is none, the time is far in the future.
func (a *agenda) next(now time.Time) time.Time {
	next := now.Add(time.Hour)
	for j := range numJobs {
		if a.has(j) && a[j].Before(next) {
			next = a[j]
		}
	}
	return next
}
