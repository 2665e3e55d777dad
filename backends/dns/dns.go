// Package dns answers questions for the names of Services, as the Kubernetes DNS specification 1.1.0 and CoreDNS's
// kubernetes plugin do, and sends all other questions on.
//
// A Zone holds what the names lead to, a Resolver makes the answer to one question of it without touching the network,
// and a Server does the rest. An answer is computed when it is asked for, so the server holds nothing for each Service.
//
// The wire format is that of golang.org/x/net/dns/dnsmessage, which the module has already. CoreDNS's own packages were
// judged too large: they add 60 MB to the binary and take 23 µs of CPU time for an answer.
package dns

import (
	"net/netip"

	"weir/backends/dataplane"
)

// Zone is what the names of a node's Services lead to. It is safe for concurrent use.
type Zone interface {
	// Names returns the names of a Service, nil if there is none.
	Names(dataplane.ServiceName) *dataplane.Names
	// HasNamespace reports whether a namespace exists.
	HasNamespace(string) bool
	// Pointers returns the Service whose ClusterIP an address is, or else the Services that have it as an endpoint.
	Pointers(netip.Addr) []dataplane.ServiceName
	// Serial grows with every change. It is 0 as long as nothing is known.
	Serial() uint32
}

// TTL is how long clients may keep an answer, in seconds. CoreDNS has the same.
const TTL = 5

// The rest of CoreDNS's SOA record, in seconds.
const (
	soaRefresh = 7200
	soaRetry   = 1800
	soaExpire  = 86400
)

// versionTTL is the TTL of the version of the specification, which does not change while a server runs.
const versionTTL = 28800

// specification is the version of the Kubernetes DNS specification that the zone follows.
const specification = "1.1.0"

// PodNames is how names like 10-0-0-1.default.pod.cluster.local are answered.
type PodNames string

// The ways to answer names of pods, with the words of CoreDNS.
const (
	// PodsDisabled means that there are no such names.
	PodsDisabled PodNames = "disabled"
	// PodsInsecure means that every address in a namespace that exists has a name.
	PodsInsecure PodNames = "insecure"
	// PodsVerified means that an address has a name if it is an endpoint of a Service of the namespace.
	PodsVerified PodNames = "verified"
)
