package reconcile

import (
	"context"
	"errors"
	"iter"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/fake"
	"weir/spec"
)

// loopWorld runs a Loop in a synctest bubble.
type loopWorld struct {
	*world
	updates  *spec.Outbox
	node     chan struct{}
	backend  *fake.Backend
	settings Settings
	inUse    []Settings
	rounds   int
	// lasts is how long the kernel takes for each round, and left what it still has to take for this one.
	lasts, left time.Duration
	configErr   error
	configs     int
	reports     []Report
	told        []spec.Update
	began       time.Time
	// handOver orders what the test wrote before what the Loop reads when a timer wakes it.
	handOver sync.Mutex
}

func runLoop(t *testing.T, minPeriod, period time.Duration, test func(w *loopWorld)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &loopWorld{world: newWorld(t, three()...), updates: spec.NewOutbox(), node: make(chan struct{}), began: time.Now()}
		w.kernel.OnCall = func() {
			w.takeOver()
			time.Sleep(w.left)
			w.left = 0
		}
		w.backend = fake.New(w.kernel, dataplane.Config{})
		w.settings = Settings{DataPath: DataPath{Mode: "fake", Backend: w.backend, Flows: w.flows}, Node: testNode, MinSyncPeriod: minPeriod, SyncPeriod: period}
		w.engine = NewEngine(Options{})
		loop := NewLoop(LoopOptions{
			Engine: w.engine, Updates: w.updates, NodeChanges: w.node,
			Configure: func(*spec.Snapshot) (Settings, error) {
				w.takeOver()
				w.configs++
				return w.settings, w.configErr
			},
			Observers: []Observer{w},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- loop.Run(ctx) }()
		test(w)
		objects := len(w.kernel.Objects())
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run returned %v", err)
		}
		if len(w.kernel.Objects()) != objects {
			t.Error("the shutdown changed the kernel")
		}
	})
}

func (w *loopWorld) Updated(u spec.Update)                   { w.told = append(w.told, u) }
func (w *loopWorld) Configured(_ *spec.Snapshot, s Settings) { w.inUse = append(w.inUse, s) }
func (w *loopWorld) RoundStarts(Request) {
	w.rounds++
	w.left = w.lasts
}
func (w *loopWorld) Applied(r Report) {
	w.takeOver()
	w.reports = append(w.reports, r)
}

// takeOver makes what the other goroutine wrote before its own takeOver visible here.
func (w *loopWorld) takeOver() {
	w.handOver.Lock()
	defer w.handOver.Unlock()
}

func (w *loopWorld) start() {
	w.updates.Put(spec.Update{Snapshot: w.snapshot(), Delta: spec.Delta{All: true}})
	synctest.Wait()
}

// change sends one changed Service.
func (w *loopWorld) change(endpoints int) {
	s := makeService("a", 1, "TCP", endpoints)
	w.put(s)
	w.updates.Put(spec.Update{Snapshot: w.snapshot(), Delta: spec.Delta{Services: []dataplane.ServiceName{s.Name}}})
	synctest.Wait()
}

func (w *loopWorld) sleep(d time.Duration) {
	w.takeOver()
	time.Sleep(d)
	synctest.Wait()
}

// times returns when the rounds were, and forgets them.
func (w *loopWorld) times() []time.Duration {
	var at []time.Duration
	for _, r := range w.reports {
		at = append(at, r.Start.Sub(w.began))
	}
	w.reports = nil
	return at
}

func (w *loopWorld) expect(want ...time.Duration) {
	w.t.Helper()
	got := w.times()
	if len(got) != len(want) {
		w.t.Fatalf("rounds at %v, want %v", got, want)
	}
	for i := range want {
		if d := got[i] - want[i]; d < 0 || d > time.Millisecond {
			w.t.Fatalf("rounds at %v, want %v", got, want)
		}
	}
}

func TestLoopKeepsMinSyncPeriod(t *testing.T) {
	runLoop(t, time.Second, time.Minute, func(w *loopWorld) {
		w.sleep(3 * time.Second)
		w.expect()
		w.start()
		w.expect(3 * time.Second)
		for n := range 10 { // ten changes in 200 ms are one round, when the period is over
			w.change(n % 5)
			w.sleep(20 * time.Millisecond)
		}
		w.expect()
		w.sleep(2 * time.Second)
		w.expect(4 * time.Second)
		w.change(2) // long after: at once
		w.expect(5200 * time.Millisecond)
		w.converged()
	})
}

// slowLeavers take their time to look for flows.
type slowLeavers struct{ recordedFlows }

const slowLeave = 40 * time.Millisecond

func (*slowLeavers) Leave(context.Context, []*dataplane.ServicePort) (int, error) {
	time.Sleep(slowLeave)
	return 0, nil
}

// TestLoopTellsOfRevisionsWithoutEffect has a commit that changes no Service, which a round reports to be in force.
func TestLoopTellsOfRevisionsWithoutEffect(t *testing.T) {
	runLoop(t, time.Second, time.Hour, func(w *loopWorld) {
		w.start()
		w.sleep(time.Minute)
		w.times()
		for _, id := range []string{"next", "next", "another"} {
			snap := w.snapshot()
			snap.Revision.ID = id
			w.updates.Put(spec.Update{Snapshot: snap})
			w.sleep(time.Minute)
		}
		if len(w.reports) != 2 || w.reports[0].Revision != "next" || w.reports[1].Revision != "another" {
			t.Errorf("%+v", w.reports)
		}
		for _, r := range w.reports {
			if r.Err != nil || r.Changes() > 0 {
				t.Errorf("%+v", r)
			}
		}
	})
}

// TestLoopHurries expects that where nobody asked for a period, an endpoint which goes does not wait for it, and other
// changes wait for as much of it as keeps rounds to a twentieth of the time; and that a period which was asked for counts as
// it is written.
func TestLoopHurries(t *testing.T) {
	const lasts = 20 * time.Millisecond
	urgent := func(w *loopWorld) {
		w.updates.Put(spec.Update{Snapshot: w.snapshot(), Delta: spec.Delta{Services: []dataplane.ServiceName{{Namespace: "default", Name: "gone"}}, Urgent: true}})
		synctest.Wait()
	}
	hurries := func(hurries bool, lasts time.Duration, test func(w *loopWorld)) {
		t.Helper()
		runLoop(t, time.Second, time.Minute, func(w *loopWorld) {
			w.settings.Hurries, w.lasts = hurries, lasts
			w.start()
			w.sleep(100 * time.Millisecond)
			w.expect(0)
			test(w)
			w.converged()
		})
	}
	hurries(true, lasts, func(w *loopWorld) {
		w.change(0) // waits
		w.sleep(50 * time.Millisecond)
		w.expect()
		urgent(w)
		w.sleep(lasts)
		w.expect(150 * time.Millisecond)
		w.change(1) // waits again
		w.sleep(time.Second)
		w.expect(550 * time.Millisecond)
	})
	hurries(true, 0, func(w *loopWorld) {
		w.change(0)
		w.change(1)
		w.sleep(time.Second)
		w.expect(100*time.Millisecond, 110*time.Millisecond)
	})
	hurries(true, 80*time.Millisecond, func(w *loopWorld) { // a twentieth would be more than the period
		w.change(0)
		w.sleep(2 * time.Second)
		w.expect(time.Second)
	})
	runLoop(t, time.Second, time.Minute, func(w *loopWorld) { // what looks for flows of endpoints that left has a limit of its own
		w.settings.Hurries, w.settings.Flows = true, &slowLeavers{}
		w.start()
		w.sleep(100 * time.Millisecond)
		w.expect(0)
		w.change(1)
		w.change(2)
		w.sleep(time.Second)
		w.expect(100*time.Millisecond, 100*time.Millisecond+slowLeave)
	})
	hurries(false, lasts, func(w *loopWorld) {
		w.change(0)
		urgent(w)
		w.sleep(2 * time.Second)
		w.expect(time.Second)
	})
}

func TestLoopSyncsFullyEverySyncPeriod(t *testing.T) {
	runLoop(t, 0, 10*time.Second, func(w *loopWorld) {
		w.kernel.NoGeneration = true
		w.settings.Backend = fake.New(w.kernel, dataplane.Config{})
		w.start()
		w.expect(0)
		w.sleep(35 * time.Second)
		if reads := w.kernel.Calls.Observe; reads != 4 {
			t.Errorf("%d reads, want 4", reads)
		}
		w.expect(10*time.Second, 20*time.Second, 30*time.Second)
		w.updates.Put(spec.Update{Snapshot: w.snapshot()}) // another revision, nothing else
		synctest.Wait()
		w.expect()
	})
}

func TestLoopNoticesWritesOfOthers(t *testing.T) {
	runLoop(t, time.Second, time.Hour, func(w *loopWorld) {
		w.start()
		w.sleep(10 * time.Second)
		w.times()
		w.kernel.Flush()
		w.sleep(pollPeriod)
		if len(w.reports) != 1 || w.reports[0].Repaired == 0 {
			t.Errorf("not repaired within %v: %+v", pollPeriod, w.reports)
		}
		w.converged()
		reads := w.kernel.Calls.Observe
		w.sleep(time.Minute)
		if w.kernel.Calls.Observe != reads {
			t.Error("read though nobody wrote")
		}
	})
}

// telling is a Watcher that says when another process writes.
type telling struct {
	backends.Watcher
	told chan struct{}
}

func (t *telling) Wake() <-chan struct{} { return t.told }

func TestLoopIsToldOfWritesOfOthers(t *testing.T) {
	runLoop(t, 0, time.Hour, func(w *loopWorld) {
		b := &telling{w.backend.Capabilities.Watcher, make(chan struct{}, 1)}
		w.backend.Capabilities.Watcher = b
		w.start()
		w.sleep(10*time.Second + 107*time.Millisecond)
		w.times()
		w.kernel.Flush()
		b.told <- struct{}{}
		synctest.Wait()
		w.expect(10*time.Second + 107*time.Millisecond)
		w.converged()
		asked := w.kernel.Calls.Generation
		for range 1000 { // others write all the time, elsewhere
			select {
			case b.told <- struct{}{}:
			default:
			}
			w.sleep(time.Millisecond)
		}
		if n, most := w.kernel.Calls.Generation-asked, int(time.Second/noticePeriod)+1; n > most || n < most/2 {
			t.Errorf("asked %d times in a second, want at most %d", n, most)
		}
	})
}

// slow is a backend whose reads take two seconds.
type slow struct{ backends.Backend }

func (s slow) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		time.Sleep(2 * time.Second)
		for i, err := range s.Backend.Observe(ctx) {
			if !yield(i, err) {
				return
			}
		}
	}
}

func TestLoopReadsATenthOfTheTimeAtMost(t *testing.T) {
	runLoop(t, 0, time.Hour, func(w *loopWorld) {
		w.settings.Backend = &slow{w.settings.Backend}
		w.start()
		w.sleep(2 * time.Second)
		for n := range 1000 { // another program writes all the time
			w.kernel.WriteForeign("x", "y")
			w.sleep(200 * time.Millisecond)
			w.change(3 + n%2) // rounds that read nothing must not bring the next read forward
		}
		elapsed := time.Since(w.began)
		most := int(elapsed/(20*time.Second)) + 2 // the first is that of the start, which nobody else caused
		if reads := w.kernel.Calls.Observe; reads < most-2 || reads > most {
			t.Errorf("%d reads of 2 s in %v, want at most %d", reads, elapsed, most)
		}
	})
}

func TestLoopRetriesWithBackoff(t *testing.T) {
	const period = 20 * time.Second
	runLoop(t, 0, period, func(w *loopWorld) {
		w.kernel.Faults.Busy = 8
		w.start()
		w.sleep(5 * time.Minute)
		if len(w.reports) < 9 {
			t.Fatalf("%d rounds", len(w.reports))
		}
		want := firstBackoff
		for i := 1; i <= 8; i++ {
			gap := w.reports[i].Start.Sub(w.reports[i-1].Start)
			if gap < want*8/10 || gap > min(want*12/10, period) {
				t.Errorf("retry %d came after %v, want about %v", i, gap, want)
			}
			want = min(2*want, period)
		}
		if w.reports[8].Err != nil {
			t.Error(w.reports[8].Err)
		}
		w.converged()
	})
}

func TestLoopRetriesWhatIsHeldBack(t *testing.T) {
	runLoop(t, 0, time.Hour, func(w *loopWorld) {
		w.kernel.Faults.Refuse = refuse(portID("a"))
		w.start()
		w.times()
		w.sleep(3500 * time.Millisecond)
		w.expect(time.Second, 3*time.Second)
		w.kernel.Faults = fake.Faults{}
		w.sleep(4 * time.Second)
		w.expect(7 * time.Second)
		w.converged()
		w.sleep(10 * time.Minute)
		w.expect()
	})
}

func TestLoopNeverSpins(t *testing.T) {
	for name, f := range map[string]fake.Faults{
		"read fails":  {Observe: errors.New("no")},
		"all refused": {Refuse: func(backends.Change) error { return errors.New("no") }},
		"busy":        {Busy: 1 << 30},
	} {
		t.Run(name, func(t *testing.T) {
			runLoop(t, 0, 10*time.Second, func(w *loopWorld) {
				w.kernel.Faults = f
				w.start()
				w.sleep(time.Minute)
				w.kernel.WriteForeign("x", "y")
				w.sleep(9 * time.Minute)
				if n := len(w.reports); n > 200 {
					t.Errorf("%d rounds in ten minutes", n)
				}
				w.kernel.Faults = fake.Faults{}
				w.sleep(lastRetry)
				w.converged()
			})
		})
	}
}

func TestLoopKeepsTheLastGoodState(t *testing.T) {
	runLoop(t, 0, time.Hour, func(w *loopWorld) {
		w.start()
		w.times()
		bad := spec.Problems{{Detail: "broken"}}
		w.updates.Put(spec.Update{Err: bad})
		synctest.Wait()
		w.updates.Put(spec.Update{}) // a source that sends nothing at all
		synctest.Wait()
		w.expect()
		if n := len(w.told); n != 3 || w.told[1].Err == nil || w.told[2].Err == nil {
			t.Errorf("told: %v", w.told)
		}
		w.sleep(time.Minute)
		w.converged()
	})
}

func TestLoopConfigIsLive(t *testing.T) {
	runLoop(t, 0, time.Hour, func(w *loopWorld) {
		w.start()
		w.times()
		before := w.kernel.Objects()
		w.configErr = errors.New("no such interface")
		w.updates.Put(spec.Update{Snapshot: w.snapshot(), Delta: spec.Delta{Config: true}})
		synctest.Wait()
		if u := w.told[len(w.told)-1]; u.Err == nil {
			t.Error("the refused configuration was not told")
		}
		if len(w.inUse) != 1 {
			t.Errorf("Settings of a refused snapshot were put to use: %+v", w.inUse)
		}
		w.removeLater("b") // comes while the configuration is refused, and must not be lost
		w.sleep(10 * time.Second)
		if got := w.kernel.Objects(); len(got) != len(before) {
			t.Errorf("half of a refused revision was used: %v", got)
		}
		w.configErr = nil
		w.settings.Backend = fake.New(w.kernel, dataplane.Config{MasqueradeAll: true})
		w.settings.SyncPeriod = 5 * time.Second
		w.sleep(time.Minute)
		if u := w.told[len(w.told)-1]; u.Err != nil {
			t.Errorf("the accepted configuration was not told: %v", u.Err)
		}
		if len(w.inUse) != 2 || w.inUse[1].SyncPeriod != 5*time.Second {
			t.Errorf("Settings in use: %+v", w.inUse)
		}
		if w.kernel.Has(portID("b")) || !w.kernel.Has(portID("a")) {
			t.Errorf("the held snapshot was not used: %v", w.kernel.Objects())
		}
		if n := len(w.times()); n < 10 {
			t.Errorf("%d rounds in a minute of sync periods of 5 s", n)
		}
	})
}

// removeLater sends the removal of a Service, which the Loop may or may not accept.
func (w *loopWorld) removeLater(name string) {
	n := dataplane.ServiceName{Namespace: "default", Name: name}
	w.drop(n)
	w.updates.Put(spec.Update{Snapshot: w.snapshot(), Delta: spec.Delta{Services: []dataplane.ServiceName{n}}})
	synctest.Wait()
}

func TestLoopFollowsTheNode(t *testing.T) {
	runLoop(t, 0, time.Hour, func(w *loopWorld) {
		w.node <- struct{}{} // before any snapshot: nothing to do
		w.start()
		w.times()
		w.node <- struct{}{}
		synctest.Wait()
		w.expect()
		if w.configs != 2 {
			t.Errorf("configured %d times", w.configs)
		}
		w.settings.Node = Node{Name: "node-b", Families: testNode.Families}
		w.node <- struct{}{}
		w.sleep(time.Millisecond)
		if len(w.reports) != 1 || w.reports[0].Resolved != 3 {
			t.Errorf("%+v", w.reports)
		}
		w.configErr = errors.New("no addresses")
		w.node <- struct{}{}
		w.sleep(time.Minute)
		w.configErr = nil
		n := w.configs
		w.sleep(time.Hour)
		if w.configs == n {
			t.Error("not tried again")
		}
	})
}

// draining is a Drainer that has something to take down, one of it with each Reap.
type draining struct {
	left  int
	err   error
	reaps []time.Time
}

func (d *draining) Reap(context.Context) (int, error) {
	d.reaps = append(d.reaps, time.Now())
	if d.err == nil && d.left > 0 {
		d.left--
	}
	return d.left, d.err
}

// TestLoopReaps: a round may leave something for connections that are open. The backend is asked for it until nothing is
// left, and not again before the next round.
func TestLoopReaps(t *testing.T) {
	runLoop(t, 0, time.Hour, func(w *loopWorld) {
		d := &draining{left: 3}
		w.backend.Capabilities.Drainer = d
		reaps := func() int {
			w.takeOver()
			n := len(d.reaps)
			d.reaps = nil
			return n
		}
		w.start()
		w.sleep(time.Minute)
		if n := reaps(); n != 3 {
			t.Errorf("after a round that left 3 it was asked %d times", n)
		}
		w.sleep(time.Minute)
		if n := reaps(); n != 0 {
			t.Errorf("with nothing left it was asked %d times", n)
		}
		d.err = errors.New("busy")
		w.change(2)
		w.sleep(5*reapPeriod + reapPeriod/2)
		if n := reaps(); n != 5 {
			t.Errorf("in five periods of an error it was asked %d times", n)
		}
	})
}
