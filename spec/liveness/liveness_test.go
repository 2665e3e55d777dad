package liveness

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/join"
	"weir/spec/join/jointest"
	"weir/spec/probe"
)

// world is a source of Services under a Layer whose probes a test answers.
type world struct {
	*testing.T
	dir    string
	files  *jointest.Source
	layer  *Layer
	log    bytes.Buffer
	cancel context.CancelFunc
	ended  chan struct{}

	mu      sync.Mutex
	answers map[string]probe.Verdict // by address; without one it works
	asked   map[string][]time.Time
	last    *spec.Snapshot
	updates int
	urgent  int
}

// newWorld starts a Layer over a source that has said nothing yet.
func newWorld(t *testing.T, dir string) *world {
	w := &world{T: t, dir: dir, answers: map[string]probe.Verdict{}, asked: map[string][]time.Time{}, files: jointest.NewSource(), ended: make(chan struct{})}
	w.files.Snapshot.Weir.StateDir = dir
	w.layer = New(Options{Log: hclog.New(&hclog.LoggerOptions{Output: &w.log, DisableTime: true})})
	w.layer.start = waiting(func(_ context.Context, p *probe.Probe, to probe.Target) probe.Result {
		at := p.Address(to).String()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.asked[at] = append(w.asked[at], time.Now())
		if v, ok := w.answers[at]; ok {
			return probe.Result{Verdict: v, Message: "said " + v.String()}
		}
		return probe.Result{Verdict: probe.Success}
	})
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	go func() {
		defer close(w.ended)
		_ = join.New(w.files).Filtered(w.layer).Watch(ctx, func(u spec.Update) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if u.Err != nil {
				t.Error(u.Err)
				return
			}
			if !u.Delta.Empty() {
				w.updates++
				w.last = u.Snapshot
				if u.Delta.Urgent {
					w.urgent++
				}
			}
		})
	}()
	<-w.files.Started
	return w
}

// waiting returns a start of probes that are never answered at once.
func waiting(run func(context.Context, *probe.Probe, probe.Target) probe.Result) func(*probe.Probe, probe.Target) (probe.Result, func(context.Context) probe.Result) {
	return func(p *probe.Probe, to probe.Target) (probe.Result, func(context.Context) probe.Result) {
		return probe.Result{}, func(ctx context.Context) probe.Result { return run(ctx, p, to) }
	}
}

func (w *world) end() {
	w.cancel()
	<-w.ended
}

func (w *world) answer(v probe.Verdict, addrs ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, a := range addrs {
		w.answers[a] = v
	}
}

// usual is what most tests ask.
func usual() *probe.Probe {
	return &probe.Probe{Kind: probe.TCP, Period: 10 * time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}
}

var web = dataplane.ServiceName{Namespace: "default", Name: "web"}

// service returns the Service default/web with an endpoint at each address, and a probe of its port.
func asked(p *probe.Probe, minHealthy string, addrs ...string) *spec.Service {
	svc := &spec.Service{Name: web, Origin: spec.Origin{File: "web.yaml"}, Object: &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}}},
	}}
	if p != nil {
		svc.Probes = &spec.Probes{Ports: []spec.PortProbe{{Port: "http", Probe: p}}}
		if minHealthy != "" {
			m, err := probe.ParseMinHealthy(minHealthy)
			if err != nil {
				panic(err)
			}
			svc.Probes.MinHealthy = m
		}
	}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{Name: new("http"), Port: new(int32(8080))}}}
	for _, a := range addrs {
		slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
	}
	svc.Slices = []*discoveryv1.EndpointSlice{slice}
	return svc
}

// say declares a Service and lets the Layer take it.
func (w *world) say(svc *spec.Service) {
	w.Helper()
	w.files.Declare(web, svc)
	delta := spec.Delta{Services: []dataplane.ServiceName{web}}
	if w.last == nil {
		delta = spec.Delta{All: true}
	}
	w.files.Say(delta)
	synctest.Wait()
}

// served returns the addresses of the endpoints that are ready at a port.
func (w *world) served(port string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	svc := w.last.Services.Get(web)
	if svc == nil {
		return "nothing"
	}
	var all []string
	for _, s := range svc.Slices {
		for _, p := range s.Ports {
			for _, e := range s.Endpoints {
				if *p.Name == port && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
					all = append(all, e.Addresses[0])
				}
			}
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// expect waits for some time, and compares what is served then.
func (w *world) expect(after time.Duration, want string) {
	w.Helper()
	time.Sleep(after)
	synctest.Wait()
	if got := w.served("http"); got != want {
		w.Errorf("served: %q, want %q; log:\n%s", got, want, w.log.String())
	}
}

func inBubble(t *testing.T, do func(t *testing.T, w *world)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir)
		defer w.end()
		do(t, w)
	})
}

const soon = 50 * time.Millisecond

// TestVerdictsAreServed follows endpoints from the very first start: what the slice says stands, then verdicts count.
func TestVerdictsAreServed(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.answer(probe.Failure, "10.0.0.2:8080")
		w.say(asked(usual(), "", "10.0.0.1", "10.0.0.2"))
		w.expect(0, "10.0.0.1 10.0.0.2")
		w.expect(soon, "10.0.0.1 10.0.0.2") // one failure of three
		w.expect(30*time.Second, "10.0.0.1")
		if w.urgent != 1 {
			t.Errorf("%d urgent updates, want 1", w.urgent)
		}
		w.answer(probe.Success, "10.0.0.2:8080")
		w.expect(10*time.Second, "10.0.0.1 10.0.0.2")
		w.answer(probe.Failure, "10.0.0.1:8080")
		dead := time.Now()
		for w.served("http") != "10.0.0.2" {
			time.Sleep(10 * time.Millisecond)
		}
		if took := time.Since(dead); took > 31*time.Second {
			t.Errorf("a dead endpoint stayed for %v, longer than period × (failures − 1) + timeout + period", took)
		}
		w.answer(probe.Unknown, "10.0.0.2:8080")
		w.expect(5*time.Minute, "10.0.0.2")
		if n := strings.Count(w.log.String(), "\n"); n != 4 {
			t.Errorf("%d lines in the log, want one for each change:\n%s", n, w.log.String())
		}
	})
}

// TestNeverJudged has endpoints that are served and were never judged: they are not called healthy.
func TestNeverJudged(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.answer(probe.Failure, "10.0.0.2:8080")
		w.answer(probe.Unknown, "10.0.0.3:8080")
		w.say(asked(usual(), "", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
		counts := func(within time.Duration, want Counts) {
			t.Helper()
			time.Sleep(within)
			synctest.Wait()
			if s, _ := w.layer.State(web); s.Counts != want {
				t.Errorf("counts are %+v, want %+v", s.Counts, want)
			}
		}
		counts(soon, Counts{Healthy: 1, Unknown: 2}) // one failure of three
		counts(30*time.Second, Counts{Healthy: 1, Unknown: 1, Unhealthy: 1})
		w.answer(probe.Success, "10.0.0.3:8080")
		counts(10*time.Second, Counts{Healthy: 2, Unhealthy: 1})
	})
}

// TestNewEndpointsAreAwaited has endpoints come to a Service that runs, and a Service come to a weir that runs.
func TestNewEndpointsAreAwaited(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.say(asked(usual(), "", "10.0.0.1"))
		w.answer(probe.Failure, "10.0.0.2:8080")
		w.say(asked(usual(), "", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
		w.expect(0, "10.0.0.1 10.0.0.3") // the first success counts at once
		w.expect(15*time.Second, "10.0.0.1 10.0.0.3")
		w.answer(probe.Success, "10.0.0.2:8080")
		w.expect(10*time.Second, "10.0.0.1 10.0.0.2 10.0.0.3")

		w.say(nil)
		w.answer(probe.Failure, "10.0.1.1:8080", "10.0.1.2:8080")
		w.say(asked(usual(), "", "10.0.1.1", "10.0.1.2"))
		w.expect(0, "")
		w.expect(19*time.Second, "")
		w.answer(probe.Success, "10.0.1.1:8080")
		w.expect(10*time.Second, "10.0.1.1")

		// A server that is a little slower than its pod is in soon, and many such are asked no more often than the period says.
		w.answer(probe.Failure, "10.0.2.1:8080")
		w.say(asked(usual(), "", "10.0.1.1", "10.0.2.1"))
		w.expect(soon, "10.0.1.1")
		w.answer(probe.Success, "10.0.2.1:8080")
		w.expect(firstRetry, "10.0.1.1 10.0.2.1")
	})
}

// TestVerdictsOutliveThresholds changes when and how often a probe asks: what is known of an endpoint stays known, by a process
// that runs, by the next one, and in a plan. A probe that asks something else begins anew.
func TestVerdictsOutliveThresholds(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		changed := func(change func(*probe.Probe)) *probe.Probe {
			p := *usual()
			change(&p)
			return &p
		}
		calmer := changed(func(p *probe.Probe) { p.FailureThreshold, p.Period = 10, 20*time.Second })
		w := newWorld(t, dir)
		w.answer(probe.Failure, "10.0.0.2:8080")
		w.say(asked(usual(), "", "10.0.0.1", "10.0.0.2"))
		w.expect(40*time.Second, "10.0.0.1")
		lines := strings.Count(w.log.String(), "\n")
		before, _ := w.layer.State(web)
		w.say(asked(calmer, "", "10.0.0.1", "10.0.0.2"))
		w.expect(0, "10.0.0.1")
		w.expect(5*time.Minute, "10.0.0.1")
		if after, _ := w.layer.State(web); !after.Checks[1].Since.Equal(before.Checks[1].Since) {
			t.Errorf("failing since %v, want %v", after.Checks[1].Since, before.Checks[1].Since)
		}
		if n := strings.Count(w.log.String(), "\n"); n != lines {
			t.Errorf("%d more lines in the log, and nothing changed:\n%s", n-lines, w.log.String())
		}
		w.end()

		plan := func(p *probe.Probe) string {
			files := jointest.NewSource()
			files.Snapshot.Weir.StateDir = dir
			files.Declare(web, asked(p, "", "10.0.0.1", "10.0.0.2"))
			planned, err := world{T: t}, error(nil)
			if planned.last, err = join.New(files).Filtered(New(Options{Remembered: true})).Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			return planned.served("http")
		}
		for name, tc := range map[string]struct {
			probe *probe.Probe
			want  string
		}{
			"the same":      {calmer, "10.0.0.1"},
			"the first":     {usual(), "10.0.0.1"},
			"timeout":       {changed(func(p *probe.Probe) { p.Timeout = 5 * time.Second }), "10.0.0.1"},
			"initial delay": {changed(func(p *probe.Probe) { p.InitialDelay = time.Minute }), "10.0.0.1"},
			"success":       {changed(func(p *probe.Probe) { p.SuccessThreshold = 3 }), "10.0.0.1"},
			"another path":  {changed(func(p *probe.Probe) { p.Path = "/other" }), "10.0.0.1 10.0.0.2"},
		} {
			if got := plan(tc.probe); got != tc.want {
				t.Errorf("%s: planned: %q, want %q", name, got, tc.want)
			}
		}

		w = newWorld(t, dir)
		w.answer(probe.Failure, "10.0.0.2:8080")
		w.say(asked(usual(), "", "10.0.0.1", "10.0.0.2"))
		w.expect(0, "10.0.0.1")
		w.say(asked(usual(), "", "10.0.0.1")) // what has gone is forgotten
		w.expect(time.Minute, "10.0.0.1")
		w.end()
		if got := plan(calmer); got != "10.0.0.1 10.0.0.2" {
			t.Errorf("planned of an endpoint that came back: %q", got)
		}
	})
}

// TestAwaitedOutlivesRestart starts a process while endpoints are awaited that have never succeeded: beside others of their Service,
// alone, and in a Service that shares its probe of another endpoint with a Service that comes before it. They are served after their
// first success, and not because weir was started; nor does a plan serve them.
func TestAwaitedOutlivesRestart(t *testing.T) {
	for name, shared := range map[string]bool{"one Service": false, "a shared probe": true} {
		for _, others := range [][]string{{"10.0.0.1"}, nil} {
			for _, v := range []probe.Verdict{probe.Failure, probe.Unknown} {
				t.Run(fmt.Sprintf("%s, %d more endpoints, %s", name, len(others), v), func(t *testing.T) {
					dir := t.TempDir()
					synctest.Test(t, func(t *testing.T) {
						first := dataplane.ServiceName{Namespace: "default", Name: "a"}
						all := append(slices.Clone(others), "10.0.0.2")
						start := func(addrs []string, now bool) *world {
							w := newWorld(t, dir)
							w.answer(v, "10.0.0.2:8080")
							if shared {
								svc := asked(usual(), "", "10.0.0.1")
								svc.Name = first
								w.files.Declare(first, svc)
							}
							if now {
								w.say(asked(usual(), "", addrs...))
							} else {
								w.say(nil)
							}
							return w
						}
						w := start(nil, false)
						w.expect(time.Minute, "nothing")
						if len(others) > 0 {
							w.say(asked(usual(), "", others...))
							w.expect(time.Minute, "10.0.0.1")
						}
						w.say(asked(usual(), "0", all...))
						want := strings.Join(others, " ")
						w.expect(2*time.Second, want)
						w.end()
						for range 2 {
							w = start(all, true)
							w.expect(0, want)
							w.expect(2*time.Second, want)
							w.end()
						}

						files := jointest.NewSource()
						files.Snapshot.Weir.StateDir = dir
						files.Declare(web, asked(usual(), "", all...))
						planned, err := world{T: t}, error(nil)
						if planned.last, err = join.New(files).Filtered(New(Options{Remembered: true})).Load(t.Context()); err != nil {
							t.Fatal(err)
						}
						if got := planned.served("http"); got != want {
							t.Errorf("planned: %q, want %q", got, want)
						}

						w = start(all, true)
						w.answer(probe.Success, "10.0.0.2:8080")
						w.expect(11*time.Second, strings.Join(all, " "))
						w.end()
					})
				})
			}
		}
	}
}

// TestNeverEmptyByProbes has fewer endpoints work than must.
func TestNeverEmptyByProbes(t *testing.T) {
	for minHealthy, want := range map[string][3]string{ // what is served with one, two and all of three dead
		"":     {"10.0.0.2 10.0.0.3", "10.0.0.3", "10.0.0.1 10.0.0.2 10.0.0.3"},
		"2":    {"10.0.0.2 10.0.0.3", "10.0.0.1 10.0.0.2 10.0.0.3", "10.0.0.1 10.0.0.2 10.0.0.3"},
		"50%":  {"10.0.0.2 10.0.0.3", "10.0.0.1 10.0.0.2 10.0.0.3", "10.0.0.1 10.0.0.2 10.0.0.3"},
		"100%": {"10.0.0.1 10.0.0.2 10.0.0.3", "10.0.0.1 10.0.0.2 10.0.0.3", "10.0.0.1 10.0.0.2 10.0.0.3"},
		"0":    {"10.0.0.2 10.0.0.3", "10.0.0.3", ""},
	} {
		t.Run("min-healthy "+minHealthy, func(t *testing.T) {
			inBubble(t, func(t *testing.T, w *world) {
				w.say(asked(usual(), minHealthy, "10.0.0.1", "10.0.0.2", "10.0.0.3"))
				w.expect(soon, "10.0.0.1 10.0.0.2 10.0.0.3")
				for i, served := range want {
					w.answer(probe.Failure, fmt.Sprintf("10.0.0.%d:8080", i+1))
					w.expect(31*time.Second, served)
				}
				panics := strings.Contains(w.log.String(), "too few endpoints work")
				if s, _ := w.layer.State(web); s.Panic != (minHealthy != "0") || panics != s.Panic {
					t.Errorf("panic: %v in the state, %v in the log", s.Panic, panics)
				}
				if minHealthy == "" {
					// One that comes in a panic is awaited all the same, and ends it.
					w.answer(probe.Failure, "10.0.0.4:8080")
					w.say(asked(usual(), minHealthy, "10.0.0.1", "10.0.0.2", "10.0.0.4"))
					w.expect(0, "10.0.0.1 10.0.0.2")
					w.answer(probe.Success, "10.0.0.4:8080")
					w.expect(firstRetry, "10.0.0.4")
				}
			})
		})
	}
}

// TestRestart ends the process at a random moment, with and without what it would have done at its end.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir)
		w.answer(probe.Failure, "10.0.0.2:8080")
		w.say(asked(usual(), "", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
		w.expect(40*time.Second, "10.0.0.1 10.0.0.3")
		w.end()

		var err error
		// 10.0.0.2 is still dead, and 10.0.0.4 came meanwhile. Nothing answers at first.
		hang := func(w *world) {
			w.answer(probe.Unknown, "10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080", "10.0.0.4:8080")
		}
		w = newWorld(t, dir)
		hang(w)
		w.say(asked(usual(), "", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))
		w.expect(0, "10.0.0.1 10.0.0.3")
		w.expect(time.Minute, "10.0.0.1 10.0.0.3")
		if w.updates != 1 {
			t.Errorf("%d updates, want no flap", w.updates)
		}
		w.end()

		// A plan has what would be served, without asking.
		files := jointest.NewSource()
		files.Snapshot.Weir.StateDir = dir
		files.Declare(web, asked(usual(), "", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.5"))
		planned := world{T: t}
		if planned.last, err = join.New(files).Filtered(New(Options{Remembered: true})).Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := planned.served("http"); got != "10.0.0.1 10.0.0.3 10.0.0.5" {
			t.Errorf("planned: %q", got)
		}

		// A line that is cut, and those that cannot be understood, cost nothing but themselves.
		path := filepath.Join(dir, fileName)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(text, "10.0.0.1:8080 zz\n\x00\xff\n10.0.0.9:80"...), 0o600); err != nil {
			t.Fatal(err)
		}
		w = newWorld(t, dir)
		hang(w)
		w.say(asked(usual(), "", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
		w.expect(time.Minute, "10.0.0.1 10.0.0.3")
		w.end()

		// Verdicts on another probe are forgotten: what the slice says stands until the first result.
		w = newWorld(t, dir)
		hang(w)
		other := usual()
		other.Port.Number = 9090
		w.say(asked(other, "", "10.0.0.1", "10.0.0.2", "10.0.0.3"))
		w.expect(0, "10.0.0.1 10.0.0.2 10.0.0.3")
		w.end()
	})
}

// TestChangesOfProbes writes, changes and removes the probe of a Service that runs. It is never in the way of what is served.
func TestChangesOfProbes(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.answer(probe.Unknown, "10.0.0.1:8080", "10.0.0.2:8080")
		w.say(asked(nil, "", "10.0.0.1", "10.0.0.2"))
		w.expect(time.Minute, "10.0.0.1 10.0.0.2")
		if len(w.asked) > 0 || len(w.layer.checks) > 0 {
			t.Error("a Service without probes is asked")
		}
		w.say(asked(usual(), "", "10.0.0.1", "10.0.0.2"))
		w.expect(soon, "10.0.0.1 10.0.0.2") // nothing is known yet
		w.answer(probe.Success, "10.0.0.1:8080")
		w.answer(probe.Failure, "10.0.0.2:8080")
		w.expect(40*time.Second, "10.0.0.1")
		slower := usual()
		slower.FailureThreshold = 5
		w.say(asked(slower, "", "10.0.0.1", "10.0.0.2"))
		w.expect(0, "10.0.0.1") // what was out stays out until it succeeds, and what was in stays in
		w.expect(time.Minute, "10.0.0.1")
		w.files.Snapshot.Weir.Liveness.Disabled = true
		w.files.Say(spec.Delta{Config: true})
		w.expect(0, "10.0.0.1 10.0.0.2")
		if len(w.layer.checks)+len(w.layer.queue) > 0 {
			t.Error("what is disabled asks")
		}
		w.files.Snapshot.Weir.Liveness.Disabled = false
		w.files.Say(spec.Delta{Config: true})
		w.expect(0, "10.0.0.1 10.0.0.2")
		w.expect(time.Minute, "10.0.0.1")
		w.say(asked(nil, "", "10.0.0.1", "10.0.0.2"))
		w.expect(0, "10.0.0.1 10.0.0.2")
		if len(w.layer.checks)+len(w.layer.queue)+len(w.layer.services) > 0 {
			t.Error("the Layer keeps a Service that has no probes any more")
		}
	})
}

// TestCommandsNeedARuntime has a probe that nobody can ask. That is told, and what comes is never taken for ready.
func TestCommandsNeedARuntime(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		w.layer.start = (*probe.Probe).Start
		command := usual()
		command.Kind, command.Command = probe.Exec, []string{"true"}
		w.say(asked(command, "", "10.0.0.1"))
		w.say(asked(command, "", "10.0.0.1", "10.0.0.2"))
		w.expect(10*time.Minute, "10.0.0.1")
		if n := strings.Count(w.log.String(), "no runtime is there"); n != 1 {
			t.Errorf("told %d times:\n%s", n, w.log.String())
		}
		st, _ := w.layer.State(web)
		if st.Awaited != 1 || len(st.Checks) != 2 || st.Checks[1].State != "awaited" || st.Checks[1].Result != "unknown" {
			t.Errorf("the state is %+v", st)
		}
	})
}

// TestSlicesWin has endpoints that are not ready as their slices say, which no success makes ready, and a Service that wants
// those too.
func TestSlicesWin(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		svc := asked(usual(), "", "10.0.0.1", "10.0.0.2", "10.0.0.3")
		svc.Slices[0].Endpoints[0].Conditions.Ready = new(false)
		w.answer(probe.Failure, "10.0.0.2:8080", "10.0.0.3:8080")
		w.say(svc)
		w.expect(time.Minute, "10.0.0.2 10.0.0.3") // none works of those that count
		all := *svc
		object := *svc.Object
		object.Spec.PublishNotReadyAddresses = true
		all.Object = &object
		w.say(&all)
		w.expect(time.Minute, "10.0.0.2 10.0.0.3")
		if len(w.layer.checks) > 0 {
			t.Error("a Service that publishes addresses that are not ready is asked")
		}
	})
}

// TestPortsAreJudgedApart has two ports with probes of their own, and one that is not asked.
func TestPortsAreJudgedApart(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		svc := asked(usual(), "", "10.0.0.1", "10.0.0.2")
		s := svc.Slices[0]
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: new("admin"), Port: new(int32(9090))}, discoveryv1.EndpointPort{Name: new("raw"), Port: new(int32(7070))})
		svc.Probes.Ports = []spec.PortProbe{{Port: "admin", Probe: usual()}, {Port: "http", Probe: usual()}}
		w.answer(probe.Failure, "10.0.0.1:8080", "10.0.0.2:9090")
		w.say(svc)
		w.expect(time.Minute, "10.0.0.2")
		for port, want := range map[string]string{"admin": "10.0.0.1", "raw": "10.0.0.1 10.0.0.2"} {
			if got := w.served(port); got != want {
				t.Errorf("served at port %s: %q, want %q", port, got, want)
			}
		}
		names := map[string]bool{}
		for _, s := range w.last.Services.Get(web).Slices {
			names[s.Name] = true
		}
		if len(names) != 3 {
			t.Errorf("slices %v, want three names", names)
		}
	})
}

// TestProbesThatHang has more endpoints that never answer than probes may run at once. All are asked again and again.
func TestProbesThatHang(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		start := w.layer.start
		w.layer.start = waiting(func(ctx context.Context, p *probe.Probe, to probe.Target) probe.Result {
			time.Sleep(p.Timeout)
			_, wait := start(p, to)
			return wait(ctx)
		})
		const n = 3 * maxRunning
		var addrs []string
		for i := range n {
			addrs = append(addrs, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String())
		}
		slow := usual()
		slow.Timeout = 3 * time.Second
		w.say(asked(slow, "", addrs...))
		time.Sleep(60 * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.asked) != n {
			t.Errorf("%d of %d were asked", len(w.asked), n)
		}
		for at, times := range w.asked {
			if len(times) < 4 {
				t.Fatalf("%s was asked %d times in a minute", at, len(times))
			}
		}
	})
}

// TestProbesAreSpread starts many checks at once: a short time has few of the probes, and none comes late.
func TestProbesAreSpread(t *testing.T) {
	inBubble(t, func(t *testing.T, w *world) {
		const n, period = 5000, 10 * time.Second
		var addrs []string
		for i := range n {
			addrs = append(addrs, netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}).String())
		}
		w.say(asked(usual(), "", addrs...))
		time.Sleep(60 * time.Second)
		synctest.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		var times []time.Time
		for at, asked := range w.asked {
			for i, when := range asked {
				if i > 0 && when.Sub(asked[i-1]) > period+grain {
					t.Fatalf("%s was asked after %v", at, when.Sub(asked[i-1]))
				}
			}
			times = append(times, asked...)
		}
		slices.SortFunc(times, time.Time.Compare)
		const window = 100 * time.Millisecond
		for i, from := 0, 0; i < len(times); i++ {
			for times[i].Sub(times[from]) > window {
				from++
			}
			if count := i - from + 1; count > maxPace/10+n*2/100 {
				t.Fatalf("%d probes within %v", count, window)
			}
		}
		if total := len(times); total < 6*n || total > 8*n {
			t.Errorf("%d probes in six periods of %d", total, n)
		}
		if size := w.updates; size != 1 {
			t.Errorf("%d updates although no verdict changed", size)
		}
	})
}
