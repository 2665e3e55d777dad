package iptables

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/doctor"
)

// Doctor looks for what the mode needs, with the mechanism that Probe would choose if force is "".
func Doctor(ctx context.Context, families []backends.Family, force Mode) []doctor.Check {
	checks := []doctor.Check{doctor.NetAdmin()}
	mode := force
	if mode == "" {
		var err error
		if mode, err = detect(ctx, hclog.NewNullLogger()); err != nil {
			return append(checks, doctor.Check{Name: "iptables", State: doctor.Missing, Detail: err.Error(), Mend: "apt-get install iptables"})
		}
	}
	if mode == Legacy && !doctor.Capable(unix.CAP_NET_RAW) {
		checks = append(checks, doctor.Check{Name: "CAP_NET_RAW", State: doctor.Missing, Detail: "iptables-legacy needs it, and this process does not have it"})
	}
	k := &programs{mode: mode, paths: map[string]string{}}
	var perFamily []doctor.Check
	usable := false
	for _, f := range families {
		err := k.probe(ctx, f)
		if err == nil {
			usable = true
			k.features.Families = append(k.features.Families, f)
		}
		perFamily = append(perFamily, checkRules(f, err))
	}
	if usable {
		// A family that iptables cannot serve is left out.
		for i := range perFamily {
			if perFamily[i].State == doctor.Missing {
				perFamily[i].State = doctor.Advice
			}
		}
	}
	checks = append(checks, k.checkPrograms(ctx, families))
	checks = append(checks, perFamily...)
	if usable {
		checks = append(checks, k.checkFeatures()...)
	}
	return append(checks, checkVariants(ctx), checkKubeProxy(ctx, families))
}

// checkPrograms says which iptables there is.
func (k *programs) checkPrograms(ctx context.Context, families []backends.Family) doctor.Check {
	c := doctor.Check{Name: "iptables", State: doctor.OK}
	name := program(families[0], k.mode, "restore")
	path, err := find(name)
	if err != nil {
		c.State, c.Detail, c.Mend = doctor.Missing, name+" was not found", "apt-get install iptables"
		return c
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		c.State, c.Detail = doctor.Missing, fmt.Sprintf("cannot run %s: %v", path, err)
		return c
	}
	c.Detail = fmt.Sprintf("%s: %s", path, strings.TrimSpace(string(out)))
	return c
}

// checkRules is about every kind of rule that weir writes; they were tried without being made.
func checkRules(f backends.Family, err error) doctor.Check {
	c := doctor.Check{Name: "rules for " + f.String(), State: doctor.OK, Detail: "accepted: every match and target that is needed"}
	if err != nil {
		c.State, c.Detail = doctor.Missing, err.Error()
		c.Mend = "modprobe -a xt_statistic xt_recent xt_addrtype xt_conntrack xt_mark xt_MASQUERADE"
	}
	return c
}

// checkFeatures is about what weir can do without.
func (k *programs) checkFeatures() []doctor.Check {
	bpf := doctor.Check{Name: "xt_bpf", State: doctor.OK, Detail: "one rule recognises every hairpin connection"}
	if !k.features.BPF {
		bpf.State, bpf.Detail, bpf.Mend = doctor.Advice, "missing: each endpoint on this node needs a rule for hairpin connections", "modprobe xt_bpf"
	}
	random := doctor.Check{Name: "random-fully", State: doctor.OK, Detail: "masqueraded connections get their source ports at random"}
	if !k.features.RandomFully {
		random.State, random.Detail = doctor.Advice, "missing: connections that are masqueraded at the same moment may race for a source port"
	}
	return []doctor.Check{bpf, random}
}

// checkVariants says whether both mechanisms hold rules.
func checkVariants(ctx context.Context) doctor.Check {
	c := doctor.Check{Name: "mechanisms", State: doctor.OK}
	legacy, nft := holdsRules(ctx, Legacy), holdsRules(ctx, NFT)
	c.Detail = fmt.Sprintf("rules by iptables-nft: %d, by iptables-legacy: %d", nft, legacy)
	if legacy > 0 && nft > 0 {
		c.State = doctor.Advice
		c.Detail += ": a packet meets all of them, and a verdict of either counts"
		c.Mend = "iptables-legacy-save; iptables-nft-save"
	}
	return c
}

// checkKubeProxy says whether a kube-proxy has programmed this node, by either mechanism.
func checkKubeProxy(ctx context.Context, families []backends.Family) doctor.Check {
	found := map[string]bool{}
	for _, mode := range []Mode{NFT, Legacy} {
		k := &programs{mode: mode, paths: map[string]string{}}
		for _, f := range families {
			if k.findPrograms(f) != nil {
				continue
			}
			saved, err := k.Save(ctx, f, "nat")
			if err != nil {
				continue
			}
			here := map[string]bool{}
			if findKubeProxy(saved, here) == nil {
				for chain := range here {
					found[chain+" ("+program(f, mode, "save")+")"] = true
				}
			}
			_ = saved.Close()
		}
	}
	return doctor.KubeProxy("chains of it", found)
}
