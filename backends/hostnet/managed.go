package hostnet

import (
	"context"
	"iter"
	"maps"
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
)

// Managed is a Backend that keeps the kernel parameters that it needs as Items, besides those of the Backend below it.
type Managed struct {
	below  backends.Backend // nil if there are only parameters
	keeper *Keeper
	needs  []Parameter
	// guards reports whether the Backend below keeps neighbours from the loopback addresses, needed or not.
	guards bool
	// left reports whether the Backend was told to remove its parameters.
	left map[string]struct{}
}

// Manage returns a Backend that keeps the parameters as well. below may be nil.
func (k *Keeper) Manage(below backends.Backend, needs []Parameter) *Managed {
	return &Managed{below: below, keeper: k, needs: needs, left: map[string]struct{}{}}
}

// Guarding records that the Backend below keeps neighbours from the loopback addresses, so that nobody needs a warning.
func (b *Managed) Guarding() { b.guards = true }

// Base implements backends.Backend.
func (b *Managed) Base() (items []backends.Item) {
	if b.below != nil {
		items = b.below.Base()
	}
	for _, p := range b.needs {
		items = append(items, p.setting(p.Value))
	}
	return items
}

// Render implements backends.Backend.
func (b *Managed) Render(p *dataplane.ServicePort) ([]backends.Item, error) { return b.below.Render(p) }

// Observe implements backends.Backend.
func (b *Managed) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		if b.below != nil {
			for item, err := range b.below.Observe(ctx) {
				if !yield(item, err) || err != nil {
					return
				}
			}
		}
		for _, s := range b.lookAgain() {
			if !yield(s, nil) {
				return
			}
		}
	}
}

// lookAgain is look at a full sync: what could not be set is tried again.
func (b *Managed) lookAgain() []setting {
	for _, p := range b.needs {
		delete(b.keeper.failed, p.Name)
	}
	list := b.look()
	b.keeper.unset.Set(float64(len(b.keeper.failed)))
	if b.keeper.lasts {
		b.keeper.keepFile()
		b.keeper.warnLoopback(b.guards)
	}
	return list
}

// look returns the parameters that are needed, and those that an earlier Backend set.
func (b *Managed) look() (list []setting) {
	b.hold()
	for _, p := range b.needs {
		if value := b.keeper.look(p); value != "" {
			list = append(list, p.setting(value))
		}
	}
	return append(list, b.keeper.unneeded(b.needs)...)
}

// hold tells the Keeper which parameters the Backend needs.
func (b *Managed) hold() {
	if b.keeper.held[b] == nil {
		names := map[string]struct{}{}
		for _, p := range b.needs {
			if _, left := b.left[p.Name]; !left {
				names[p.Name] = struct{}{}
			}
		}
		b.keeper.held[b] = names
	}
}

// Apply implements backends.Backend. Parameters are set before the rules, and those that rules guard after them. What
// is no longer needed is put back before the rules that guard it go.
func (b *Managed) Apply(ctx context.Context, p backends.Plan) backends.Result {
	b.hold()
	b.keeper.keepFile()
	below := backends.Plan{Backend: p.Backend, Reason: p.Reason}
	var after []Parameter
	refused := map[backends.ID]error{}
	for _, c := range p.Changes {
		old, _ := c.Old.(setting)
		now, isParameter := c.New.(setting)
		switch {
		case c.Op == backends.Delete && old.name != "":
			b.left[old.name] = struct{}{}
			delete(b.keeper.held[b], old.name)
			if b.keeper.heldBesides(b, old.name) {
				continue
			}
			if err := b.keeper.putBack(old.name); err != nil {
				refused[c.ID] = err
			}
		case isParameter:
			i := slices.IndexFunc(b.needs, func(p Parameter) bool { return p.Name == now.name })
			if b.needs[i].Guarded {
				after = append(after, b.needs[i])
			} else {
				b.keeper.set(b.needs[i])
			}
		default:
			below.Changes = append(below.Changes, c)
		}
	}
	var r backends.Result
	if b.below != nil && !below.Empty() {
		r = b.below.Apply(ctx, below)
	}
	if r.Err != nil {
		return r
	}
	for _, p := range after {
		b.keeper.set(p)
	}
	if len(refused) > 0 {
		r.Refused = maps.Clone(r.Refused)
		if r.Refused == nil {
			r.Refused = map[backends.ID]error{}
		}
		maps.Copy(r.Refused, refused)
	}
	return r
}

// Close implements backends.Backend.
func (b *Managed) Close() error {
	delete(b.keeper.held, b)
	if b.below == nil {
		return nil
	}
	return b.below.Close()
}

// Optional implements backends.Backend. The Backend below sees only its own Items.
func (b *Managed) Optional() backends.Optional {
	if b.below == nil {
		return backends.Optional{}
	}
	o := b.below.Optional()
	if o.Watcher != nil {
		o.Watcher, o.Unwatched = managedWatcher{o.Watcher, b}, b
	}
	if o.Describer != nil {
		o.Describer = managedDescriber{o.Describer}
	}
	if o.CommandLister != nil {
		o.CommandLister = managedCommands{o.CommandLister}
	}
	return o
}

// ReadUnwatched implements backends.Unwatched. The kernel does not notify of changes of parameters.
func (b *Managed) ReadUnwatched(context.Context) (map[backends.ID]backends.Item, error) {
	items := map[backends.ID]backends.Item{}
	for _, p := range b.needs { // one that is observed no more may be one that weir set and another process set back
		if _, left := b.left[p.Name]; !left {
			items[setting{name: p.Name}.ID()] = nil
		}
	}
	for _, s := range b.lookAgain() {
		items[s.ID()] = s
	}
	return items, nil
}

// managedWatcher reads the parameters again with what another process wrote.
type managedWatcher struct {
	backends.Watcher
	b *Managed
}

// Reread implements backends.Watcher.
func (w managedWatcher) Reread(ctx context.Context, last backends.LastObserved) (map[backends.ID]backends.Item, bool, error) {
	items, ok, err := w.Watcher.Reread(ctx, withoutSettings{last})
	if err != nil || !ok {
		return nil, false, err
	}
	for _, s := range w.b.look() {
		items[s.ID()] = s
	}
	return items, true, nil
}

// withoutSettings is what was last observed without the parameters.
type withoutSettings struct{ backends.LastObserved }

// Items implements backends.LastObserved.
func (l withoutSettings) Items(yield func(backends.Item) bool) {
	l.LastObserved.Items(func(i backends.Item) bool {
		_, parameter := i.(setting)
		return parameter || yield(i)
	})
}

type managedDescriber struct{ backends.Describer }

// Describe implements backends.Describer.
func (d managedDescriber) Describe(items []backends.Item) []backends.ProgrammedFrontend {
	return d.Describer.Describe(slices.DeleteFunc(slices.Clone(items), func(i backends.Item) bool {
		_, parameter := i.(setting)
		return parameter
	}))
}

type managedCommands struct{ backends.CommandLister }

// Commands implements backends.CommandLister.
func (l managedCommands) Commands(p backends.Plan) (commands []backends.Command, err error) {
	p.Changes = slices.DeleteFunc(slices.Clone(p.Changes), func(c backends.Change) bool {
		now, isParameter := c.New.(setting)
		old, wasParameter := c.Old.(setting)
		switch {
		case isParameter:
			commands = append(commands, backends.Command{Args: []string{"sysctl", "-w", now.name + "=" + now.value}})
		case wasParameter && old.was != "":
			commands = append(commands, backends.Command{Args: []string{"sysctl", "-w", old.name + "=" + old.was}})
		}
		return isParameter || wasParameter
	})
	below, err := l.CommandLister.Commands(p)
	return append(commands, below...), err
}
