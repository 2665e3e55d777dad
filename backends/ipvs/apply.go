package ipvs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/xtables"
)

// Apply implements backends.Backend. IPVS has no transactions, so Apply makes the changes in an order in which every
// moment is safe. Rules that reject come before the objects that they protect. A virtual server comes before its
// destinations, and both come before the address that lets packets in. Deletions come after all additions, and the
// rules that reject are deleted last. Each change succeeds or is refused by itself, except the iptables rules, which
// are one step.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	a := &applying{b: b, ctx: ctx, refused: map[backends.ID]error{}}
	if err := a.run(p); err != nil {
		return backends.Result{Err: fmt.Errorf("ipvs: %w", err)}
	}
	if len(a.refused) == 0 {
		return backends.Result{}
	}
	return backends.Result{Refused: a.refused}
}

type applying struct {
	b       *Backend
	ctx     context.Context
	puts    []backends.Change
	refused map[backends.ID]error
	// teardown reports whether everything is deleted. Then no deletion waits for connections.
	teardown bool
}

// step returns the position of an item among the additions.
func step(i backends.Item) int {
	switch i := i.(type) {
	case Link, Timeouts:
		return 0
	case Set:
		return 1
	case xtables.Item:
		return 2
	case Server:
		return 5
	case Destination:
		return 6
	case Address:
		return 8
	case Member:
		switch {
		case strings.HasPrefix(i.Set, allowSet):
			return 3
		case strings.HasPrefix(i.Set, addrSet), strings.HasPrefix(i.Set, insideSet):
			return 7
		}
		return 4
	}
	return -1
}

const rulesStep = 2

// stepBack returns the position of an item among the deletions. An address comes after the virtual servers behind it,
// because by then it is known whether any connections are left.
func stepBack(i backends.Item) int {
	switch i := i.(type) {
	case Destination:
		return 1
	case Server:
		return 2
	case Address:
		return 3
	case Member:
		switch {
		case strings.HasPrefix(i.Set, insideSet):
			return 0
		case strings.HasPrefix(i.Set, allowSet):
			return 5
		}
		return 4
	case xtables.Item:
		return 6
	case Set:
		return 7
	}
	return 8
}

func (a *applying) run(p backends.Plan) error {
	var deletes []backends.Change
	for _, c := range p.Changes {
		i := c.New
		if c.Op == backends.Delete {
			i = c.Old
		}
		switch {
		case i == nil || step(i) < 0:
			return fmt.Errorf("%q is not an object of IPVS", c.ID)
		case c.Op == backends.Delete:
			deletes = append(deletes, c)
			_, all := i.(Link)
			a.teardown = a.teardown || all
		default:
			a.puts = append(a.puts, c)
		}
	}
	slices.SortStableFunc(a.puts, func(x, y backends.Change) int {
		return cmp.Or(cmp.Compare(step(x.New), step(y.New)), cmp.Compare(setOf(x.New), setOf(y.New)))
	})
	slices.SortStableFunc(deletes, func(x, y backends.Change) int { return cmp.Compare(stepBack(x.Old), stepBack(y.Old)) })
	if a.b.draining == nil && len(deletes) > 0 {
		state, err := a.b.kernel.Read(a.ctx)
		if err != nil {
			return err
		}
		a.b.note(state)
	}
	if err := a.inOrder(a.puts, func(c backends.Change) backends.Item { return c.New }, a.put); err != nil {
		return err
	}
	if a.teardown {
		if err := a.deleteServers(); err != nil {
			return err
		}
	}
	return a.inOrder(deletes, func(c backends.Change) backends.Item { return c.Old }, a.delete)
}

// inOrder makes the changes one by one, with two exceptions. All iptables changes are one step, and new members of one
// set are one step unless any of them is refused. An error of one change refuses that change only, unless every other
// change would meet the same error.
func (a *applying) inOrder(changes []backends.Change, item func(backends.Change) backends.Item, do func(backends.Item) error) error {
	for i := 0; i < len(changes); {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		end := i + 1
		for end < len(changes) && together(item(changes[i]), item(changes[end])) {
			end++
		}
		group := changes[i:end]
		i = end
		if step(item(group[0])) == rulesStep {
			r := a.b.rules.Apply(a.ctx, backends.Plan{Changes: group})
			if r.Err != nil {
				return r.Err
			}
			maps.Copy(a.refused, r.Refused)
			continue
		}
		if a.putMembers(group) {
			continue
		}
		for _, c := range group {
			if err := do(item(c)); errors.Is(err, unix.EPERM) {
				return fmt.Errorf("%s %s: %w", c.Op, c.ID, err)
			} else if err != nil {
				a.refused[c.ID] = err
			}
		}
	}
	return nil
}

// together reports whether two items can be made at once.
func together(x, y backends.Item) bool {
	return step(x) == rulesStep && step(y) == rulesStep || setOf(x) != "" && setOf(x) == setOf(y)
}

// setOf returns the name of a Member's set, and "" for any other item.
func setOf(i backends.Item) string {
	m, _ := i.(Member)
	return m.Set
}

// putMembers adds the new members of one set, and reports whether it succeeded. If not, the caller has to try them one
// by one to find the refused one.
func (a *applying) putMembers(changes []backends.Change) bool {
	members := make([]Member, 0, len(changes))
	for _, c := range changes {
		if m, ok := c.New.(Member); ok {
			members = append(members, m)
		}
	}
	return len(members) > 1 && a.b.kernel.PutMembers(members) == nil
}

func (a *applying) put(item backends.Item) error {
	switch i := item.(type) {
	case Server:
		return a.putServer(i)
	case Address:
		delete(a.b.leaving, i.Addr)
	case Destination:
		if _, no := a.refused[Server{ServerKey: i.Server}.ID()]; no {
			return errors.New("its virtual server was refused")
		}
	}
	return a.b.kernel.Put(item)
}

func (a *applying) putServer(s Server) error {
	err := a.b.kernel.Put(s)
	if errors.Is(err, ErrForeign) && a.edited(s.ServerKey) {
		s.Retake = true
		err = a.b.kernel.Put(s)
	}
	if err == nil {
		a.b.known[s.ServerKey] = s.ignoresZeroWeight()
	}
	return err
}

// edited reports whether a virtual server without weir's mark is one of weir's that lost the mark. It is if it had the
// mark before, and still has a destination that weir wants.
func (a *applying) edited(key ServerKey) bool {
	if _, known := a.b.known[key]; !known {
		return false
	}
	have, err := a.b.kernel.Destinations(key)
	return err == nil && slices.ContainsFunc(a.puts, func(c backends.Change) bool {
		d, ok := c.New.(Destination)
		return ok && d.Server == key && slices.ContainsFunc(have, func(h Destination) bool { return h.Addr == d.Addr })
	})
}

func (a *applying) delete(item backends.Item) error {
	switch i := item.(type) {
	case Destination:
		if a.teardown {
			return nil // its virtual server no longer exists
		}
		return a.b.deleteDestination(i)
	case Server:
		return a.b.deleteServer(i)
	case Address:
		return a.b.deleteAddress(i.Addr, a.teardown)
	case Member:
		if a.b.guardsLeaving(i) && !a.teardown {
			return nil
		}
	}
	return a.b.kernel.Delete(item)
}

// deleteServers deletes all virtual servers of weir, including those that are leaving.
func (a *applying) deleteServers() error {
	state, err := a.b.kernel.Read(a.ctx)
	if err != nil {
		return err
	}
	for _, s := range state.Servers {
		if err := a.b.kernel.Delete(s); err != nil {
			return err
		}
	}
	clear(a.b.known)
	a.b.draining, a.b.leaving = map[ServerKey]struct{}{}, map[netip.Addr]struct{}{}
	return nil
}
