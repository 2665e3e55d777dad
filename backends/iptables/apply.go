package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"weir/backends"
)

// Apply implements backends.Backend. Each table of each family is one transaction, and the tables of a family are one
// run of iptables-restore.
//
// If the kernel is not as the Plan supposes (a rule to delete is gone), Apply reads it once and leaves out what is done.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	changes, err := sortChanges(p)
	if err != nil {
		return backends.Result{Err: err}
	}
	reread := b.present == nil && touchesShared(changes)
	if reread {
		if err := b.reread(ctx); err != nil {
			return backends.Result{Err: err}
		}
	}
	before, genErr := b.kernel.Generation(ctx)
	committed := 0
	for _, f := range b.cfg.Families {
		in := b.compose(f, changes)
		err := b.restore(ctx, f, in)
		if failed := (*RestoreError)(nil); errors.As(err, &failed) && !failed.Retry && !reread {
			reread = true
			if err := b.reread(ctx); err != nil {
				return backends.Result{Err: err}
			}
			in = b.compose(f, changes)
			err = b.restore(ctx, f, in)
		}
		if err != nil {
			result := refused(in, committed > 0, err)
			switch {
			case divisible(result):
				return b.search(ctx, changes, result)
			case len(result.Refused) == 0:
				b.present = nil
			}
			return result
		}
		committed += in.tables
		b.confirm(in)
	}
	if after, err := b.kernel.Generation(ctx); err == nil && genErr == nil {
		b.own += min(uint64(committed), after-before)
	}
	return backends.Result{}
}

// sortChanges checks that the Changes are of this backend's Items.
func sortChanges(p backends.Plan) ([]change, error) {
	changes := make([]change, len(p.Changes))
	for i, c := range p.Changes {
		at, ok := parse(c.ID)
		if !ok || !slices.Contains(tables, at.table) {
			return nil, fmt.Errorf("%q is not the ID of an iptables Item", c.ID)
		}
		if c.Op != backends.Delete && c.New == nil {
			return nil, fmt.Errorf("%s %q has no new Item", c.Op, c.ID)
		}
		changes[i] = change{Change: c, place: at}
	}
	return changes, nil
}

func touchesShared(changes []change) bool {
	return slices.ContainsFunc(changes, func(c change) bool { return c.isShared() || c.isHook() })
}

// reread finds out what is present.
func (b *Backend) reread(ctx context.Context) error {
	for _, err := range b.Observe(ctx) {
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *Backend) restore(ctx context.Context, f backends.Family, in *input) error {
	if in.tables == 0 {
		return nil
	}
	return b.kernel.Restore(ctx, f, in.text)
}

// confirm records what is present now. Without a record, nothing is added to it.
func (b *Backend) confirm(in *input) {
	if b.present == nil {
		return
	}
	for _, id := range in.removed {
		delete(b.present, id)
	}
	for _, id := range in.added {
		b.present[id] = struct{}{}
	}
}

// refused turns a failure into a Result: if the line at fault is known and no transaction was committed before, the
// Change that it came from is refused; else nothing is known.
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
