package backends

import "context"

// Meter is implemented by a Backend that can tell how many connections Services had.
type Meter interface {
	// Traffic returns how many connections each Service port was sent since its objects in the kernel, or its listener,
	// were made. What is not known is left out. It only reads, at the cost of a full read, and may be called at any time.
	Traffic(ctx context.Context, entries []*Entry) (map[PortKey]uint64, error)
}

// Fronts returns the addresses at which an Entry is reached; that of a node port has no Addr.
func (e *Entry) Fronts() []Front {
	front := Front{Family: e.Key.Family, Protocol: e.Key.Protocol, Addr: e.ClusterIP, Port: e.Port}
	all := []Front{front}
	for _, a := range e.ExternalIPs {
		front.Addr = a
		all = append(all, front)
	}
	for _, a := range e.LoadBalancerIPs {
		front.Addr = a
		all = append(all, front)
	}
	if e.NodePort != 0 {
		all = append(all, Front{Family: e.Key.Family, Protocol: e.Key.Protocol, Port: e.NodePort})
	}
	return all
}
