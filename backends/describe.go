package backends

import (
	"net/netip"
	"time"
)

// Describer is implemented by a Backend that can say what its Items do in the words of a Service.
type Describer interface {
	// Describe returns what Items do together: all that were observed, or all that are desired. It is pure, and leaves out
	// what it cannot tell, such as what somebody else put there.
	Describe(items []Item) []Front
}

// Front is what becomes of connections to one address and port, as the kernel has it.
type Front struct {
	Family   Family
	Protocol Protocol
	// Addr is zero for a node port.
	Addr netip.Addr
	Port uint16
	// Service is "namespace/name" or "namespace/name:port" if the kernel was told, or "".
	Service string

	// Endpoints serve whoever has no other ones: Inside is for traffic of this node and its pods, if that is treated
	// differently.
	Endpoints, Inside []Share
	Affinity          time.Duration
	// Sources are who may connect, as prefixes or ranges; none means everybody.
	Sources []string
	// Refusal is "reject" or "drop" where connections are not served.
	Refusal string

	// Own are the Items that exist for this front, and Shared those that exist for others as well.
	Own, Shared []ID
}

// Share is how many of the connections an endpoint gets, from 0 to 1.
type Share struct {
	Addr netip.AddrPort
	Of   float64
}
