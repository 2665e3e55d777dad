package podsource

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec/endpoints"
)

const (
	// settles is how long a pod must run that ended again and again before, each time sooner than that.
	settles = 10 * time.Second
	// maxEnds is how often in a row a pod may end so soon without being held back.
	maxEnds = 2
	// remembered is how long the ends of a pod count that is gone, and maxGone of how many such pods.
	remembered, maxGone = time.Minute, 1000
)

// damper holds back pods that end and begin again and again. Otherwise each of their lives costs two rounds, and connections that
// fail. A pod whose health check or probe fails has not ended: what that says counts at once.
type damper struct {
	settles time.Duration // 0: no pod is held back
	lives   map[dataplane.ServiceName]*life
	gone    int // how many of them are of pods that are gone
	// held are the pods that are held back, as their runtime tells of them.
	held map[dataplane.ServiceName]*corev1.Pod
}

// life is what is known of a pod that was ready.
type life struct {
	since time.Time // when it became ready, or when it ended
	ready bool
	gone  bool
	ends  int // how often in a row it ended too soon
}

// take returns the change without the pods that are held back, which it replaces by ones that are not ready.
func (d *damper) take(c Change, now time.Time) Change {
	if d.lives == nil {
		d.lives, d.held = map[dataplane.ServiceName]*life{}, map[dataplane.ServiceName]*corev1.Pod{}
	}
	out := Change{Pods: make(Pods, len(c.Pods)), All: c.All}
	for name, pod := range c.Pods {
		out.Pods[name] = d.note(name, pod, now)
	}
	if c.All {
		for name := range d.lives {
			if c.Pods[name] == nil {
				d.note(name, nil, now)
			}
		}
	}
	return out
}

// note returns the pod as it counts.
func (d *damper) note(name dataplane.ServiceName, pod *corev1.Pod, now time.Time) *corev1.Pod {
	l := d.lives[name]
	ready := pod != nil && endpoints.Ready(pod)
	if l == nil {
		if ready {
			d.lives[name] = &life{since: now, ready: true}
		}
		return pod
	}
	delete(d.held, name)
	if l.gone && pod != nil {
		l.gone = false
		d.gone--
	}
	switch {
	case ready && !l.ready:
		l.ready, l.since = true, now
	case !ready && l.ready && (pod == nil || !lives(pod)):
		if now.Sub(l.since) < d.settles {
			l.ends++
		} else {
			l.ends = 0
		}
		l.ready, l.since = false, now
	}
	if pod == nil && !l.gone {
		d.bury(name, l, now)
	}
	if ready && l.ends >= maxEnds && now.Sub(l.since) < d.settles {
		d.held[name] = pod
		return unsettled(pod)
	}
	return pod
}

// lives reports whether a pod that is not ready runs all the same.
func lives(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && (c.Reason == endpoints.ReasonUnhealthy || c.Reason == reasonUnprobed)
	})
}

// unsettled returns the pod as one that is not ready.
func unsettled(pod *corev1.Pod) *corev1.Pod {
	c := *pod
	c.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: endpoints.ReasonUnsettled}}
	return &c
}

// bury forgets a pod that is gone, unless it ended too soon: one that comes in its place may do so too.
func (d *damper) bury(name dataplane.ServiceName, l *life, now time.Time) {
	if l.ends == 0 {
		delete(d.lives, name)
		return
	}
	l.gone = true
	if d.gone++; d.gone > maxGone {
		maps.DeleteFunc(d.lives, func(_ dataplane.ServiceName, l *life) bool {
			old := l.gone && now.Sub(l.since) > remembered
			if old {
				d.gone--
			}
			return old
		})
	}
	if d.gone > maxGone {
		delete(d.lives, name)
		d.gone--
	}
}

// due returns a channel that receives a value when a pod is to be held back no more. It is nil if none is held back.
func (d *damper) due() <-chan time.Time {
	var first time.Time
	for name := range d.held {
		if since := d.lives[name].since; first.IsZero() || since.Before(first) {
			first = since
		}
	}
	if first.IsZero() {
		return nil
	}
	return time.After(time.Until(first.Add(d.settles)))
}

// release returns the pods that are to be held back no more.
func (d *damper) release(now time.Time) Change {
	c := Change{Pods: Pods{}}
	for name, pod := range d.held {
		if l := d.lives[name]; now.Sub(l.since) >= d.settles {
			c.Pods[name], l.ends = pod, 0
			delete(d.held, name)
		}
	}
	return c
}
