package reconcile

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/fake"
	"weir/spec"
)

var testNode = Node{Name: "node-a", Zone: "zone-a", Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6}}

// makeService returns a Service with one port and so many ready endpoints; n makes its address.
func makeService(name string, n int, protocol corev1.Protocol, endpoints int) *spec.Service {
	ip := fmt.Sprintf("10.96.%d.%d", n/250, n%250+1)
	port, portName := int32(8080), "p"
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &protocol}},
	}
	for i := range endpoints {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 100+i, n/250, n%250+1)}})
	}
	return &spec.Service{
		Name:   dataplane.ServiceName{Namespace: "default", Name: name},
		Origin: spec.Origin{File: name + ".yaml", Line: 1},
		Object: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
				Ports: []corev1.ServicePort{{Name: portName, Port: 80, Protocol: protocol}},
			},
		},
		Slices: []*discoveryv1.EndpointSlice{slice},
	}
}

// world feeds an Engine over a fake kernel.
type world struct {
	t      testing.TB
	kernel *fake.Kernel
	engine *Engine
	all    spec.Services
	flows  *recordedFlows
}

type recordedFlows struct {
	err           error
	current, gone []string
	calls         int
}

func (f *recordedFlows) Clean(_ context.Context, current, gone []*dataplane.ServicePort) (int, error) {
	f.calls++
	f.current, f.gone = nil, nil
	for _, e := range current {
		f.current = append(f.current, e.Key.Service.Name)
	}
	for _, e := range gone {
		f.gone = append(f.gone, e.Key.Service.Name)
	}
	return len(current) + len(gone), f.err
}

func newWorld(t testing.TB, services ...*spec.Service) *world {
	w := &world{t: t, kernel: fake.NewKernel(), all: spec.ServicesOf(services...), flows: &recordedFlows{}}
	w.engine = NewEngine(Options{DataPath: w.path("fake", fake.New(w.kernel, dataplane.Config{})), Node: testNode})
	w.engine.SetSnapshot(w.snapshot(), spec.Delta{All: true})
	return w
}

func (w *world) path(mode string, b backends.Backend) DataPath {
	return DataPath{Mode: mode, Backend: b, Flows: w.flows}
}

// tells gives the backend the ability to report what other programs wrote.
func (w *world) tells() {
	w.kernel.Tells = true
	w.engine.SetDataPath(w.path("fake", fake.New(w.kernel, dataplane.Config{})))
}

func (w *world) snapshot() *spec.Snapshot {
	return &spec.Snapshot{Revision: spec.Revision{ID: "r"}, Services: w.all}
}

func (w *world) put(s *spec.Service) {
	b := w.all.Edit()
	b.Put(s.Name, s)
	w.all = b.Commit()
}

func (w *world) drop(n dataplane.ServiceName) {
	b := w.all.Edit()
	b.Delete(n)
	w.all = b.Commit()
}

func (w *world) set(services ...*spec.Service) {
	var names []dataplane.ServiceName
	for _, s := range services {
		w.put(s)
		names = append(names, s.Name)
	}
	w.engine.SetSnapshot(w.snapshot(), spec.Delta{Services: names})
}

func (w *world) remove(name string) {
	n := dataplane.ServiceName{Namespace: "default", Name: name}
	w.drop(n)
	w.engine.SetSnapshot(w.snapshot(), spec.Delta{Services: []dataplane.ServiceName{n}})
}

func (w *world) round(full bool) Report {
	return w.engine.Round(context.Background(), Request{Reason: "test", Full: full})
}

// ok makes a round that has to succeed.
func (w *world) ok(full bool) Report {
	w.t.Helper()
	rep := w.round(full)
	if rep.Err != nil || len(rep.HeldBack) > 0 {
		w.t.Fatalf("round: %v, isolated: %v", rep.Err, rep.HeldBack)
	}
	return rep
}

// converged expects the kernel to hold exactly what a fresh engine on an empty kernel would have made of the snapshot.
func (w *world) converged() {
	w.t.Helper()
	k := fake.NewKernel()
	e := NewEngine(Options{DataPath: DataPath{Mode: "fake", Backend: fake.New(k, dataplane.Config{})}, Node: testNode})
	e.SetSnapshot(w.snapshot(), spec.Delta{All: true})
	if rep := e.Round(context.Background(), Request{Full: true}); rep.Err != nil {
		w.t.Fatal(rep.Err)
	}
	if got, want := w.kernel.Objects(), k.Objects(); !slices.Equal(got, want) {
		w.t.Fatalf("the kernel holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

const portOf = "port/default/%s:p/TCP/IPv4"

func portID(name string) backends.ID { return backends.ID(fmt.Sprintf(portOf, name)) }

func three() []*spec.Service {
	return []*spec.Service{makeService("a", 1, "TCP", 2), makeService("b", 2, "TCP", 2), makeService("c", 3, "UDP", 3)}
}

func refuse(ids ...backends.ID) func(backends.Change) error {
	return func(c backends.Change) error {
		if slices.Contains(ids, c.ID) {
			return errors.New("invalid argument")
		}
		return nil
	}
}

func TestRoundIsIncremental(t *testing.T) {
	w := newWorld(t, three()...)
	rep := w.ok(false)
	if !rep.Observed || rep.Resolved != 3 || rep.Created == 0 || len(rep.Changed) != 3 {
		t.Errorf("the first round: %+v", rep)
	}
	w.converged()
	if rep := w.ok(false); rep.Changes() != 0 || rep.Observed || rep.Resolved != 0 {
		t.Errorf("nothing changed: %+v", rep)
	}
	w.set(makeService("a", 1, "TCP", 5))
	if rep := w.ok(false); rep.Observed || rep.Resolved != 1 || rep.Updated != 1 || rep.Created != 1 {
		t.Errorf("one change: %+v", rep)
	}
	w.remove("b")
	if rep := w.ok(false); len(rep.Gone) != 1 || rep.Deleted == 0 {
		t.Errorf("one Service removed: %+v", rep)
	}
	w.converged()
}

func TestOneChangeAmongTenThousandReadsNothing(t *testing.T) {
	const services = 10_000
	var all []*spec.Service
	for n := range services {
		all = append(all, makeService(fmt.Sprint("svc-", n), n, "TCP", 5))
	}
	w := newWorld(t, all...)
	w.ok(true)
	w.kernel.Calls = fake.Calls{}
	w.set(makeService("svc-77", 77, "TCP", 4))
	rep := w.ok(false)
	if got := w.kernel.Calls; got.Observe != 0 || got.Render != 1 || got.Apply != 1 || got.Changes != 2 {
		t.Errorf("calls: %+v", got)
	}
	if rep.Resolved != 1 || rep.Services != services {
		t.Errorf("resolved %d of %d", rep.Resolved, rep.Services)
	}
}

func TestGenerationMakesReadsUnnecessary(t *testing.T) {
	w := newWorld(t, three()...)
	w.ok(true)
	w.set(makeService("a", 1, "TCP", 3))
	w.ok(false)
	if rep := w.ok(true); rep.Observed || !rep.Full {
		t.Errorf("read though nobody wrote: %+v", rep)
	}
	w.kernel.WriteForeign("docker", "a rule")
	if !w.engine.Moved(t.Context()) {
		t.Error("the write was not noticed")
	}
	if rep := w.ok(true); !rep.Observed || rep.Changes() != 0 || rep.Drifted != 0 {
		t.Errorf("after somebody else's write: %+v", rep)
	}
	if w.engine.Moved(t.Context()) {
		t.Error("moved after the read")
	}
	w.kernel.Faults.Generation = errors.New("no answer")
	w.kernel.Flush()
	if rep := w.ok(true); !rep.Observed || rep.Repaired == 0 {
		t.Errorf("a full round that cannot know whether anybody wrote has to read: %+v", rep)
	}
}

// TestPain01_DriftIsRepaired also covers a firewalld reload (2) and stale objects that stay until restart (3).
func TestPain01_DriftIsRepaired(t *testing.T) {
	tests := map[string]struct {
		damage func(k *fake.Kernel)
		drift  int
	}{
		"flushed": {func(k *fake.Kernel) { k.Flush() }, 9},
		"deleted": {func(k *fake.Kernel) { k.Remove(portID("a")) }, 1},
		"changed": {func(k *fake.Kernel) { k.Write(fake.Item{Name: portID("a"), Text: "wrong"}) }, 1},
		"added":   {func(k *fake.Kernel) { k.Write(fake.Item{Name: "extra"}) }, 1},
	}
	for name, test := range tests {
		drift := func(t *testing.T, tells bool) {
			w := newWorld(t, three()...)
			if tells {
				w.tells()
			}
			w.ok(true)
			reads := w.kernel.Calls.Observe
			test.damage(w.kernel)
			rep := w.ok(true)
			if tells && w.kernel.Calls.Observe != reads {
				t.Error("everything was read")
			}
			if rep.Drifted != test.drift || rep.Repaired != test.drift {
				t.Errorf("drifted %d, repaired %d, want %d", rep.Drifted, rep.Repaired, test.drift)
			}
			w.converged()
			if name == "flushed" && !slices.Equal(w.flows.current, []string{"c"}) {
				t.Errorf("flows of the UDP Service were not looked at after the repair: %v", w.flows.current)
			}
		}
		t.Run(name, func(t *testing.T) { drift(t, false) })
		t.Run(name+", told", func(t *testing.T) { drift(t, true) })
	}
}

func TestPain12_RestartIsAnEmptyPlan(t *testing.T) {
	w := newWorld(t, three()...)
	w.ok(true)
	before := w.kernel.Calls.Changes
	e := NewEngine(Options{DataPath: DataPath{Mode: "fake", Backend: fake.New(w.kernel, dataplane.Config{})}, Node: testNode})
	e.SetSnapshot(w.snapshot(), spec.Delta{All: true})
	if p, err := e.Plan(t.Context(), "dry run"); err != nil || !p.Empty() {
		t.Errorf("plan: %v, %v", p, err)
	}
	if rep := e.Round(t.Context(), Request{}); rep.Err != nil || w.kernel.Calls.Changes != before {
		t.Errorf("%+v", rep)
	}
}

func TestPlanChangesNothing(t *testing.T) {
	w := newWorld(t, three()...)
	p, err := w.engine.Plan(t.Context(), "dry run")
	if err != nil || p.Empty() || w.kernel.Calls.Apply != 0 {
		t.Fatalf("plan: %v, %v, calls %+v", p, err, w.kernel.Calls)
	}
	rep := w.ok(false)
	if rep.Changes() != len(p.Changes) {
		t.Errorf("%d were planned, %d made", len(p.Changes), rep.Changes())
	}
}

func TestDeleteGate(t *testing.T) {
	k := fake.NewKernel()
	k.Write(fake.Item{Name: "left over"})
	e := NewEngine(Options{DataPath: DataPath{Mode: "fake", Backend: fake.New(k, dataplane.Config{})}, Node: testNode})
	if rep := e.Round(t.Context(), Request{Full: true}); rep.Err != nil || k.Calls.Apply != 0 {
		t.Errorf("without a snapshot: %+v, %+v", rep, k.Calls)
	}
	e.SetSnapshot(&spec.Snapshot{}, spec.Delta{All: true})
	for _, f := range []fake.Faults{{Observe: errors.New("no")}, {InterruptAfter: 1}} {
		k.Write(fake.Item{Name: "another"})
		k.Faults = f
		if rep := e.Round(t.Context(), Request{Full: true}); rep.Err == nil || k.Calls.Apply != 0 {
			t.Errorf("without a read: %+v, %+v", rep, k.Calls)
		}
	}
	k.Faults = fake.Faults{}
	remembered := &spec.Snapshot{Revision: spec.Revision{Stale: true}}
	e.SetSnapshot(remembered, spec.Delta{All: true})
	if rep := e.Round(t.Context(), Request{Full: true}); rep.Err != nil || !k.Has("left over") {
		t.Errorf("with what is only remembered: %+v, %v", rep, k.Objects())
	}
	e.SetSnapshot(&spec.Snapshot{}, spec.Delta{All: true})
	if rep := e.Round(t.Context(), Request{}); rep.Err != nil || k.Has("left over") {
		t.Errorf("with both: %+v, %v", rep, k.Objects())
	}
}

func TestPain14_RefusedServiceIsIsolated(t *testing.T) {
	for _, partial := range []bool{false, true} {
		t.Run(fmt.Sprint("partial=", partial), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, three()...)
				w.ok(true)
				w.kernel.Faults = fake.Faults{Refuse: refuse(portID("a"), portID("new")), Partial: partial}
				w.set(makeService("a", 1, "TCP", 5), makeService("b", 2, "TCP", 4), makeService("new", 9, "TCP", 1))
				w.remove("c")
				rep := w.round(false)
				if rep.Err != nil {
					t.Fatal(rep.Err)
				}
				var named []string
				for _, i := range rep.HeldBack {
					named = append(named, i.String()+" "+i.Origin)
				}
				if want := []string{"default/a a.yaml:1", "default/new new.yaml:1"}; !slices.Equal(named, want) {
					t.Errorf("isolated %v, want %v", named, want)
				}
				holds := strings.Join(w.kernel.Objects(), "\n")
				if !strings.Contains(holds, "spread/4") || !strings.Contains(holds, "spread/2") || strings.Contains(holds, "default/c") || w.kernel.Has(portID("new")) {
					t.Errorf("the others were not programmed, or the isolated not left alone:\n%s", holds)
				}
				if rep := w.round(false); rep.Changes() != 0 || w.kernel.Calls.Apply == 0 {
					t.Errorf("tried again before its time: %+v", rep)
				}
				w.kernel.Flush() // what the kernel accepted before is kept up while the Service waits
				w.kernel.Faults.Refuse = refuse(portID("new"))
				if rep := w.round(true); rep.Err != nil || !w.kernel.Has(portID("a")) {
					t.Errorf("the old state of an isolated Service was not repaired: %+v", rep)
				}
				w.kernel.Faults = fake.Faults{}
				time.Sleep(firstRetry)
				w.ok(false)
				w.converged()
			})
		})
	}
}

func TestIsolatedBacksOffAndIsPardoned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, three()...)
		w.kernel.Faults.Render = func(e *dataplane.ServicePort) error {
			if e.Key.Service.Name == "a" && len(e.Endpoints) != 7 {
				return errors.New("cannot be rendered")
			}
			return nil
		}
		delay := firstRetry
		for range 12 {
			rep := w.round(false)
			if rep.Err != nil || len(rep.HeldBack) != 1 {
				t.Fatalf("%+v", rep)
			}
			if got := rep.NextRetry().Sub(rep.Start); got != delay {
				t.Fatalf("retry after %v, want %v", got, delay)
			}
			time.Sleep(delay)
			delay = min(2*delay, lastRetry)
		}
		w.set(makeService("b", 2, "TCP", 3))
		if rep := w.round(false); len(rep.HeldBack) != 1 {
			t.Errorf("pardoned without cause: %v", rep.HeldBack)
		}
		w.set(makeService("a", 1, "TCP", 7))
		w.ok(false)
		w.kernel.Faults = fake.Faults{}
		w.converged()
	})
}

// TestOtherPortsGoOn: a port that cannot be rendered keeps what it had, if it had anything; the others of its Service are
// not affected.
func TestOtherPortsGoOn(t *testing.T) {
	twoPorts := func(endpoints int) *spec.Service {
		s := makeService("a", 1, "TCP", endpoints)
		s.Object.Spec.Ports = append(s.Object.Spec.Ports, corev1.ServicePort{Name: "q", Port: 81, Protocol: "SCTP"})
		q := s.Slices[0].Ports[0]
		q.Name, q.Protocol = ptr("q"), ptr(corev1.ProtocolSCTP)
		s.Slices[0].Ports = append(s.Slices[0].Ports, q)
		return s
	}
	for _, before := range []int{0, 1} { // whether the kernel holds the port
		t.Run(fmt.Sprint(before), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, makeService("b", 2, "TCP", 1))
				if before > 0 {
					w.set(twoPorts(before))
				}
				w.ok(true)
				w.kernel.Faults.Render = func(e *dataplane.ServicePort) error {
					if e.Key.Port == "q" && len(e.Endpoints) != 1 {
						return errors.New("cannot be rendered")
					}
					return nil
				}
				endpoints := func(port string) int {
					for _, line := range w.kernel.Objects() {
						if strings.Contains(line, "port/default/a:"+port) && !strings.Contains(line, "front/") {
							return strings.Count(line, ":8080/")
						}
					}
					return 0
				}
				for n := 2; n < 5; n++ {
					w.set(twoPorts(n))
					rep := w.round(n == 3)
					if rep.Err != nil || len(rep.HeldBack) != 1 || !strings.Contains(rep.HeldBack[0].Err.Error(), "default/a:q/SCTP") {
						t.Fatalf("%v, isolated: %v", rep.Err, rep.HeldBack)
					}
					if p, q := endpoints("p"), endpoints("q"); p != n || q != before {
						t.Errorf("the kernel has %d and %d endpoints, want %d and %d:\n%s", p, q, n, before, strings.Join(w.kernel.Objects(), "\n"))
					}
					if len(rep.Changed) != 1 || rep.Changed[0].Key.Port != "p" {
						t.Errorf("in force is reported of %v", rep.Changed)
					}
				}
				w.kernel.Faults = fake.Faults{}
				time.Sleep(firstRetry)
				if rep := w.ok(false); len(rep.Changed) != 1 || rep.Changed[0].Key.Port != "q" {
					t.Errorf("in force is reported of %v", rep.Changed)
				}
				w.converged()
			})
		})
	}
}

func TestFailuresLoseNothing(t *testing.T) {
	faults := map[string]fake.Faults{
		"busy":                  {Busy: 2},
		"unknown, nothing done": {Unknown: 1},
		"unknown, partly done":  {Unknown: 2, UnknownAfter: 3},
		"unknown, all done":     {Unknown: 1, UnknownAfter: 1000},
		"read fails":            {Observe: errors.New("no")},
		"read is interrupted":   {InterruptAfter: 2},
		"unknown, read fails":   {Unknown: 1, UnknownAfter: 2, Observe: errors.New("no")},
		"generation unknown":    {Generation: errors.New("no"), Busy: 1},
		"everything is refused": {Refuse: func(backends.Change) error { return errors.New("no") }},
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				for _, first := range []bool{true, false} { // at the start, and on a running system
					w := newWorld(t, three()...)
					if !first {
						w.ok(true)
						w.kernel.WriteForeign("x", "y")
					}
					w.kernel.Faults = f
					w.set(makeService("a", 1, "TCP", 4), makeService("d", 4, "UDP", 1))
					w.remove("b")
					for range 3 {
						w.round(true)
						time.Sleep(time.Second)
					}
					w.kernel.Faults = fake.Faults{}
					time.Sleep(lastRetry)
					w.ok(false)
					w.converged()
					if rep := w.ok(false); rep.Changes() != 0 {
						t.Errorf("the second round: %+v", rep)
					}
				}
			})
		})
	}
}

func TestFailedReadDoesNotHoldBackWhatIsTrusted(t *testing.T) {
	w := newWorld(t, three()...)
	w.ok(true)
	w.kernel.WriteForeign("x", "y")
	w.kernel.Faults.InterruptAfter = 1
	w.set(makeService("a", 1, "TCP", 5))
	if rep := w.round(true); rep.Err == nil || rep.Full {
		t.Errorf("the failed read was not reported: %+v", rep)
	}
	w.converged()
	w.kernel.Faults = fake.Faults{}
	if rep := w.ok(false); !rep.Observed {
		t.Errorf("the read was not made good: %+v", rep)
	}
}

func TestPain10_OnlyStaleFlowsGo(t *testing.T) {
	w := newWorld(t, three()...)
	w.flows.err = errors.New("netlink")
	if rep := w.round(true); rep.Err != nil || rep.FlowsErr == nil {
		t.Fatalf("%+v", rep)
	}
	w.flows.err = nil
	if w.ok(false); !slices.Equal(w.flows.current, []string{"c"}) {
		t.Errorf("not tried again: %v", w.flows.current)
	}
	calls := w.flows.calls
	w.set(makeService("a", 1, "TCP", 5))
	if w.ok(true); w.flows.calls != calls {
		t.Error("flows were cleaned for TCP")
	}
	w.set(makeService("c", 44, "UDP", 3)) // another ClusterIP
	if w.ok(false); !slices.Equal(w.flows.current, []string{"c"}) || !slices.Equal(w.flows.gone, []string{"c"}) {
		t.Errorf("current %v, gone %v", w.flows.current, w.flows.gone)
	}
	w.set(makeService("c", 44, "UDP", 1))
	if w.ok(false); len(w.flows.gone) != 0 {
		t.Errorf("an address that stayed is gone: %v", w.flows.gone)
	}
	w.kernel.Faults.Busy = 1
	w.remove("c")
	calls = w.flows.calls
	if w.round(false); w.flows.calls != calls {
		t.Error("flows were cleaned before the kernel confirmed")
	}
	if w.ok(false); !slices.Equal(w.flows.gone, []string{"c"}) {
		t.Errorf("gone: %v", w.flows.gone)
	}
}

func TestSameModeOtherConfig(t *testing.T) {
	w := newWorld(t, three()...)
	w.ok(true)
	w.kernel.OnChange = func(objects map[backends.ID]fake.Item) {
		if _, ok := objects[portID("a")]; !ok {
			t.Error("a gap: the Service was away")
		}
	}
	reads := w.kernel.Calls.Observe
	w.engine.SetDataPath(w.path("fake", fake.New(w.kernel, dataplane.Config{MasqueradeAll: true})))
	rep := w.ok(false)
	if rep.Updated != 3 || rep.Created+rep.Deleted != 0 || w.kernel.Calls.Observe != reads {
		t.Errorf("%+v", rep)
	}
}

// TestBackendsAreClosed: a Backend is closed once another has taken its place, and not as long as it has something to do.
func TestBackendsAreClosed(t *testing.T) {
	w := newWorld(t, three()...)
	made := func(k *fake.Kernel) *fake.Backend { return fake.New(k, dataplane.Config{}) }
	first, second, other := made(w.kernel), made(w.kernel), made(fake.NewKernel())
	closed := func(want ...int) {
		t.Helper()
		if got := []int{first.Closed, second.Closed, other.Closed}; !slices.Equal(got, want) {
			t.Errorf("closed %v times, want %v", got, want)
		}
	}
	w.engine.SetDataPath(w.path("fake", first))
	w.ok(true)
	closed(0, 0, 0)
	w.engine.SetDataPath(w.path("fake", second))
	w.ok(true)
	closed(1, 0, 0)
	w.engine.SetDataPath(w.path("other", other))
	closed(1, 0, 0)
	w.ok(true)
	closed(1, 1, 0)
	if len(w.kernel.Objects()) > 0 {
		t.Errorf("closed before everything was taken down: %v", w.kernel.Objects())
	}
	w.engine.Cleanup(t.Context())
	closed(1, 1, 1)
}

func TestModeSwitchMakesBeforeItBreaks(t *testing.T) {
	w := newWorld(t, three()...)
	w.ok(true)
	other := fake.NewKernel()
	other.Faults.Unknown, other.Faults.UnknownAfter = 2, 2
	w.engine.SetDataPath(w.path("other", fake.New(other, dataplane.Config{})))
	w.set(makeService("a", 1, "TCP", 5))
	if rep := w.round(false); rep.Err == nil || rep.Mode != "fake" {
		t.Fatalf("%+v", rep)
	}
	w.converged() // the old one is kept up while the new one fails

	w.kernel.OnChange = func(map[backends.ID]fake.Item) {
		if !other.Has(portID("a")) {
			t.Error("the old mode was taken down before the new one was there")
		}
	}
	w.round(false)
	if rep := w.ok(false); rep.Mode != "other" || len(w.kernel.Objects()) != 0 {
		t.Fatalf("%+v, left: %v", rep, w.kernel.Objects())
	}
	// And back, after a change of mind in between.
	w.kernel.OnChange = nil
	third := fake.NewKernel()
	third.Faults.Busy = 1
	w.engine.SetDataPath(w.path("third", fake.New(third, dataplane.Config{})))
	w.round(false)
	w.engine.SetDataPath(w.path("fake", fake.New(w.kernel, dataplane.Config{})))
	if rep := w.ok(false); rep.Mode != "fake" || len(other.Objects())+len(third.Objects()) != 0 {
		t.Fatalf("%+v, left: %v %v", rep, other.Objects(), third.Objects())
	}
	w.converged()
}

// TestFlowsAreThoseOfTheBackendInForce: what is stale to one mode is not to another, so that flows are cleaned by the mode
// that is in force, and by the next one only once that is.
func TestFlowsAreThoseOfTheBackendInForce(t *testing.T) {
	w := newWorld(t, three()...)
	w.ok(true)
	other, nextFlows := fake.NewKernel(), &recordedFlows{}
	other.Faults.Busy = 2
	w.engine.SetDataPath(DataPath{Mode: "other", Backend: fake.New(other, dataplane.Config{}), Flows: nextFlows})
	for n := range 2 { // the switch fails
		w.flows.calls = 0
		w.set(makeService("c", 3, "UDP", 1+n))
		if rep := w.round(false); rep.Err == nil || rep.Mode != "fake" {
			t.Fatalf("%+v", rep)
		}
		if w.flows.calls != 1 || nextFlows.calls != 0 {
			t.Errorf("the mode in force cleaned %d times, the next one %d times", w.flows.calls, nextFlows.calls)
		}
	}
	w.flows.calls = 0
	if rep := w.ok(false); rep.Mode != "other" {
		t.Fatalf("%+v", rep)
	}
	if w.flows.calls != 0 || !slices.Equal(nextFlows.current, []string{"c"}) {
		t.Errorf("the mode before cleaned %d times, the one in force %v", w.flows.calls, nextFlows.current)
	}
}

func TestPain09_Cleanup(t *testing.T) {
	w := newWorld(t, three()...)
	w.ok(true)
	w.kernel.WriteForeign("docker", "a rule")
	fresh := func() *Engine {
		return NewEngine(Options{DataPath: DataPath{Mode: "fake", Backend: fake.New(w.kernel, dataplane.Config{})}, Node: testNode})
	}
	objects := len(w.kernel.Objects())
	if p, err := fresh().PlanCleanup(t.Context()); err != nil || len(p.Changes) != objects || p.Backend != "fake" {
		t.Errorf("plan: %v, %v", p, err)
	}
	e := fresh()
	w.kernel.Faults.Busy = 1
	if rep := e.Cleanup(t.Context()); rep.Err == nil {
		t.Error("no error")
	}
	if rep := e.Cleanup(t.Context()); rep.Err != nil || rep.Deleted != objects || len(w.kernel.Objects()) != 0 || len(w.kernel.Foreign()) != 1 {
		t.Errorf("%+v, left %v", rep, w.kernel.Objects())
	}
}

// TestCleanupTriesAllAgain: what was in use is deleted by the next cleanup, without waiting for a retry, and what another has
// deleted in the meantime is not an error.
func TestCleanupTriesAllAgain(t *testing.T) {
	for name, meantime := range map[string]func(*world){
		"free": func(w *world) { w.kernel.Faults.Refuse = nil },
		"gone": func(w *world) { w.kernel.Flush() },
		"free and refused": func(w *world) {
			refused := false
			w.kernel.Faults.Refuse = func(backends.Change) error {
				if refused {
					return nil
				}
				refused = true
				return unix.EBUSY
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, three()...)
			w.ok(true)
			e := NewEngine(Options{DataPath: DataPath{Mode: "fake", Backend: fake.New(w.kernel, dataplane.Config{})}, Node: testNode})
			w.kernel.Faults.Refuse = func(backends.Change) error { return unix.EBUSY }
			if rep := e.Cleanup(t.Context()); rep.Err == nil && len(rep.HeldBack) == 0 {
				t.Errorf("no error: %+v", rep)
			}
			meantime(w)
			rep := e.Cleanup(t.Context())
			if name == "free and refused" {
				if len(rep.HeldBack) != 1 {
					t.Errorf("held back: %v", rep.HeldBack)
				}
				rep = e.Cleanup(t.Context())
			}
			if rep.Err != nil || len(rep.HeldBack) > 0 || len(w.kernel.Objects()) != 0 {
				t.Errorf("%+v, left %v", rep, w.kernel.Objects())
			}
		})
	}
}

// TestRandomSequences walks two engines through the same states, one in small steps with faults and drift on the way, and
// demands the same kernel state as of one that starts anew.
func TestRandomSequences(t *testing.T) {
	for seed := range uint64(15) {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 2))
			w := newWorld(t)
			if seed%3 == 0 {
				w.tells()
			}
			for step := range 60 {
				name := fmt.Sprint("svc", rng.IntN(6))
				protocol := []corev1.Protocol{"TCP", "UDP"}[rng.IntN(2)]
				switch rng.IntN(8) {
				case 0:
					w.remove(name)
				case 1:
					w.kernel.Flush()
				case 2:
					w.kernel.Write(fake.Item{Name: backends.ID(fmt.Sprint("extra", rng.IntN(3)))})
				default:
					w.set(makeService(name, rng.IntN(6)+10*int(name[3]-'0'), protocol, rng.IntN(4)))
				}
				w.kernel.Faults = fake.Faults{}
				switch rng.IntN(6) {
				case 0:
					w.kernel.Faults = fake.Faults{Unknown: 1, UnknownAfter: rng.IntN(6)}
				case 1:
					w.kernel.Faults = fake.Faults{Refuse: refuse(portID(name)), Partial: rng.IntN(2) == 0}
				case 2:
					w.kernel.Faults = fake.Faults{InterruptAfter: 1 + rng.IntN(4)}
				}
				w.round(rng.IntN(3) == 0)
				time.Sleep(time.Duration(rng.IntN(3)) * time.Second)
				if step%10 == 9 {
					w.kernel.Faults = fake.Faults{}
					time.Sleep(lastRetry)
					w.ok(true)
					w.converged()
				}
			}
		})
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func BenchmarkOneChange(b *testing.B) {
	for _, n := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			var all []*spec.Service
			for i := range n {
				all = append(all, makeService(fmt.Sprint("svc-", i), i, "TCP", 5))
			}
			w := newWorld(b, all...)
			w.ok(true)
			// The fake kernel clones its objects for each transaction: what grows with n is its own.
			w.engine.SetDataPath(w.path("fake", confirming{fake.New(w.kernel, dataplane.Config{})}))
			w.ok(false)
			for i := 0; b.Loop(); i++ {
				w.set(makeService("svc-7", 7, "TCP", 4+i%2))
				w.ok(false)
			}
		})
	}
}

// confirming is a backend whose kernel takes everything in no time.
type confirming struct{ backends.Backend }

func (confirming) Apply(context.Context, backends.Plan) backends.Result { return backends.Result{} }

// TestScaffoldingRefused: a round that cannot make what every Service needs has failed, one that leaves out a Service has
// not.
func TestScaffoldingRefused(t *testing.T) {
	for _, partial := range []bool{false, true} {
		t.Run(fmt.Sprint(partial), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, three()...)
				base := fake.New(w.kernel, dataplane.Config{}).Base()[0].ID()
				w.kernel.Faults = fake.Faults{Partial: partial, Refuse: func(c backends.Change) error {
					if c.ID == base {
						return errors.New("not permitted")
					}
					return nil
				}}
				for range 3 {
					if rep := w.round(true); rep.Err == nil || !strings.Contains(rep.Err.Error(), "no Service works as it should without "+string(base)) {
						t.Fatalf("%v, held back: %v", rep.Err, rep.HeldBack)
					}
					time.Sleep(firstRetry)
				}
				w.kernel.Faults = fake.Faults{Partial: partial, Refuse: func(c backends.Change) error {
					if slices.ContainsFunc(c.Owners, func(o dataplane.ServicePortName) bool { return o.Service.Name == "a" }) {
						return errors.New("not permitted")
					}
					return nil
				}}
				w.set(makeService("a", 1, "TCP", 5))
				time.Sleep(lastRetry)
				if rep := w.round(true); rep.Err != nil || len(rep.HeldBack) != 1 {
					t.Errorf("a Service alone is refused: %v, held back: %v", rep.Err, rep.HeldBack)
				}
				w.kernel.Faults = fake.Faults{}
				time.Sleep(lastRetry)
				w.ok(true)
				w.converged()
			})
		})
	}
}

// leavingFlows records the endpoints that left.
type leavingFlows struct {
	recordedFlows
	left []string
	err  error
}

func (f *leavingFlows) Leave(_ context.Context, left []*dataplane.ServicePort) (int, error) {
	f.left = nil
	for _, p := range left {
		for _, e := range p.Endpoints {
			f.left = append(f.left, e.Addr.String())
		}
		if p.Reset {
			f.left = append(f.left, fmt.Sprint("reset, serving ", p.Serving))
		}
	}
	return len(left), f.err
}

// TestEndpointsThatLeave has endpoints leave a TCP Service in every way, and come back before the kernel's flows could be removed.
func TestEndpointsThatLeave(t *testing.T) {
	flows := &leavingFlows{}
	w := newWorld(t, makeService("a", 1, "TCP", 3), makeService("u", 2, "UDP", 3))
	w.engine.SetDataPath(DataPath{Mode: "fake", Backend: fake.New(w.kernel, dataplane.Config{}), Flows: flows})
	expect := func(want ...string) {
		t.Helper()
		w.engine.left.from = time.Time{}
		w.ok(false)
		if !slices.Equal(flows.left, want) {
			t.Errorf("left %v, want %v", flows.left, want)
		}
		flows.left = nil
	}
	expect()
	w.set(makeService("a", 1, "TCP", 2), makeService("u", 2, "UDP", 1))
	expect("10.102.0.2:8080")
	unready := makeService("a", 1, "TCP", 2)
	unready.Slices[0].Endpoints[0].Conditions.Ready = new(false)
	w.set(unready)
	expect("10.100.0.2:8080")
	w.set(makeService("a", 1, "TCP", 3))
	expect()

	drained := makeService("a", 1, "TCP", 3)
	drained.Object.Annotations = map[string]string{AnnotationWeights: "10.101.0.2=0", AnnotationOnUnhealthy: "reset"}
	drained.Slices[0].Endpoints[0].Conditions.Ready = new(false)
	w.set(drained)
	expect("10.100.0.2:8080", "10.101.0.2:8080", "reset, serving [10.101.0.2:8080 10.102.0.2:8080]")

	flows.err = errors.New("netlink")
	w.set(makeService("a", 1, "TCP", 1))
	w.engine.left.from = time.Time{}
	if rep := w.round(false); rep.FlowsErr == nil {
		t.Error("the failure is not told")
	}
	flows.err = nil
	w.set(makeService("a", 1, "TCP", 2)) // one of the two is back
	expect("10.102.0.2:8080")
	w.remove("a")
	expect("10.100.0.2:8080", "10.101.0.2:8080")

	// Passes that come too soon wait.
	w.set(makeService("a", 1, "TCP", 3))
	w.engine.left.from = time.Now().Add(time.Hour)
	w.ok(false)
	w.set(makeService("a", 1, "TCP", 2))
	w.ok(false)
	if left, err := w.engine.Reap(t.Context()); left != 1 || err != nil || flows.left != nil {
		t.Errorf("too early: %d Service ports wait, error %v, left %v", left, err, flows.left)
	}
	w.engine.left.from = time.Time{}
	if left, err := w.engine.Reap(t.Context()); left != 0 || err != nil || !slices.Equal(flows.left, []string{"10.102.0.2:8080"}) {
		t.Errorf("%d Service ports wait, error %v, left %v", left, err, flows.left)
	}
}
