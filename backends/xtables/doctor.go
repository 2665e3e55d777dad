package xtables

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
	"weir/backends/doctor"
)

// Doctor checks the Needs, with the mechanism that Probe would choose if force is "". The Kernel is nil if iptables
// cannot be used for any family.
func Doctor(ctx context.Context, families []dataplane.Family, force Mode, needs Needs) ([]doctor.Check, Kernel) {
	checks := []doctor.Check{doctor.NetAdmin()}
	k, err := probe(ctx, hclog.NewNullLogger(), families, force, needs)
	if err != nil {
		return append(checks, doctor.Check{Name: "iptables", State: doctor.Missing, Detail: err.Error(), Mend: "apt-get install iptables"}), nil
	}
	if k.mode == Legacy && !doctor.Capable(unix.CAP_NET_RAW) {
		checks = append(checks, doctor.Check{Name: "CAP_NET_RAW", State: doctor.Missing, Detail: "iptables-legacy needs it, and this process does not have it"})
	}
	checks = append(checks, k.checkPrograms(ctx, families))
	usable := len(k.features.Families) > 0
	for _, f := range families {
		checks = append(checks, k.checkRules(f, needs, usable))
	}
	checks = append(checks, checkVariants(ctx))
	if k.mode == NFT {
		checks = append(checks, checkOwners(ctx, families), checkDormant(ctx, families))
	}
	if !usable {
		return checks, nil
	}
	return checks, k
}

// checkPrograms checks which iptables programs are installed.
func (k *programs) checkPrograms(ctx context.Context, families []dataplane.Family) doctor.Check {
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

// checkRules checks every kind of rule in the Needs. probe tried them without adding them. A family that iptables
// cannot serve is left out if another family is usable.
func (k *programs) checkRules(f dataplane.Family, needs Needs, usable bool) doctor.Check {
	c := doctor.Check{Name: "rules for " + f.String(), State: doctor.OK, Detail: "accepted: every match and target that is needed"}
	if err := k.unusable[f]; err != nil {
		c.State, c.Detail, c.Mend = doctor.Missing, err.Error(), "modprobe -a "+strings.Join(needs.Modules, " ")
		if usable {
			c.State = doctor.Advice
		}
	}
	return c
}

// checkVariants reports whether both mechanisms hold rules.
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
