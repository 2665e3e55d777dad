package union

import (
	"context"

	"weir/spec"
	"weir/spec/config"
)

// Static returns a Source without files: a configuration that is all defaults, but for what weir changes.
func Static(weir func(*spec.WeirConfiguration)) spec.Source { return static{weir} }

type static struct{ weir func(*spec.WeirConfiguration) }

// Load implements spec.Source.
func (s static) Load(context.Context) (*spec.Snapshot, error) {
	snap := &spec.Snapshot{Config: config.Default().KubeProxyConfiguration, Weir: spec.DefaultWeirConfiguration()}
	s.weir(&snap.Weir)
	return snap, nil
}

// Watch implements spec.Source.
func (s static) Watch(ctx context.Context, out chan<- spec.Update) error {
	snap, _ := s.Load(ctx) // it cannot fail
	select {
	case out <- spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}}:
		<-ctx.Done()
	case <-ctx.Done():
	}
	return ctx.Err()
}
