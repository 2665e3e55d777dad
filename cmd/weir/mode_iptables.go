package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/conntrack"
	"weir/backends/dataplane"
	"weir/backends/doctor"
	"weir/backends/firewall"
	"weir/backends/iptables"
	"weir/backends/xtables"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/nodeconfig"
)

const modeIPTables = "iptables"

// iptablesMode returns the mode that programs chains of iptables, of the variant that the node uses.
func iptablesMode(p *platform) mode {
	return mode{
		name:       modeIPTables,
		traits:     backends.Traits{HandsOver: true, FailureMetric: "iptables"},
		hairpins:   true,
		translates: true,
		answers:    p.untracked,
		section:    nodeconfig.IPTables,
		settings:   p.iptablesFamilies,
		open: func(ctx context.Context, cfg dataplane.Config, _ any) (backends.Backend, reconcile.Flows, error) {
			kernel, err := p.probeIPTables(ctx)
			if err != nil {
				return nil, nil, err
			}
			return iptables.New(cfg, kernel), conntrack.New(cfg), nil
		},
		probe: func(ctx context.Context) error {
			_, err := p.probeIPTables(ctx)
			return err
		},
		redirection: &redirection{
			open: func(ctx context.Context, cfg dataplane.Config) (backends.Backend, error) {
				kernel, err := p.probeIPTables(ctx)
				if err != nil {
					return nil, err
				}
				return iptables.New(cfg, kernel, iptables.ToListeners()), nil
			},
			leftovers: func(ctx context.Context, cfg dataplane.Config) (all []leftover) {
				for _, v := range p.iptablesVariants(ctx) {
					all = append(all, leftover{v.String(), iptables.New(cfg, v.kernel, iptables.ToListeners())})
				}
				return all
			},
		},
		leftovers: func(ctx context.Context, cfg dataplane.Config, inForce bool) (all []leftover) {
			if inForce {
				return nil
			}
			for _, v := range p.iptablesVariants(ctx) {
				all = append(all, leftover{v.String(), iptables.New(cfg, v.kernel)})
			}
			return all
		},
		checks: func(ctx context.Context) []doctor.Check {
			return iptables.Doctor(ctx, families(), p.flags.iptablesVariant())
		},
	}
}

// untracked reports whether rules of iptables can exempt packets from connection tracking.
func (p *platform) untracked(ctx context.Context) bool {
	kernel, err := p.probeIPTables(ctx)
	return err == nil && kernel.Features().Untracked
}

// iptablesFamilies is the settings function of modes that use iptables: they serve only families for which iptables
// works.
func (p *platform) iptablesFamilies(ctx context.Context, _ *spec.Snapshot, cfg *dataplane.Config) (any, error) {
	kernel, err := p.probeIPTables(ctx)
	if err != nil {
		return nil, err
	}
	cfg.Families = kernel.Features().Families
	return nil, nil
}

// variantFlag chooses between the two mechanisms below iptables.
type variantFlag struct{ variant string }

func (f *variantFlag) addVariant(fs *pflag.FlagSet) {
	fs.StringVar(&f.variant, "iptables-variant", "auto", "which iptables to use: auto, nft or legacy")
}

func (f *variantFlag) checkVariant() error {
	return oneOf("--iptables-variant", f.variant, "auto", "nft", "legacy")
}

// iptablesVariant returns the variant, or "" to ask the node.
func (f *variantFlag) iptablesVariant() xtables.Mode {
	if f.variant == "auto" {
		return ""
	}
	return xtables.Mode(f.variant)
}

// iptablesPrograms holds the iptables programs of this node. They are looked up once, because a node does not change
// its iptables under a running process.
type iptablesPrograms struct {
	kernel   xtables.Kernel
	variants []iptablesVariant
}

type iptablesVariant struct {
	mode   xtables.Mode
	kernel xtables.Kernel
}

func (v iptablesVariant) String() string { return "iptables-" + string(v.mode) }

// probeIPTables returns the iptables that this node uses.
func (p *platform) probeIPTables(ctx context.Context) (xtables.Kernel, error) {
	if p.iptables.kernel != nil {
		return p.iptables.kernel, nil
	}
	kernel, err := iptables.Probe(ctx, p.log.Named("iptables"), families(), p.flags.iptablesVariant())
	switch {
	case err != nil && !privileged():
		return nil, errUnprivileged
	case err != nil:
		return nil, fmt.Errorf("iptables cannot be used: %w", err)
	}
	p.iptables.kernel = kernel
	return kernel, nil
}

// variant returns the mechanism of the iptables that this process found, or "".
func (p *platform) variant() xtables.Mode {
	switch {
	case p.iptables.kernel == nil:
		return ""
	case strings.Contains(p.iptables.kernel.RestoreCommand(dataplane.IPv4)[0], string(xtables.Legacy)):
		return xtables.Legacy
	}
	return xtables.NFT
}

// opening returns what a mode accepts of what a firewall would drop.
func (p *platform) opening(mode string) firewall.Opening {
	switch mode {
	case modeIPTables:
		return firewall.Opening{Variant: p.variant(), Accepts: "masqueraded connections and answers, and no others"}
	case modeIPVS:
		return firewall.Opening{Variant: p.variant(), Accepts: "answers, and the rest of a connection is not forwarded in this mode"}
	}
	return firewall.Opening{}
}

// iptablesVariants returns the variants of iptables on this node that may hold objects of weir. It leaves out legacy
// unless its tables exist, because iptables-legacy would create them.
func (p *platform) iptablesVariants(ctx context.Context) []iptablesVariant {
	if p.iptables.variants != nil {
		return p.iptables.variants
	}
	modes := []xtables.Mode{p.flags.iptablesVariant()}
	if modes[0] == "" {
		modes = []xtables.Mode{xtables.NFT}
		if legacyTablesExist() {
			modes = append(modes, xtables.Legacy)
		}
	}
	p.iptables.variants = []iptablesVariant{}
	for _, m := range modes {
		if m == p.variant() {
			p.iptables.variants = append(p.iptables.variants, iptablesVariant{m, p.iptables.kernel})
		} else if kernel, err := iptables.Probe(ctx, p.log.Named("iptables"), families(), m); err == nil {
			p.iptables.variants = append(p.iptables.variants, iptablesVariant{m, kernel})
		} // a variant that this node cannot run holds nothing
	}
	return p.iptables.variants
}

func legacyTablesExist() bool {
	for _, file := range []string{"/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"} {
		if names, err := os.ReadFile(file); err == nil && len(names) > 0 {
			return true
		}
	}
	return false
}

// errUnprivileged is the error of a dry run without privileges.
var errUnprivileged = errors.New("the kernel's rules cannot be read without privileges; run this as root, or with CAP_NET_ADMIN")

// privileged reports whether this process may read and write the rules of its network namespace.
func privileged() bool { return doctor.Capable(unix.CAP_NET_ADMIN) }
