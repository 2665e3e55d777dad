package main

import (
	"context"
	"errors"
	"os/signal"
	"slices"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weir/backends"
	"weir/backends/conntrack"
	"weir/backends/doctor"
	"weir/backends/hostnet"
	"weir/backends/iptables"
	"weir/backends/ipvs"
	"weir/backends/nftables"
	"weir/backends/userspace"
)

func newDoctor() *cobra.Command {
	var (
		node      nodeFlags
		output    outputFlag
		scheduler string
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this node has of what each mode needs, and what mends the rest",
		Long: `Look for what each mode needs on this node: programs, the kernel's modules, privileges, kernel parameters, and whether
others program Services as well. What is missing is named together with the command that mends it. Nothing is changed.

"ok" is as it should be, "advice" works and could be better, "missing" keeps the mode from running.

Exit codes: 0 the mode that weir would use, or that --mode asks for, can run; 1 it cannot; 2 the command line makes no
sense.`,
		Example: `  weir doctor
  weir doctor --mode ipvs --scheduler wrr
  weir doctor -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(node.check(), output.check()); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			report := examine(ctx, node, scheduler)
			if err := writeReport(cmd, report, output.format); err != nil {
				return err
			}
			if !report.Usable {
				return errReported
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&node.mode, "mode", "", "the mode that has to be able to run: iptables, ipvs, nftables or userspace (default: the one weir would use)")
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "proxy-mode" { // as it is called everywhere else
			name = "mode"
		}
		return pflag.NormalizedName(name)
	})
	fs.StringVar(&scheduler, "scheduler", "rr", "the scheduler that ipvs mode is to use")
	node.addVariant(fs)
	output.add(cmd, "what was found")
	return cmd
}

// examine asks every backend.
func examine(ctx context.Context, node nodeFlags, scheduler string) doctor.Report {
	fams := families()
	forwarding := hostnet.Forwarding{IPv4: slices.Contains(fams, backends.IPv4), IPv6: slices.Contains(fams, backends.IPv6)}
	common := append([]doctor.Check{doctor.Kernel(), conntrack.Doctor(hostnet.Sysctl{})}, forwarding.Doctor(hostnet.Sysctl{})...)
	kernel, _ := kernelVersion()
	variant := iptables.Mode(node.variant)
	if node.variant == "auto" {
		variant = ""
	}
	return doctor.NewReport(common, []doctor.Section{
		{Name: modeIPTables, Checks: iptables.Doctor(ctx, fams, variant)},
		{Name: modeNFTables, Checks: nftables.Doctor(ctx)},
		{Name: modeIPVS, Checks: ipvs.Doctor(scheduler, kernel), NeedsOneOf: []string{modeIPTables}},
		{Name: modeUserspace, Checks: userspace.Doctor(), NeedsOneOf: []string{modeIPTables, modeNFTables}},
	}, node.mode, modeIPTables, modeNFTables)
}

func writeReport(cmd *cobra.Command, report doctor.Report, format string) error {
	w := cmd.OutOrStdout()
	if format == "json" {
		return writeJSON(w, report)
	}
	return report.WriteText(w, func(s doctor.State, text string) string {
		return paint(w, map[doctor.State]string{doctor.OK: green, doctor.Advice: yellow, doctor.Missing: red}[s], text)
	})
}
