package userspace

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/backends"
)

// listen is a listener of this process and where it sends what arrives.
type listen struct {
	protocol  backends.Protocol
	bind      netip.AddrPort
	key       backends.PortKey
	endpoints []backends.Endpoint
	affinity  time.Duration
	// sources limits who is served; empty means everybody.
	sources []netip.Prefix
	// near are clients that are given nearEndpoints instead of endpoints.
	near          []netip.Prefix
	nearEndpoints []backends.Endpoint
	// proxyProtocol sends a PROXY protocol version 2 header to the endpoint before anything else.
	proxyProtocol bool
	// keeping are endpoints that get no new connections or flows and may go on with those that they have.
	keeping []netip.AddrPort
	// idle is how long a UDP flow outlives its last datagram.
	idle time.Duration
	// redirected says that only traffic which the kernel redirected is served: whoever finds the port could go past the
	// Service's source ranges otherwise. It is known for TCP only.
	redirected bool
	// local says that the listener is the one for policy Local, where there are two.
	local bool
}

// ID names a listener by its socket, since a process can have it only once.
func (l *listen) ID() backends.ID {
	return backends.ID(fmt.Sprintf("listen %s %s", l.protocol, l.bind))
}

// String says for whom the listener is and what it does.
func (l *listen) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "listen %s %s for %s", l.protocol, l.bind, l.key)
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
	if l.protocol == backends.UDP {
		fmt.Fprintf(&b, " idle %s", l.idle)
	}
	writeEndpoints(&b, "to", l.endpoints)
	if len(l.near) > 0 {
		writeEndpoints(&b, "from "+joined(l.near)+" to", l.nearEndpoints)
	}
	if len(l.keeping) > 0 {
		fmt.Fprintf(&b, " keeping %s", joined(l.keeping))
	}
	return b.String()
}

func writeEndpoints(b *strings.Builder, to string, endpoints []backends.Endpoint) {
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

// use returns what the listener's port is for, in the redirecting form.
func (l *listen) use() portUse { return portUse{l.key, l.local} }

// allows says whether the listener serves the client.
func (l *listen) allows(client netip.Addr) bool {
	return len(l.sources) == 0 || contains(l.sources, client)
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
