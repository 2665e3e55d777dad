// Package fake is a complete backend in memory: a model of a kernel with transactions, shared objects, references between
// objects and other programs that write, which can be told to fail in every way that a real one does. It is for tests, and
// passes the same conformance suite as the real backends.
package fake

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"weir/backends"
)

// Backend programs a Kernel.
type Backend struct {
	kernel *Kernel
	config backends.Config
}

// New returns a backend that programs the kernel. Of the config it renders MasqueradeAll and MasqueradeMark.
//
// The result implements backends.Generation unless the kernel has NoGeneration set, and backends.Rereader if it has Tells.
func New(k *Kernel, c backends.Config) backends.Backend {
	b := &Backend{kernel: k, config: c}
	switch {
	case k.NoGeneration:
		return b
	case k.Tells:
		return &struct {
			*Backend
			generation
			rereader
		}{b, generation{k}, rereader{k}}
	}
	return &struct {
		*Backend
		generation
	}{b, generation{k}}
}

// Base returns the object that all others need.
func (b *Backend) Base() []backends.Item {
	return []backends.Item{Item{Name: "base", Text: fmt.Sprintf("mark=%#x", b.config.MasqueradeMark)}}
}

// Render returns an object for the Service port, one for each of its front addresses, and the shared object for as many
// endpoints as it has.
func (b *Backend) Render(e *backends.Entry) ([]backends.Item, error) {
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
	return b.kernel.observe(ctx)
}

// Apply makes the changes in one transaction.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	return b.kernel.apply(ctx, p)
}

type generation struct{ kernel *Kernel }

// Generation moves when somebody else writes.
func (g generation) Generation(context.Context) (uint64, error) {
	g.kernel.called()
	g.kernel.Calls.Generation++
	return g.kernel.generation, g.kernel.Faults.Generation
}

type rereader struct{ kernel *Kernel }

// Reread returns what somebody else wrote.
func (r rereader) Reread(ctx context.Context, _ backends.Held) (map[backends.ID]backends.Item, bool, error) {
	return r.kernel.reread(ctx)
}
