package spec

import (
	"net/netip"
	"time"
)

// WeirConfiguration holds the few settings that KubeProxyConfiguration has no place for. In YAML it is a document with
// apiVersion weir/v1alpha1 and kind WeirConfiguration; flags of the same names win over it.
type WeirConfiguration struct {
	// ServiceCIDRs are the ranges from which ClusterIPs are allocated to Services that set none, at most one per family.
	// Defaults: 10.96.0.0/12 and fd00:10:96::/112.
	ServiceCIDRs []netip.Prefix
	// ServiceCIDRsGiven says that they are not the defaults, which the node may well use for something else.
	ServiceCIDRsGiven bool
	// NodePortMin and NodePortMax bound the node ports that are allocated, both inclusive. Defaults: 30000 and 32767.
	NodePortMin, NodePortMax uint16
	// SettleTime is how long a directory must be quiet before it is read. Default: 100 ms.
	SettleTime time.Duration
	// StateDir holds what must outlive the process. Default: /var/lib/weir.
	StateDir string
	// AllowEmpty accepts a directory without any Service as an instruction to program none. Default: false.
	AllowEmpty bool
}

// DefaultWeirConfiguration returns the defaults.
func DefaultWeirConfiguration() WeirConfiguration {
	return WeirConfiguration{
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12"), netip.MustParsePrefix("fd00:10:96::/112")},
		NodePortMin:  30000,
		NodePortMax:  32767,
		SettleTime:   100 * time.Millisecond,
		StateDir:     "/var/lib/weir",
	}
}
