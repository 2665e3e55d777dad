// Package backendtest is the conformance suite of all backends: it states the contract of backends.Backend as tests. A
// package implements Harness, and Run runs every test on it, in memory and in the kernel.
//
// Only tests import it.
package backendtest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"weir/backends"
	"weir/backends/dataplane"
)

// Harness is one backend on its own data path, such as a network namespace made for the test.
type Harness interface {
	// Backend returns the backend under test. A second call may return a successor, as after a restart.
	Backend() backends.Backend

	// AddForeign adds objects that are not weir's, next to weir's own if the mechanism allows it. It is called at most
	// once.
	AddForeign(t *testing.T)
	// DumpForeign returns the objects that AddForeign added, byte for byte as the kernel has them, without counters.
	DumpForeign(t *testing.T) string

	// Drifts are the ways in which another process can damage weir's objects, once the ServicePorts of Sample are in
	// force.
	Drifts() []Drift
}

// Drift is one way to damage weir's objects.
type Drift struct {
	Name   string
	Inject func(t *testing.T)
}

// Refuser is implemented by a Harness that can make the kernel refuse the Items of a ServicePort although Render
// accepts it.
type Refuser interface {
	// Refuse makes the kernel refuse to create the Items of the Service port until the end of the test.
	Refuse(t *testing.T, key dataplane.ServicePortName)
}

// Run runs the suite. It calls newHarness for each test.
func Run(t *testing.T, newHarness func(t *testing.T) Harness) {
	tests := []struct {
		name string
		run  func(t *testing.T, h Harness)
	}{
		{"RenderIsDeterministic", testRender},
		{"ApplyThenObserveEqualsDesired", testApplyObserve},
		{"ApplyIsIdempotent", testIdempotent},
		{"RestartFindsNothingToDo", testRestart},
		{"SharedItemsGoWithTheirLastOwner", testShared},
		{"ForeignObjectsAreUntouched", testForeign},
		{"OnlyWritesOfOthersCountAsMoved", testMoved},
		{"EmptyDesiredSideLeavesNothing", testCleanup},
		{"RefusedChangesAreNamed", testRefused},
		{"RandomSequences", testRandom},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, newHarness(t)) })
	}
	for i, d := range newHarness(t).Drifts() {
		t.Run("Drift/"+d.Name, func(t *testing.T) { testDrift(t, newHarness(t), i) })
	}
}

func testRender(t *testing.T, h Harness) {
	b := h.Backend()
	for _, e := range Sample() {
		first, second := render(t, b, e), render(t, b, e)
		if diff := textDiff(first, second); diff != "" {
			t.Errorf("%v is rendered differently the second time:\n%s", e.Key, diff)
		}
	}
	all(t, b, Sample()) // items with one ID must be equal
}

func testApplyObserve(t *testing.T, h Harness) {
	b := h.Backend()
	for _, entries := range [][]*dataplane.ServicePort{nil, Sample()[:1], Sample(), Changed(), Sample()[1:]} {
		converge(t, b, all(t, b, entries))
	}
}

func testIdempotent(t *testing.T, h Harness) {
	b := h.Backend()
	want := all(t, b, Sample())
	plan := Diff(Observe(t, b), want)
	apply(t, b, plan)
	apply(t, b, plan)
	mustHold(t, b, want)

	fewer := all(t, b, Sample()[1:])
	plan = Diff(Observe(t, b), fewer)
	apply(t, b, plan)
	apply(t, b, plan) // deletes what is absent
	mustHold(t, b, fewer)
	apply(t, b, backends.Plan{})
}

func testRestart(t *testing.T, h Harness) {
	b := h.Backend()
	converge(t, b, all(t, b, Sample()))
	next := h.Backend()
	mustHold(t, next, all(t, next, Sample()))
}

func testShared(t *testing.T, h Harness) {
	b := h.Backend()
	twins := Twins()
	both, one := all(t, b, twins), all(t, b, twins[:1])
	converge(t, b, both)
	converge(t, b, one)
	converge(t, b, all(t, b, twins[1:]))
	converge(t, b, all(t, b, nil))
}

func testForeign(t *testing.T, h Harness) {
	b := h.Backend()
	h.AddForeign(t)
	before := h.DumpForeign(t)
	if before == "" {
		t.Fatal("the harness added nothing foreign")
	}
	for _, entries := range [][]*dataplane.ServicePort{Sample(), Changed(), nil} {
		converge(t, b, all(t, b, entries))
		if after := h.DumpForeign(t); after != before {
			t.Fatalf("foreign objects changed:\nbefore:\n%s\nafter:\n%s", before, after)
		}
	}
	converge(t, b, map[backends.ID]backends.Item{})
	if after := h.DumpForeign(t); after != before {
		t.Fatalf("foreign objects changed by the cleanup:\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func testMoved(t *testing.T, h Harness) {
	b := h.Backend()
	w := b.Optional().Watcher
	if w == nil {
		t.Skip("the backend cannot tell")
	}
	moved := func() bool {
		m, err := w.Moved(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if !moved() {
		t.Error("before the first read others may have written anything")
	}
	converge(t, b, all(t, b, nil))
	if moved() {
		t.Error("no process wrote since the last read")
	}
	converge(t, b, all(t, b, Sample()))
	apply(t, b, Diff(all(t, b, Sample()), all(t, b, Changed())))
	if moved() {
		t.Error("the backend's own Apply counts as a write of another process")
	}
	converge(t, b, all(t, b, Sample()))
	for _, d := range h.Drifts()[:1] {
		d.Inject(t)
		if !moved() {
			t.Errorf("drift (%s) was not noticed", d.Name)
		}
		Observe(t, b)
		if moved() {
			t.Error("what was read counts as written since")
		}
	}
}

func testCleanup(t *testing.T, h Harness) {
	b := h.Backend()
	converge(t, b, all(t, b, Sample()))
	apply(t, b, Diff(Observe(t, b), nil))
	if left := Observe(t, b); len(left) > 0 {
		t.Errorf("left after everything was deleted: %v", slices.Sorted(maps.Keys(left)))
	}
	apply(t, b, Diff(Observe(t, b), nil))
}

func testRefused(t *testing.T, h Harness) {
	r, ok := h.(Refuser)
	if !ok {
		t.Skip("the harness cannot make the kernel refuse")
	}
	b := h.Backend()
	bad, good := Sample()[0], Sample()[1:]
	converge(t, b, all(t, b, nil))
	r.Refuse(t, bad.Key)

	before := Observe(t, b)
	plan := Diff(before, all(t, b, Sample()))
	result := b.Apply(t.Context(), plan)
	if len(result.Refused) == 0 {
		t.Fatalf("nothing was named as refused, the error is %v", result.Err)
	}
	ours := map[backends.ID]bool{}
	for _, i := range render(t, b, bad) {
		ours[i.ID()] = true
	}
	for id := range result.Refused {
		if !ours[id] {
			t.Errorf("%s was refused, which is not of the Service port at fault", id)
		}
	}
	if result.Err != nil {
		if diff := textDiff(slices.Collect(maps.Values(before)), slices.Collect(maps.Values(Observe(t, b)))); diff != "" {
			t.Errorf("a plan that was rejected as a whole changed the kernel:\n%s", diff)
		}
	}
	converge(t, b, all(t, b, good))
}

func testDrift(t *testing.T, h Harness, i int) {
	b := h.Backend()
	want := all(t, b, Sample())
	converge(t, b, want)
	seen := Observe(t, b)
	h.Drifts()[i].Inject(t)
	checkReread(t, b, want)
	if Diff(Observe(t, b), want).Empty() {
		t.Fatal("the drift was not found")
	}
	// If an observed Item equals a desired one, the reconciler may keep either.
	converge(t, b, seen)
	mustHold(t, b, want)
}

// checkReread expects Reread to find the same as a full read.
func checkReread(t *testing.T, b backends.Backend, before LastObserved) {
	t.Helper()
	w := b.Optional().Watcher
	if w == nil {
		return
	}
	_, unknown := w.Moved(t.Context())
	items, ok, err := w.Reread(t.Context(), before)
	if !ok && err == nil {
		return
	}
	if err := errors.Join(unknown, err); err != nil {
		t.Fatalf("reread: %v", err)
	}
	if plan := Diff(Observe(t, b), before.After(items)); !plan.Empty() {
		t.Errorf("reading what was touched does not tell all:\n%s", plan)
	}
}

// LastObserved implements backends.LastObserved for a set of Items.
type LastObserved map[backends.ID]backends.Item

// Item implements backends.LastObserved.
func (o LastObserved) Item(id backends.ID) backends.Item { return o[id] }

// Items implements backends.LastObserved.
func (o LastObserved) Items(yield func(backends.Item) bool) {
	for _, i := range o {
		if !yield(i) {
			return
		}
	}
}

// After returns the Items that the kernel holds after a Reread that returned items.
func (o LastObserved) After(items map[backends.ID]backends.Item) map[backends.ID]backends.Item {
	now := maps.Clone(map[backends.ID]backends.Item(o))
	for id, i := range items {
		if delete(now, id); i != nil {
			now[id] = i
		}
	}
	return now
}

// testRandom walks through random states in small steps, as the incremental path does, without reading in between. At
// each step it expects the state that a full read and a fresh plan would have made.
func testRandom(t *testing.T, h Harness) {
	const seed, steps = 7, 40
	rng := rand.New(rand.NewPCG(seed, seed))
	b := h.Backend()
	believed := Observe(t, b)
	pool := append(append(Sample(), Changed()...), Twins()...)
	wanted := map[dataplane.ServicePortName]*dataplane.ServicePort{}
	for step := range steps {
		for range 1 + rng.IntN(3) {
			e := pool[rng.IntN(len(pool))]
			if rng.IntN(3) == 0 {
				delete(wanted, e.Key)
			} else {
				wanted[e.Key] = e
			}
		}
		want := all(t, b, slices.Collect(maps.Values(wanted)))
		apply(t, b, Diff(believed, want))
		believed = want
		if t.Failed() {
			t.Fatalf("seed %d, step %d", seed, step)
		}
		mustHold(t, b, want)
	}
}

// converge applies the difference to want, and expects the kernel to hold exactly want afterwards.
func converge(t *testing.T, b backends.Backend, want map[backends.ID]backends.Item) {
	t.Helper()
	apply(t, b, Diff(Observe(t, b), want))
	mustHold(t, b, want)
}

func mustHold(t *testing.T, b backends.Backend, want map[backends.ID]backends.Item) {
	t.Helper()
	if plan := Diff(Observe(t, b), want); !plan.Empty() {
		t.Fatalf("the kernel does not hold what was applied:\n%s", plan)
	}
}

func apply(t *testing.T, b backends.Backend, p backends.Plan) {
	t.Helper()
	if r := b.Apply(context.WithoutCancel(t.Context()), p); r.Err != nil || len(r.Refused) > 0 {
		t.Fatalf("apply: %v, refused: %v\n%s", r.Err, r.Refused, p)
	}
}

// Observe returns the Items of a Backend, or of a part of one. The test fails on an error, and on an Item that comes twice.
func Observe(t testing.TB, b interface {
	Observe(ctx context.Context) iter.Seq2[backends.Item, error]
}) map[backends.ID]backends.Item {
	t.Helper()
	items := map[backends.ID]backends.Item{}
	for i, err := range b.Observe(context.WithoutCancel(t.Context())) {
		if err != nil {
			t.Fatalf("observe: %v", err)
		}
		if other := items[i.ID()]; other != nil {
			t.Fatalf("observe: %s came twice:\n%s\n%s", i.ID(), other, i)
		}
		items[i.ID()] = i
	}
	return items
}

func render(t *testing.T, b backends.Backend, e *dataplane.ServicePort) []backends.Item {
	t.Helper()
	items, err := b.Render(e)
	if err != nil {
		t.Fatalf("render %v: %v", e.Key, err)
	}
	return items
}

// all returns what the kernel should hold for the ServicePorts.
func all(t *testing.T, b backends.Backend, entries []*dataplane.ServicePort) map[backends.ID]backends.Item {
	t.Helper()
	want := map[backends.ID]backends.Item{}
	add := func(i backends.Item) {
		if other := want[i.ID()]; other != nil && other.String() != i.String() {
			t.Fatalf("two different items have the ID %s:\n%s\n%s", i.ID(), other, i)
		}
		want[i.ID()] = i
	}
	for _, i := range b.Base() {
		add(i)
	}
	for _, e := range entries {
		for _, i := range render(t, b, e) {
			add(i)
		}
	}
	return want
}

// Diff returns the Plan that leads from one state to the other.
func Diff(have, want map[backends.ID]backends.Item) backends.Plan {
	p := backends.Plan{Backend: "test", Reason: "test"}
	for id, i := range want {
		switch old := have[id]; {
		case old == nil:
			p.Changes = append(p.Changes, backends.Change{Op: backends.Create, ID: id, New: i})
		case old.String() != i.String():
			p.Changes = append(p.Changes, backends.Change{Op: backends.Update, ID: id, Old: old, New: i})
		}
	}
	for id, i := range have {
		if want[id] == nil {
			p.Changes = append(p.Changes, backends.Change{Op: backends.Delete, ID: id, Old: i})
		}
	}
	slices.SortFunc(p.Changes, func(a, b backends.Change) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return p
}

func textDiff(a, b []backends.Item) string {
	texts := func(items []backends.Item) []string {
		var out []string
		for _, i := range items {
			out = append(out, i.String())
		}
		slices.Sort(out)
		return out
	}
	x, y := texts(a), texts(b)
	if slices.Equal(x, y) {
		return ""
	}
	return fmt.Sprintf("%s\n--\n%s", strings.Join(x, "\n"), strings.Join(y, "\n"))
}
