package reconcile

import (
	"slices"
	"testing"
	"time"
)

func TestAgenda(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }
	var a agenda
	if next := a.next(start); !next.After(at(60)) {
		t.Errorf("an empty agenda wakes at %v", next)
	}
	a.set(jobRetry, at(5))
	a.set(jobPoll, at(1))
	a.set(jobFullSync, at(3))
	a.set(jobFullSync, at(2))
	a.set(jobReap, at(1))
	a.set(jobReap, time.Time{})
	if next := a.next(start); next != at(1) {
		t.Errorf("the first job is due at %v", next)
	}
	if due := slices.Collect(a.due(start)); len(due) > 0 {
		t.Errorf("due before its time: %v", due)
	}
	var due []job
	for j := range a.due(at(2)) {
		due = append(due, j)
		switch j {
		case jobPoll:
			a.set(jobPoll, at(4)) // as a duty that repeats itself
		case jobFullSync:
			a.set(jobRound, at(2)) // as a duty that asks for a round
		}
	}
	if want := []job{jobPoll, jobFullSync, jobRound}; !slices.Equal(due, want) {
		t.Errorf("due: %v, want %v", due, want)
	}
	if next := a.next(at(2)); next != at(4) || a.has(jobFullSync) {
		t.Errorf("after that the first job is due at %v: %v", next, a)
	}
}
