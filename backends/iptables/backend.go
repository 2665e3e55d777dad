// Package iptables programs Services as iptables rules, in chains of its own that all begin with WEIR-, by way of
// iptables-restore and iptables-save, with the nf_tables mechanism or the legacy one.
//
// A packet for a Service takes this way, in nat and alike in filter (where only refusals are found):
//
//	PREROUTING, OUTPUT → WEIR-SERVICES → WEIR-IP → WEIR-IP-A → WEIR-IP-2A → WEIR-SVC-… → DNAT
//	                                   ↘ WEIR-NP → WEIR-NP-tcp-…  (node ports)    ↗
//	POSTROUTING → WEIR-POSTROUTING → WEIR-MASQUERADE
//
// The chains between are a tree by the last byte of the destination (10.96.0.42 is found in WEIR-IP-2A), or by blocks of
// node ports: a new connection meets the few rules of its own branch, and a change to a Service touches one small
// chain. A Service port has one chain in most cases, with a rule per endpoint, and none if one rule is enough. There is no
// chain for an endpoint: what makes iptables-nft slow is above all the number of chains.
package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/backends"
)

// Backend implements backends.Backend and backends.Generation.
//
// Base and Render may be called by anybody at any time. Observe, Apply and Generation belong to one goroutine.
type Backend struct {
	cfg      backends.Config
	kernel   Kernel
	features Features
	setMark  string
	// interfaceErr says that the local detector names what cannot be an interface.
	interfaceErr error
	trees        map[backends.Family]*trees
	pods         map[backends.Family]source

	// present holds the shared chains, the rules in them and the hooks that the kernel was last known to hold: to append
	// a rule twice would make two of it. nil means that nothing is known.
	present map[backends.ID]struct{}
	// own counts the transactions that Apply committed.
	own uint64
}

// New returns a Backend that programs the families of cfg through kernel.
func New(cfg backends.Config, kernel Kernel) *Backend {
	features := kernel.Features()
	if features.Families != nil {
		cfg.Families = slices.DeleteFunc(slices.Clone(cfg.Families), func(f backends.Family) bool { return !slices.Contains(features.Families, f) })
	}
	b := &Backend{cfg: cfg, kernel: kernel, features: features, trees: make(map[backends.Family]*trees), pods: make(map[backends.Family]source)}
	b.setMark = "-j MARK --set-xmark " + b.mark()
	if name := cfg.LocalDetector.Interface; name != "" && (len(name) > 15 || strings.ContainsAny(name, " \t\r\n\"'\\/+!")) {
		b.interfaceErr = fmt.Errorf("detectLocal: %q cannot be the name of an interface", name)
	}
	for _, f := range cfg.Families {
		b.trees[f] = newTrees(f)
		b.pods[f] = b.podSource(f)
	}
	return b
}

// Generation implements backends.Generation. It is not known with the legacy mechanism.
func (b *Backend) Generation(ctx context.Context) (uint64, error) {
	g, err := b.kernel.Generation(ctx)
	return g - b.own, err
}

// source holds the matches for traffic that starts in a pod of this node, and for all other; both are empty if there is
// no telling, and no is empty if there is no other.
type source struct{ yes, no string }

func (b *Backend) podSource(f backends.Family) source {
	d := b.cfg.LocalDetector
	if p, ok := d.PodCIDR(f); ok {
		if p.Bits() == 0 {
			return source{}
		}
		match := "-s " + prefixText(p.Masked())
		return source{yes: match, no: "! " + match}
	}
	if d.Interface == "" {
		return source{}
	}
	match := "-i " + d.Interface
	if d.Prefix {
		match += "+"
	}
	return source{yes: match, no: "! " + match}
}

func (b *Backend) masquerade() string {
	if b.features.RandomFully {
		return "-j MASQUERADE --random-fully"
	}
	return "-j MASQUERADE"
}

// hostText writes an address as a prefix of full length.
func hostText(a netip.Addr) string { return prefixText(netip.PrefixFrom(a, a.BitLen())) }
