// Package ipvs programs Services as virtual servers of the kernel's IPVS, which looks them up by hashing and offers
// several schedulers.
//
// Every address of a Service is on the dummy interface weir-ipvs0, so that the kernel accepts packets for it. Every
// address and port is a virtual server with a destination for each endpoint:
//
//	PREROUTING → INPUT  ┐
//	                    ├→ virtual server → destination → POSTROUTING
//	OUTPUT ─────────────┘
//
// A constant number of iptables rules do what IPVS cannot: they masquerade, enforce source ranges and reject. Their
// chains begin with WEIR-IPVS-, and they match ipsets. Another Service adds only members to these sets, except for the
// Service port of kube-dns, which has no virtual server and rules of its own if weir answers there. A Service port
// without endpoints has no virtual server: its address is in the set that is rejected, or dropped under policy Local.
//
// Under traffic policy Local the virtual server holds this node's endpoints. Traffic from this node and its pods may
// use all endpoints: a rule marks it, and a second virtual server, found by that mark, holds all endpoints.
//
// The key types are Backend and Kernel. See ownerMark for how weir recognises its virtual servers, and DrainLimit for
// graceful termination. IPVS cannot serve node ports on loopback addresses, because it lets no packet from 127.0.0.1
// leave the node. Only cmd/weir and tests may import the package.
package ipvs

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// Settings are the ipvs section of a KubeProxyConfiguration, and the capabilities of the node.
type Settings struct {
	// Scheduler is the scheduler of Services that name none; "" means rr.
	Scheduler string
	// StrictARP stops the node from answering ARP requests for addresses that are only on weir-ipvs0.
	StrictARP bool
	// The timeouts of connections, in whole seconds; 0 keeps the kernel's.
	TCPTimeout, TCPFinTimeout, UDPTimeout time.Duration
	// DrainLimit bounds how long a destination that is no longer wanted may keep its connections; 0 deletes it at once.
	DrainLimit time.Duration
	// RandomFully reports whether MASQUERADE can choose source ports at random.
	RandomFully bool
	// MatchTranslated reports whether rules can match what IPVS translated (xt_ipvs). Without it, the mark of another
	// program may masquerade a connection that has no Service.
	MatchTranslated bool
	// Kernel is the version of the kernel, such as {6, 1}.
	Kernel [2]int
}

// Warnings returns the parts of the configuration that this backend cannot implement.
func Warnings(cfg dataplane.Config) []string {
	if slices.ContainsFunc(cfg.Families, cfg.ServesLocalhost) {
		return []string{"ipvs mode serves no node ports on loopback addresses, as kube-proxy's does not: " +
			"use another address of the node, or set iptables.localhostNodePorts to false to silence this"}
	}
	return nil
}

// Backend implements backends.Backend and backends.Drainer.
type Backend struct {
	cfg    dataplane.Config
	set    Settings
	rules  *xtables.Tables
	kernel Kernel
	pods   map[dataplane.Family]xtables.PodMatch
	// inside is the bit of the packet mark that all marks of virtual servers have. Marks for UDP also have the bit
	// datagrams.
	inside, datagrams uint32

	// draining holds the virtual servers that have leaving destinations. leaving holds the addresses that are deleted
	// with their last virtual server. Both are nil until they are read.
	draining map[ServerKey]struct{}
	leaving  map[netip.Addr]struct{}
	// known holds the virtual servers that were weir's when this Backend last saw or made them. The value is their
	// ignoresZeroWeight.
	known map[ServerKey]bool
	now   func() time.Time
}

// New returns a Backend that programs the families of cfg.
func New(cfg dataplane.Config, set Settings, tables xtables.Kernel, kernel Kernel) *Backend {
	if set.Scheduler == "" {
		set.Scheduler = "rr"
	}
	b := &Backend{cfg: cfg, set: set, kernel: kernel, pods: map[dataplane.Family]xtables.PodMatch{}, known: map[ServerKey]bool{}, inside: 1 << 31, datagrams: 1, now: time.Now}
	b.rules = xtables.NewTables(tables, cfg.Families, xtables.Layout{
		Names:  []string{"nat", "filter", "mangle", "raw"},
		Owned:  func(chain string) bool { return strings.HasPrefix(chain, prefix) },
		Shared: func(chain string) bool { return strings.HasPrefix(chain, answeredChain) },
	})
	switch cfg.MasqueradeMark {
	case b.inside:
		b.inside = 1 << 30
	case b.datagrams:
		b.datagrams = 1 << 1
	}
	for _, f := range cfg.Families {
		b.pods[f] = xtables.MatchPods(cfg.LocalDetector, f)
	}
	return b
}

// Optional implements backends.Backend.
func (b *Backend) Optional() backends.Optional {
	return backends.Optional{Drainer: b, Describer: b, ConnectionCounter: b, Refuser: b.rules}
}

// Close implements backends.Backend. The sockets belong to the Kernel.
func (b *Backend) Close() error { return nil }

// nodePortAddresses returns the addresses of the node that serve node ports.
func (b *Backend) nodePortAddresses(f dataplane.Family) []netip.Addr {
	list := b.cfg.NodePortAddresses
	if list == nil {
		list = b.cfg.NodeAddresses
	}
	return slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool {
		return dataplane.FamilyOf(a) != f || a.IsLoopback()
	})
}
