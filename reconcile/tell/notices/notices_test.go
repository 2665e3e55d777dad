package notices

import (
	"fmt"
	"maps"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/spec"
)

func declared(name, silence string, notices ...spec.Notice) *spec.Service {
	o := &corev1.Service{}
	o.Annotations = map[string]string{spec.AnnotationSilence: silence}
	return &spec.Service{Name: dataplane.ServiceName{Namespace: "default", Name: name}, Object: o, Notices: notices}
}

func snapshot(services ...*spec.Service) *spec.Snapshot {
	all := spec.Services{}.Edit()
	for _, s := range services {
		all.Put(s.Name, s)
	}
	return &spec.Snapshot{Services: all.Commit()}
}

func notice(id spec.NoticeID, name string, line int) spec.Notice {
	return id.Notice(spec.Origin{File: "f", Line: line}, "Service default/"+name, "", "detail")
}

// TestBook follows an input and its rounds, and compares what is new and the counts after each step.
func TestBook(t *testing.T) {
	b := NewBook()
	all, one := spec.Delta{All: true}, spec.Delta{Services: []dataplane.ServiceName{{Namespace: "default", Name: "a"}}}
	a := declared("a", "", notice(spec.NoReadyEndpoint, "a", 1))
	moved := declared("a", "", notice(spec.NoReadyEndpoint, "a", 9))
	silent := declared("a", "W001,W019", notice(spec.NoReadyEndpoint, "a", 9))
	other := declared("b", "")
	update := func(d spec.Delta, services ...*spec.Service) func() []spec.Notice {
		return func() []spec.Notice { return b.Update(spec.Update{Snapshot: snapshot(services...), Delta: d}) }
	}
	round := func(s *spec.Service, found ...spec.Notice) func() []spec.Notice {
		return func() []spec.Notice {
			return b.Report(reconcile.Report{Notices: []reconcile.ServiceNotices{{Service: s, Notices: found}}})
		}
	}
	refused := notice(spec.ExternalIPRefused, "b", 3)
	for i, step := range []struct {
		do    func() []spec.Notice
		fresh int
		want  map[spec.NoticeID]int
	}{
		{update(all, a, other), 1, map[spec.NoticeID]int{spec.NoReadyEndpoint: 1}},
		{round(a, a.Notices...), 0, map[spec.NoticeID]int{spec.NoReadyEndpoint: 1}},
		{round(other, refused), 1, map[spec.NoticeID]int{spec.NoReadyEndpoint: 1, spec.ExternalIPRefused: 1}},
		{update(one, moved, other), 0, map[spec.NoticeID]int{spec.NoReadyEndpoint: 1, spec.ExternalIPRefused: 1}},
		{round(moved, moved.Notices...), 0, map[spec.NoticeID]int{spec.NoReadyEndpoint: 1, spec.ExternalIPRefused: 1}},
		{update(one, silent, other), 0, map[spec.NoticeID]int{spec.ExternalIPRefused: 1}},
		{update(one, moved, other), 1, map[spec.NoticeID]int{spec.NoReadyEndpoint: 1, spec.ExternalIPRefused: 1}},
		{update(one, other), 0, map[spec.NoticeID]int{spec.ExternalIPRefused: 1}},
		{round(other), 0, map[spec.NoticeID]int{}},
		{func() []spec.Notice {
			return b.Node(snapshot(), "n", []spec.Notice{spec.NoLocalDetection.Notice(spec.Origin{}, "", "", "x")})
		}, 1, map[spec.NoticeID]int{spec.NoLocalDetection: 1}},
		{update(all, other), 0, map[spec.NoticeID]int{spec.NoLocalDetection: 1}},
		{func() []spec.Notice {
			return b.Node(snapshot(silent, other), "n", []spec.Notice{notice(spec.PortNotServed, "a", 9), notice(spec.PortNotServed, "b", 3)})
		}, 1, map[spec.NoticeID]int{spec.PortNotServed: 1}},
		{update(one, other), 0, map[spec.NoticeID]int{spec.PortNotServed: 1}},
		{update(all), 0, map[spec.NoticeID]int{}},
	} {
		fresh := step.do()
		n := 0
		for _, c := range b.Counts() {
			n += c
		}
		if len(fresh) != step.fresh || !maps.Equal(b.Counts(), step.want) || len(b.All()) != n {
			t.Errorf("step %d: new %v, %v hold, %d in all; want %d, %v", i, fresh, fmt.Sprint(b.Counts()), len(b.All()), step.fresh, step.want)
		}
	}
}
