package spec

import (
	"net/netip"
	"slices"
	"time"

	"weir/spec/probe"
)

// WeirConfiguration holds the few settings that KubeProxyConfiguration has no field for. In YAML it is a document with
// apiVersion weir/v1alpha1 and kind WeirConfiguration. Flags of the same names win over it.
type WeirConfiguration struct {
	// ServiceCIDRs are the ranges from which ClusterIPs are allocated to Services that set none, at most one per family.
	// Defaults: 10.96.0.0/12 and fd00:10:96::/112.
	ServiceCIDRs []netip.Prefix
	// ServiceCIDRsGiven reports whether ServiceCIDRs were set by a user. The defaults may overlap with other uses of
	// the node.
	ServiceCIDRsGiven bool
	// NodePortMin and NodePortMax bound the allocated node ports, both inclusive. Defaults: 30000 and 32767.
	NodePortMin, NodePortMax uint16
	// SettleTime is how long a directory must be unchanged before it is read. Default: 100 ms.
	SettleTime time.Duration
	// StateDir holds what must outlive the process. Default: /var/lib/weir.
	StateDir string
	// AllowEmpty accepts a directory without any Service as an instruction to program none. Default: false.
	AllowEmpty bool
	// ExternalAddresses are the ranges that external IPs may come from. Default, nil: all but the node's own addresses,
	// loopback, link-local and multicast addresses, and the service CIDRs.
	ExternalAddresses []netip.Prefix
	// AllowedSigners is the path of a file with the keys, one of which must have signed the Git commit that the input comes
	// from. Default, "": none is demanded.
	AllowedSigners string
	// Silence lists the IDs of notices that are accepted for all of the input.
	Silence []string
	// PodSources are asked for pods. Default, nil: those that are found.
	PodSources []PodSource
	// DNS is about the names of Services.
	DNS DNS
	// Liveness is about the probes of endpoints.
	Liveness Liveness
	Choice
}

// Liveness says whether probes are asked, and what is allowed to them.
type Liveness struct {
	// Disabled has no probe asked, so that endpoints are as their slices say. Default: false.
	Disabled bool
	// Hosts are those that probes may connect to besides the addresses of endpoints. Default, nil: none.
	Hosts *probe.Policy
}

// Choice selects the files and objects that are used. The zero value selects all.
type Choice struct {
	// Include and Exclude are patterns as in .gitignore. If Include has any, a file must match one.
	Include, Exclude []string
	// Namespace is the only one that is used, and that of objects that name none. "" stands for all.
	Namespace string
	// Selector chooses Services by their labels, as kubectl's -l does. Endpoints go with their Service.
	Selector string
}

// Equal reports whether both choose the same.
func (c Choice) Equal(o Choice) bool {
	return slices.Equal(c.Include, o.Include) && slices.Equal(c.Exclude, o.Exclude) && c.Objects() == o.Objects()
}

// Objects returns what the Choice says about objects, without files.
func (c Choice) Objects() ObjectChoice { return ObjectChoice{c.Namespace, c.Selector} }

// ObjectChoice is the part of a Choice that is about objects.
type ObjectChoice struct{ Namespace, Selector string }

// DefaultWeirConfiguration returns the defaults.
func DefaultWeirConfiguration() WeirConfiguration {
	return WeirConfiguration{
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:10:96::/112")},
		NodePortMin:  30000,
		NodePortMax:  32767,
		SettleTime:   100 * time.Millisecond,
		StateDir:     "/var/lib/weir",
		DNS:          DNS{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}, ClusterDomain: "cluster.local", Pods: "insecure", NodeResolver: "auto"},
	}
}

// Overrides are settings that win over the same ones of a WeirConfiguration that is read; what is nil or empty changes
// nothing.
type Overrides struct {
	ServiceCIDRs []netip.Prefix
	NodePorts    *PortRange
	SettleTime   *time.Duration
	StateDir     string
	AllowEmpty   *bool
	// ExternalAddresses may be empty without being nil: then no external IP is served.
	ExternalAddresses []netip.Prefix
	AllowedSigners    string
	Silence           []string
	// PodSources may be empty without being nil: then none is asked.
	PodSources []PodSource
	ServeDNS   *bool
	DNS        DNS // without Serve
	Liveness   Liveness
	Choice
}

// PortRange is a range of ports, both inclusive.
type PortRange struct{ Min, Max uint16 }

// Apply returns c with the Overrides in it.
func (o Overrides) Apply(c WeirConfiguration) WeirConfiguration {
	if len(o.ServiceCIDRs) > 0 {
		c.ServiceCIDRs, c.ServiceCIDRsGiven = o.ServiceCIDRs, true
	}
	if o.NodePorts != nil {
		c.NodePortMin, c.NodePortMax = o.NodePorts.Min, o.NodePorts.Max
	}
	if o.SettleTime != nil {
		c.SettleTime = *o.SettleTime
	}
	if o.StateDir != "" {
		c.StateDir = o.StateDir
	}
	if o.AllowEmpty != nil {
		c.AllowEmpty = *o.AllowEmpty
	}
	if o.ExternalAddresses != nil {
		c.ExternalAddresses = o.ExternalAddresses
	}
	if o.AllowedSigners != "" {
		c.AllowedSigners = o.AllowedSigners
	}
	if len(o.Silence) > 0 {
		c.Silence = o.Silence
	}
	if o.PodSources != nil {
		c.PodSources = o.PodSources
	}
	if o.ServeDNS != nil {
		c.DNS.Serve = *o.ServeDNS
	}
	c.DNS = o.DNS.over(c.DNS)
	c.Liveness.Disabled = c.Liveness.Disabled || o.Liveness.Disabled
	if o.Liveness.Hosts != nil {
		c.Liveness.Hosts = o.Liveness.Hosts
	}
	c.Choice = o.Choice.over(c.Choice)
	return c
}

// over returns the fields of c, and those of o where c has none.
func (c Choice) over(o Choice) Choice {
	if len(c.Include) > 0 {
		o.Include = c.Include
	}
	if len(c.Exclude) > 0 {
		o.Exclude = c.Exclude
	}
	if c.Namespace != "" {
		o.Namespace = c.Namespace
	}
	if c.Selector != "" {
		o.Selector = c.Selector
	}
	return o
}

// AllowingEmpty returns the Overrides with AllowEmpty set.
func (o Overrides) AllowingEmpty() Overrides {
	allow := true
	o.AllowEmpty = &allow
	return o
}
