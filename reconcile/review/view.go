// Package review puts what a plan does into the words of the people who wrote the Services: for each Service what is
// added, removed and changed, from which value to which, and what a reviewer should be warned of.
//
// It is pure. What it compares is either two lists of Entries, for which no kernel is needed, or what the Engine found in
// the kernel; everything that it prints (text, Markdown, JSON, YAML) is made from one value, Plan.
package review

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weir/backends"
)

// Field names one kind of fact about a Service port, in the words of the Service's manifest where it has one.
type Field string

// The fields, in the order in which they are shown.
const (
	FieldClusterIP        Field = "clusterIP"
	FieldPort             Field = "port"
	FieldNodePort         Field = "nodePort"
	FieldExternalIP       Field = "externalIP"
	FieldLoadBalancerIP   Field = "loadBalancerIP"
	FieldAddress          Field = "address" // an address found in the kernel, of which is not known what it was to the Service
	FieldSourceRange      Field = "sourceRange"
	FieldInternalPolicy   Field = "internalTrafficPolicy"
	FieldExternalPolicy   Field = "externalTrafficPolicy"
	FieldAffinity         Field = "sessionAffinity"
	FieldHealthCheck      Field = "healthCheckNodePort"
	FieldScheduler        Field = "scheduler"
	FieldProxyProtocol    Field = "proxyProtocol"
	FieldEndpoint         Field = "endpoint"
	FieldExternalEndpoint Field = "externalEndpoint" // where traffic from outside has other endpoints than that to the ClusterIP
	FieldNoEndpoint       Field = "withoutEndpoint"
)

// fields gives each field its place, and the value that it has where nothing is said.
var fields = map[Field]struct {
	order   int
	without string
}{
	FieldClusterIP: {0, "none"}, FieldPort: {1, "none"}, FieldNodePort: {2, "none"}, FieldExternalIP: {3, ""}, FieldLoadBalancerIP: {4, ""},
	FieldAddress: {5, ""}, FieldSourceRange: {6, ""}, FieldInternalPolicy: {7, "Cluster"}, FieldExternalPolicy: {8, "Cluster"},
	FieldAffinity: {9, "None"}, FieldHealthCheck: {10, "none"}, FieldScheduler: {11, "default"}, FieldProxyProtocol: {12, "off"},
	FieldEndpoint: {13, ""}, FieldExternalEndpoint: {14, ""}, FieldNoEndpoint: {15, "served"},
}

// Fact is one thing that holds for a Service port.
type Fact struct {
	Field Field
	// Key tells the facts of a field apart of which there may be many; "" for a field that has one value.
	Key   string
	Value string
	// aside is compared as Value is, and shown only if it differs: on a fleet it is another for each node.
	aside string
}

// compare orders facts as they are shown: addresses as numbers, not as text.
func compare(a, b Fact) int {
	return cmp.Or(cmp.Compare(fields[a.Field].order, fields[b.Field].order), compareKeys(a.Key, b.Key))
}

func compareKeys(a, b string) int {
	pa, errA := netip.ParseAddrPort(a)
	pb, errB := netip.ParseAddrPort(b)
	if errA == nil && errB == nil {
		return pa.Compare(pb)
	}
	return cmp.Compare(a, b)
}

// factsOf returns what an Entry says. Two Entries of one Service port have the same facts exactly if a backend has the
// same to do for them.
func factsOf(e *backends.Entry) []Fact {
	facts := []Fact{{Field: FieldClusterIP, Value: e.ClusterIP.String()}, {Field: FieldPort, Value: number(e.Port)}}
	single := func(f Field, present bool, value string) {
		if present {
			facts = append(facts, Fact{Field: f, Value: value})
		}
	}
	single(FieldNodePort, e.NodePort != 0, number(e.NodePort))
	for _, a := range e.ExternalIPs {
		facts = append(facts, Fact{Field: FieldExternalIP, Key: a.String()})
	}
	for _, a := range e.LoadBalancerIPs {
		facts = append(facts, Fact{Field: FieldLoadBalancerIP, Key: a.String()})
	}
	for _, p := range e.SourceRanges {
		facts = append(facts, Fact{Field: FieldSourceRange, Key: p.String()})
	}
	single(FieldInternalPolicy, e.InternalLocal, "Local")
	single(FieldExternalPolicy, e.ExternalLocal, "Local")
	single(FieldAffinity, e.Affinity != 0, "ClientIP for "+e.Affinity.String())
	single(FieldHealthCheck, e.HealthCheckNodePort != 0, number(e.HealthCheckNodePort))
	single(FieldScheduler, e.Scheduler != "", e.Scheduler)
	single(FieldProxyProtocol, e.ProxyProtocol, "on")
	for _, ep := range e.Endpoints {
		facts = append(facts, endpointFact(e, ep))
	}
	if len(e.Endpoints) == 0 {
		facts = append(facts, Fact{Field: FieldNoEndpoint, Value: refusal(e.HasEndpoints)})
	}
	return facts
}

// refusal is what happens to traffic that nobody answers.
func refusal(elsewhere bool) string {
	if elsewhere {
		return "dropped, since only other nodes have endpoints"
	}
	return "rejected"
}

func endpointFact(e *backends.Entry, ep backends.Endpoint) Fact {
	f := Fact{Field: FieldEndpoint, Key: ep.Addr.String()}
	var words []string
	if ep.Weight != 1 {
		words = append(words, "weight "+number(ep.Weight))
	}
	where := "node not known"
	switch {
	case ep.Local:
		where = "on this node"
	case ep.Remote:
		where = "on another node"
	}
	if e.InternalLocal || e.ExternalLocal {
		// With policy Local the place decides who is served.
		words = append(words, where)
		if !ep.Cluster {
			words = append(words, "for policy Local only")
		}
	} else {
		f.aside = where
		if !ep.Cluster {
			words = append(words, "not for policy Cluster")
		}
	}
	f.Value = strings.Join(words, ", ")
	return f
}

func number(n uint16) string { return strconv.Itoa(int(n)) }

func sorted(facts []Fact) []Fact {
	slices.SortStableFunc(facts, compare)
	return facts
}
