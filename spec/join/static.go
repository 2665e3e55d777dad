package join

import (
	"context"

	"weir/spec"
	"weir/spec/config"
)

// Given returns a Source of one Snapshot, which Load returns.
func Given(snap *spec.Snapshot) spec.Source { return given{snap} }

type given struct{ snap *spec.Snapshot }

// Load implements spec.Source.
func (s given) Load(context.Context) (*spec.Snapshot, error) { return s.snap, nil }

// Watch implements spec.Source.
func (s given) Watch(ctx context.Context, sink func(spec.Update)) error {
	sink(spec.Update{Snapshot: s.snap, Delta: spec.Delta{All: true}})
	<-ctx.Done()
	return ctx.Err()
}

// Static returns a Source without files: a configuration of defaults, changed by the Overrides.
func Static(o spec.Overrides) spec.Source { return static{o} }

type static struct{ overrides spec.Overrides }

// Load implements spec.Source.
func (s static) Load(context.Context) (*spec.Snapshot, error) {
	return &spec.Snapshot{Config: config.Default().KubeProxyConfiguration, Weir: s.overrides.Apply(spec.DefaultWeirConfiguration())}, nil
}

// Watch implements spec.Source.
func (s static) Watch(ctx context.Context, sink func(spec.Update)) error {
	snap, _ := s.Load(ctx) // never fails
	sink(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}})
	<-ctx.Done()
	return ctx.Err()
}
