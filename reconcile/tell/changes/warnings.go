package changes

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"weir/backends/dataplane"
	"weir/spec"
)

// Warning is a Notice in a Diff.
type Warning struct {
	spec.Notice
	// Nodes are the nodes that it holds for; none if it holds for the whole Diff.
	Nodes []string
}

// warningDoc is the JSON form of a Warning.
type warningDoc struct {
	ID       spec.NoticeID `json:"id"`
	Severity spec.Severity `json:"severity"`
	Object   string        `json:"object,omitempty"`
	Source   string        `json:"source,omitempty"`
	Detail   string        `json:"detail"`
	Nodes    []string      `json:"nodes,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (w Warning) MarshalJSON() ([]byte, error) {
	return json.Marshal(warningDoc{w.ID(), w.Severity(), w.Object, w.Origin.String(), w.text(), w.Nodes})
}

// UnmarshalJSON implements json.Unmarshaler. The field is then part of the detail.
func (w *Warning) UnmarshalJSON(data []byte) error {
	var doc warningDoc
	if err := json.Unmarshal(data, &doc); err != nil {
		return err
	}
	*w = Warning{doc.ID.Notice(spec.ParseOrigin(doc.Source), doc.Object, "", doc.Detail), doc.Nodes}
	return nil
}

// text returns the field and the detail.
func (w Warning) text() string {
	if w.Field == "" {
		return w.Detail
	}
	return w.Field + ": " + w.Detail
}

// Warn returns what a reviewer of the change on one node should look at: only effects of the change, not earlier
// faults.
func Warn(old, new State) []spec.Notice {
	w := &warner{promised: new.Promised, hints: new.Hints}
	before, after := indexOf(old.ServicePorts), indexOf(new.ServicePorts)
	for _, name := range before.names(after) {
		w.service(name, before[name], after[name])
	}
	if old.Mode != "" && new.Mode != "" && old.Mode != new.Mode {
		w.found = append(w.found, modeWarning(old, new))
	}
	return w.found
}

func modeWarning(old, new State) spec.Notice {
	detail := "connections that are open keep their endpoints, since conntrack translates them whatever the mode; clients with session affinity may meet another endpoint once"
	for _, s := range []State{new, old} {
		switch {
		case s.Traits.CarriesTraffic:
			detail = "connections through the " + s.Mode + " proxy end when it does"
		case !s.Traits.HandsOver:
			return spec.ModeChanged.Notice(spec.Origin{}, "", "", fmt.Sprintf(
				"the proxy mode changes from %s to %s: connections that %s mode holds are not handed over: those open now are reset or time out", old.Mode, new.Mode, s.Mode))
		}
	}
	return spec.ModeChanged.Notice(spec.Origin{}, "", "", fmt.Sprintf("the proxy mode changes from %s to %s: %s", old.Mode, new.Mode, detail))
}

type warner struct {
	found           []spec.Notice
	promised, hints map[dataplane.ServiceName]string
}

func (w *warner) add(id spec.NoticeID, e *dataplane.ServicePort, format string, args ...any) {
	w.found = append(w.found, id.Notice(spec.ParseOrigin(e.Origin), spec.ServiceObject(e.Key.Service), "", fmt.Sprintf(format, args...)))
}

func (w *warner) service(name dataplane.ServiceName, old, new []*dataplane.ServicePort) {
	for _, e := range new {
		was := find(old, e.Key)
		w.endpoints(was, e)
		w.sources(was, e)
		if was == nil {
			continue
		}
		if was.Port != e.Port && !servesPort(new, was) {
			w.add(spec.ServicePortChanged, e, "%s: the port was %d and is %d: clients of the old one are refused", portText(e.Key), was.Port, e.Port)
		}
		if was.NodePort != e.NodePort && was.NodePort != 0 {
			w.add(spec.NodePortMoved, e, "%s: the node port was %d and is %s: whoever uses the old one is refused", portText(e.Key), was.NodePort, numberOr(e.NodePort, "gone"))
		}
		if was.ClusterIP != e.ClusterIP {
			w.add(spec.ClusterIPChanged, e, "%s: the ClusterIP was %s and is %s: clients that looked the old one up are refused until they look again", portText(e.Key), was.ClusterIP, e.ClusterIP)
		}
		if was.Affinity != 0 && e.Affinity == 0 {
			w.add(spec.AffinityLost, e, "%s: session affinity ends: a client's next connection may meet another endpoint", portText(e.Key))
		}
	}
	if len(new) == 0 {
		return // the plan shows that the Service goes
	}
	for _, was := range old {
		if find(new, was.Key) != nil {
			continue
		}
		if !servesPort(new, was) {
			w.add(spec.ServicePortChanged, was, "%s: the port %d is removed: clients of it are refused", portText(was.Key), was.Port)
		}
		if was.NodePort != 0 && !slices.ContainsFunc(new, func(e *dataplane.ServicePort) bool { return sameKind(e, was) && e.NodePort == was.NodePort }) {
			w.add(spec.NodePortMoved, was, "%s: the node port %d is removed: clients of it are refused", portText(was.Key), was.NodePort)
		}
	}
}

// servesPort reports whether a Service still has the port of a ServicePort, under any name.
func servesPort(ports []*dataplane.ServicePort, was *dataplane.ServicePort) bool {
	return slices.ContainsFunc(ports, func(e *dataplane.ServicePort) bool { return sameKind(e, was) && e.Port == was.Port })
}

// sameKind reports whether both ServicePorts have the same protocol and family.
func sameKind(a, b *dataplane.ServicePort) bool {
	return a.Key.Protocol == b.Key.Protocol && a.Key.Family == b.Key.Family
}

func numberOr(n uint16, zero string) string {
	if n == 0 {
		return zero
	}
	return number(n)
}

func portText(k dataplane.ServicePortName) string {
	if k.Port == "" {
		return k.Protocol.String() + "/" + k.Family.String()
	}
	return k.Port + "/" + k.Protocol.String() + "/" + k.Family.String()
}

// serves reports whether any endpoint takes new connections.
func serves(e *dataplane.ServicePort) bool {
	return e != nil && slices.ContainsFunc(e.Endpoints, func(ep dataplane.Endpoint) bool { return ep.Weight > 0 })
}

func (w *warner) endpoints(was, e *dataplane.ServicePort) {
	if e.Answered || was != nil && !serves(was) || serves(e) && len(e.ExternalEndpoints()) > 0 {
		return
	}
	switch {
	case !serves(e) && w.promised[e.Key.Service] != "": // the input's notices tell of it
	case !serves(e) && !e.HasEndpoints, !serves(e) && len(e.Endpoints) > 0:
		hint := w.hints[e.Key.Service]
		if hint != "" {
			hint = "; " + hint
		}
		w.add(spec.NoReadyEndpoint, e, "%s: no endpoint takes connections: they are refused%s", portText(e.Key), hint)
	case !serves(e), e.ExternalLocal && e.External() && len(e.ExternalEndpoints()) == 0 && (was == nil || len(was.ExternalEndpoints()) > 0):
		w.add(spec.LocalWithoutEndpoints, e, "%s: traffic policy Local, and no endpoint on this node: traffic that comes here is dropped", portText(e.Key))
	}
}

// nobody holds ranges from which no packet comes.
var nobody = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("ff00::/8"),
}

func (w *warner) sources(was, e *dataplane.ServicePort) {
	if len(e.LoadBalancerIPs) == 0 || len(e.SourceRanges) == 0 || was != nil && slices.Equal(was.SourceRanges, e.SourceRanges) {
		return
	}
	for _, r := range e.SourceRanges {
		if !slices.ContainsFunc(nobody, func(n netip.Prefix) bool { return n.Bits() <= r.Bits() && n.Contains(r.Addr()) }) {
			return
		}
	}
	w.add(spec.SourcesExcludeAll, e, "%s: loadBalancerSourceRanges admits no address that a packet can come from: nobody reaches the load balancer's address", portText(e.Key))
}

// Warnings merges the notices of several nodes, and those that hold everywhere, into one list. A Warning that holds on
// every node names none.
func Warnings(nodes []string, each [][]spec.Notice, everywhere []spec.Notice) []Warning {
	at := map[spec.Notice]int{}
	all := []Warning{}
	for i, notices := range each {
		for _, n := range notices {
			if _, seen := at[n]; !seen {
				at[n] = len(all)
				all = append(all, Warning{Notice: n})
			}
			if found := &all[at[n]]; !slices.Contains(found.Nodes, nodes[i]) {
				found.Nodes = append(found.Nodes, nodes[i])
			}
		}
	}
	for i := range all {
		if len(all[i].Nodes) == len(nodes) {
			all[i].Nodes = nil
		}
	}
	for _, n := range everywhere {
		all = append(all, Warning{Notice: n})
	}
	slices.SortFunc(all, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.ID(), b.ID()), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Origin.String(), b.Origin.String()), cmp.Compare(a.text(), b.text()))
	})
	return all
}
