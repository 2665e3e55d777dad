package iptables

import (
	"context"
	"errors"
	"slices"

	"weir/backends"
)

// maxTries bounds the search for what the kernel refuses: enough to find three Services among 10,000.
const maxTries = 64

// search finds the Changes that the kernel refuses without saying which they are, as the legacy mechanism does: it takes
// or leaves a table as a whole. It applies one half of the Services after the other, and takes apart the halves that are
// refused. In the end all but the refused is in force. why is the Result that led here; it stands if too much is refused.
func (b *Backend) search(ctx context.Context, changes []change, why backends.Result) backends.Result {
	base, parts := byOwner(changes)
	s := &searching{b: b, refused: make(map[backends.ID]error), tries: maxTries}
	if s.restore(ctx, base) != nil || s.try(ctx, parts) != nil {
		b.present = nil
		return why
	}
	return backends.Result{Refused: s.refused}
}

// byOwner returns the Changes that belong to nobody or to several, which are chains and ways to them, and those of each
// Service.
func byOwner(changes []change) (base []change, parts [][]change) {
	of := make(map[backends.ServiceName][]change)
	var names []backends.ServiceName
	for _, c := range changes {
		if len(c.Owners) != 1 {
			base = append(base, c)
			continue
		}
		name := c.Owners[0].Service
		if _, ok := of[name]; !ok {
			names = append(names, name)
		}
		of[name] = append(of[name], c)
	}
	slices.SortFunc(names, backends.ServiceName.Compare)
	for _, name := range names {
		parts = append(parts, of[name])
	}
	return base, parts
}

type searching struct {
	b       *Backend
	refused map[backends.ID]error
	tries   int
}

// try applies all parts but those that are refused. An error means that it gave up.
func (s *searching) try(ctx context.Context, parts [][]change) error {
	if len(parts) == 0 {
		return nil
	}
	err := s.restore(ctx, slices.Concat(parts...))
	if failed := (*RestoreError)(nil); err == nil || !errors.As(err, &failed) || failed.Retry || s.tries == 0 {
		return err
	}
	if len(parts) == 1 {
		for _, c := range parts[0] {
			s.refused[c.ID] = err
		}
		return nil
	}
	half := len(parts) / 2
	if err := s.try(ctx, parts[:half]); err != nil {
		return err
	}
	return s.try(ctx, parts[half:])
}

// restore applies Changes of all families. After a failure, what is present is read again: a table may be in force.
func (s *searching) restore(ctx context.Context, changes []change) error {
	s.tries--
	for _, f := range s.b.cfg.Families {
		in := s.b.compose(f, changes)
		if err := s.b.restore(ctx, f, in); err != nil {
			return errors.Join(err, s.b.reread(ctx))
		}
		s.b.confirm(in)
	}
	return nil
}

// unattributed says whether a transaction was refused, for good and without a word on what is wrong with it.
func unattributed(r backends.Result) bool {
	failed := (*RestoreError)(nil)
	return len(r.Refused) == 0 && errors.As(r.Err, &failed) && !failed.Retry
}
