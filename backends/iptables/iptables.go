// Package iptables programs Services as iptables rules, in chains of its own that all begin with WEIR-, through package
// xtables, with the nf_tables mechanism or the legacy one.
//
// A packet for a Service takes this path, in the nat table and also in the filter table, which holds only refusals:
//
//	PREROUTING, OUTPUT → WEIR-SERVICES → WEIR-IP → WEIR-IP-A → WEIR-IP-2A → WEIR-SVC-… → DNAT
//	                                   ↘ WEIR-NP → WEIR-NP-tcp-…  (node ports)    ↗
//	POSTROUTING → WEIR-POSTROUTING → WEIR-MASQUERADE
//
// The chains in between form a tree by the last byte of the destination (10.96.0.42 is in WEIR-IP-2A), or by blocks of
// node ports. A new connection meets only the few rules of its branch, and a change to a Service touches one small
// chain. A Service port has one chain in most cases, with a rule per endpoint, and none if one rule is enough.
// Endpoints have no chains, because iptables-nft slows down mostly with the number of chains.
//
// The key type is Backend. The package does not run the programs itself; package xtables does. Only cmd/weir and tests
// may import it.
package iptables

import (
	"slices"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// Backend implements backends.Backend. Its Tables implement Observe, Apply, the Watcher and the CommandLister.
//
// Base and Render may be called at any time, by any goroutine.
type Backend struct {
	*xtables.Tables
	cfg    dataplane.Config
	kernel xtables.Kernel
	bpf    bool // one rule recognises every hairpin connection
	names  names
	// setMark has the connection masqueraded, and translated matches what may be. Without labels, what another program
	// translated and marked is among it.
	setMark, translated string
	// masquerade is the target that masquerades.
	masquerade string
	// toListeners reports whether the endpoints are sockets of userspace mode.
	toListeners bool
	trees       map[dataplane.Family]*trees
	pods        map[dataplane.Family]xtables.PodMatch
}

// Option changes what New returns.
type Option func(*Backend)

// ToListeners returns an Option for a Backend whose endpoints are sockets that userspace mode listens on. Its chains
// have names of their own, so that it can be set up before iptables mode is removed, and the other way round. It drops
// answers of the endpoints that do not carry the masquerade mark. A user who listens on the port of a weir that was
// killed cannot set that mark.
func ToListeners() Option {
	return func(b *Backend) { b.names, b.toListeners = namesOf(redirectPrefix), true }
}

// tables are the tables that hold weir's chains.
var tables = []string{"nat", "filter", "mangle", "raw"}

// New returns a Backend that programs the families of cfg through kernel.
func New(cfg dataplane.Config, kernel xtables.Kernel, options ...Option) *Backend {
	features := kernel.Features()
	cfg.Families = xtables.Families(kernel, cfg.Families)
	b := &Backend{
		cfg: cfg, kernel: kernel, bpf: features.BPF, names: namesOf(ownPrefix),
		setMark: xtables.SetMark(cfg.MasqueradeMark), masquerade: xtables.Masquerade(features.RandomFully),
		trees: make(map[dataplane.Family]*trees), pods: make(map[dataplane.Family]xtables.PodMatch),
	}
	b.translated = "-m mark --mark " + xtables.MarkText(cfg.MasqueradeMark) + " -m conntrack --ctstate DNAT"
	if features.Labels {
		b.setMark = xtables.SetLabel() + " " + b.setMark
		b.translated = "-m mark --mark " + xtables.MarkText(cfg.MasqueradeMark) + " " + xtables.Labelled()
	}
	for _, o := range options {
		o(b)
	}
	b.Tables = xtables.NewTables(kernel, cfg.Families, xtables.Layout{Names: slices.Clone(tables), Owned: b.names.owned, Shared: b.names.shared})
	for _, f := range cfg.Families {
		b.trees[f] = newTrees(f, b.names.portRoot)
		b.pods[f] = xtables.MatchPods(cfg.LocalDetector, f)
	}
	return b
}

// Optional implements backends.Backend.
func (b *Backend) Optional() backends.Optional {
	return backends.Optional{Watcher: b, Describer: b, CommandLister: b, ConnectionCounter: b, Refuser: b}
}

// Close implements backends.Backend. A Backend holds nothing open.
func (b *Backend) Close() error { return nil }
