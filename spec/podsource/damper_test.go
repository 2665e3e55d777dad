package podsource

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec/endpoints"
)

// TestDamper has a pod end and begin at certain times, and expects when it is ready.
func TestDamper(t *testing.T) {
	const name = "web"
	pod := func(s state) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name}}
		setStatus(p, []string{"10.0.0.1"}, s)
		return p
	}
	runs, ends := pod(state{phase: corev1.PodRunning, ready: true}), pod(state{phase: corev1.PodFailed})
	sick, unprobed := pod(state{phase: corev1.PodRunning, unhealthy: true}), pod(state{phase: corev1.PodRunning, unprobed: true})
	type step struct {
		at    int // seconds
		pod   *corev1.Pod
		ready bool
	}
	for what, steps := range map[string][]step{
		"ends twice":           {{0, runs, true}, {1, ends, false}, {2, runs, true}, {3, ends, false}, {4, runs, false}, {14, nil, true}},
		"is removed twice":     {{0, runs, true}, {1, nil, false}, {2, runs, true}, {3, nil, false}, {4, runs, false}, {5, nil, false}},
		"ends while held":      {{0, runs, true}, {1, ends, false}, {2, runs, true}, {3, ends, false}, {4, runs, false}, {5, ends, false}, {14, nil, false}, {20, runs, false}, {30, nil, true}},
		"ran for long between": {{0, runs, true}, {1, ends, false}, {2, runs, true}, {12, ends, false}, {13, runs, true}, {14, ends, false}, {15, runs, true}},
		"health check fails":   {{0, runs, true}, {1, sick, false}, {2, runs, true}, {3, sick, false}, {4, runs, true}, {5, sick, false}, {6, runs, true}},
		"probe fails":          {{0, runs, true}, {1, unprobed, false}, {2, runs, true}, {3, unprobed, false}, {4, runs, true}, {5, unprobed, false}, {6, runs, true}},
	} {
		start := time.Now()
		d := damper{settles: 10 * time.Second}
		var now *corev1.Pod
		for i, s := range steps {
			at := start.Add(time.Duration(s.at) * time.Second)
			if s.pod == nil && len(d.held) > 0 {
				if c := d.release(at); len(c.Pods) > 0 {
					now = c.Pods[podNamed("d", name)]
				} else {
					now = d.take(Change{Pods: Pods{podNamed("d", name): nil}}, at).Pods[podNamed("d", name)]
				}
			} else {
				now = d.take(Change{Pods: Pods{podNamed("d", name): s.pod}}, at).Pods[podNamed("d", name)]
			}
			if got := now != nil && endpoints.Ready(now); got != s.ready {
				t.Errorf("%s, step %d: ready is %t", what, i, got)
			}
		}
	}
}

// TestDamperForgets has a flood of pods that end at once and are gone. Few of them are remembered.
func TestDamperForgets(t *testing.T) {
	d := damper{settles: 10 * time.Second}
	now := time.Now()
	for i := range 5 * maxGone {
		name := podNamed("d", fmt.Sprint("p", i))
		p := &corev1.Pod{}
		setStatus(p, nil, state{phase: corev1.PodRunning, ready: true})
		d.take(Change{Pods: Pods{name: p}}, now)
		d.take(Change{Pods: Pods{name: nil}}, now)
	}
	if len(d.lives) > maxGone {
		t.Errorf("%d pods that are gone are remembered", len(d.lives))
	}
	late := now.Add(2 * remembered)
	p := &corev1.Pod{}
	setStatus(p, nil, state{phase: corev1.PodRunning, ready: true})
	d.take(Change{Pods: Pods{podNamed("d", "x"): p}}, late)
	d.take(Change{Pods: Pods{podNamed("d", "x"): nil}}, late)
	if len(d.lives) != 1 {
		t.Errorf("%d pods are remembered for too long", len(d.lives))
	}
}

// TestCrashLoopOfContainers has a container of podman die and return as its events tell. Soon it is not ready each time, until it
// has run for long enough.
func TestCrashLoopOfContainers(t *testing.T) {
	t.Parallel()
	l := newLiar(t)
	l.put("a", running("a", "10.89.0.5", map[string]string{"app": "web"}))
	v := follow(t, New(Options{Name: "podman", Reader: &Containers{Socket: l.socket}, settles: 2 * time.Second}))
	const ready, failed, held = "default/name-a app=web Running ready addressed", "default/name-a app=web Failed addressed", "default/name-a app=web Running addressed"
	v.until(t, ready)
	for _, want := range []string{ready, held} {
		l.events <- `{"Type":"container","Action":"died","Actor":{"ID":"a","Attributes":{"containerExitCode":"7"}}}`
		l.put("a", exited("a", "10.89.0.5", 7))
		v.until(t, failed)
		for pod := range v.pods.All() {
			if how := endpoints.Ending(pod); how != "exit code 7" {
				t.Errorf("the pod ended with %q", how)
			}
		}
		l.put("a", running("a", "10.89.0.5", map[string]string{"app": "web"}))
		l.events <- about("start", "a")
		v.until(t, want)
	}
	v.until(t, ready) // without another event
}
