// Package jointest has a Source and a Filter of a few lines each, for tests of everything that is downstream of them.
// Both are examples to copy: they are all that a Source and a Filter need. Only tests import the package.
package jointest

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// Source says what a test has it say: Services, or slices for Services that other Sources declare.
type Source struct {
	// Snapshot is the present state.
	Snapshot spec.Snapshot
	// Started is closed when Watch has begun.
	Started chan struct{}
	sink    func(spec.Update)
}

// NewSource returns a Source that has nothing.
func NewSource() *Source { return &Source{Started: make(chan struct{})} }

// Load implements spec.Source.
func (s *Source) Load(context.Context) (*spec.Snapshot, error) { snap := s.Snapshot; return &snap, nil }

// Watch implements spec.Source. It sends what Say and Fail are called with.
func (s *Source) Watch(ctx context.Context, sink func(spec.Update)) error {
	s.sink = sink
	close(s.Started)
	<-ctx.Done()
	return ctx.Err()
}

// Declare adds, replaces or, with nil, removes a Service.
func (s *Source) Declare(name dataplane.ServiceName, svc *spec.Service) {
	b := s.Snapshot.Services.Edit()
	if b.Delete(name); svc != nil {
		b.Put(name, svc)
	}
	s.Snapshot.Services = b.Commit()
}

// Give adds, replaces or, with nil, removes the slices of a Service that another Source declares.
func (s *Source) Give(name dataplane.ServiceName, list []*discoveryv1.EndpointSlice) {
	b := s.Snapshot.Slices.Edit()
	if b.Delete(name); list != nil {
		b.Put(name, spec.Slices{List: list})
	}
	s.Snapshot.Slices = b.Commit()
}

// Say sends the present state.
func (s *Source) Say(d spec.Delta) {
	snap := s.Snapshot
	s.sink(spec.Update{Snapshot: &snap, Delta: d, Revision: snap.Revision})
}

// Fail sends an error.
func (s *Source) Fail(err error) { s.sink(spec.Update{Err: err}) }

// Filter sets the endpoints that it finds dead to not ready.
type Filter struct {
	// Started is closed when Watch has begun.
	Started chan struct{}

	mu      sync.Mutex
	dead    map[string]bool
	changed func(...dataplane.ServiceName)
}

// NewFilter returns a Filter to which every endpoint is alive.
func NewFilter() *Filter { return &Filter{Started: make(chan struct{}), dead: map[string]bool{}} }

// Watch implements join.Filter.
func (f *Filter) Watch(ctx context.Context, changed func(...dataplane.ServiceName)) {
	f.changed = changed
	close(f.Started)
	<-ctx.Done()
}

// Slices implements join.Filter.
func (f *Filter) Slices(_ dataplane.ServiceName, svc, _ *spec.Service) []*discoveryv1.EndpointSlice {
	if svc == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	list, ready := svc.Slices, false
	for i, s := range svc.Slices {
		for j, e := range s.Endpoints {
			if f.dead[e.Addresses[0]] {
				if list[i] == s {
					list = slices.Clone(list)
					list[i] = s.DeepCopy()
				}
				list[i].Endpoints[j].Conditions.Ready = &ready
			}
		}
	}
	return list
}

// Judge finds an endpoint dead or alive, and tells of the Services that may have it.
func (f *Filter) Judge(addr string, dead bool, names ...dataplane.ServiceName) {
	f.mu.Lock()
	f.dead[addr] = dead
	f.mu.Unlock()
	f.changed(names...)
}

// Watch watches a Source until the test ends.
func Watch(t testing.TB, s spec.Source, sink func(spec.Update)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, sink) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch returned %v", err)
		}
	})
}
