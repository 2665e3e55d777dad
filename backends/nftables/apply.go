package nftables

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/nfnl"
)

// refusals bounds how often a transaction is sent again without the changes that the kernel refused.
const refusals = 8

// Apply executes a Plan in one transaction, or in several if one would be too large. Tables, maps and chains come
// first, then the Frontends, each of them whole within one transaction, then the deletions. If the kernel refuses
// anything, Apply reads the tables and makes the plan anew from what they hold. It leaves out the changes that are
// still refused, and names them in the Result.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	if p.Empty() {
		return backends.Result{}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.open()
	if err != nil {
		return backends.Result{Err: fmt.Errorf("nftables: %w", err)}
	}
	var rejected *nfnl.BatchError
	_, err = b.commit(ctx, c, p.Changes, false)
	if errors.Is(err, unix.EPERM) {
		err = cmp.Or(b.owned(ctx, c), err)
	}
	switch {
	case err == nil:
		return backends.Result{}
	case !errors.As(err, &rejected):
		return backends.Result{Err: fmt.Errorf("nftables: apply %d changes: %w", len(p.Changes), err)}
	}
	refused, err := b.applyCarefully(ctx, c, p.Changes)
	if err != nil {
		return backends.Result{Err: fmt.Errorf("nftables: apply %d changes: %w", len(p.Changes), err)}
	}
	return backends.Result{Refused: refused}
}

// applyCarefully applies the possible ones of changes that the kernel rejected, and returns the errors of the others.
func (b *Backend) applyCarefully(ctx context.Context, c nfnl.Conn, changes []backends.Change) (map[backends.ID]error, error) {
	items, err := b.observe(ctx, c)
	if err != nil {
		return nil, err
	}
	changes = rebase(changes, items)
	var refused map[backends.ID]error
	for range refusals {
		done, err := b.commit(ctx, c, changes, true)
		bad := refusedChanges(err)
		if bad == nil {
			return refused, err
		}
		if len(bad) == 0 {
			return nil, err
		}
		if refused == nil {
			refused = map[backends.ID]error{}
		}
		for i, err := range bad {
			refused[changes[i].ID] = fmt.Errorf("nftables: the kernel refuses %s: %w", changes[i].ID, err)
		}
		changes = without(changes, bad)
		if done > 0 {
			// Some of the changes are in force already.
			if items, err = b.observe(ctx, c); err != nil {
				return nil, err
			}
			changes = rebase(changes, items)
		}
	}
	return nil, fmt.Errorf("the kernel refused further changes in each of %d attempts", refusals)
}

// refusedChanges returns the errors of a rejected transaction by change, nil if it was not rejected.
func refusedChanges(err error) map[int32]error {
	var rejected *nfnl.BatchError
	if !errors.As(err, &rejected) {
		return nil
	}
	bad := map[int32]error{}
	for _, f := range rejected.Failures {
		if f.Owner != nfnl.NoOwner {
			bad[f.Owner] = f.Err
		}
	}
	return bad
}

// rebase returns the changes that lead from items to the target of the given changes.
func rebase(changes []backends.Change, items []backends.Item) []backends.Change {
	actual := make(map[backends.ID]backends.Item, len(items))
	for _, i := range items {
		actual[i.ID()] = i
	}
	var out []backends.Change
	for _, c := range changes {
		c.Old = actual[c.ID]
		switch {
		case c.Old == nil && c.New == nil:
			continue
		case c.Old == nil:
			c.Op = backends.Create
		case c.New == nil:
			c.Op = backends.Delete
		case c.Old.String() == c.New.String():
			continue
		default:
			c.Op = backends.Update
		}
		out = append(out, c)
	}
	return out
}

func without(changes []backends.Change, drop map[int32]error) []backends.Change {
	out := make([]backends.Change, 0, len(changes))
	for i, c := range changes {
		if drop[int32(i)] == nil {
			out = append(out, c)
		}
	}
	return out
}

// commit sends the changes, and returns the number of transactions that the kernel took. With single set, no two
// changes share a message, so that an error belongs to one change.
func (b *Backend) commit(ctx context.Context, c nfnl.Conn, changes []backends.Change, single bool) (done int, err error) {
	batches, err := newAssembly(b.name, c.MaxBatch(), single).batches(changes)
	if err != nil {
		return 0, err
	}
	return done, b.watch.account(ctx, c, len(changes), len(batches), func() error {
		for _, messages := range batches {
			if err := c.Commit(ctx, messages); err != nil {
				return err
			}
			done++
		}
		return nil
	})
}
