package review

import (
	"fmt"
	"slices"
	"strings"

	"weir/spec"
)

// ID names a kind of warning. IDs are stable: they are never given to another kind.
type ID string

// The kinds of warnings. Their short form, up to the first hyphen, is enough to silence one.
const (
	NoReadyEndpoint     ID = "W001-no-ready-endpoint"
	NodePortMoved       ID = "W002-node-port-moved"
	ClusterIPChanged    ID = "W003-cluster-ip-changed"
	AffinityLost        ID = "W004-session-affinity-lost"
	UnusedEndpoints     ID = "W005-unused-endpoints"
	SharedAddress       ID = "W006-shared-address"
	SourcesExcludeAll   ID = "W007-source-ranges-exclude-everybody"
	ModeChanged         ID = "W008-proxy-mode-changed"
	UnpinnedAllocation  ID = "W009-unpinned-allocation"
	SourcesOtherFamily  ID = "W010-source-ranges-of-other-family"
	LocalWithoutMembers ID = "W011-local-policy-without-endpoints"
	StaleLock           ID = "W012-stale-lock"
	NotRendered         ID = "W013-not-rendered"
)

// KindOfWarning is what is known of an ID.
type KindOfWarning struct {
	ID       ID
	Severity string
	// Meaning is a sentence for people.
	Meaning string
	// Code is the notice that it stands for, if it does.
	Code spec.Code
	// Offline says that it can be told from an input alone, without anything to compare with: weir validate has it too.
	Offline bool
}

// kinds has every ID, in order.
var kinds = []KindOfWarning{
	{NoReadyEndpoint, SeverityWarning, "No endpoint of a Service takes connections: they are refused.", spec.CodeNoEndpoints, true},
	{NodePortMoved, SeverityWarning, "A node port changes or goes: whoever uses the old one is refused.", "", false},
	{ClusterIPChanged, SeverityWarning, "A ClusterIP changes: clients that looked the old one up are refused until they look again.", "", false},
	{AffinityLost, SeverityWarning, "Session affinity ends: a client's next connection may meet another endpoint.", "", false},
	{UnusedEndpoints, SeverityWarning, "An EndpointSlice or Endpoints object belongs to no Service.", spec.CodeOrphan, true},
	{SharedAddress, SeverityWarning, "Two Services want the same external address and port: only one is reached there.", spec.CodeSharedAddress, true},
	{SourcesExcludeAll, SeverityWarning, "loadBalancerSourceRanges admits no address that a packet can come from.", "", false},
	{ModeChanged, SeverityWarning, "The proxy mode changes; the detail says what becomes of open connections.", "", false},
	{UnpinnedAllocation, SeverityInfo, "A ClusterIP or node port was allocated and is not in weir.lock.yaml: a new Service could displace it.", spec.CodeUnpinned, true},
	{SourcesOtherFamily, SeverityWarning, "loadBalancerSourceRanges has no range of an address's family: there, everybody is let in.", "", false},
	{LocalWithoutMembers, SeverityInfo, "A traffic policy is Local and the node has no endpoint: traffic that comes there is dropped.", "", false},
	{StaleLock, SeverityInfo, "weir.lock.yaml pins what no Service needs any more.", spec.CodeStaleLock, true},
	{NotRendered, SeverityInfo, "A Helm chart or a kustomization was skipped: weir reads what they render to.", spec.CodeNotRendered, true},
}

// Kinds returns every kind of warning, in the order of IDs.
func Kinds() []KindOfWarning { return slices.Clone(kinds) }

// Severity returns the severity of warnings of this kind.
func (id ID) Severity() string {
	for _, k := range kinds {
		if k.ID == id {
			return k.Severity
		}
	}
	return SeverityWarning
}

// Short returns the ID up to the first hyphen.
func (id ID) Short() string {
	short, _, _ := strings.Cut(string(id), "-")
	return short
}

// IDOf returns the ID of the warnings that a kind of notice stands for, or "".
func IDOf(c spec.Code) ID {
	for _, k := range kinds {
		if c != "" && k.Code == c {
			return k.ID
		}
	}
	return ""
}

// KindsText returns a table of every kind for a terminal.
func KindsText() string {
	var b strings.Builder
	for _, k := range kinds {
		fmt.Fprintf(&b, "%-38s %-8s %s\n", k.ID, k.Severity, k.Meaning)
	}
	return b.String()
}
