package nodeconfig

import (
	"time"

	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/spec/config"
)

// DefaultMasqueradeMark is the mark of the default masqueradeBit, 14.
const DefaultMasqueradeMark = 1 << 14

// Section holds the settings of one proxy mode, in fields that all modes share. Each mode reads its section with one of
// these functions: IPTables, IPVS or NFTables.
type Section struct {
	// MinSyncPeriod is the least time between the starts of two rounds, SyncPeriod the time between two full ones.
	MinSyncPeriod, SyncPeriod time.Duration
	MasqueradeAll             bool
	MasqueradeMark            uint32
	// NodePortAddresses are CIDRs and keywords. If none are set, they hold the mode's default.
	NodePortAddresses []string
	// LocalhostNodePorts reports whether node ports are also served on those loopback addresses that NodePortAddresses
	// includes.
	LocalhostNodePorts bool
}

// IPTables returns the section of iptables mode. Modes without a section of their own use it too.
func IPTables(c *kubeproxyconfig.KubeProxyConfiguration) Section {
	return Section{
		MinSyncPeriod:      c.IPTables.MinSyncPeriod.Duration,
		SyncPeriod:         c.IPTables.SyncPeriod.Duration,
		MasqueradeAll:      c.IPTables.MasqueradeAll,
		MasqueradeMark:     masqueradeMark(c.IPTables.MasqueradeBit),
		NodePortAddresses:  nodePortAddresses(c, config.NodePortsAll),
		LocalhostNodePorts: c.IPTables.LocalhostNodePorts == nil || *c.IPTables.LocalhostNodePorts,
	}
}

// IPVS returns the section of ipvs mode. As in kube-proxy, it takes everything except its periods from that of
// iptables.
func IPVS(c *kubeproxyconfig.KubeProxyConfiguration) Section {
	s := IPTables(c)
	s.MinSyncPeriod, s.SyncPeriod = c.IPVS.MinSyncPeriod.Duration, c.IPVS.SyncPeriod.Duration
	return s
}

// NFTables returns the section of nftables mode. As in kube-proxy, node ports are served on the primary addresses unless
// nodePortAddresses says otherwise, and on loopback addresses only if it says so.
func NFTables(c *kubeproxyconfig.KubeProxyConfiguration) Section {
	return Section{
		MinSyncPeriod:      c.NFTables.MinSyncPeriod.Duration,
		SyncPeriod:         c.NFTables.SyncPeriod.Duration,
		MasqueradeAll:      c.NFTables.MasqueradeAll,
		MasqueradeMark:     masqueradeMark(c.NFTables.MasqueradeBit),
		NodePortAddresses:  nodePortAddresses(c, config.NodePortsPrimary),
		LocalhostNodePorts: len(c.NodePortAddresses) > 0,
	}
}

func masqueradeMark(bit *int32) uint32 {
	if bit == nil {
		return DefaultMasqueradeMark
	}
	return 1 << uint(*bit)
}

func nodePortAddresses(c *kubeproxyconfig.KubeProxyConfiguration, otherwise string) []string {
	if len(c.NodePortAddresses) > 0 {
		return c.NodePortAddresses
	}
	return []string{otherwise}
}
