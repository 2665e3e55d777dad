// Package notices keeps the notices that hold now. Book is its type: it follows the Updates of the source and the Reports
// of the rounds, knows which notices are new, and counts them by kind. What it is told costs in proportion to what changed.
// The package prints nothing. cmd/weir imports it for the log, the metrics and the status.
package notices

import (
	"maps"
	"slices"
	"sync"

	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/reconcile/tell/changes"
	"weir/spec"
)

// Book holds the notices that hold now and are not silenced. It is safe for concurrent use.
type Book struct {
	mu     sync.Mutex
	snap   *spec.Snapshot
	name   string            // of this node
	config []spec.Notice     // about what the configuration means for this node, with silenced ones
	placed changes.Placement // of all Services
	node   []spec.Notice     // about this node
	input  []spec.Notice     // of the Snapshot, about no Service
	of     map[dataplane.ServiceName]service
	counts map[spec.NoticeID]int
}

// service is what is known of one Service.
type service struct {
	input    []spec.Notice // as the source gave them
	resolved []spec.Notice // as the Engine found them
	all      []spec.Notice // both, without the silenced ones
	placed   changes.Placement
}

// NewBook returns an empty Book.
func NewBook() *Book {
	return &Book{of: map[dataplane.ServiceName]service{}, counts: map[spec.NoticeID]int{}}
}

// Update takes an accepted Update of the source, and returns the notices that did not hold before.
func (b *Book) Update(u spec.Update) []spec.Notice {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.snap = u.Snapshot
	fresh := b.replace(&b.input, u.Snapshot.Notices)
	if !u.Delta.All && !u.Delta.Config { // the configuration may silence what it did not before
		for _, name := range u.Delta.Services {
			fresh = append(fresh, b.take(name, func(s *service) { s.input = b.given(name) })...)
		}
		return append(fresh, b.replaceNode()...)
	}
	names := map[dataplane.ServiceName]bool{}
	for name := range b.of {
		names[name] = true
	}
	for svc := range u.Snapshot.Services.All() {
		names[svc.Name] = true
	}
	for name := range u.Snapshot.Slices.Names() {
		names[name] = true
	}
	for _, name := range slices.SortedFunc(maps.Keys(names), dataplane.ServiceName.Compare) {
		fresh = append(fresh, b.take(name, func(s *service) { s.input = b.given(name) })...)
	}
	return append(fresh, b.replaceNode()...)
}

// given returns the notices that the input gives about a Service.
func (b *Book) given(name dataplane.ServiceName) []spec.Notice { return b.snap.NoticesOf(name) }

// Report takes the Report of a round, and returns the notices that did not hold before.
func (b *Book) Report(r reconcile.Report) (fresh []spec.Notice) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.snap == nil {
		return nil
	}
	for _, n := range r.Notices {
		fresh = append(fresh, b.take(n.Service.Name, func(s *service) { s.resolved = n.Notices })...)
	}
	return fresh
}

// Node takes the name of this node and the notices about what the configuration means for it, and returns those that did
// not hold before.
func (b *Book) Node(snap *spec.Snapshot, name string, found []spec.Notice) []spec.Notice {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.config, b.snap = found, snap
	if name != b.name {
		b.name, b.placed = name, changes.Placement{}
		for of, s := range b.of {
			b.place(of, &s)
			b.of[of] = s
		}
	}
	return b.replaceNode()
}

func (b *Book) replaceNode() []spec.Notice {
	config := slices.DeleteFunc(slices.Clone(b.config), func(n spec.Notice) bool {
		of := n.Service()
		return of.Name != "" && b.snap.Services.Get(of) == nil // it was deleted, with what silenced the notice
	})
	return b.replace(&b.node, slices.Concat(config, b.placed.Notice(b.name, b.snap.Nodes[b.name])))
}

// place works out anew where the endpoints of a Service are.
func (b *Book) place(name dataplane.ServiceName, s *service) {
	s.placed = changes.Placement{}
	if svc := b.snap.Services.Get(name); svc != nil {
		s.placed = changes.PlacementOf(svc, b.name)
	}
	b.placed.Add(s.placed, 1)
}

// take changes what is known of a Service.
func (b *Book) take(name dataplane.ServiceName, change func(*service)) []spec.Notice {
	s := b.of[name]
	b.placed.Add(s.placed, -1)
	b.place(name, &s)
	change(&s)
	if b.snap.Services.Get(name) == nil {
		s.resolved = nil
	}
	fresh := b.replace(&s.all, changes.Combine(s.input, s.resolved))
	if len(s.input)+len(s.resolved)+s.placed.Named == 0 {
		delete(b.of, name)
	} else {
		b.of[name] = s
	}
	return fresh
}

// replace replaces a list by the notices of another that are not silenced, counts them, and returns the new ones.
func (b *Book) replace(list *[]spec.Notice, found []spec.Notice) (fresh []spec.Notice) {
	var now []spec.Notice
	for _, n := range found {
		if !changes.Silenced(n, b.snap) {
			now = append(now, n)
		}
	}
	before := make(map[spec.Notice]bool, len(*list))
	for _, n := range *list {
		before[changes.WithoutLine(n)] = true
		if b.counts[n.ID()]--; b.counts[n.ID()] == 0 {
			delete(b.counts, n.ID())
		}
	}
	for _, n := range now {
		b.counts[n.ID()]++
		if !before[changes.WithoutLine(n)] {
			fresh = append(fresh, n)
		}
	}
	*list = now
	return fresh
}

// Counts returns how many notices of each kind hold.
func (b *Book) Counts() map[spec.NoticeID]int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.counts)
}

// All returns the notices that hold, those of Services in the order of their names.
func (b *Book) All() []spec.Notice {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := slices.Concat(b.node, b.input)
	for _, name := range slices.SortedFunc(maps.Keys(b.of), dataplane.ServiceName.Compare) {
		all = append(all, b.of[name].all...)
	}
	return all
}
