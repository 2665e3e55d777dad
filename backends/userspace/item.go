package userspace

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
)

// listen is a listener of this process, and the endpoints to which it sends connections.
type listen struct {
	protocol  dataplane.Protocol
	bind      netip.AddrPort
	key       dataplane.ServicePortName
	endpoints []dataplane.Endpoint
	affinity  time.Duration
	// sources are the clients that may connect; empty means every client.
	sources []netip.Prefix
	// localClients are clients that get localClientEndpoints instead of endpoints.
	localClients         []netip.Prefix
	localClientEndpoints []dataplane.Endpoint
	// proxyProtocol reports whether the proxy sends a PROXY protocol version 2 header to the endpoint first.
	proxyProtocol bool
	// draining are endpoints that get no new connections or flows, but keep their existing ones.
	draining []netip.AddrPort
	// reset reports whether TCP connections to other endpoints end at once, instead of after the grace time.
	reset bool
	// idle is how long a UDP flow outlives its last datagram.
	idle time.Duration
	// redirected reports whether only traffic that the kernel redirected is served. Otherwise a client that finds the
	// port could evade the Service's source ranges. Only TCP can tell.
	redirected bool
	// local reports whether the listener is the one for policy Local, if there are two.
	local bool
	// inherited reports whether the socket is another process's, and serves no client here yet.
	inherited bool
}

// ID names a listener by its socket, since a process can have each socket only once.
func (l *listen) ID() backends.ID {
	return backends.ID(fmt.Sprintf("listen %s %s", l.protocol, l.bind))
}

// String returns the ServicePort of the listener and its settings.
func (l *listen) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "listen %s %s for %s", l.protocol, l.bind, l.key)
	if l.inherited {
		b.WriteString(" inherited")
	}
	if len(l.sources) > 0 {
		fmt.Fprintf(&b, " from %s", joined(l.sources))
	}
	if l.local {
		b.WriteString(" policy Local")
	}
	if l.affinity > 0 {
		fmt.Fprintf(&b, " affinity %s", l.affinity)
	}
	if l.proxyProtocol {
		b.WriteString(" proxy-protocol v2")
	}
	if l.reset {
		b.WriteString(" reset")
	}
	if l.protocol == dataplane.UDP {
		fmt.Fprintf(&b, " idle %s", l.idle)
	}
	writeEndpoints(&b, "to", l.endpoints)
	if len(l.localClients) > 0 {
		writeEndpoints(&b, "from "+joined(l.localClients)+" to", l.localClientEndpoints)
	}
	if len(l.draining) > 0 {
		fmt.Fprintf(&b, " keeping %s", joined(l.draining))
	}
	return b.String()
}

func writeEndpoints(b *strings.Builder, to string, endpoints []dataplane.Endpoint) {
	b.WriteString(" " + to)
	if len(endpoints) == 0 {
		b.WriteString(" nobody")
	}
	for _, e := range endpoints {
		fmt.Fprintf(b, " %s", e.Addr)
		if e.Weight != 1 {
			fmt.Fprintf(b, " weight %d", e.Weight)
		}
	}
}

func joined[T fmt.Stringer](values []T) string {
	texts := make([]string, len(values))
	for i, v := range values {
		texts[i] = v.String()
	}
	return strings.Join(texts, ",")
}

// use returns the purpose of the listener's port in the redirecting form.
func (l *listen) use() portUse { return portUse{l.key, l.local} }

// allows reports whether the listener serves the client.
func (l *listen) allows(client netip.Addr) bool {
	return len(l.sources) == 0 || contains(l.sources, client)
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
