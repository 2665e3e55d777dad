package join

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

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
		if source == nil || w.layers[i].GivesPods && w.running[i].source != nil && predecessor(source) == "" {
			w.empty(i)
		}
		if w.union.use(i, w.layers[i], source); source != nil {
			w.start(i, source)
		}
	}
	return changed, nil
}

// empty stops the Source of a layer, and drops what it said.
func (w *watch) empty(i int) {
	if stop := w.running[i].stop; stop != nil {
		stop()
	}
	nothing := &spec.Snapshot{}
	w.running[i], w.faults[1+i], w.union.said[1+i] = running{}, nil, nothing
	w.union.setAway(1+i, nil)
	w.union.takePods(1+i, nothing, spec.Delta{All: true})
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

// answerLimit is how long a source of pods may take until it is told that it has not answered. What is declared does not wait longer
// for it.
const answerLimit = 2 * time.Second

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
	if w.layers[i].GivesPods {
		w.wg.Go(func() {
			select {
			case <-time.After(answerLimit):
			case <-ctx.Done():
				return
			}
			w.locked(func() {
				if ctx.Err() == nil && !w.running[i].begun && w.union.away[1+i] == nil {
					w.takeAway(1+i, spec.Update{Err: errors.New("it has not answered yet")})
				}
			})
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
		if i > 0 && w.layers[i-1].GivesPods {
			w.takeAway(i, u)
		} else {
			w.sink(u)
		}
		return
	}
	w.faults[i] = nil
	w.union.said[i] = u.Snapshot
	var away *spec.Away
	if i > 0 && w.layers[i-1].GivesPods && u.Snapshot.Revision.Stale {
		away = &spec.Away{Source: w.union.names[i], Reason: "it has not answered yet", Stands: w.stands(i)}
	}
	u.Delta.Services = append(slices.Clip(u.Delta.Services), w.union.takePods(i, u.Snapshot, u.Delta)...)
	u.Delta.Services = append(u.Delta.Services, w.union.setAway(i, away)...)
	u.Delta.Pods, u.Delta.Templates = nil, nil
	w.send(u.Delta)
}

// takeAway takes the error of a layer that gives pods. The joined Snapshot tells of it, because what is declared does not wait for
// a runtime.
func (w *watch) takeAway(i int, u spec.Update) {
	delta := spec.Delta{}
	if w.union.said[i] == nil {
		// That the Snapshot is stale keeps what the kernel has of its pods.
		w.union.said[i] = &spec.Snapshot{Revision: spec.Revision{Stale: true}}
		delta.All = true
	}
	delta.Services = w.union.setAway(i, &spec.Away{Source: w.union.names[i], Reason: u.Err.Error(), Stands: w.stands(i)})
	if w.union.complete() {
		w.send(delta)
	} else {
		w.sink(u)
	}
}

// stands says what is in force of the pods of a layer that cannot be read.
func (w *watch) stands(i int) string {
	said := w.union.said[i]
	before := predecessor(w.running[i-1].source)
	n, stay := fmt.Sprintf("%d pods", said.Pods.Len()), "stay"
	if said.Pods.Len() == 1 {
		n, stay = "1 pod", "stays"
	}
	switch {
	case said.Pods.Len() == 0 && said.Revision.Stale:
		return "its pods are not known: what the kernel has of them stays, and nothing is deleted"
	case said.Pods.Len() == 0:
		return "no pod of it is known"
	case before != "" && !w.running[i-1].begun:
		return fmt.Sprintf("%s of %s, which it replaces, %s until it answers", n, before, stay)
	case said.Revision.Stale:
		return fmt.Sprintf("%s that it had before weir started %s", n, stay)
	}
	return fmt.Sprintf("%s that it told of last %s", n, stay)
}

// predecessor returns the name of the source whose pods stand until this one has sent a Snapshot, or "".
func predecessor(source spec.Source) string {
	if s, ok := source.(Successor); ok {
		return s.Succeeds()
	}
	return ""
}

// send sends the joined Snapshot, and after it the errors that remain.
func (w *watch) send(delta spec.Delta) {
	if !w.union.complete() {
		return
	}
	snap, delta := w.union.update(delta, w.outdated())
	w.sink(spec.Update{Snapshot: snap, Delta: delta, Revision: snap.Revision})
	for i, u := range w.faults {
		if u != nil && (i == 0 || !w.layers[i-1].GivesPods) {
			w.sink(*u)
		}
	}
}

// outdated reports whether some Source cannot read its input. A Source that read its input and found it invalid does
// not count, nor does one of pods.
func (w *watch) outdated() bool {
	for i, u := range w.faults {
		if u != nil && (i == 0 || !w.layers[i-1].GivesPods) && !errors.As(u.Err, new(spec.Problems)) {
			return true
		}
	}
	return false
}
