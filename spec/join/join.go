// Package join has a spec.Source that joins any number of others in layers: a base, which also has the configuration, and
// Layers above it. If several declare a Service, the highest layer wins, and the Service gets a notice. EndpointSlices of a
// layer that does not declare their Service join those of the layer that does. A Service from files that has none gets those of
// the pods that it selects, in any layer, completed by the templates of pods in any layer. Nodes are merged by name. A Filter
// then receives each Service with all of its slices, and may replace them.
//
// One change of a layer costs O(log N), regardless of the size of the others. Apart from errors, nothing is sent before
// every layer has sent a Snapshot. The last Snapshot of a layer that cannot read its input stands, and the Revision is
// marked as outdated. The package reads no input itself. cmd/weir puts the layers together.
package join

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// Layer is a Source above the base. The configuration in its Snapshots is ignored.
type Layer struct {
	// Name is the name of the layer in notices, such as "the Kubernetes API".
	Name string
	// GivesPods reports whether the layer's Snapshots have the pods that run.
	GivesPods bool
	// Source returns the Source of the layer for a Snapshot of the base. If it returns the same Source as before, nothing
	// changes. A different Source replaces it; the last Snapshot of the former stands until the new one sends its first, but
	// that of a layer that gives pods only if the new one is its Successor. Without a Source, the layer has nothing. A Source
	// that is Named gives its name to the layer.
	Source func(base *spec.Snapshot) (spec.Source, error)
	// Watch, if set, calls changed whenever Source may return another one for the same Snapshot, until ctx is done.
	Watch func(ctx context.Context, changed func())
}

// Named is a Source with a name of its own in notices.
type Named interface {
	spec.Source
	Name() string
}

// Successor is a Source of pods that takes the place of another one. What that said last stands until the Successor has sent a
// Snapshot.
type Successor interface {
	spec.Source
	// Succeeds returns the name of the other Source, or "" if there is none.
	Succeeds() string
}

// Fixed returns a Layer that always has the same Source.
func Fixed(name string, source spec.Source) Layer {
	return Layer{Name: name, Source: func(*spec.Snapshot) (spec.Source, error) { return source, nil }}
}

// Filter changes the slices of Services. For example, it sets the conditions of endpoints by the results of probes.
type Filter interface {
	// Slices returns the slices to use for the Service, sorted by name. It returns svc.Slices itself if nothing
	// changes, and otherwise copies, because its input is shared. A nil svc means that the Service is gone. before is the
	// Service as all Filters left it last, or nil. Slices does not block, and is called from one goroutine at a time.
	Slices(name dataplane.ServiceName, svc, before *spec.Service) []*discoveryv1.EndpointSlice
	// Watch calls changed with the Services whose Slices may have changed, until ctx is done. changed calls Slices
	// before it returns, so Watch must not hold a lock that Slices needs.
	Watch(ctx context.Context, changed func(...dataplane.ServiceName))
}

// Configurable is a Filter that depends on the configuration.
type Configurable interface {
	Filter
	// Configure takes the Snapshot of the base before each round of calls to Slices. It returns the Services whose Slices may
	// have changed with it.
	Configure(base *spec.Snapshot) []dataplane.ServiceName
}

// Source joins Sources.
type Source struct {
	base    spec.Source
	layers  []Layer
	filters []Filter
	plans   bool
}

var _ spec.Source = (*Source)(nil)

// New returns a Source over a base and the layers above it. The last layer has the highest precedence.
func New(base spec.Source, layers ...Layer) *Source { return &Source{base: base, layers: layers} }

// Filtered adds filters. Each filter receives the result of the one before. It returns s.
func (s *Source) Filtered(filters ...Filter) *Source {
	s.filters = append(s.filters, filters...)
	return s
}

// Planned has Services planned with what templates promise where no layer gives pods. It returns s.
func (s *Source) Planned() *Source {
	s.plans = true
	return s
}

func (s *Source) newUnion() *union {
	u := &union{names: []string{""}, givesPods: []bool{false}, said: make([]*spec.Snapshot, 1+len(s.layers)), away: make([]*spec.Away, 1+len(s.layers)), filters: s.filters, plans: s.plans}
	for _, l := range s.layers {
		u.names, u.givesPods = append(u.names, l.Name), append(u.givesPods, l.GivesPods)
	}
	return u
}

// use notes which Source a layer has now.
func (u *union) use(layer int, l Layer, source spec.Source) {
	u.givesPods[1+layer] = l.GivesPods && source != nil
	if named, ok := source.(Named); ok {
		u.names[1+layer] = named.Name()
	}
}

// sources returns the Sources of the layers for a Snapshot of the base.
func (s *Source) sources(base *spec.Snapshot) ([]spec.Source, error) {
	all := make([]spec.Source, len(s.layers))
	for i, l := range s.layers {
		source, err := l.Source(base)
		if err != nil {
			return nil, err
		}
		all[i] = source
	}
	return all, nil
}

// Load implements spec.Source.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) {
	base, err := s.base.Load(ctx)
	if err != nil {
		return nil, err
	}
	sources, err := s.sources(base)
	if err != nil {
		return nil, err
	}
	u := s.newUnion()
	u.said[0] = base
	var g errgroup.Group
	for i, source := range sources {
		u.use(i, s.layers[i], source)
		if source == nil {
			u.said[1+i] = &spec.Snapshot{}
			continue
		}
		g.Go(func() (err error) {
			u.said[1+i], err = s.load(ctx, source, s.layers[i].GivesPods)
			var lost *unanswered
			if errors.As(err, &lost) {
				u.said[1+i] = &spec.Snapshot{Notices: []spec.Notice{spec.RuntimeNotAsked.Notice(spec.Origin{}, "", "", lost.Error()+"; the plan is made with what templates promise")}}
				u.away[1+i] = &spec.Away{Source: u.names[1+i], Reason: lost.Error(), Stands: "what templates promise is planned"}
				return nil
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, snap := range u.said {
		u.takePods(i, snap, spec.Delta{All: true})
	}
	snap, _ := u.update(spec.Delta{All: true}, false)
	return snap, nil
}

// planLimit is how long a plan waits for a runtime.
const planLimit = 2 * time.Second

// unanswered is the error of a source of pods in a plan.
type unanswered struct{ error }

// load loads a layer. A plan does not need the pods that a runtime may have.
func (s *Source) load(ctx context.Context, source spec.Source, pods bool) (*spec.Snapshot, error) {
	if !pods || !s.plans {
		return source.Load(ctx)
	}
	limited, cancel := context.WithTimeout(ctx, planLimit)
	defer cancel()
	snap, err := source.Load(limited)
	switch {
	case err == nil || ctx.Err() != nil:
		return snap, err
	case limited.Err() != nil:
		err = fmt.Errorf("%w: no answer within %v", err, planLimit)
		if named, ok := source.(Named); ok {
			err = fmt.Errorf("pods of %s: no answer within %v", named.Name(), planLimit)
		}
	}
	return nil, &unanswered{err}
}
