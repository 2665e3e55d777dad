package endpoints

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/spec"
	"weir/spec/seed"
)

func TestNearest(t *testing.T) {
	type labels = map[string]string
	pod := func(name string, l labels) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, Labels: l}}
	}
	tests := []struct {
		name     string
		selector labels
		pods     []*corev1.Pod
		want     string
	}{
		{"nothing runs", labels{"app": "web"}, nil, ""},
		{"no label in common", labels{"app": "web"}, []*corev1.Pod{pod("a", labels{"x": "y"})}, ""},
		{"a typo", labels{"app": "web"}, []*corev1.Pod{pod("a", labels{"app": "database"}), pod("b", labels{"app": "wep"}), pod("c", labels{"app": "cache"})}, "pod d/b has app=wep, wanted app=web"},
		{"another value is nearer than none", labels{"app": "web", "tier": "x"}, []*corev1.Pod{pod("a", labels{"app": "web"}), pod("b", labels{"app": "web", "tier": "y"})}, "pod d/b has tier=y, wanted tier=x"},
		{"one is lacking", labels{"app": "web", "tier": "x"}, []*corev1.Pod{pod("a", labels{"app": "web"})}, "pod d/a lacks tier=x"},
		{"both", labels{"app": "web", "tier": "x", "z": "z"}, []*corev1.Pod{pod("a", labels{"app": "wep", "z": "z"})}, "pod d/a has app=wep, wanted app=web, and lacks tier=x"},
		{"many", labels{"a": "1", "b": "1", "c": "1", "d": "1", "e": "1"}, []*corev1.Pod{pod("p", labels{"a": "1"})}, "pod d/p lacks b=1, and lacks c=1, and lacks d=1, and differs in 1 more"},
	}
	dead := func(name string, l labels) *corev1.Pod {
		p := pod(name, l)
		p.Status.Phase = corev1.PodFailed
		return p
	}
	tests = append(tests, []struct {
		name     string
		selector labels
		pods     []*corev1.Pod
		want     string
	}{
		{"one that runs, although a dead one is nearer", labels{"app": "web"}, []*corev1.Pod{dead("a", labels{"app": "wex"}), pod("b", labels{"app": "database"})}, "pod d/b has app=database, wanted app=web"},
		{"only a dead one", labels{"app": "web"}, []*corev1.Pod{dead("a", labels{"app": "wex"})}, "pod d/a has app=wex, wanted app=web, and is not running"},
	}...)
	for _, tt := range tests {
		if got := Nearest(tt.selector, slices.Values(tt.pods), nil); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	templates := []*spec.Template{{Kind: "Deployment", Namespace: "d", Name: "web", Labels: labels{"app": "web"}}}
	if got, want := Nearest(labels{"app": "wep"}, slices.Values(tests[1].pods), slices.Values(templates)), "Deployment d/web has app=web, wanted app=wep"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestTemplatesRandomly compares the template of a pod, and those that a selector selects, with a search through all.
func TestTemplatesRandomly(t *testing.T) {
	w := &world{r: seed.Rand(t)}
	var x Templates
	all := map[PodKey]*spec.Template{}
	for n := range 5000 {
		m := &spec.Template{Kind: pick(w.r, "Deployment", "Pod"), Namespace: pick(w.r, "n", "m"), Name: pick(w.r, "web", "web-api", "db"), Labels: w.labels()}
		key := PodKey{Source: w.r.IntN(2), Namespace: m.Namespace, Name: m.Key()}
		if len(m.Labels) == 0 || w.r.IntN(3) == 0 {
			m = nil
		}
		if x.Set(key, m); m == nil {
			delete(all, key)
		} else {
			all[key] = m
		}
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: pick(w.r, "web", "web-pod-0", "web-api-pod", "x"), Labels: w.labels()}}
		var best *held
		var selected int
		for k, m := range all {
			h := &held{Template: m, key: k}
			if m.Namespace == "n" && matches(m.Labels, pod.Labels) && (best == nil || closer(pod, h, best) < 0) {
				best = h
			}
			if m.Namespace == "n" && len(pod.Labels) > 0 && matches(pod.Labels, m.Labels) {
				selected++
			}
		}
		if got := x.Of(pod); best == nil && got != nil || best != nil && got != best.Template {
			t.Fatalf("step %d: pod %s %v is of %v, want %v", n, pod.Name, pod.Labels, got, best)
		}
		if got := x.Selected("n", pod.Labels); len(got) != selected {
			t.Fatalf("step %d: %v selects %v, want %d", n, pod.Labels, got, selected)
		}
		if x.Len() != len(all) {
			t.Fatalf("step %d: %d templates, want %d", n, x.Len(), len(all))
		}
	}
	for key := range all {
		x.Set(key, nil)
	}
	if text := fmt.Sprint(len(x.byLabel), len(x.byRarest), x.Len()); text != "0 0 0" {
		t.Errorf("without templates there are %s", text)
	}
}
