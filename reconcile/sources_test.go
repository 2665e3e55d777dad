package reconcile

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/fake"
	"weir/spec"
	"weir/spec/join"
	"weir/spec/join/jointest"
	"weir/spec/seed"
)

// joinWorld is a files source, an API and pods, joined and filtered, in front of an Engine.
type joinWorld struct {
	*testing.T
	r                *rand.Rand
	files, api, pods *jointest.Source
	filter           *jointest.Filter
	out              *spec.Outbox
	kernel           *fake.Kernel
	engine           *Engine
	last             *spec.Snapshot
}

func newJoinWorld(t *testing.T) *joinWorld {
	w := &joinWorld{T: t, r: seed.Rand(t), files: jointest.NewSource(), api: jointest.NewSource(), pods: jointest.NewSource(), out: spec.NewOutbox(), kernel: fake.NewKernel()}
	w.filter = jointest.NewFilter()
	w.engine = NewEngine(Options{DataPath: DataPath{Mode: "fake", Backend: fake.New(w.kernel, dataplane.Config{})}, Node: testNode})
	source := join.New(w.files, join.Fixed("the API", w.api), join.Fixed("the pods", w.pods)).Filtered(w.filter)
	jointest.Watch(t, source, w.out.Put)
	<-w.files.Started
	<-w.filter.Started
	w.files.Say(spec.Delta{All: true})
	for _, s := range []*jointest.Source{w.api, w.pods} {
		<-s.Started
		if _, ok := w.out.Take(); ok {
			t.Fatal("a Snapshot before all layers have spoken")
		}
		s.Say(spec.Delta{All: true})
	}
	return w
}

var joinNames = []string{"a", "b", "c", "d", "e"}

// step has one of the sources say, get wrong, or find something.
func (w *joinWorld) step() {
	i := w.r.IntN(len(joinNames))
	name := dataplane.ServiceName{Namespace: "default", Name: joinNames[i]}
	made := func(n int) *spec.Service {
		if w.r.IntN(3) == 0 {
			return nil
		}
		return makeService(name.Name, n, "TCP", w.r.IntN(4))
	}
	one := spec.Delta{Services: []dataplane.ServiceName{name}}
	switch w.r.IntN(8) {
	case 0, 1:
		w.files.Declare(name, made(i+1))
		w.files.Say(one)
	case 2:
		w.api.Declare(name, made(i+11))
		w.api.Say(one)
	case 3, 4:
		var list []*discoveryv1.EndpointSlice
		if svc := made(i + 1); svc != nil {
			more := svc.Slices[0].DeepCopy()
			more.Name = "pods-of-" + name.Name
			for j := range more.Endpoints {
				more.Endpoints[j].Addresses = []string{fmt.Sprintf("10.9.%d.%d", i, j)}
			}
			list = []*discoveryv1.EndpointSlice{more}
		}
		w.pods.Give(name, list)
		w.pods.Say(one)
	case 5:
		w.filter.Judge(fmt.Sprintf("10.9.%d.%d", i, w.r.IntN(3)), w.r.IntN(2) == 0, name)
	case 6: // a source fails: its last word stands
		s := []*jointest.Source{w.files, w.api, w.pods}[w.r.IntN(3)]
		s.Fail(errors.New("cannot see"))
	case 7: // a source says everything again
		[]*jointest.Source{w.files, w.api, w.pods}[w.r.IntN(3)].Say(spec.Delta{All: true})
	}
}

// model returns the Services that the sources make together, worked out from nothing.
func (w *joinWorld) model() map[dataplane.ServiceName]*spec.Service {
	all := map[dataplane.ServiceName]*spec.Service{}
	for _, s := range []*jointest.Source{w.files, w.api} {
		for svc := range s.Snapshot.Services.All() {
			all[svc.Name] = svc
		}
	}
	for name, svc := range all {
		both := *svc
		both.Slices = slices.Clone(svc.Slices)
		both.Slices = append(both.Slices, w.pods.Snapshot.Slices.Get(name).List...)
		both.Slices = w.filter.Slices(name, &both, nil)
		all[name] = &both
	}
	return all
}

// fresh returns an Engine that knows nothing but the model.
func fresh(kernel *fake.Kernel, model map[dataplane.ServiceName]*spec.Service) *Engine {
	e := NewEngine(Options{DataPath: DataPath{Mode: "fake", Backend: fake.New(kernel, dataplane.Config{})}, Node: testNode})
	e.SetSnapshot(&spec.Snapshot{Services: spec.ServicesOf(slices.Collect(maps.Values(model))...)}, spec.Delta{All: true})
	return e
}

// plan returns what another process would change.
func (w *joinWorld) plan(model map[dataplane.ServiceName]*spec.Service) backends.Plan {
	w.Helper()
	plan, err := fresh(w.kernel, model).Plan(w.Context(), "dry run")
	if err != nil {
		w.Fatal(err)
	}
	return plan
}

// check takes what was sent, has the Engine make it so, and compares kernel, plan and count with the model's.
func (w *joinWorld) check() {
	w.Helper()
	for u, ok := w.out.Take(); ok; u, ok = w.out.Take() {
		if u.Err == nil {
			w.last = u.Snapshot
			w.engine.SetSnapshot(u.Snapshot, u.Delta)
		}
	}
	model := w.model()
	planned := w.plan(model)
	rep := w.engine.Round(w.Context(), Request{})
	if rep.Changes() != len(planned.Changes) {
		w.Fatalf("the round made %d changes; the plan had\n%s", rep.Changes(), planned)
	}
	if left := w.plan(model); !left.Empty() {
		w.Fatalf("after the round the plan is\n%s", left)
	}
	kernel := fake.NewKernel()
	fresh := fresh(kernel, model)
	want := fresh.Round(w.Context(), Request{Full: true})
	if rep.Err != nil || want.Err != nil || rep.Services != want.Services {
		w.Fatalf("%d Services, %v; the model has %d, %v", rep.Services, rep.Err, want.Services, want.Err)
	}
	if got, want := w.kernel.Objects(), kernel.Objects(); !slices.Equal(got, want) {
		w.Fatalf("the kernel holds\n%v\nwant\n%v", got, want)
	}
	for name := range model {
		both := w.files.Snapshot.Services.Get(name) != nil && w.api.Snapshot.Services.Get(name) != nil
		told := slices.ContainsFunc(w.last.Services.Get(name).Notices, func(p spec.Problem) bool {
			return p.Detail == "is in the API too, and that one is used; remove one of them"
		})
		if both != told {
			w.Fatalf("Service %s is in both: %v, and that is told: %v", name, both, told)
		}
	}
}

// TestToySourceAndFilter has a source and a filter of a few lines each, joined with files and an API, say, get wrong and
// withhold things in any order: what the kernel holds is what all of them said last, and nothing else.
func TestToySourceAndFilter(t *testing.T) {
	w := newJoinWorld(t)
	w.check()
	for range 400 {
		w.step()
		if w.r.IntN(3) > 0 { // else the Loop is slow, and Updates are coalesced
			w.check()
		}
	}
	w.check()
}

// TestJoinedChangeIsCheap changes one of many Services: no other is touched.
func TestJoinedChangeIsCheap(t *testing.T) {
	w := newJoinWorld(t)
	for i := range 500 {
		svc := makeService(fmt.Sprintf("s%d", i), i%200+1, "TCP", 1)
		w.files.Declare(svc.Name, svc)
	}
	w.files.Say(spec.Delta{All: true})
	u, _ := w.out.Take()
	before := u.Snapshot
	name := dataplane.ServiceName{Namespace: "default", Name: "s7"}
	w.pods.Give(name, []*discoveryv1.EndpointSlice{{}})
	w.pods.Say(spec.Delta{Services: []dataplane.ServiceName{name}})
	u, _ = w.out.Take()
	if u.Delta.All || !slices.Equal(u.Delta.Services, []dataplane.ServiceName{name}) {
		t.Errorf("the Delta is %+v", u.Delta)
	}
	for svc := range u.Snapshot.Services.All() {
		if same := before.Services.Get(svc.Name) == svc; same == (svc.Name == name) {
			t.Errorf("Service %s is the same: %v", svc.Name, same)
		}
	}
}
