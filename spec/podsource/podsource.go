// Package podsource has a spec.Source of the pods that a container runtime runs on this node. A Reader knows one kind of
// runtime and turns what it tells into Pods with a status: Containers reads podman and docker, CRI reads containerd and CRI-O,
// Kubelet the kubelet.
// Source keeps their last word while the runtime cannot be reached, because only a complete list may remove a pod.
//
// The package makes no endpoints of the pods. The join does that, because it knows the Services of all sources.
package podsource

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// Reader reads the pods of one runtime.
type Reader interface {
	// List returns all pods.
	List(ctx context.Context) (Pods, error)
	// Watch calls sink with all pods and then with every change, from one goroutine. It returns when it loses the runtime.
	Watch(ctx context.Context, sink func(Change)) error
}

// Pods are pods by namespace and name.
type Pods map[dataplane.ServiceName]*corev1.Pod

// Change is one message of a Reader.
type Change struct {
	// Pods are those that changed; nil stands for one that is gone. With All, they are the only ones that there are.
	Pods Pods
	All  bool
}

// Options configure a Source.
type Options struct {
	// Name is the name of the runtime in messages, such as "podman at /run/podman/podman.sock".
	Name   string
	Reader Reader
	// Retry is the first wait before the Reader is started again. It doubles up to a limit. Default: 100 ms.
	Retry time.Duration
	// Backoff reports that the runtime itself holds back what ends and begins again and again, as the kubelet does. The Source
	// leaves that to it, and what the runtime says of a pod counts at once.
	Backoff bool
	// Log may be nil.
	Log hclog.Logger

	settles time.Duration // of the damper, but for tests
}

// Source is a spec.Source of the pods of a Reader.
type Source struct{ o Options }

var _ spec.Source = (*Source)(nil)

// maxRetry is the longest wait before the Reader is started again. After a boot, pods come with other addresses than the last
// known ones, and no endpoint is served until the runtime answers.
const maxRetry = time.Second

// New returns a Source.
func New(o Options) *Source {
	if o.Retry <= 0 {
		o.Retry = 100 * time.Millisecond
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return &Source{o}
}

// Load implements spec.Source.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) {
	pods, err := s.o.Reader.List(ctx)
	if err != nil {
		return nil, s.failed(err)
	}
	b := spec.Pods{}.Edit()
	for name, pod := range pods {
		b.Put(name, pod)
	}
	all := b.Commit()
	var f faults
	f.note(all, spec.Delta{All: true})
	return &spec.Snapshot{Pods: all, Notices: f.notices(s.o.Name)}, nil
}

func (s *Source) failed(err error) error {
	return fmt.Errorf("pods of %s: %w", s.o.Name, err)
}

// Watch implements spec.Source.
func (s *Source) Watch(ctx context.Context, sink func(spec.Update)) error {
	var last spec.Pods
	var f faults
	var d damper
	if !s.o.Backoff {
		d.settles = cmp.Or(s.o.settles, settles)
	}
	begun, told := false, ""
	wait := s.o.Retry
	for {
		err := gather(ctx, s.o.Reader, &d, func(c Change) {
			pods, delta := apply(last, c)
			if begun && told == "" && delta.Empty() {
				return
			}
			if !begun {
				delta = spec.Delta{All: true}
			}
			f.note(pods, delta)
			last, begun, told, wait = pods, true, "", s.o.Retry
			sink(spec.Update{Snapshot: &spec.Snapshot{Pods: last, Notices: f.notices(s.o.Name)}, Delta: delta})
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			err = fmt.Errorf("the runtime ended the connection")
		}
		if text := err.Error(); text != told {
			told = text
			sink(spec.Update{Err: s.failed(err)})
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
		wait = min(2*wait, maxRetry)
	}
}

// gather runs a Reader, whose changes pass the damper. Changes that come while sink is busy are one for it, because each costs
// as much as a Service has pods: when 1,000 start at once, a few are served at once and the rest together.
func gather(ctx context.Context, r Reader, d *damper, sink func(Change)) error {
	var (
		mu      sync.Mutex
		waiting Change
		wake    = make(chan struct{}, 1)
		done    = make(chan struct{})
	)
	go func() {
		defer close(done)
		for {
			select {
			case _, more := <-wake:
				if !more {
					return
				}
				mu.Lock()
				c := waiting
				waiting = Change{}
				mu.Unlock()
				sink(d.take(c, time.Now()))
			case <-d.due():
				if c := d.release(time.Now()); len(c.Pods) > 0 {
					sink(c)
				}
			}
		}
	}()
	err := r.Watch(ctx, func(c Change) {
		mu.Lock()
		if c.All || waiting.Pods == nil {
			waiting = Change{Pods: Pods{}, All: c.All}
		}
		maps.Copy(waiting.Pods, c.Pods)
		mu.Unlock()
		select {
		case wake <- struct{}{}:
		default:
		}
	})
	close(wake)
	<-done
	return err
}

// apply returns the pods after a Change, and what differs.
func apply(last spec.Pods, c Change) (spec.Pods, spec.Delta) {
	b := last.Edit()
	var delta spec.Delta
	put := func(name dataplane.ServiceName, pod *corev1.Pod) {
		switch before := b.Get(name); {
		case pod == nil && before == nil, before != nil && pod != nil && reflect.DeepEqual(before, pod):
			return
		case pod == nil:
			b.Delete(name)
		default:
			b.Put(name, pod)
		}
		delta.Pods = append(delta.Pods, name)
	}
	for name, pod := range c.Pods {
		put(name, pod)
	}
	if c.All {
		for name := range last.Names() {
			if c.Pods[name] == nil {
				put(name, nil)
			}
		}
	}
	return b.Commit(), delta
}
