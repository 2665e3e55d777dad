package join

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// hand is a Source that says what the test sends.
type hand chan spec.Update

func (h hand) Load(ctx context.Context) (*spec.Snapshot, error) { return nil, errors.New("not used") }

func (h hand) Watch(ctx context.Context, sink func(spec.Update)) error {
	for {
		select {
		case u := <-h:
			sink(u)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// declares returns an Update of Services, all of which have the given ClusterIP.
func declares(ip string, delta spec.Delta, names ...string) spec.Update {
	all := spec.Services{}.Edit()
	for _, n := range names {
		name := dataplane.ServiceName{Namespace: "d", Name: n}
		all.Put(name, &spec.Service{Name: name, Object: &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: ip}}})
	}
	return spec.Update{Snapshot: &spec.Snapshot{Services: all.Commit()}, Delta: delta}
}

func TestFilesAndAPI(t *testing.T) {
	files, api := make(hand), make(hand)
	out := make(chan spec.Update, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	src := New(files, Fixed("the Kubernetes API", api))
	go func() { defer close(done); _ = src.Watch(ctx, func(u spec.Update) { out <- u }) }()
	defer func() { cancel(); <-done }()
	next := func() spec.Update {
		t.Helper()
		select {
		case u := <-out:
			return u
		case <-time.After(time.Minute):
			t.Fatal("no Update came")
			return spec.Update{}
		}
	}
	ip := func(s *spec.Snapshot, n string) string {
		if svc := s.Services.Get(dataplane.ServiceName{Namespace: "d", Name: n}); svc != nil {
			return svc.Object.Spec.ClusterIP
		}
		return ""
	}
	a := []dataplane.ServiceName{{Namespace: "d", Name: "a"}}

	files <- declares("file", spec.Delta{All: true}, "a", "b")
	api <- spec.Update{Err: errors.New("away")}
	if u := next(); u.Err == nil {
		t.Fatalf("a Snapshot before the API had answered: %+v", u)
	}
	api <- declares("api", spec.Delta{All: true}, "a", "c")
	u := next()
	if !u.Delta.All || u.Snapshot.Services.Len() != 3 || ip(u.Snapshot, "a") != "api" || ip(u.Snapshot, "b") != "file" {
		t.Fatalf("the union is %+v", u)
	}
	if svc := u.Snapshot.Services.Get(a[0]); len(svc.Notices) != 1 {
		t.Errorf("the conflict is not told: %+v", svc)
	}
	api <- declares("api", spec.Delta{Services: a}, "c")
	if u := next(); u.Delta.All || len(u.Delta.Services) != 1 || ip(u.Snapshot, "a") != "file" {
		t.Errorf("without the API's, the file's counts: %+v", u)
	}
	api <- spec.Update{Err: errors.New("away")}
	if next().Err == nil {
		t.Error("the fault is not told")
	}
	files <- declares("file", spec.Delta{Services: a}, "b")
	if u := next(); u.Err != nil || ip(u.Snapshot, "a") != "" || u.Snapshot.Services.Len() != 2 {
		t.Errorf("a change of files while the API is away: %+v", u)
	}
	if next().Err == nil {
		t.Error("the API's fault is forgotten")
	}
}

// TestOutdatedBase has a base that cannot read a part of its input: the joined Snapshots are marked until it can.
func TestOutdatedBase(t *testing.T) {
	u := New(make(hand), Fixed("the Kubernetes API", make(hand))).newUnion()
	u.said = []*spec.Snapshot{{Revision: spec.Revision{ID: "a", Outdated: true}}, {Revision: spec.Revision{ID: "b"}}}
	if snap, _ := u.update(spec.Delta{All: true}, false); snap.Revision.String() != "a+b-stale" {
		t.Errorf("the revision is %s", snap.Revision)
	}
	u.said[0] = &spec.Snapshot{Revision: spec.Revision{ID: "a"}}
	if snap, _ := u.update(spec.Delta{}, false); snap.Revision.String() != "a+b" {
		t.Errorf("the revision is %s", snap.Revision)
	}
}
