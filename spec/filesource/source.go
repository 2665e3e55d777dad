package filesource

import (
	"context"
	"errors"

	"weir/spec"
)

// Source reads and watches files. It implements spec.Source; Load and Watch share no state but standard input, which is
// read once.
type Source struct {
	opts Options
}

var _ spec.Source = (*Source)(nil)

// New returns a Source. It touches nothing yet.
func New(o Options) *Source { return &Source{opts: o.withDefaults()} }

// Load implements spec.Source.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) {
	return nil, errors.New("not yet")
}

// Watch implements spec.Source.
func (s *Source) Watch(ctx context.Context, out chan<- spec.Update) error {
	<-ctx.Done()
	return ctx.Err()
}
