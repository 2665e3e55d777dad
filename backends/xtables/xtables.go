// Package xtables runs iptables-save and iptables-restore, with the nf_tables mechanism or the legacy one. It is the
// kernel part of all backends that write iptables rules. It keeps chains, rules and hooks as plain text in the syntax
// of iptables-save.
//
// Kernel is the interface to the programs; Fake implements it in memory. Tables holds the chains of one owner: it
// observes them as Items and applies Plans of them. The owner's Layout says which chains those are. The package does
// not know what the chains do.
//
// Backends and cmd/weir may import it. The reconciler and the sources may not.
package xtables

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
)

// Layout describes the chains of an owner.
type Layout struct {
	// Names are the tables that hold the chains, in the order in which they are written.
	Names []string
	// Owned reports whether a chain belongs to the owner.
	Owned func(chain string) bool
	// Shared reports whether the rules of an owned chain are Items of their own, whose order means nothing. nil means
	// that no chain is shared.
	Shared func(chain string) bool
}

func (l Layout) shared(chain string) bool { return l.Shared != nil && l.Shared(chain) }

// Tables holds the chains of one owner in the tables of iptables. It implements backends.Watcher and
// backends.CommandLister. Observe, Apply and Moved are called from one goroutine at a time.
type Tables struct {
	kernel   Kernel
	families []dataplane.Family
	layout   Layout

	// present holds the shared chains, their rules and the hooks that the kernel was last known to hold, because
	// appending a rule twice would create a second copy. nil means that nothing is known.
	present map[backends.ID]struct{}
	// held holds the owned chains to which rules of other programs lead, as of the last read. The kernel does not delete
	// such a chain. It is emptied instead.
	held map[backends.ID]struct{}
	// own counts the transactions that Apply committed.
	own uint64
	// read is the generation at which the last Observe began, without own transactions, if it is known.
	read  uint64
	known bool
	// last is the generation that was asked for last. awake and awakeOwn are last and own when no table was dormant.
	last, awake, awakeOwn uint64
}

// NewTables returns the Tables of a Layout in each of the families.
func NewTables(kernel Kernel, families []dataplane.Family, layout Layout) *Tables {
	return &Tables{kernel: kernel, families: families, layout: layout}
}

// Wake implements backends.Watcher. It returns nil, because the kernel can only be polled.
func (t *Tables) Wake() <-chan struct{} { return nil }

// Moved implements backends.Watcher. The answer is unknown with the legacy mechanism.
func (t *Tables) Moved(ctx context.Context) (bool, error) {
	g, err := t.generation(ctx)
	return !t.known || g != t.read, err
}

// Reread implements backends.Watcher. It returns false, because the kernel does not tell what other processes wrote.
func (t *Tables) Reread(context.Context, backends.LastObserved) (map[backends.ID]backends.Item, bool, error) {
	return nil, false, nil
}

// generation returns a number that changes when another process commits.
func (t *Tables) generation(ctx context.Context) (uint64, error) {
	g, err := t.kernel.Generation(ctx)
	t.last = g - t.own
	return t.last, err
}

// Observe implements backends.Backend.
func (t *Tables) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		g, err := t.generation(ctx) // before the read, so that a write during it counts
		t.read, t.known = g, err == nil
		if err := t.walk(ctx, func(i Item) bool { return yield(i, nil) }); err != nil && !errors.Is(err, errStopped) {
			yield(nil, err)
		}
	}
}

// reread reads which Items are present. Another process may have written before it, so it does not change the answer of
// Moved.
func (t *Tables) reread(ctx context.Context) error {
	return t.walk(ctx, func(Item) bool { return true })
}

// walk reads all tables of a family at once, because iptables-nft-save takes as long for one table as for all.
func (t *Tables) walk(ctx context.Context, yield func(Item) bool) error {
	t.present = nil
	present, held := make(map[backends.ID]struct{}), make(map[backends.ID]struct{})
	for _, f := range t.families {
		if err := t.walkFamily(ctx, f, present, held, yield); err != nil {
			return fmt.Errorf("cannot read the tables of %s: %w", f, err)
		}
	}
	t.present, t.held = present, held
	return nil
}

func (t *Tables) walkFamily(ctx context.Context, f dataplane.Family, present, held map[backends.ID]struct{}, yield func(Item) bool) error {
	saved, err := t.kernel.Save(ctx, f, "")
	if err != nil {
		return err
	}
	err = parseSave(saved, f, t.layout, held, func(i Item) bool {
		id := i.ID()
		if p, ok := Parse(id); ok && (!t.layout.Owned(p.Chain) || t.layout.shared(p.Chain)) {
			present[id] = struct{}{}
		}
		return yield(i)
	})
	return errors.Join(err, saved.Close())
}

// Commands implements backends.CommandLister. The input is exactly what Apply gives to iptables-restore, unless the
// kernel changes in between.
func (t *Tables) Commands(p backends.Plan) ([]backends.Command, error) {
	changes, err := t.sortChanges(p)
	if err != nil {
		return nil, err
	}
	var runs []backends.Command
	for _, f := range t.families {
		if in := t.compose(f, changes); in.tables > 0 {
			runs = append(runs, backends.Command{Args: t.kernel.RestoreCommand(f), Stdin: string(in.text)})
		}
	}
	return runs, nil
}

// Families returns the families among the given ones that the kernel can program.
func Families(k Kernel, families []dataplane.Family) []dataplane.Family {
	usable := k.Features().Families
	if usable == nil {
		return families
	}
	return slices.DeleteFunc(slices.Clone(families), func(f dataplane.Family) bool { return !slices.Contains(usable, f) })
}

// errStopped means that the reader wants no more Items.
var errStopped = errors.New("stopped")
