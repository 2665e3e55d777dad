package reconcile

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weir/backends"
)

// Flows removes connection tracking entries that lead to the wrong place. The kernel keeps sending a known flow where it
// sent it before, for as long as a client of a protocol without a handshake goes on.
type Flows interface {
	// Clean looks at the flows of the Entries given and of no others, and returns how many it removed. A flow to a front
	// address of an Entry in current goes if it leads to anything but an endpoint of that Entry; a flow to a front address
	// of an Entry in gone goes in any case, unless an Entry in current has the same address. The Entries in gone hold only
	// those front addresses that went, and may lack a ClusterIP. If it fails it is called again with the same and more.
	Clean(ctx context.Context, current, gone []*backends.Entry) (int, error)
}

// flowDebts remembers for which Service ports flows have yet to be cleaned, until that has succeeded.
type flowDebts struct {
	flows Flows
	owed  map[backends.PortKey][]*backends.Entry // earlier states whose front addresses may be gone
}

func newFlowDebts(f Flows) *flowDebts {
	return &flowDebts{flows: f, owed: map[backends.PortKey][]*backends.Entry{}}
}

// owe says that the Service port changed from old, which is nil if it is new or was merely repaired. TCP is left out: a
// connection to an endpoint that went ends by itself.
func (f *flowDebts) owe(key backends.PortKey, old *backends.Entry) {
	if f.flows == nil || key.Protocol == backends.TCP {
		return
	}
	olds := f.owed[key]
	if old != nil && (len(olds) == 0 || without(old, olds[len(olds)-1]) != nil) {
		olds = append(olds, old)
	}
	f.owed[key] = olds
}

// clean pays all debts, or none if it fails.
func (f *flowDebts) clean(ctx context.Context, inForce func(backends.PortKey) *backends.Entry) (int, error) {
	if len(f.owed) == 0 {
		return 0, nil
	}
	var current, gone []*backends.Entry
	for _, key := range slices.SortedFunc(maps.Keys(f.owed), backends.PortKey.Compare) {
		now := inForce(key)
		if now != nil {
			current = append(current, now)
		}
		for _, old := range f.owed[key] {
			if lost := without(old, now); lost != nil {
				gone = append(gone, lost)
			}
		}
	}
	n, err := f.flows.Clean(ctx, current, gone)
	if err != nil {
		return n, fmt.Errorf("remove stale conntrack entries: %w", err)
	}
	f.owed = map[backends.PortKey][]*backends.Entry{}
	return n, nil
}

// without returns old with only those front addresses that now lacks, or nil if it lacks none. now may be nil.
func without(old, now *backends.Entry) *backends.Entry {
	if now == nil {
		return old
	}
	lost := *old
	if old.Port == now.Port {
		if old.ClusterIP == now.ClusterIP {
			lost.ClusterIP = netip.Addr{}
		}
		lost.ExternalIPs = subtract(old.ExternalIPs, now.ExternalIPs)
		lost.LoadBalancerIPs = subtract(old.LoadBalancerIPs, now.LoadBalancerIPs)
	}
	if old.NodePort == now.NodePort {
		lost.NodePort = 0
	}
	if !lost.ClusterIP.IsValid() && !lost.External() {
		return nil
	}
	return &lost
}

func subtract(from, what []netip.Addr) []netip.Addr {
	var rest []netip.Addr
	for _, a := range from {
		if !slices.Contains(what, a) {
			rest = append(rest, a)
		}
	}
	return rest
}
