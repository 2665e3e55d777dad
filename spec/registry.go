package spec

import (
	"fmt"
	"iter"
	"slices"
	"strings"
)

// AnnotationSilence is the annotation of a Service that lists the IDs of notices its author accepts: "W001,W004".
const AnnotationSilence = "weir/silence"

// Annotations are all that weir reads of a Service's, among those that begin with weir/.
var Annotations = []string{
	"weir/ipvs-scheduler", "weir/min-healthy", "weir/on-unhealthy", "weir/probe", "weir/proxy-protocol", AnnotationSilence, "weir/weights",
}

// Severity is the importance of a Notice.
type Severity string

// The severities.
const (
	// SeverityError means that the input is refused.
	SeverityError Severity = "error"
	// SeverityWarning means that the input is probably not what its author meant.
	SeverityWarning Severity = "warning"
	// SeverityInfo means that the author may want to know.
	SeverityInfo Severity = "info"
)

// NoticeID names a kind of Notice. IDs are stable: an ID is never used again for another kind.
type NoticeID string

// The kinds of notices. Their short form, up to the first hyphen, is enough to silence or select one.
const (
	// Invalid is the only kind of severity error.
	Invalid NoticeID = "invalid"

	NoReadyEndpoint       NoticeID = "W001-no-ready-endpoint"
	NodePortMoved         NoticeID = "W002-node-port-moved"
	ClusterIPChanged      NoticeID = "W003-cluster-ip-changed"
	AffinityLost          NoticeID = "W004-session-affinity-lost"
	UnusedEndpoints       NoticeID = "W005-unused-endpoints"
	SharedAddress         NoticeID = "W006-shared-address"
	SourcesExcludeAll     NoticeID = "W007-source-ranges-exclude-everybody"
	ModeChanged           NoticeID = "W008-proxy-mode-changed"
	UnpinnedAllocation    NoticeID = "W009-unpinned-allocation"
	SourcesOtherFamily    NoticeID = "W010-source-ranges-of-other-family"
	LocalWithoutEndpoints NoticeID = "W011-local-policy-without-endpoints"
	StaleLock             NoticeID = "W012-stale-lock"
	NotRendered           NoticeID = "W013-not-rendered"
	InTwoSources          NoticeID = "W014-in-two-sources"
	NodeUnknown           NoticeID = "W015-node-unknown"
	PortWithoutEndpoints  NoticeID = "W016-port-without-endpoints"
	EndpointsSkipped      NoticeID = "W017-endpoints-skipped"
	OtherProxy            NoticeID = "W018-other-proxy"
	PortNotServed         NoticeID = "W019-port-not-served"
	NoTopologyHints       NoticeID = "W020-no-topology-hints"
	AnnotationIgnored     NoticeID = "W021-annotation-ignored"
	SettingIgnored        NoticeID = "W022-setting-ignored"
	EndpointIsFrontend    NoticeID = "W023-endpoint-is-frontend"
	ExternalIPRefused     NoticeID = "W024-external-ip-refused"
	ServicePortChanged    NoticeID = "W025-service-port-changed"
	TargetPortDiffers     NoticeID = "W026-target-port-differs"
	NoLocalDetection      NoticeID = "W027-no-local-detection"
	NodeNameUnmatched     NoticeID = "W028-node-name-unmatched"
	KustomizationNotBuilt NoticeID = "W029-kustomization-not-built"
	NoLoadBalancerAddress NoticeID = "W030-no-load-balancer-address"
	ServiceRangeOverlaps  NoticeID = "W031-service-range-overlaps"
	NoRouteToServices     NoticeID = "W032-no-route-to-services"
	ServiceRefused        NoticeID = "W033-service-refused"
	DeclaredTwice         NoticeID = "W034-declared-twice"
	FileNotRead           NoticeID = "W035-file-not-read"
	TableOwned            NoticeID = "W036-table-owned"
	PodsNotUsed           NoticeID = "W037-pods-not-used"
	NameRemoved           NoticeID = "W038-name-removed"
	PodsNotRead           NoticeID = "W039-pods-not-read"
	EndpointsPromised     NoticeID = "W040-endpoints-promised"
	ProbeNotAsked         NoticeID = "W041-probe-not-asked"
	ProbeNotUsed          NoticeID = "W042-probe-not-used"
	PodLabelIgnored       NoticeID = "W043-pod-label-ignored"
	TargetPortUnknown     NoticeID = "W044-target-port-unknown"
	RuntimeNotAsked       NoticeID = "W045-runtime-not-asked"
	Deprecated            NoticeID = "W046-deprecated"
	LoopbackProxied       NoticeID = "W047-loopback-proxied"
)

// NoticeKind describes a kind of Notice.
type NoticeKind struct {
	ID       NoticeID
	Severity Severity
	// Meaning is one sentence for users.
	Meaning string
	// Compares reports whether the kind needs two states to compare, or a node to resolve for. weir validate never
	// reports such a kind.
	Compares bool
}

// noticeKinds has every ID in order. weir help warnings, weir validate, plans and cmd/weir/README.md list it.
var noticeKinds = []NoticeKind{
	{NoReadyEndpoint, SeverityWarning, "No endpoint of a Service takes connections: they are refused.", false},
	{NodePortMoved, SeverityWarning, "A node port changes or is removed: clients of the old one are refused.", true},
	{ClusterIPChanged, SeverityWarning, "A ClusterIP changes: clients that looked the old one up are refused until they look again.", true},
	{AffinityLost, SeverityWarning, "Session affinity ends: a client's next connection may meet another endpoint.", true},
	{UnusedEndpoints, SeverityWarning, "An EndpointSlice or Endpoints object belongs to no Service.", false},
	{SharedAddress, SeverityWarning, "Two Services, or a Service and the node, have the same address and port: only one is reached there.", false},
	{SourcesExcludeAll, SeverityWarning, "loadBalancerSourceRanges admits no address that a packet can come from.", true},
	{ModeChanged, SeverityWarning, "The proxy mode changes; the detail says what happens to open connections.", true},
	{UnpinnedAllocation, SeverityInfo, "A ClusterIP or node port was allocated and is not in weir.lock.yaml: a new Service could displace it.", false},
	{SourcesOtherFamily, SeverityWarning, "loadBalancerSourceRanges has no range of an address's family: in that family every client is admitted.", false},
	{LocalWithoutEndpoints, SeverityInfo, "A traffic policy is Local and the node has no endpoint: traffic that comes there is dropped.", true},
	{StaleLock, SeverityInfo, "weir.lock.yaml pins what no Service needs any more.", false},
	{NotRendered, SeverityInfo, "A Helm chart or a kustomization was skipped: weir reads what they render to.", false},
	{InTwoSources, SeverityWarning, "Two sources declare the same object: only one of them is used.", false},
	{NodeUnknown, SeverityWarning, "The node has no Node object: its zone and pod CIDRs are not known.", false},
	{PortWithoutEndpoints, SeverityWarning, "A Service has endpoints, but none for one of its ports.", false},
	{EndpointsSkipped, SeverityWarning, "Some addresses of an EndpointSlice are not used.", false},
	{OtherProxy, SeverityWarning, "A label hands the Service to another proxy: weir leaves it alone.", false},
	{PortNotServed, SeverityWarning, "A port of a Service cannot be served.", false},
	{NoTopologyHints, SeverityWarning, "trafficDistribution has no effect: no endpoint carries hints.", false},
	{AnnotationIgnored, SeverityWarning, "The value of an annotation is not valid and is ignored.", false},
	{SettingIgnored, SeverityWarning, "A setting has no effect.", false},
	{EndpointIsFrontend, SeverityWarning, "An endpoint is an address of a Service, from where connections are not sent on.", false},
	{ExternalIPRefused, SeverityWarning, "An external IP is the node's own, a special one, or not among externalAddresses, or a load balancer's is a reserved one: it is not served.", false},
	{ServicePortChanged, SeverityWarning, "A Service port changes or is removed: clients of the old one are refused.", true},
	{TargetPortDiffers, SeverityInfo, "A targetPort is not the port of the Service's endpoints: the endpoints' port counts.", false},
	{NoLocalDetection, SeverityWarning, "detectLocalMode finds no range of pods: no traffic is masqueraded because it comes from elsewhere.", false},
	{NodeNameUnmatched, SeverityWarning, "Endpoints name their nodes, and none is on a node of this name: no endpoint is local.", true},
	{KustomizationNotBuilt, SeverityWarning, "A kustomization changes objects that are read as they are written: give its directory with -k.", false},
	{NoLoadBalancerAddress, SeverityInfo, "A Service of type LoadBalancer has no address of its own: it is reached at its node ports only.", false},
	{ServiceRangeOverlaps, SeverityWarning, "A range of ClusterIPs overlaps a network of the node.", true},
	{NoRouteToServices, SeverityWarning, "The node has no route to its ClusterIPs: its own processes cannot connect to them.", true},
	{ServiceRefused, SeverityWarning, "A Service of a Kubernetes API has an address that no host can be reached at, or too many: it is held back.", false},
	{DeclaredTwice, SeverityInfo, "The same document is there twice: one of the two is used.", false},
	{FileNotRead, SeverityWarning, "A file is too large to be read, or no regular file, or a symlink leads to a directory elsewhere: it is skipped.", false},
	{TableOwned, SeverityWarning, "Another process owns a table that weir needs: the kernel refuses every change.", true},
	{PodsNotUsed, SeverityInfo, "A Service has EndpointSlices of its own: the pods that it selects are not used.", false},
	{NameRemoved, SeverityWarning, "A DNS name goes: clients that look it up find nothing.", true},
	{PodsNotRead, SeverityInfo, "A Pod, or a template of pods, cannot be read: its named ports and its host name are not known.", false},
	{EndpointsPromised, SeverityInfo, "The pods that a Service selects are only promised: where they run is not known to the plan.", false},
	{ProbeNotAsked, SeverityInfo, "A probe cannot be asked, or is not allowed to be: it says nothing about the endpoints.", false},
	{ProbeNotUsed, SeverityWarning, "A probe is not used: its Service is not in the input, or another probe counts.", false},
	{PodLabelIgnored, SeverityWarning, "What a running pod says of its namespace or its ports is not valid and is ignored.", false},
	{TargetPortUnknown, SeverityWarning, "A targetPort is a name that no container of the pods gives to a port: no connection gets there.", false},
	{RuntimeNotAsked, SeverityWarning, "A container runtime does not answer: its pods are not in the plan.", true},
	{Deprecated, SeverityInfo, "Kubernetes deprecates what the input uses: weir goes on with it.", false},
	{LoopbackProxied, SeverityInfo, "weir itself carries the connections to node ports at ::1, because the kernel of this node would drop the answers.", true},
}

// NoticeKinds returns every kind of notice that an accepted input can have, in the order of IDs.
func NoticeKinds() []NoticeKind { return slices.Clone(noticeKinds) }

// NoticeTable returns a table of every kind for a terminal.
func NoticeTable() string {
	var b strings.Builder
	for _, k := range noticeKinds {
		fmt.Fprintf(&b, "%-38s %-8s %s\n", k.ID, k.Severity, k.Meaning)
	}
	return b.String()
}

// Severity returns the severity of notices of this kind.
func (id NoticeID) Severity() Severity {
	for _, k := range noticeKinds {
		if k.ID == id {
			return k.Severity
		}
	}
	return SeverityError
}

// Meaning returns the meaning of the kind, one sentence.
func (id NoticeID) Meaning() string {
	for _, k := range noticeKinds {
		if k.ID == id {
			return k.Meaning
		}
	}
	return "The input cannot be used."
}

// Short returns the ID up to the first hyphen.
func (id NoticeID) Short() string {
	short, _, _ := strings.Cut(string(id), "-")
	return short
}

func (id NoticeID) named(part string) bool { return part == id.Short() || part == string(id) }

// In reports whether a list such as the value of AnnotationSilence names this kind.
func (id NoticeID) In(list string) bool {
	for part := range noticeList(list) {
		if id.named(part) {
			return true
		}
	}
	return false
}

// Selected reports whether a list such as "warning,W005" names the Notice's kind or severity.
func (n Notice) Selected(list string) bool {
	for part := range noticeList(list) {
		if n.ID().named(part) || part == string(n.Severity()) {
			return true
		}
	}
	return false
}

// noticeList yields the parts of a list that is separated by commas and blanks.
func noticeList(list string) iter.Seq[string] {
	return strings.FieldsFuncSeq(list, func(r rune) bool { return r == ',' || r == ' ' })
}
