package xtables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
)

// maxRefusals bounds the search for refused Changes: enough to find three Services among 10,000.
const maxRefusals = 64

// search applies Changes that could not be applied at once, for one of two reasons. The legacy mechanism takes or
// refuses a table as a whole, without naming the refused Changes. Or the Changes do not fit into one message, whose
// size an ordinary user cannot choose.
//
// search applies one half after the other, and splits the halves that fail. It does not split the Changes of one
// Service, which are in force as a whole or not at all. In the end all Changes but the refused ones are in force. why
// is the Result that led here; search returns it if continuing is of no use.
func (t *Tables) search(ctx context.Context, changes []change, why backends.Result) backends.Result {
	s := &searching{t: t, refused: make(map[backends.ID]error), refusals: maxRefusals}
	if t.reread(ctx) != nil || s.try(ctx, split(changes)) != nil {
		t.present = nil
		return why
	}
	return backends.Result{Refused: s.refused}
}

// split returns the parts that can be applied one after the other: the shared chains, the Changes that belong to no
// Service, the jumps to the shared chains, the Changes of each Service, and the Items that no Service wants any more,
// rules before chains.
func split(changes []change) [][]change {
	var sharedChains, base, jumps, perService, staleRules, staleChains [][]change
	at := make(map[dataplane.ServiceName]int)
	for _, c := range changes {
		one := []change{c}
		switch name := owner(c); {
		case name != dataplane.ServiceName{}:
			i, ok := at[name]
			if !ok {
				i = len(perService)
				at[name], perService = i, append(perService, nil)
			}
			perService[i] = append(perService[i], c)
		case c.Op == backends.Delete && c.isRule():
			staleRules = append(staleRules, one)
		case c.Op == backends.Delete:
			staleChains = append(staleChains, one)
		case !c.shared && base == nil:
			base = append(base, one)
		case !c.shared:
			base[0] = append(base[0], c)
		case c.isRule():
			jumps = append(jumps, one)
		default:
			sharedChains = append(sharedChains, one)
		}
	}
	slices.Reverse(staleChains)
	return slices.Concat(sharedChains, base, jumps, perService, staleRules, staleChains)
}

// owner returns the only Service that a Change belongs to, or none.
func owner(c change) dataplane.ServiceName {
	if len(c.Owners) == 1 {
		return c.Owners[0].Service
	}
	return dataplane.ServiceName{}
}

type searching struct {
	t        *Tables
	refused  map[backends.ID]error
	refusals int
}

// try applies all parts but the refused ones. It returns an error if it gave up.
func (s *searching) try(ctx context.Context, parts [][]change) error {
	if len(parts) == 0 {
		return nil
	}
	err := s.restore(ctx, slices.Concat(parts...))
	failed := (*RestoreError)(nil)
	if err == nil || !errors.As(err, &failed) || failed.Retry {
		return err
	}
	if !failed.TooLong {
		if s.refusals--; s.refusals < 0 {
			return err
		}
	}
	if len(parts) > 1 {
		half := len(parts) / 2
		if err := s.try(ctx, parts[:half]); err != nil {
			return err
		}
		return s.try(ctx, parts[half:])
	}
	ownerless := owner(parts[0][0]) == dataplane.ServiceName{}
	if ownerless && (failed.TooLong || len(parts[0]) > 1) {
		return err // without the shared part the rest is of no use
	}
	if failed.TooLong {
		err = fmt.Errorf("its rules do not fit into one message, which without CAP_NET_ADMIN in the first user namespace has room for about 500 endpoints; mode nftables has no such limit: %w", err)
	}
	for _, c := range parts[0] {
		s.refused[c.ID] = err
	}
	return nil
}

// restore applies Changes of all families. After a failure it reads again which Items are present, because a table may
// be in force.
func (s *searching) restore(ctx context.Context, changes []change) error {
	for _, f := range s.t.families {
		in := s.t.compose(f, changes)
		if err := s.t.restore(ctx, f, in); err != nil {
			return errors.Join(err, s.t.reread(ctx))
		}
		s.t.confirm(in)
	}
	return nil
}

// divisible reports whether a half of a failed transaction may succeed.
func divisible(r backends.Result) bool {
	failed := (*RestoreError)(nil)
	return len(r.Refused) == 0 && errors.As(r.Err, &failed) && !failed.Retry
}
