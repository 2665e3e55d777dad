package review

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/backends"
)

// AnnotationSilence lists, on a Service, the IDs of warnings that its authors know and accept: "W001,W004".
const AnnotationSilence = "weir/silence"

// The severities.
const (
	SeverityWarning = "warning"
	SeverityInfo    = "info"
)

// Warning is what a reviewer should look at.
type Warning struct {
	ID       ID     `json:"id"`
	Severity string `json:"severity"`
	// Object is "Service default/web".
	Object string `json:"object,omitempty"`
	Source string `json:"source,omitempty"`
	Detail string `json:"detail"`
	// Nodes are those that it holds for; none if it holds for all of the plan.
	Nodes []string `json:"nodes,omitempty"`

	service backends.ServiceName
}

// NewWarning returns a Warning about a Service.
func NewWarning(id ID, name backends.ServiceName, source, format string, args ...any) Warning {
	return Warning{ID: id, Severity: id.Severity(), Object: "Service " + name.String(), Source: source,
		Detail: fmt.Sprintf(format, args...), service: name}
}

// Warn returns what a reviewer of the change on one node should look at: only what the change brings about, not what was
// so before.
func Warn(old, new State) []Warning {
	w := &warner{}
	before, after := indexOf(old.Entries), indexOf(new.Entries)
	for _, name := range before.names(after) {
		w.service(name, before[name], after[name])
	}
	was := addressesOf(old.Entries)
	for a, names := range addressesOf(new.Entries) {
		if len(names) > 1 && !slices.Equal(names, was[a]) {
			w.shared(a, names, after)
		}
	}
	if old.Mode != "" && new.Mode != "" && old.Mode != new.Mode {
		w.found = append(w.found, modeWarning(old.Mode, new.Mode))
	}
	return sortWarnings(w.found)
}

func modeWarning(old, new string) Warning {
	detail := "connections that are open keep their endpoints, since conntrack translates them whatever the mode; clients with session affinity may meet another endpoint once"
	if old == "userspace" || new == "userspace" {
		detail = "connections through the userspace proxy end when it does"
	}
	if old == "ipvs" || new == "ipvs" {
		detail = "connections that IPVS holds are not handed over: those open now are reset or time out"
	}
	return Warning{ID: ModeChanged, Severity: ModeChanged.Severity(), Detail: fmt.Sprintf("the proxy mode changes from %s to %s: %s", old, new, detail)}
}

type warner struct{ found []Warning }

func (w *warner) add(id ID, e *backends.Entry, format string, args ...any) {
	w.found = append(w.found, NewWarning(id, e.Key.Service, e.Origin, format, args...))
}

func (w *warner) service(name backends.ServiceName, old, new []*backends.Entry) {
	for _, e := range new {
		was := find(old, e.Key)
		w.endpoints(was, e)
		w.sources(was, e)
		if was == nil {
			continue
		}
		if was.NodePort != e.NodePort && was.NodePort != 0 {
			w.add(NodePortMoved, e, "%s: the node port was %d and is %s: whoever uses the old one is refused", portText(e.Key), was.NodePort, numberOr(e.NodePort, "gone"))
		}
		if was.ClusterIP != e.ClusterIP {
			w.add(ClusterIPChanged, e, "%s: the ClusterIP was %s and is %s: clients that looked the old one up are refused until they look again", portText(e.Key), was.ClusterIP, e.ClusterIP)
		}
		if was.Affinity != 0 && e.Affinity == 0 {
			w.add(AffinityLost, e, "%s: session affinity ends: a client's next connection may meet another endpoint", portText(e.Key))
		}
	}
}

func numberOr(n uint16, zero string) string {
	if n == 0 {
		return zero
	}
	return number(n)
}

func portText(k backends.PortKey) string {
	if k.Port == "" {
		return k.Protocol.String() + "/" + k.Family.String()
	}
	return k.Port + "/" + k.Protocol.String() + "/" + k.Family.String()
}

// serves says whether any endpoint takes new connections.
func serves(e *backends.Entry) bool {
	return e != nil && slices.ContainsFunc(e.Endpoints, func(ep backends.Endpoint) bool { return ep.Weight > 0 })
}

func (w *warner) endpoints(was, e *backends.Entry) {
	if was != nil && !serves(was) || serves(e) && len(e.ExternalEndpoints()) > 0 {
		return
	}
	switch {
	case !serves(e) && !e.HasEndpoints, !serves(e) && len(e.Endpoints) > 0:
		w.add(NoReadyEndpoint, e, "%s: no endpoint takes connections: they are refused", portText(e.Key))
	case !serves(e), e.ExternalLocal && e.External() && len(e.ExternalEndpoints()) == 0 && (was == nil || len(was.ExternalEndpoints()) > 0):
		w.add(LocalWithoutMembers, e, "%s: traffic policy Local, and no endpoint on this node: traffic that comes here is dropped", portText(e.Key))
	}
}

// nobody are ranges that no packet comes from.
var nobody = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("224.0.0.0/3"),
	netip.MustParsePrefix("::/127"), netip.MustParsePrefix("ff00::/8"),
}

func (w *warner) sources(was, e *backends.Entry) {
	if len(e.LoadBalancerIPs) == 0 || len(e.SourceRanges) == 0 || was != nil && slices.Equal(was.SourceRanges, e.SourceRanges) {
		return
	}
	for _, r := range e.SourceRanges {
		if !slices.ContainsFunc(nobody, func(n netip.Prefix) bool { return n.Bits() <= r.Bits() && n.Contains(r.Addr()) }) {
			return
		}
	}
	w.add(SourcesExcludeAll, e, "%s: loadBalancerSourceRanges admits no address that a packet can come from: nobody reaches the load balancer's address", portText(e.Key))
}

// address is what only one Service port can have.
type address struct {
	addr     netip.Addr
	port     uint16
	protocol backends.Protocol
}

// addressesOf returns which Services are reached at each external address.
func addressesOf(entries []*backends.Entry) map[address][]backends.ServiceName {
	m := map[address][]backends.ServiceName{}
	for _, e := range entries {
		for _, a := range slices.Concat(e.ExternalIPs, e.LoadBalancerIPs) {
			key := address{a, e.Port, e.Key.Protocol}
			if !slices.Contains(m[key], e.Key.Service) {
				m[key] = append(m[key], e.Key.Service)
			}
		}
	}
	for _, names := range m {
		slices.SortFunc(names, backends.ServiceName.Compare)
	}
	return m
}

func (w *warner) shared(a address, names []backends.ServiceName, after index) {
	for i, name := range names {
		others := slices.Delete(slices.Clone(names), i, i+1)
		texts := make([]string, len(others))
		for j, o := range others {
			texts[j] = o.String()
		}
		w.add(SharedAddress, after[name][0], "%s/%s is also an address of Service %s: only one of them is reached there",
			netip.AddrPortFrom(a.addr, a.port), a.protocol, strings.Join(texts, ", "))
	}
}

func sortWarnings(all []Warning) []Warning {
	slices.SortFunc(all, func(a, b Warning) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Detail, b.Detail))
	})
	return all
}

// MergeWarnings makes one list of those of several nodes. Those that hold on every node name none.
func MergeWarnings(nodes []string, each [][]Warning) []Warning {
	type same struct {
		id                     ID
		object, source, detail string
	}
	at := map[same]int{}
	var all []Warning
	for i, warnings := range each {
		for _, w := range warnings {
			key := same{w.ID, w.Object, w.Source, w.Detail}
			if _, seen := at[key]; !seen {
				at[key] = len(all)
				w.Nodes = nil
				all = append(all, w)
			}
			found := &all[at[key]]
			if !slices.Contains(found.Nodes, nodes[i]) {
				found.Nodes = append(found.Nodes, nodes[i])
			}
		}
	}
	for i := range all {
		if len(all[i].Nodes) == len(nodes) {
			all[i].Nodes = nil
		}
	}
	return sortWarnings(all)
}

// Silence leaves out the warnings that a Service's annotation names. annotation returns the value of AnnotationSilence.
func Silence(all []Warning, annotation func(backends.ServiceName) string) []Warning {
	kept := []Warning{}
	for _, w := range all {
		if w.service == (backends.ServiceName{}) || !Silenced(w.ID, annotation(w.service)) {
			kept = append(kept, w)
		}
	}
	return kept
}

// Silenced says whether a list, the value of AnnotationSilence, names a kind of warning.
func Silenced(id ID, list string) bool {
	for part := range strings.SplitSeq(list, ",") {
		if part = strings.TrimSpace(part); part != "" && (part == id.Short() || part == string(id)) {
			return true
		}
	}
	return false
}
