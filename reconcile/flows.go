package reconcile

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

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

// Leavers are Flows of a data path in which the kernel sends TCP connections to endpoints.
type Leavers interface {
	Flows
	// Leave removes TCP flows of endpoints that have left, and returns how many. Each ServicePort has as Endpoints those that
	// left it. The flows are those that the endpoint never answered, and those that were reset: a client that uses their port
	// again would meet it for as long as the kernel keeps them. With Reset they are all flows of endpoints that are not Serving. After a failure the
	// next call has the same ServicePorts and more.
	Leave(ctx context.Context, left []*dataplane.ServicePort) (int, error)
}

// leaveShare limits the passes over the kernel's flows for endpoints that left. After one that took t, the next waits for
// leaveShare times t, so that endpoints that come and go all the time cost no more than a twentieth of the time.
const leaveShare = 19

// leftEndpoints holds, until their flows are removed, the states of TCP Service ports with the endpoints that left them.
type leftEndpoints struct {
	of map[dataplane.ServicePortName][]*dataplane.ServicePort
	// from is when the next pass may be.
	from time.Time
}

// mark records the endpoints of a Service port in force that are not among those of now, which is nil if the port is gone.
func (l *leftEndpoints) mark(old, now *dataplane.ServicePort) {
	if old == nil || old.Key.Protocol != dataplane.TCP || len(old.Endpoints) == 0 {
		return
	}
	left := *old
	if left.Reset, left.Serving = false, nil; now != nil {
		left.Reset, left.Serving = now.Reset, now.Serving
	}
	if left.Endpoints = without(old.Endpoints, now); len(left.Endpoints) > 0 {
		if l.of == nil {
			l.of = map[dataplane.ServicePortName][]*dataplane.ServicePort{}
		}
		l.of[old.Key] = append(l.of[old.Key], &left)
	}
}

// without returns the endpoints that take connections and are not among those of a ServicePort, which may be nil, that do.
func without(all []dataplane.Endpoint, now *dataplane.ServicePort) (left []dataplane.Endpoint) {
	var in map[netip.AddrPort]struct{}
	if now != nil {
		in = make(map[netip.AddrPort]struct{}, len(now.Endpoints))
		for _, e := range now.Endpoints {
			if e.Weight > 0 {
				in[e.Addr] = struct{}{}
			}
		}
	}
	for _, e := range all {
		if e.Weight > 0 && !contains(in, e.Addr) {
			left = append(left, e)
		}
	}
	return left
}

// clean removes the flows of all endpoints that left and have not come back, unless it is too early for another pass.
func (l *leftEndpoints) clean(ctx context.Context, flows Flows, inForce func(dataplane.ServicePortName) *dataplane.ServicePort) (int, error) {
	leavers, ok := flows.(Leavers)
	if !ok {
		l.of = nil
	}
	start := time.Now()
	if len(l.of) == 0 || start.Before(l.from) {
		return 0, nil
	}
	var all []*dataplane.ServicePort
	for _, key := range slices.SortedFunc(maps.Keys(l.of), dataplane.ServicePortName.Compare) {
		for _, p := range l.of[key] {
			left := *p
			if left.Endpoints = without(p.Endpoints, inForce(key)); len(left.Endpoints) > 0 {
				all = append(all, &left)
			}
		}
	}
	if len(all) > 0 {
		n, err := leavers.Leave(ctx, all)
		now := time.Now()
		l.from = now.Add(leaveShare * now.Sub(start))
		if err != nil {
			return n, fmt.Errorf("remove conntrack entries of endpoints that left: %w", err)
		}
		l.of = nil
		return n, nil
	}
	l.of = nil
	return 0, nil
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
	if old != nil && (len(olds) == 0 || lacking(old, olds[len(olds)-1]) != nil) {
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
			if lost := lacking(old, now); lost != nil {
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

// lacking returns old with only the frontend addresses that now lacks, or nil if it lacks none. now may be nil.
func lacking(old, now *dataplane.ServicePort) *dataplane.ServicePort {
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
