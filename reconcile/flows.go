package reconcile

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weir/backends/dataplane"
)

// Flows removes connection tracking entries that lead to a wrong endpoint. The kernel keeps sending the packets of a
// known flow to the same endpoint, for as long as a client of a protocol without a handshake keeps sending.
type Flows interface {
	// Clean looks only at the flows of the given ServicePorts, and returns how many it removed. It removes a flow to a
	// frontend address of a ServicePort in current if the flow leads to anything but an endpoint of that ServicePort.
	// It removes every flow to a frontend address of a ServicePort in gone, unless a ServicePort in current has the
	// same address. The ServicePorts in gone hold only the frontend addresses that were removed, and may lack a
	// ClusterIP. After a failure the next call has the same ServicePorts and more.
	Clean(ctx context.Context, current, gone []*dataplane.ServicePort) (int, error)
}

// staleFlows holds the Service ports that may have stale flows, until these are cleaned. The values are earlier states
// whose frontend addresses may be gone.
type staleFlows map[dataplane.ServicePortName][]*dataplane.ServicePort

// mark records that the Service port changed from old, which is nil if the port is new or was only repaired. TCP is
// left out, because a connection to a removed endpoint ends by itself.
func (f staleFlows) mark(key dataplane.ServicePortName, old *dataplane.ServicePort) {
	if key.Protocol == dataplane.TCP {
		return
	}
	olds := f[key]
	if old != nil && (len(olds) == 0 || without(old, olds[len(olds)-1]) != nil) {
		olds = append(olds, old)
	}
	f[key] = olds
}

// clean removes the stale flows of all marked Service ports.
func (f staleFlows) clean(ctx context.Context, flows Flows, inForce func(dataplane.ServicePortName) *dataplane.ServicePort) (int, error) {
	if len(f) == 0 || flows == nil {
		return 0, nil
	}
	var current, gone []*dataplane.ServicePort
	for _, key := range slices.SortedFunc(maps.Keys(f), dataplane.ServicePortName.Compare) {
		now := inForce(key)
		if now != nil {
			current = append(current, now)
		}
		for _, old := range f[key] {
			if lost := without(old, now); lost != nil {
				gone = append(gone, lost)
			}
		}
	}
	n, err := flows.Clean(ctx, current, gone)
	if err != nil {
		return n, fmt.Errorf("remove stale conntrack entries: %w", err)
	}
	return n, nil
}

// without returns old with only the frontend addresses that now lacks, or nil if it lacks none. now may be nil.
func without(old, now *dataplane.ServicePort) *dataplane.ServicePort {
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
