package ipvs

import (
	"context"
	"net/netip"

	"weir/backends"
)

var _ backends.Meter = (*Backend)(nil)

// Traffic implements backends.Meter with the counters of the virtual servers, which the kernel sums up every two seconds.
func (b *Backend) Traffic(ctx context.Context, entries []*backends.Entry) (map[backends.PortKey]uint64, error) {
	state, err := b.kernel.Read(ctx)
	if err != nil {
		return nil, err
	}
	counts := make(map[backends.PortKey]uint64, len(entries))
	for _, e := range entries {
		for _, key := range b.servers(e) {
			if n, ok := state.Accepted[key]; ok {
				counts[e.Key] += n
			}
		}
	}
	return counts, nil
}

// servers returns what the virtual servers of an Entry are found by, if it has them.
func (b *Backend) servers(e *backends.Entry) []ServerKey {
	keys := []ServerKey{{Family: e.Key.Family, Mark: b.serverMark(e.Key)}}
	for _, f := range e.Fronts() {
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
