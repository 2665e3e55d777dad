// Package names holds what the names of Services lead to. A Zone follows the Loop: a name leads to an address as soon as the
// kernel serves it, and no longer than it does.
package names

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/spec"
)

// Zone answers what the names of the Services in force lead to. What was in force stays so while the input is invalid, or
// while a source is silent. It is safe for concurrent use. A change costs what the changed Services have.
type Zone struct {
	reconcile.NopObserver

	// snapshot is the last one accepted. Services in pending may differ in it from those in force; all means all of them.
	snapshot *spec.Snapshot
	pending  map[dataplane.ServiceName]time.Time // when the change was noticed
	all      bool
	// Programmed, if set, is called for every change of one Service that has come into force, with the time that it took.
	Programmed func(*spec.Service, time.Duration)

	mu sync.RWMutex
	// services are in force.
	services map[dataplane.ServiceName]*spec.Service
	// namespaces counts the Services of each.
	namespaces map[string]int
	// owners are the Services that have an address, those with it as a ClusterIP first.
	owners map[netip.Addr][]dataplane.ServiceName

	serial atomic.Uint32
}

// NewZone returns a Zone that knows nothing yet.
func NewZone() *Zone {
	return &Zone{
		pending:    map[dataplane.ServiceName]time.Time{},
		services:   map[dataplane.ServiceName]*spec.Service{},
		namespaces: map[string]int{},
		owners:     map[netip.Addr][]dataplane.ServiceName{},
	}
}

// Updated implements reconcile.Observer. A Snapshot without headless Services would deny their names.
func (z *Zone) Updated(u spec.Update) {
	if u.Err != nil || u.Snapshot == nil {
		return
	}
	if u.Snapshot.Revision.ProxyOnly {
		z.all = true
		return
	}
	z.snapshot = u.Snapshot
	z.all = z.all || u.Delta.All
	now := time.Now()
	for _, name := range u.Delta.Services {
		if z.pending[name].IsZero() {
			z.pending[name] = now
		}
	}
}

// RoundStarts implements reconcile.Observer. A name goes before its address does.
func (z *Zone) RoundStarts(reconcile.Request) {
	if z.snapshot == nil || z.snapshot.Revision.Stale {
		return
	}
	z.edit(func(name dataplane.ServiceName) bool { return z.snapshot.Services.Get(name) == nil })
}

// Applied implements reconcile.Observer. A Service that is held back keeps the names that it has.
func (z *Zone) Applied(r reconcile.Report) {
	if z.snapshot == nil || r.Err != nil {
		return
	}
	held := make(map[dataplane.ServiceName]bool, len(r.HeldBack))
	for _, h := range r.HeldBack {
		held[h.Service] = true
	}
	since := make(map[dataplane.ServiceName]time.Time, len(held))
	for name := range held {
		since[name] = z.pending[name]
	}
	z.edit(func(name dataplane.ServiceName) bool { return !held[name] })
	z.all = false
	for name := range held {
		z.pending[name] = since[name]
	}
	z.serial.CompareAndSwap(0, uint32(time.Now().Unix()))
}

// edit brings the pending Services that are ready into force.
func (z *Zone) edit(ready func(dataplane.ServiceName) bool) {
	if z.all {
		for name := range z.services {
			z.await(name)
		}
		for name := range z.snapshot.Services.Names() {
			z.await(name)
		}
	}
	if len(z.pending) == 0 {
		return
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	changed := false
	for name, since := range z.pending {
		if !ready(name) {
			continue
		}
		svc := z.snapshot.Services.Get(name)
		if z.put(name, svc) {
			changed = true
			if z.Programmed != nil && svc != nil && !since.IsZero() {
				z.Programmed(svc, time.Since(since))
			}
		}
		delete(z.pending, name)
	}
	if len(z.pending) == 0 {
		z.pending = map[dataplane.ServiceName]time.Time{} // ranging over a map costs its peak size, so allocate a new one
	}
	if changed && z.serial.Load() != 0 {
		z.serial.Store(max(z.serial.Load()+1, uint32(time.Now().Unix())))
	}
}

// await adds a Service to the pending ones, without a time: what is read at once says nothing of a change.
func (z *Zone) await(name dataplane.ServiceName) {
	if _, ok := z.pending[name]; !ok {
		z.pending[name] = time.Time{}
	}
}

// put replaces a Service, by nothing if svc is nil, and reports whether that changes anything.
func (z *Zone) put(name dataplane.ServiceName, svc *spec.Service) bool {
	old := z.services[name]
	if old == svc {
		return false
	}
	if old != nil {
		for _, addr := range reconcile.AddressesOf(reconcile.Names(old)) {
			if left := slices.DeleteFunc(slices.Clone(z.owners[addr]), func(o dataplane.ServiceName) bool { return o == name }); len(left) > 0 {
				z.owners[addr] = left
			} else {
				delete(z.owners, addr)
			}
		}
		if z.namespaces[name.Namespace]--; z.namespaces[name.Namespace] == 0 {
			delete(z.namespaces, name.Namespace)
		}
		delete(z.services, name)
	}
	if svc == nil {
		return true
	}
	z.services[name] = svc
	z.namespaces[name.Namespace]++
	n := reconcile.Names(svc)
	for i, addr := range reconcile.AddressesOf(n) {
		at := len(z.owners[addr])
		if i < len(n.ClusterIPs) {
			at = 0
		}
		z.owners[addr] = slices.Insert(slices.Clip(z.owners[addr]), at, name)
	}
	return true
}

// Copy returns a Zone with what is in force now, which does not change, and the names of its Services in order. It costs in
// proportion to their number.
func (z *Zone) Copy() (*Zone, []dataplane.ServiceName) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	c := &Zone{services: maps.Clone(z.services), namespaces: maps.Clone(z.namespaces), owners: maps.Clone(z.owners)}
	c.serial.Store(z.serial.Load())
	return c, slices.SortedFunc(maps.Keys(c.services), dataplane.ServiceName.Compare)
}

// Names returns the names of a Service in force, nil if there is none.
func (z *Zone) Names(name dataplane.ServiceName) *dataplane.Names {
	svc := z.Service(name)
	if svc == nil {
		return nil
	}
	return reconcile.Names(svc)
}

// Service returns a Service in force, nil if there is none.
func (z *Zone) Service(name dataplane.ServiceName) *spec.Service {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.services[name]
}

// HasNamespace reports whether a Service in force is in the namespace.
func (z *Zone) HasNamespace(namespace string) bool {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.namespaces[namespace] > 0
}

// Pointers returns the Services that have an address, one with it as a ClusterIP first. The caller must not change them.
func (z *Zone) Pointers(addr netip.Addr) []dataplane.ServiceName {
	z.mu.RLock()
	defer z.mu.RUnlock()
	return z.owners[addr]
}

// Serial is 0 before the first Service is in force, and grows with each change. It is a time in seconds where that grows too.
func (z *Zone) Serial() uint32 { return z.serial.Load() }
