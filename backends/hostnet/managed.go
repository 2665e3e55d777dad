package hostnet

import (
	"context"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"

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
	// holds reports whether the Backend below makes ClusterIPs addresses of the node.
	holds bool
	// answers reports whether the kernel must take answers to connections from ::1 at every interface.
	answers bool
	// left reports whether the Backend was told to remove its parameters.
	left map[string]struct{}
	// through are the networks of bridges in which pods need the hairpin mode of their port, and own the node's addresses.
	through []netip.Prefix
	own     []netip.Addr

	// delivered are the addresses with local routes of weir that were there, or that the Backend made.
	delivered map[netip.Addr]struct{}

	// names are what has the processes of the node ask weir for names, or nil.
	names *NodeNames

	watch sync.Once
	wake  <-chan struct{}
	end   context.CancelFunc // nil unless it watches
}

// Manage returns a Backend that keeps the parameters as well. below may be nil.
func (k *Keeper) Manage(below backends.Backend, needs []Parameter) *Managed {
	return &Managed{below: below, keeper: k, needs: needs, left: map[string]struct{}{}, delivered: map[netip.Addr]struct{}{}}
}

// Guarding records that the Backend below keeps neighbours from the loopback addresses, so that nobody needs a warning.
func (b *Managed) Guarding() { b.guards = true }

// Hairpins makes the Backend keep the hairpin mode of bridge ports as well: of those that lead to endpoints in networks whose
// frames pass through the packet filter. own are the addresses of the node.
func (b *Managed) Hairpins(through []netip.Prefix, own []netip.Addr) { b.through, b.own = through, own }

// Answers makes the Backend keep the local routes by which answers to connections from ::1 come.
func (b *Managed) Answers() { b.answers = true }

// Holding records that the Backend below makes ClusterIPs addresses of the node, so that nothing else has to deliver what is for
// weir itself.
func (b *Managed) Holding() { b.holds = true }

// Names adds what has the processes of the node ask weir for names.
func (b *Managed) Names(n *NodeNames) { b.names = n }

// Base implements backends.Backend.
func (b *Managed) Base() (items []backends.Item) {
	if b.below != nil {
		items = b.below.Base()
	}
	for _, p := range b.needs {
		items = append(items, p.setting(p.Value))
	}
	if b.answers {
		items = append(items, answerRoutes{})
	}
	if b.names != nil {
		items = append(items, b.names.Base()...)
	}
	return items
}

// Render implements backends.Backend.
func (b *Managed) Render(p *dataplane.ServicePort) ([]backends.Item, error) {
	items, err := b.below.Render(p)
	if err == nil && p.Answered && !b.holds {
		items = append(items, delivery{p.ClusterIP})
	}
	if err != nil || len(b.through) == 0 || p.Answered {
		return items, err
	}
	for i, ep := range p.Endpoints {
		a := ep.Addr.Addr()
		if ep.Remote || i > 0 && a == p.Endpoints[i-1].Addr.Addr() || slices.Contains(b.own, a) {
			continue
		}
		if slices.ContainsFunc(b.through, func(n netip.Prefix) bool { return n.Contains(a) }) {
			items = append(items, hairpin{addr: a})
		}
	}
	return items, nil
}

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
		for _, h := range b.keeper.lookHairpins(b.below == nil) {
			b.keeper.holdHairpin(b, h.addr)
			if !yield(h, nil) {
				return
			}
		}
		routes, err := b.lookLocalRoutes()
		if err != nil {
			yield(nil, err)
			return
		}
		for _, r := range routes {
			if !yield(r, nil) {
				return
			}
		}
		if b.names != nil {
			for i := range b.names.Observe(ctx) {
				if !yield(i, nil) {
					return
				}
			}
		}
	}
}

// lookLocalRoutes returns the local routes, and remembers them: a Backend that takes over finds them, and keeps what it needs
// from being taken away by the one that leaves.
func (b *Managed) lookLocalRoutes() (items []backends.Item, err error) {
	list, answers, err := lookLocalRoutes()
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		b.delivered[d.addr] = struct{}{}
		items = append(items, d)
	}
	if !b.answers && len(answers) == 0 {
		return items, nil
	}
	routes, exist, err := b.keeper.answers.look(answers)
	if err != nil || !exist {
		return items, err
	}
	if !b.answers {
		routes.missing = ""
	} else if b.wantsAnswers() {
		b.followAnswers()
	}
	return append(items, routes), nil
}

// followAnswers has a process that stays make the routes of interfaces that come up.
func (b *Managed) followAnswers() {
	if !b.keeper.lasts {
		return
	}
	if err := b.keeper.answers.follow(); err != nil {
		b.keeper.warn(err.Error())
	}
}

// wantsAnswers reports whether the Backend needs the routes to ::1, and was not told to remove them.
func (b *Managed) wantsAnswers() bool {
	_, left := b.left[answerRoutesID]
	return b.answers && !left
}

// localRouteItems adds the local routes to what was read: those that are gone are nil.
func (b *Managed) localRouteItems(items map[backends.ID]backends.Item) error {
	for a := range b.delivered {
		items[delivery{a}.ID()] = nil
	}
	if b.wantsAnswers() {
		items[answerRoutesID] = nil
	}
	list, err := b.lookLocalRoutes()
	for _, i := range list {
		items[i.ID()] = i
	}
	return err
}

// lookAgain is look at a full sync: what could not be set is tried again.
func (b *Managed) lookAgain() []setting {
	for _, p := range b.needs {
		delete(b.keeper.failed, p.Name)
	}
	clear(b.keeper.hairpins.failed)
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
		if b.wantsAnswers() {
			names[answerRoutesID] = struct{}{}
		}
		b.keeper.held[b] = names
	}
}

// sorted are the changes of a Plan by when they are made. Those made before the rules are made while the Plan is sorted.
type sorted struct {
	below   backends.Plan
	after   []Parameter // those that the rules guard
	leaving []delivery
	// answersLeave reports whether the routes to ::1 go.
	answersLeave bool
	on, off      []netip.Addr // of hairpin mode
	refused      map[backends.ID]error
}

// Apply implements backends.Backend. Parameters are set before the rules, and those that rules guard after them, as are bridge
// ports. What is no longer needed is put back before the rules that guard it go. A local route is there before the rules that
// leave its packets alone, and goes after them.
func (b *Managed) Apply(ctx context.Context, p backends.Plan) backends.Result {
	b.hold()
	b.keeper.keepFile()
	s := sorted{below: backends.Plan{Backend: p.Backend, Reason: p.Reason}, refused: map[backends.ID]error{}}
	for _, c := range p.Changes {
		b.before(ctx, c, &s)
	}
	var r backends.Result
	if b.below != nil && !s.below.Empty() {
		r = b.below.Apply(ctx, s.below)
	}
	if r.Err != nil {
		return r
	}
	b.after(&s)
	if len(s.refused) > 0 {
		r.Refused = maps.Clone(r.Refused)
		if r.Refused == nil {
			r.Refused = map[backends.ID]error{}
		}
		maps.Copy(r.Refused, s.refused)
	}
	return r
}

// before makes a change that comes before the rules, or sorts it.
func (b *Managed) before(ctx context.Context, c backends.Change, s *sorted) {
	if isNodeName(c) {
		maps.Copy(s.refused, b.names.Apply(ctx, backends.Plan{Changes: []backends.Change{c}}).Refused)
		return
	}
	switch i := c.New.(type) {
	case delivery:
		if err := i.set(); err != nil {
			s.refused[c.ID] = err
		} else {
			b.delivered[i.addr] = struct{}{}
		}
		return
	case answerRoutes:
		if err := b.keeper.answers.set(); err != nil {
			s.refused[c.ID] = err
		}
		b.followAnswers()
		return
	case hairpin:
		s.on = append(s.on, i.addr)
		return
	case setting:
		need := b.needs[slices.IndexFunc(b.needs, func(p Parameter) bool { return p.Name == i.name })]
		if need.Guarded {
			s.after = append(s.after, need)
		} else {
			b.keeper.set(need)
		}
		return
	}
	switch i := c.Old.(type) {
	case delivery:
		s.leaving = append(s.leaving, i)
	case answerRoutes:
		s.answersLeave = true
	case hairpin:
		s.off = append(s.off, i.addr)
	case setting:
		if err := b.leave(i.name); err != nil {
			s.refused[c.ID] = err
		}
	default:
		s.below.Changes = append(s.below.Changes, c)
	}
}

// leave puts a parameter back, unless another Backend needs it.
func (b *Managed) leave(name string) error {
	b.left[name] = struct{}{}
	delete(b.keeper.held[b], name)
	if b.keeper.heldBesides(b, name) {
		return nil
	}
	return b.keeper.putBack(name)
}

// leaveAnswers deletes the routes to ::1, unless another Backend needs them.
func (b *Managed) leaveAnswers() error {
	b.left[answerRoutesID] = struct{}{}
	delete(b.keeper.held[b], answerRoutesID)
	if b.keeper.heldBesides(b, answerRoutesID) {
		return nil
	}
	return b.keeper.answers.remove()
}

// after makes the changes that come after the rules.
func (b *Managed) after(s *sorted) {
	for _, d := range s.leaving {
		if !b.keeper.deliveredBesides(b, d.addr) {
			if err := d.remove(); err != nil {
				s.refused[d.ID()] = err
				continue
			}
		}
		delete(b.delivered, d.addr)
	}
	if s.answersLeave {
		if err := b.leaveAnswers(); err != nil {
			s.refused[answerRoutesID] = err
		}
	}
	for _, p := range s.after {
		b.keeper.set(p)
	}
	if len(s.on) > 0 {
		b.keeper.setHairpins(b, s.on)
	}
	if len(s.off) > 0 {
		maps.Copy(s.refused, b.keeper.dropHairpins(b, s.off))
	}
}

// Close implements backends.Backend.
func (b *Managed) Close() error {
	delete(b.keeper.held, b)
	if !b.keeper.needed(answerRoutesID) {
		b.keeper.answers.stop() // a Backend that takes over begins again
	}
	for _, by := range b.keeper.hairpins.wanted {
		delete(by, b)
	}
	if b.end != nil {
		b.end()
	}
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
		o.CommandLister = managedCommands{o.CommandLister, b.keeper.answers}
	}
	return o
}

// ReadUnwatched implements backends.Unwatched. The kernel does not notify of changes of parameters.
func (b *Managed) ReadUnwatched(ctx context.Context) (map[backends.ID]backends.Item, error) {
	items := map[backends.ID]backends.Item{}
	if b.below != nil {
		if below := b.below.Optional().Unwatched; below != nil {
			more, err := below.ReadUnwatched(ctx)
			if err != nil {
				return nil, err
			}
			maps.Copy(items, more)
		}
	}
	for _, p := range b.needs { // one that is observed no more may be one that weir set and another process set back
		if _, left := b.left[p.Name]; !left {
			items[setting{name: p.Name}.ID()] = nil
		}
	}
	for _, s := range b.lookAgain() {
		items[s.ID()] = s
	}
	b.keeper.hairpinItems(items)
	return items, b.localRouteItems(items)
}

// managedWatcher reads the parameters again with what another process wrote. It notices changes of bridge ports by itself.
type managedWatcher struct {
	backends.Watcher
	b *Managed
}

// Wake implements backends.Watcher.
func (w managedWatcher) Wake() <-chan struct{} {
	below := w.Watcher.Wake()
	if len(w.b.through) == 0 || !w.b.keeper.lasts {
		return below
	}
	w.b.watch.Do(func() {
		ctx, end := context.WithCancel(context.Background())
		wake := make(chan struct{}, 1)
		tell := func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		}
		w.b.wake, w.b.end = wake, end
		go w.b.keeper.watchHairpins(ctx, func() { w.b.keeper.hairpins.moved.Store(true); tell() })
		go func() {
			for {
				select {
				case <-below: // never, if it is nil
					tell()
				case <-ctx.Done():
					return
				}
			}
		}()
	})
	return w.b.wake
}

// Moved implements backends.Watcher.
func (w managedWatcher) Moved(ctx context.Context) (bool, error) {
	if w.b.keeper.hairpinsDrifted() {
		return true, nil
	}
	return w.Watcher.Moved(ctx)
}

// Reread implements backends.Watcher.
func (w managedWatcher) Reread(ctx context.Context, last backends.LastObserved) (map[backends.ID]backends.Item, bool, error) {
	items, ok := map[backends.ID]backends.Item{}, true
	if moved, err := w.Watcher.Moved(ctx); err != nil || moved {
		if items, ok, err = w.Watcher.Reread(ctx, withoutSettings{last}); err != nil || !ok {
			return nil, false, err
		}
	}
	for _, s := range w.b.look() {
		items[s.ID()] = s
	}
	w.b.keeper.hairpinItems(items)
	if err := w.b.localRouteItems(items); err != nil {
		return nil, false, err
	}
	return items, true, nil
}

// withoutSettings is what was last observed without the parameters and the ports.
type withoutSettings struct{ backends.LastObserved }

// Items implements backends.LastObserved.
func (l withoutSettings) Items(yield func(backends.Item) bool) {
	l.LastObserved.Items(func(i backends.Item) bool {
		return IsParameter(i) || yield(i)
	})
}

type managedDescriber struct{ backends.Describer }

// Describe implements backends.Describer.
func (d managedDescriber) Describe(items []backends.Item) []backends.ProgrammedFrontend {
	return d.Describer.Describe(slices.DeleteFunc(slices.Clone(items), IsParameter))
}

type managedCommands struct {
	backends.CommandLister
	answers *answerKeeper
}

// Commands implements backends.CommandLister.
func (l managedCommands) Commands(p backends.Plan) (commands []backends.Command, err error) {
	var to map[netip.Addr]bridgePort
	if slices.ContainsFunc(p.Changes, isHairpin) {
		if _, to, err = find(nil, 0); err != nil {
			return nil, err
		}
	}
	p.Changes = slices.DeleteFunc(slices.Clone(p.Changes), func(c backends.Change) bool {
		if isNodeName(c) {
			return true
		}
		if isHairpin(c) {
			commands = append(commands, hairpinCommands(c, to)...)
			return true
		}
		if d, ok := c.New.(delivery); ok {
			commands = append(commands, d.command("append"))
			return true
		}
		if d, ok := c.Old.(delivery); ok {
			commands = append(commands, d.command("del"))
			return true
		}
		if _, ok := c.New.(answerRoutes); ok {
			commands = append(commands, answerCommands("append", l.answers.lacking())...)
			return true
		}
		if _, ok := c.Old.(answerRoutes); ok {
			commands = append(commands, answerCommands("del", l.answers.holding())...)
			return true
		}
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
