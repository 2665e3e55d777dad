package iptables

import (
	"context"
	"strings"

	hclog "github.com/hashicorp/go-hclog"

	"weir/backends/dataplane"
	"weir/backends/doctor"
	"weir/backends/xtables"
)

// needs holds every kind of rule that a Backend writes.
var needs = xtables.Needs{
	Rules: map[string]string{
		"the statistic match":   "-m statistic --mode random --probability 0.5",
		"the recent match":      "-m recent --set --name WEIR-PROBE --rsource",
		"the addrtype match":    "-m addrtype --dst-type LOCAL",
		"the conntrack match":   "-m conntrack --ctstate NEW",
		"the mark match":        "-m mark --mark 1/1",
		"the MARK target":       "-j MARK --set-xmark 1/1",
		"the MASQUERADE target": "-j MASQUERADE",
	},
	Modules: []string{"xt_statistic", "xt_recent", "xt_addrtype", "xt_conntrack", "xt_mark", "xt_MASQUERADE"},
}

// Probe finds an iptables that supports the rules of a Backend; see xtables.Probe.
func Probe(ctx context.Context, log hclog.Logger, families []dataplane.Family, force xtables.Mode) (xtables.Kernel, error) {
	return xtables.Probe(ctx, log, families, force, needs)
}

// Doctor checks the requirements of the mode, with the mechanism that Probe would choose if force is "".
func Doctor(ctx context.Context, families []dataplane.Family, force xtables.Mode) []doctor.Check {
	checks, kernel := xtables.Doctor(ctx, families, force, needs)
	if kernel != nil {
		checks = append(checks, checkFeatures(kernel.Features())...)
	}
	return append(checks, checkKubeProxy(ctx, families))
}

// checkFeatures checks the features that weir can do without.
func checkFeatures(has xtables.Features) []doctor.Check {
	bpf := doctor.Check{Name: "xt_bpf", State: doctor.OK, Detail: "one rule recognises every hairpin connection"}
	if !has.BPF {
		bpf.State, bpf.Detail, bpf.Mend = doctor.Advice, "missing: each endpoint on this node needs a rule for hairpin connections", "modprobe xt_bpf"
	}
	random := doctor.Check{Name: "random-fully", State: doctor.OK, Detail: "masqueraded connections get their source ports at random"}
	if !has.RandomFully {
		random.State, random.Detail = doctor.Advice, "missing: connections that are masqueraded at the same moment may race for a source port"
	}
	untracked := doctor.Check{Name: "xt_CT", State: doctor.OK, Detail: "questions to kube-dns that weir answers are not tracked"}
	if !has.Untracked {
		untracked.State, untracked.Detail, untracked.Mend = doctor.Advice, "missing: questions to kube-dns are translated and tracked as other connections are", "modprobe -a xt_CT iptable_raw"
	}
	return []doctor.Check{bpf, random, doctor.Labels(has.Labels), untracked}
}

// checkKubeProxy reports whether a kube-proxy has programmed this node, by either mechanism.
func checkKubeProxy(ctx context.Context, families []dataplane.Family) doctor.Check {
	found := map[string]bool{}
	for _, mode := range []xtables.Mode{xtables.NFT, xtables.Legacy} {
		for _, f := range families {
			k, err := xtables.Open(mode, f)
			if err != nil {
				continue
			}
			saved, err := k.Save(ctx, f, "nat")
			if err != nil {
				continue
			}
			here := map[string]bool{}
			if findKubeProxy(saved, here) == nil {
				for chain := range here {
					found[chain+" ("+strings.TrimSuffix(k.RestoreCommand(f)[0], "restore")+"save)"] = true
				}
			}
			_ = saved.Close()
		}
	}
	return doctor.KubeProxy("chains of it", found)
}
