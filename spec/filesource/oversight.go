package filesource

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"weir/spec"
	"weir/spec/stall"
)

const (
	// oneStep is for one call to the file system, and manySteps for a step of reading a Git repository: how many times the
	// patience they may take.
	oneStep, manySteps = 1, 6
	// maxStuck limits the goroutines that are left behind in calls that do not come back.
	maxStuck = 16
	// retryStuck is how long a path is left alone while a call for it has not come back.
	retryStuck = time.Minute
)

// stuck knows the calls to the file system that have not come back. It is safe for concurrent use.
//
// Nothing can end a read from a hung NFS or FUSE mount. So the goroutine that makes it is left behind, with its tree, and
// another one reads everything again, except for what is on the same file system. What hangs stays as it was last good.
type stuck struct {
	some atomic.Bool // whether there are any
	mu   sync.Mutex
	// paths holds when a call for the path was given up.
	paths map[string]time.Time
	// first holds the path of a stuck call on a device, and devs that of a second one: then the whole device hangs.
	first, devs map[uint64]string
	count       int
	// patience is how long one call may take.
	patience time.Duration
	// before, if set, is called as a part of each call. For tests.
	before func(path string)
	// back receives when a call has come back.
	back chan struct{}
}

func newStuck() *stuck {
	return &stuck{patience: stall.Limit, paths: map[string]time.Time{}, first: map[uint64]string{}, devs: map[uint64]string{}, back: make(chan struct{}, 1)}
}

// stuckError means that a call is not made, because one for that path or on its device has not come back.
type stuckError struct{ path string }

// Error implements error.
func (e stuckError) Error() string { return stall.Error("reading "+e.path, stall.Limit).Error() }

// refuses returns an error if a call must not be made.
func (s *stuck) refuses(path string, dev uint64) error {
	if !s.some.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if since, ok := s.paths[path]; ok {
		if time.Since(since) < retryStuck || s.count >= maxStuck {
			return stuckError{path}
		}
		s.forget(path)
	}
	by, hangs := s.devs[dev]
	switch {
	case !hangs:
		return nil
	case time.Since(s.paths[by]) < retryStuck || s.count >= maxStuck:
		return stuckError{by}
	}
	s.forget(by)
	return nil
}

// add records a call that is given up. It returns false if there are too many.
func (s *stuck) add(path string, dev uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.count >= maxStuck {
		return false
	}
	s.count++
	s.paths[path] = time.Now()
	switch by := s.first[dev]; {
	case dev == 0:
	case by == "":
		s.first[dev] = path
	case by != path:
		s.devs[dev] = path
	}
	s.some.Store(true)
	return true
}

// came records that a call has come back.
func (s *stuck) came(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count--
	s.forget(path)
	select {
	case s.back <- struct{}{}:
	default:
	}
}

// forget allows calls for a path, and on its device, again.
func (s *stuck) forget(path string) {
	delete(s.paths, path)
	for _, devs := range []map[uint64]string{s.first, s.devs} {
		maps.DeleteFunc(devs, func(_ uint64, by string) bool { return by == path })
	}
	s.some.Store(len(s.paths) > 0)
}

// gone says that a path leads to nothing, so that a call for it comes back, whatever hangs in an earlier one.
func (o *oversight) gone(path string) {
	if o != nil && o.stuck.some.Load() {
		o.stuck.mu.Lock()
		defer o.stuck.mu.Unlock()
		o.stuck.forget(path)
	}
}

// forgive allows all calls again, because something was mounted or unmounted.
func (s *stuck) forgive() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.paths)
	clear(s.first)
	clear(s.devs)
	s.some.Store(false)
}

// oversight knows the call to the file system that one goroutine is making. A nil oversight oversees nothing.
type oversight struct {
	stuck *stuck

	mu    sync.Mutex
	path  string
	dev   uint64 // 0 if unknown
	since time.Time
	limit time.Duration
	// busy reports whether a call is being made, and abandoned whether it was given up.
	busy, abandoned bool
}

// begin announces a call, or returns why it must not be made. end must follow a nil error.
func (o *oversight) begin(path string, dev uint64, steps time.Duration) error {
	if o == nil {
		return nil
	}
	if err := o.stuck.refuses(path, dev); err != nil {
		return err
	}
	o.mu.Lock()
	o.path, o.dev, o.since, o.limit, o.busy = path, dev, time.Now(), steps*o.stuck.patience, true
	o.mu.Unlock()
	if o.stuck.before != nil {
		o.stuck.before(path)
	}
	return nil
}

// end says that the call has come back. It ends the goroutine if that was given up, because another one does its work.
func (o *oversight) end() {
	if o == nil {
		return
	}
	o.mu.Lock()
	o.busy = false
	abandoned := o.abandoned
	o.mu.Unlock()
	if abandoned {
		o.stuck.came(o.path)
		runtime.Goexit()
	}
}

// overdue returns the path of the call that is being made, if it takes longer than its limit, or than the given one.
func (o *oversight) overdue(atMost time.Duration) (path string, overdue bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.path, o.busy && time.Since(o.since) > min(o.limit, atMost)
}

// abandon gives up the call, unless it has come back meanwhile or there are too many.
func (o *oversight) abandon() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.busy {
		o.abandoned = o.stuck.add(o.path, o.dev)
	}
	return o.abandoned
}

// oversee waits for a goroutine to end. It returns an error if the goroutine is given up, or is to be ended and hangs. tell
// is called for a call that hangs and cannot be given up.
func (o *oversight) oversee(ctx context.Context, done <-chan struct{}, tell func(error)) error {
	period := o.stuck.patience / 5
	tick := time.NewTicker(period)
	defer tick.Stop()
	ended, told := ctx.Done(), ""
	for {
		select {
		case <-done:
			return nil
		case <-ended:
			ended = nil
			tick.Reset(period / 20)
		case <-tick.C:
		}
		if ctx.Err() != nil {
			if _, hangs := o.overdue(period / 2); hangs {
				return ctx.Err()
			}
			continue
		}
		path, hangs := o.overdue(manySteps * o.stuck.patience)
		switch {
		case !hangs:
			told = ""
		case o.abandon():
			return stuckError{path}
		case path != told:
			told = path
			tell(stuckError{path})
		}
	}
}

// during makes a call of several steps that belong together.
func during[T any](o *oversight, path string, steps time.Duration, f func() T) (v T, err error) {
	if err := o.begin(path, 0, steps); err != nil {
		return v, err
	}
	v = f()
	o.end()
	return v, nil
}

// stuckDetail says what to do about a name that cannot be read because of a stuckError.
func stuckDetail(name string, e stuckError) string {
	const remedy = "its file system does not answer, as a hung network mount does; repair or unmount it, or take it out of the input"
	if e.path == name {
		return fmt.Sprintf("reading it has not come back for %v: %s", stall.Limit, remedy)
	}
	return fmt.Sprintf("it is not read, because reading %s has not come back for %v: %s", e.path, stall.Limit, remedy)
}

// asProblem returns an error of an overseer for a caller that gives up.
func asProblem(err error) error {
	var e stuckError
	if errors.As(err, &e) {
		return spec.Problems{{Origin: spec.Origin{File: e.path}, Detail: stuckDetail(e.path, e)}}
	}
	return err
}
