package join

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"weir/backends/dataplane"
	"weir/spec"
)

// namedHand is a hand with a name, perhaps in the place of another.
type namedHand struct {
	hand
	name, former string
}

func (n *namedHand) Name() string     { return n.name }
func (n *namedHand) Succeeds() string { return n.former }

// watched is a Source that is watched.
type watched struct {
	*testing.T
	files hand
	out   chan spec.Update
	last  *spec.Snapshot
}

func watching(t *testing.T, s func(files hand) *Source) *watched {
	w := &watched{T: t, files: make(hand), out: make(chan spec.Update, 100)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	src := s(w.files)
	go func() { defer close(done); _ = src.Watch(ctx, func(u spec.Update) { w.out <- u }) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// until takes updates until the Service web has these endpoints, and what is away is told as it should be.
func (w *watched) until(what, endpoints, away string) {
	w.Helper()
	for deadline := time.After(time.Minute); ; {
		if w.last != nil {
			got := endpointsOf(w.last.Services.Get(dataplane.ServiceName{Namespace: "d", Name: "web"}))
			if got == endpoints && (away == "" && len(w.last.Away) == 0 || away != "" && strings.Contains(fmt.Sprint(w.last.Away), away)) {
				return
			}
		}
		select {
		case u := <-w.out:
			if u.Err != nil {
				w.Fatalf("%s: %v", what, u.Err)
			}
			w.last = u.Snapshot
		case <-deadline:
			w.Fatalf("%s: the last Snapshot is %+v", what, w.last)
		}
	}
}

// TestAwayIsTold has two runtimes that cannot be read. What they said stands, and each is told of as long as it is away.
func TestAwayIsTold(t *testing.T) {
	t.Parallel()
	podman, docker := &namedHand{make(hand), "podman", ""}, &namedHand{make(hand), "docker", ""}
	w := watching(t, func(files hand) *Source {
		layer := func(n *namedHand) Layer { l := Fixed(n.name, n); l.GivesPods = true; return l }
		return New(files, layer(podman), layer(docker))
	})
	all := spec.Delta{All: true}
	w.files <- spec.Update{Snapshot: &spec.Snapshot{Services: spec.ServicesOf(selecting("web"))}, Delta: all}
	podman.hand <- spec.Update{Snapshot: runs("web", "10.0.0.1"), Delta: all}
	// docker hangs: nothing waits for it for long
	w.until("docker has not answered", "10.0.0.1", "docker is away: it has not answered yet; its pods are not known: what the kernel has of them stays, and nothing is deleted")
	if !w.last.Revision.Stale {
		t.Error("without the word of docker, the Snapshot is not stale")
	}
	docker.hand <- spec.Update{Snapshot: runs("web", "10.1.0.1"), Delta: all}
	w.until("docker has answered", "10.0.0.1 10.1.0.1", "")
	podman.hand <- spec.Update{Err: errors.New("no socket")}
	w.until("podman is away", "10.0.0.1 10.1.0.1", "podman is away: no socket; 1 pod that it told of last stays")
	docker.hand <- spec.Update{Err: errors.New("no answer")}
	w.until("both are away", "10.0.0.1 10.1.0.1", "docker is away: no answer")
	if len(w.last.Away) != 2 || !strings.HasSuffix(w.last.Revision.String(), "-stale") {
		t.Errorf("of both, %v are told, and the revision is %q", w.last.Away, w.last.Revision)
	}
	w.files <- spec.Update{Snapshot: &spec.Snapshot{Services: spec.ServicesOf(selecting("web"), selecting("db"))}, Delta: spec.Delta{Services: []dataplane.ServiceName{{Namespace: "d", Name: "db"}}}}
	w.until("the files change", "10.0.0.1 10.1.0.1", "podman")
	for w.last.Services.Len() != 2 {
		w.last = (<-w.out).Snapshot
	}
	notice := fmt.Sprint(w.last.NoticesOf(dataplane.ServiceName{Namespace: "d", Name: "db"}))
	if !strings.Contains(notice, "selects no pod of podman (which does not answer) and docker (which does not answer)") {
		t.Errorf("a Service without pods has the notices %s", notice)
	}
	podman.hand <- spec.Update{Snapshot: runs("web", "10.0.0.2"), Delta: all}
	docker.hand <- spec.Update{Snapshot: runs("web", "10.1.0.1"), Delta: all}
	w.until("both are back", "10.0.0.2 10.1.0.1", "")
	if notice := fmt.Sprint(w.last.NoticesOf(dataplane.ServiceName{Namespace: "d", Name: "db"})); strings.Contains(notice, "does not answer") {
		t.Errorf("afterwards, a Service without pods has the notices %s", notice)
	}
}

// TestSourceOfPodsIsReplaced replaces a source of pods by others. The pods of one that goes, go; those of one whose place another
// takes stand until that has answered.
func TestSourceOfPodsIsReplaced(t *testing.T) {
	var now spec.Source
	w := watching(t, func(files hand) *Source {
		return New(files, Layer{GivesPods: true, Source: func(*spec.Snapshot) (spec.Source, error) { return now, nil }})
	})
	base := &spec.Snapshot{Services: spec.ServicesOf(selecting("web"))}
	use := func(s *namedHand) *namedHand {
		now = s
		w.files <- spec.Update{Snapshot: base, Delta: spec.Delta{Config: true}}
		return s
	}
	all := spec.Delta{All: true}
	a := use(&namedHand{make(hand), "podman at /a", ""})
	a.hand <- spec.Update{Snapshot: runs("web", "10.0.0.1"), Delta: all}
	w.until("the first", "10.0.0.1", "")
	b := use(&namedHand{make(hand), "podman at /b", "podman at /a"})
	b.hand <- spec.Update{Err: errors.New("no socket")}
	w.until("another in its place, which is away", "10.0.0.1", "podman at /b is away: no socket; 1 pod of podman at /a, which it replaces, stays until it answers")
	b.hand <- spec.Update{Snapshot: runs("web", "10.0.0.2"), Delta: all}
	w.until("it answers", "10.0.0.2", "")
	b.hand <- spec.Update{Err: errors.New("no socket")}
	w.until("it is away", "10.0.0.2", "1 pod that it told of last stays")
	c := use(&namedHand{make(hand), "docker at /c", ""})
	w.until("another kind", "", "")
	c.hand <- spec.Update{Err: errors.New("no socket")}
	w.until("another kind, which is away", "", "docker at /c is away: no socket; no pod of it is known")
	c.hand <- spec.Update{Snapshot: runs("web", "10.0.0.3"), Delta: all}
	w.until("it answers too", "10.0.0.3", "")
}

// mute is a Source that does not answer.
type mute struct{ namedHand }

func (mute) Load(ctx context.Context) (*spec.Snapshot, error) {
	<-ctx.Done()
	return nil, errors.New("x")
}

// failing is a Source that cannot be read.
type failing struct{ namedHand }

func (failing) Load(context.Context) (*spec.Snapshot, error) {
	return nil, errors.New("pods of docker: no socket")
}

// TestPlanWithoutRuntime plans with one runtime that hangs, one that is away and one that answers. What templates promise is
// planned, and the plan says who did not answer.
func TestPlanWithoutRuntime(t *testing.T) {
	t.Parallel()
	layer := func(s Named) Layer { l := Fixed(s.Name(), s); l.GivesPods = true; return l }
	answers := Given(runs("db", "10.0.0.1"))
	b := spec.Templates{}.Edit()
	b.Put(dataplane.ServiceName{Namespace: "d", Name: "Deployment/web"}, &spec.Template{Kind: "Deployment", Namespace: "d", Name: "web", Labels: map[string]string{"app": "web"}, Replicas: 2})
	base := &spec.Snapshot{Services: spec.ServicesOf(selecting("web"), selecting("db")), Templates: b.Commit()}
	src := func() *Source {
		l := Fixed("cri", answers)
		l.GivesPods = true
		return New(Given(base), layer(&mute{namedHand{nil, "podman", ""}}), layer(&failing{namedHand{nil, "docker", ""}}), l)
	}
	started := time.Now()
	snap, err := src().Planned().Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(started); took > planLimit+10*time.Second {
		t.Errorf("planned after %v", took)
	}
	web := snap.Services.Get(dataplane.ServiceName{Namespace: "d", Name: "web"})
	if web.Promised != "Deployment d/web (2 replicas)" || endpointsOf(snap.Services.Get(dataplane.ServiceName{Namespace: "d", Name: "db"})) != "10.0.0.1" {
		t.Errorf("web is promised by %q", web.Promised)
	}
	text := fmt.Sprint(snap.Notices)
	for _, want := range []string{"pods of podman: no answer within 2s", "pods of docker: no socket"} {
		if !strings.Contains(text, want) {
			t.Errorf("the notices are %s", text)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := src().Load(ctx); err == nil {
		t.Error("what is no plan is made without a runtime")
	}
}
