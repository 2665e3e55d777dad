package xtables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
)

// Apply implements backends.Backend. Each table of each family is one transaction, and the tables of a family are one
// run of iptables-restore.
//
// If the kernel is not in the state that the Plan assumes, for example because a rule to delete is absent, Apply reads
// the kernel once and leaves out the Changes that are already in force.
func (t *Tables) Apply(ctx context.Context, p backends.Plan) backends.Result {
	changes, err := t.sortChanges(p)
	if err != nil {
		return backends.Result{Err: err}
	}
	reread := t.present == nil && touchesShared(changes)
	if reread {
		if err := t.reread(ctx); err != nil {
			return backends.Result{Err: err}
		}
	}
	before, genErr := t.kernel.Generation(ctx)
	committed := 0
	for _, f := range t.families {
		in := t.compose(f, changes)
		err := t.restore(ctx, f, in)
		if failed := (*RestoreError)(nil); errors.As(err, &failed) && !failed.Retry && !reread {
			reread = true
			if err := t.reread(ctx); err != nil {
				return backends.Result{Err: err}
			}
			in = t.compose(f, changes)
			err = t.restore(ctx, f, in)
		}
		if err != nil {
			result := refused(in, committed > 0, err)
			switch {
			case divisible(result):
				return t.search(ctx, changes, result)
			case len(result.Refused) == 0:
				t.present = nil
			}
			return result
		}
		committed += in.tables
		t.confirm(in)
	}
	if after, err := t.kernel.Generation(ctx); err == nil && genErr == nil {
		t.own += min(uint64(committed), after-before)
	}
	return backends.Result{}
}

// sortChanges checks that every Change is of an Item in the Layout, and sorts them.
func (t *Tables) sortChanges(p backends.Plan) ([]change, error) {
	changes := make([]change, len(p.Changes))
	for i, c := range p.Changes {
		at, ok := Parse(c.ID)
		if !ok || !slices.Contains(t.layout.Names, at.Table) {
			return nil, fmt.Errorf("%q is not the ID of an iptables Item", c.ID)
		}
		if c.Op != backends.Delete && c.New == nil {
			return nil, fmt.Errorf("%s %q has no new Item", c.Op, c.ID)
		}
		changes[i] = change{Change: c, place: at, shared: t.layout.shared(at.Chain), hook: !t.layout.Owned(at.Chain)}
	}
	return changes, nil
}

func touchesShared(changes []change) bool {
	return slices.ContainsFunc(changes, func(c change) bool { return c.shared || c.hook })
}

func (t *Tables) restore(ctx context.Context, f dataplane.Family, in *input) error {
	if in.tables == 0 {
		return nil
	}
	return t.kernel.Restore(ctx, f, in.text)
}

// confirm records the rules and chains that are present now. If nothing is known, it records nothing.
func (t *Tables) confirm(in *input) {
	if t.present == nil {
		return
	}
	for _, id := range in.removed {
		delete(t.present, id)
	}
	for _, id := range in.added {
		t.present[id] = struct{}{}
	}
}

// refused turns a failure into a Result. If the faulty line is known and no transaction was committed before, the
// Result refuses the Change of that line. Otherwise nothing is known.
func refused(in *input, committed bool, err error) backends.Result {
	err = fmt.Errorf("iptables: %w", err)
	failed := (*RestoreError)(nil)
	if !errors.As(err, &failed) || failed.Retry || failed.TooLong || committed {
		return backends.Result{Err: err}
	}
	id, first := in.at(failed.Line)
	if id == "" || !first {
		return backends.Result{Err: err}
	}
	return backends.Result{Refused: map[backends.ID]error{id: err}, Err: err}
}
