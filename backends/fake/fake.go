// Package fake is a complete backend in memory, for tests. Its Kernel models transactions, shared objects, references
// between objects, and other processes that write. It can be told to fail in every way in which a real kernel does. Its
// Backend programs the Kernel, and passes the same conformance suite as the real backends.
//
// Only tests import it.
package fake

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
)

// Backend programs a Kernel.
type Backend struct {
	kernel *Kernel
	config dataplane.Config
	// Capabilities are what Optional returns. A test changes them before it passes the Backend on.
	Capabilities backends.Optional
	// Closed counts the calls of Close.
	Closed int
}

// New returns a Backend that programs the kernel. It renders MasqueradeAll and MasqueradeMark of the Config.
//
// It has a Watcher unless the kernel has NoGeneration set. The Watcher can Reread if the kernel has Tells set.
func New(k *Kernel, c dataplane.Config) *Backend {
	b := &Backend{kernel: k, config: c}
	if !k.NoGeneration {
		b.Capabilities.Watcher = &watcher{kernel: k}
	}
	return b
}

// Optional returns the Capabilities.
func (b *Backend) Optional() backends.Optional { return b.Capabilities }

// Close counts its calls.
func (b *Backend) Close() error {
	b.Closed++
	return nil
}

// Base returns the object that all other objects need.
func (b *Backend) Base() []backends.Item {
	return []backends.Item{Item{Name: "base", Text: fmt.Sprintf("mark=%#x", b.config.MasqueradeMark)}}
}

// Render returns one object for the Service port, one for each of its Frontends, and the shared object for its number
// of endpoints.
func (b *Backend) Render(e *dataplane.ServicePort) ([]backends.Item, error) {
	b.kernel.called()
	b.kernel.Calls.Render++
	if b.kernel.Faults.Render != nil {
		if err := b.kernel.Faults.Render(e); err != nil {
			return nil, err
		}
	}
	var text strings.Builder
	fmt.Fprintf(&text, "masquerade=%v internalLocal=%v externalLocal=%v affinity=%v any=%v ranges=%v health=%d scheduler=%s", b.config.MasqueradeAll,
		e.InternalLocal, e.ExternalLocal, e.Affinity, e.HasEndpoints, e.SourceRanges, e.HealthCheckNodePort, e.Scheduler)
	for _, ep := range e.Endpoints {
		fmt.Fprintf(&text, " %v/%d/%v/%v/%v", ep.Addr, ep.Weight, ep.Cluster, ep.Local, ep.Remote)
	}
	spread := backends.ID(fmt.Sprintf("spread/%d", len(e.Endpoints)))
	port := Item{Name: backends.ID("port/" + e.Key.String()), Text: text.String(), Needs: []backends.ID{"base", spread}}
	items := []backends.Item{
		Item{Name: spread, Text: "over endpoints", Needs: []backends.ID{"base"}},
		port,
	}
	front := func(format string, args ...any) {
		id := backends.ID("front/" + fmt.Sprintf(format, args...) + "/" + e.Key.Protocol.String())
		items = append(items, Item{Name: id, Text: "to " + string(port.Name), Needs: []backends.ID{port.Name}})
	}
	front("%v:%d", e.ClusterIP, e.Port)
	for _, a := range append(e.ExternalIPs[:len(e.ExternalIPs):len(e.ExternalIPs)], e.LoadBalancerIPs...) {
		front("%v:%d", a, e.Port)
	}
	if e.NodePort != 0 {
		front("node-%v:%d", e.Key.Family, e.NodePort)
	}
	return items, nil
}

// Observe reads the kernel's objects.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		if w, ok := b.Capabilities.Watcher.(*watcher); ok {
			w.beginRead()
		}
		b.kernel.observe(ctx)(yield)
	}
}

// Apply makes the changes in one transaction.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	return b.kernel.apply(ctx, p)
}

// watcher detects when other processes wrote, and what.
type watcher struct {
	kernel *Kernel
	read   uint64 // the generation at which the last read began, if known
	known  bool
}

// Wake returns nil, because the watcher can only be polled.
func (w *watcher) Wake() <-chan struct{} { return nil }

// Moved reports whether the generation changed since the last read.
func (w *watcher) Moved(context.Context) (bool, error) {
	now, err := w.generation()
	return !w.known || now != w.read, err
}

// Reread returns the objects that other processes wrote.
func (w *watcher) Reread(ctx context.Context, _ backends.LastObserved) (map[backends.ID]backends.Item, bool, error) {
	if known := w.known; w.beginRead() != nil || !known || !w.kernel.Tells {
		return nil, false, nil
	}
	return w.kernel.reread(ctx)
}

func (w *watcher) beginRead() error {
	now, err := w.generation()
	w.read, w.known = now, err == nil
	return err
}

func (w *watcher) generation() (uint64, error) {
	w.kernel.called()
	w.kernel.Calls.Generation++
	return w.kernel.generation, w.kernel.Faults.Generation
}
