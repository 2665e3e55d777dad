package changes

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weir/backends/dataplane"
)

// field names one kind of fact about a Service port, in the words of the Service's manifest if it has one.
type field string

// The fields, in the order of display.
const (
	fieldClusterIP        field = "clusterIP"
	fieldPort             field = "port"
	fieldNodePort         field = "nodePort"
	fieldExternalIP       field = "externalIP"
	fieldLoadBalancerIP   field = "loadBalancerIP"
	fieldAddress          field = "address" // an address in the kernel whose role for the Service is unknown
	fieldSourceRange      field = "sourceRange"
	fieldInternalPolicy   field = "internalTrafficPolicy"
	fieldExternalPolicy   field = "externalTrafficPolicy"
	fieldAffinity         field = "sessionAffinity"
	fieldHealthCheck      field = "healthCheckNodePort"
	fieldScheduler        field = "scheduler"
	fieldProxyProtocol    field = "proxyProtocol"
	fieldOnUnhealthy      field = "onUnhealthy"
	fieldProbe            field = "probe"
	fieldAnswered         field = "answeredBy"
	fieldEndpoint         field = "endpoint"
	fieldExternalEndpoint field = "externalEndpoint" // for endpoints that only traffic from outside uses
	fieldNoEndpoint       field = "withoutEndpoint"
	fieldPromised         field = "promisedEndpoint" // for endpoints of which only templates tell
)

// fields gives each field its position, and its default.
var fields = map[field]struct {
	order  int
	absent string
}{
	fieldClusterIP: {0, "none"}, fieldPort: {1, "none"}, fieldNodePort: {2, "none"}, fieldExternalIP: {3, ""}, fieldLoadBalancerIP: {4, ""},
	fieldAddress: {5, ""}, fieldSourceRange: {6, ""}, fieldInternalPolicy: {7, "Cluster"}, fieldExternalPolicy: {8, "Cluster"},
	fieldAffinity: {9, "None"}, fieldHealthCheck: {10, "none"}, fieldScheduler: {11, "default"}, fieldProxyProtocol: {12, "off"},
	fieldOnUnhealthy: {13, "keep connections"}, fieldProbe: {14, "none"},
	fieldAnswered: {15, "the endpoints"}, fieldEndpoint: {16, ""}, fieldExternalEndpoint: {17, ""}, fieldNoEndpoint: {18, "served"},
	fieldPromised: {19, ""},
}

// fact is one fact about a Service port.
type fact struct {
	Field field
	// Key distinguishes the facts of a field that may have several; "" for a field with one value.
	Key   string
	Value string
	// note is compared like Value. It is shown only if it differs, because it differs between the nodes of a fleet.
	note string
}

// compare sorts facts for display: addresses as numbers, not as text.
func compare(a, b fact) int {
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

// factsOf returns the facts of a ServicePort. Two ServicePorts of one Service port have the same facts exactly if a
// backend programs them alike, and their endpoints have the same probes.
func factsOf(e *dataplane.ServicePort) []fact {
	facts := []fact{{Field: fieldClusterIP, Value: e.ClusterIP.String()}, {Field: fieldPort, Value: number(e.Port)}}
	single := func(f field, present bool, value string) {
		if present {
			facts = append(facts, fact{Field: f, Value: value})
		}
	}
	single(fieldNodePort, e.NodePort != 0, nodePortText(e))
	for _, a := range e.ExternalIPs {
		facts = append(facts, fact{Field: fieldExternalIP, Key: a.String()})
	}
	for _, a := range e.LoadBalancerIPs {
		facts = append(facts, fact{Field: fieldLoadBalancerIP, Key: a.String()})
	}
	for _, p := range e.SourceRanges {
		facts = append(facts, fact{Field: fieldSourceRange, Key: p.String()})
	}
	single(fieldInternalPolicy, e.InternalLocal, "Local")
	single(fieldExternalPolicy, e.ExternalLocal, "Local")
	single(fieldAffinity, e.Affinity != 0, "ClientIP for "+e.Affinity.String())
	single(fieldHealthCheck, e.HealthCheckNodePort != 0, number(e.HealthCheckNodePort))
	single(fieldScheduler, e.Scheduler != "", e.Scheduler)
	single(fieldProxyProtocol, e.ProxyProtocol, "on")
	single(fieldOnUnhealthy, e.Reset, "reset connections")
	single(fieldProbe, e.Probe != "", e.Probe)
	single(fieldAnswered, e.Answered, "weir, without connection tracking")
	for _, ep := range e.Endpoints {
		facts = append(facts, endpointFact(e, ep))
	}
	if len(e.Endpoints) == 0 {
		facts = append(facts, fact{Field: fieldNoEndpoint, Value: refusal(e.HasEndpoints)})
	}
	return facts
}

// refusal returns what happens to traffic without an endpoint.
func refusal(elsewhere bool) string {
	if elsewhere {
		return "dropped, since only other nodes have endpoints"
	}
	return "rejected"
}

func endpointFact(e *dataplane.ServicePort, ep dataplane.Endpoint) fact {
	f := fact{Field: fieldEndpoint, Key: ep.Addr.String()}
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
		// With policy Local the node of an endpoint decides which clients it serves.
		words = append(words, where)
		if !ep.Cluster {
			words = append(words, "for policy Local only")
		}
	} else {
		f.note = where
		if !ep.Cluster {
			words = append(words, "not for policy Cluster")
		}
	}
	f.Value = strings.Join(words, ", ")
	return f
}

func number(n uint16) string { return strconv.Itoa(int(n)) }

func sorted(facts []fact) []fact {
	slices.SortStableFunc(facts, compare)
	return facts
}

// nodePortText returns the node port, and the node's addresses at which another Service owns it.
func nodePortText(e *dataplane.ServicePort) string {
	text := number(e.NodePort)
	if len(e.NodePortExcept) == 0 {
		return text
	}
	addrs := make([]string, len(e.NodePortExcept))
	for i, a := range e.NodePortExcept {
		addrs[i] = a.String()
	}
	return text + ", not at " + strings.Join(addrs, " ")
}
