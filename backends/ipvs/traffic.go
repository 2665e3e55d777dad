package ipvs

import (
	"context"
	"net/netip"

	"weir/backends"
	"weir/backends/dataplane"
)

var _ backends.ConnectionCounter = (*Backend)(nil)

// Connections implements backends.ConnectionCounter. It reads the counters of the virtual servers, which the kernel
// sums up every two seconds.
func (b *Backend) Connections(ctx context.Context, entries []*dataplane.ServicePort) (map[dataplane.ServicePortName]uint64, error) {
	state, err := b.kernel.Read(ctx)
	if err != nil {
		return nil, err
	}
	counts := make(map[dataplane.ServicePortName]uint64, len(entries))
	for _, e := range entries {
		for _, key := range b.servers(e) {
			if n, ok := state.Accepted[key]; ok {
				counts[e.Key] += n
			}
		}
	}
	return counts, nil
}

// servers returns the keys of the virtual servers that a ServicePort may have.
func (b *Backend) servers(e *dataplane.ServicePort) []ServerKey {
	keys := []ServerKey{{Family: e.Key.Family, Mark: b.serverMark(e.Key)}}
	for _, f := range e.Frontends() {
		at := []netip.Addr{f.Addr}
		if !f.Addr.IsValid() {
			at = b.nodePortAddresses(f.Family)
		}
		for _, a := range at {
			keys = append(keys, ServerKey{Family: f.Family, Protocol: f.Protocol, Addr: netip.AddrPortFrom(a, f.Port)})
		}
	}
	return keys
}
