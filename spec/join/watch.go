package join

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"weir/backends/dataplane"
	"weir/spec"
)

// Watch implements spec.Source.
func (s *Source) Watch(ctx context.Context, sink func(spec.Update)) error {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{Source: s, ctx: ctx, sink: sink, union: s.newUnion(), running: make([]running, len(s.layers)), faults: make([]*spec.Update, 1+len(s.layers))}
	defer w.wg.Wait()
	defer cancel()
	for _, f := range s.filters {
		w.wg.Go(func() {
			f.Watch(ctx, func(names ...dataplane.ServiceName) { w.locked(func() { w.send(spec.Delta{Services: names}) }) })
		})
	}
	for _, l := range s.layers {
		if l.Watch != nil {
			w.wg.Go(func() { l.Watch(ctx, func() { w.locked(w.followAgain) }) })
		}
	}
	return s.base.Watch(ctx, func(u spec.Update) { w.locked(func() { w.onBase(u) }) })
}

// watch is one Watch. All updates of Sources and Filters are taken under its lock. It starts no goroutines except those
// of their Watches.
type watch struct {
	*Source
	ctx  context.Context
	sink func(spec.Update)
	wg   sync.WaitGroup

	mu      sync.Mutex
	union   *union
	running []running
	// faults are the current errors: of the base, then of each layer.
	faults []*spec.Update
}

// running is the current Source of a layer.
type running struct {
	source spec.Source
	stop   context.CancelFunc
	begun  bool // the Source has sent a Snapshot
}

func (w *watch) locked(do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	do()
}

func (w *watch) onBase(u spec.Update) {
	if u.Err == nil {
		var changed bool
		changed, u.Err = w.follow(u.Snapshot)
		u.Delta.All = u.Delta.All || changed
	}
	w.take(0, u)
}

// follow starts the Sources that a Snapshot of the base asks for, and stops those that it does not ask for any more. It reports
// whether there was any of either.
func (w *watch) follow(base *spec.Snapshot) (changed bool, err error) {
	sources, err := w.sources(base)
	if err != nil {
		return false, err
	}
	for i, source := range sources {
		if source == w.running[i].source && (source != nil || w.union.said[1+i] != nil) {
			continue
		}
		changed = true
		if w.union.use(i, w.layers[i], source); source != nil {
			w.start(i, source)
			continue
		}
		if stop := w.running[i].stop; stop != nil {
			stop()
		}
		nothing := &spec.Snapshot{}
		w.running[i], w.faults[1+i], w.union.said[1+i] = running{}, nil, nothing
		w.union.takePods(1+i, nothing, spec.Delta{All: true})
	}
	return changed, nil
}

// followAgain follows the last Snapshot of the base again. What is wrong with that is told with the next one.
func (w *watch) followAgain() {
	if w.ctx.Err() != nil || w.union.said[0] == nil {
		return
	}
	if changed, err := w.follow(w.union.said[0]); err == nil && changed {
		w.send(spec.Delta{All: true})
	}
}

func (w *watch) start(i int, source spec.Source) {
	if stop := w.running[i].stop; stop != nil {
		stop()
	}
	ctx, stop := context.WithCancel(w.ctx)
	w.running[i] = running{source: source, stop: stop}
	name := w.union.names[1+i]
	take := func(u spec.Update) {
		w.locked(func() {
			if ctx.Err() != nil {
				return // replaced by another Source
			}
			if u.Err == nil && !w.running[i].begun {
				w.running[i].begun, u.Delta = true, spec.Delta{All: true}
			}
			w.take(1+i, u)
		})
	}
	w.wg.Go(func() {
		err := source.Watch(ctx, take)
		take(spec.Update{Err: fmt.Errorf("%s is not watched any more: %w", name, err)}) // unless ctx is done
	})
}

// take takes an Update of the base or of a layer.
func (w *watch) take(i int, u spec.Update) {
	if u.Err != nil {
		u.Snapshot = nil
		w.faults[i] = &u
		if i == 0 || !w.layers[i-1].GivesPods || w.union.said[i] != nil {
			w.sink(u)
			return
		}
		// What is declared does not wait for a runtime. That the Snapshot is stale keeps what the kernel has of its pods.
		w.union.said[i] = &spec.Snapshot{Revision: spec.Revision{Stale: true}}
		if w.union.complete() {
			w.send(spec.Delta{All: true})
		} else {
			w.sink(u)
		}
		return
	}
	w.faults[i] = nil
	w.union.said[i] = u.Snapshot
	u.Delta.Services = append(slices.Clip(u.Delta.Services), w.union.takePods(i, u.Snapshot, u.Delta)...)
	u.Delta.Pods, u.Delta.Templates = nil, nil
	w.send(u.Delta)
}

// send sends the joined Snapshot, and after it the errors that remain.
func (w *watch) send(delta spec.Delta) {
	if !w.union.complete() {
		return
	}
	snap, delta := w.union.update(delta, w.outdated())
	w.sink(spec.Update{Snapshot: snap, Delta: delta, Revision: snap.Revision})
	for _, u := range w.faults {
		if u != nil {
			w.sink(*u)
		}
	}
}

// outdated reports whether some Source cannot read its input. A Source that read its input and found it invalid does
// not count.
func (w *watch) outdated() bool {
	for _, u := range w.faults {
		if u != nil && !errors.As(u.Err, new(spec.Problems)) {
			return true
		}
	}
	return false
}
