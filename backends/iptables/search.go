package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"weir/backends"
)

// maxRefusals bounds the search for what the kernel refuses: enough to find three Services among 10,000.
const maxRefusals = 64

// search applies Changes that could not be applied at once: because the kernel refuses some without saying which they are,
// as the legacy mechanism does, which takes or leaves a table as a whole; or because they do not fit into one message,
// whose size an ordinary user cannot choose. It applies one half after the other, and takes apart the halves that fail, down
// to what is of one Service, which is in force as a whole or not at all. In the end all but the refused is in force. why is
// the Result that led here; it stands if there is no use in going on.
func (b *Backend) search(ctx context.Context, changes []change, why backends.Result) backends.Result {
	s := &searching{b: b, refused: make(map[backends.ID]error), refusals: maxRefusals}
	if b.reread(ctx) != nil || s.try(ctx, split(changes)) != nil {
		b.present = nil
		return why
	}
	return backends.Result{Refused: s.refused}
}

// split returns the parts that can be applied one after the other: the shared chains, what belongs to nobody, the ways to
// the shared chains, what is of one Service each, and what nobody wants any more, rules before chains.
func split(changes []change) [][]change {
	var chains, base, ways, services, rules, stale [][]change
	at := make(map[backends.ServiceName]int)
	for _, c := range changes {
		one := []change{c}
		switch name := owner(c); {
		case name != backends.ServiceName{}:
			i, ok := at[name]
			if !ok {
				i = len(services)
				at[name], services = i, append(services, nil)
			}
			services[i] = append(services[i], c)
		case c.Op == backends.Delete && c.isRule():
			rules = append(rules, one)
		case c.Op == backends.Delete:
			stale = append(stale, one)
		case !c.isShared() && base == nil:
			base = append(base, one)
		case !c.isShared():
			base[0] = append(base[0], c)
		case c.isRule():
			ways = append(ways, one)
		default:
			chains = append(chains, one)
		}
	}
	slices.Reverse(stale)
	return slices.Concat(chains, base, ways, services, rules, stale)
}

// owner returns the Service that a Change belongs to alone, or none.
func owner(c change) backends.ServiceName {
	if len(c.Owners) == 1 {
		return c.Owners[0].Service
	}
	return backends.ServiceName{}
}

type searching struct {
	b        *Backend
	refused  map[backends.ID]error
	refusals int
}

// try applies all parts but those that are refused. An error means that it gave up.
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
	nobodys := owner(parts[0][0]) == backends.ServiceName{}
	if nobodys && (failed.TooLong || len(parts[0]) > 1) {
		return err // without what belongs to nobody, the rest is of no use
	}
	if failed.TooLong {
		err = fmt.Errorf("its rules do not fit into one message, which without CAP_NET_ADMIN in the first user namespace has room for about 500 endpoints; mode nftables has no such limit: %w", err)
	}
	for _, c := range parts[0] {
		s.refused[c.ID] = err
	}
	return nil
}

// restore applies Changes of all families. After a failure, what is present is read again: a table may be in force.
func (s *searching) restore(ctx context.Context, changes []change) error {
	for _, f := range s.b.cfg.Families {
		in := s.b.compose(f, changes)
		if err := s.b.restore(ctx, f, in); err != nil {
			return errors.Join(err, s.b.reread(ctx))
		}
		s.b.confirm(in)
	}
	return nil
}

// divisible says whether a transaction failed so that a part of it may succeed.
func divisible(r backends.Result) bool {
	failed := (*RestoreError)(nil)
	return len(r.Refused) == 0 && errors.As(r.Err, &failed) && !failed.Retry
}
