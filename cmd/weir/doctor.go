package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/signal"
	"slices"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weir/backends"
	"weir/backends/conntrack"
	"weir/backends/dataplane"
	"weir/backends/dns"
	"weir/backends/doctor"
	"weir/backends/firewall"
	"weir/backends/hostnet"
	"weir/backends/nftables"
	"weir/backends/xtables"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/nodeconfig"
	"weir/spec/stall"
)

func newDoctor() *cobra.Command {
	var (
		node   nodeFlags
		output outputFlag
		cidrs  []string
		state  string
		names  namesAt
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this node has of what each mode needs, and what mends the rest",
		Long: `Check what each mode needs on this node: programs, kernel modules, privileges and kernel parameters, and whether another
program handles Services too, whether the node has a route to ClusterIPs, and whether its processes and pods find the names that
weir answers for. For each thing that is missing, print the
command that adds it. Nothing is changed.

"ok" means as it should be, "advice" that it works and could be better, "missing" that the mode cannot run.

Exit codes: 0 the mode that weir would use, or the mode of --mode, can run; 1 it cannot; 2 the command line is
wrong.`,
		Example: `  weir doctor
  weir doctor --mode ipvs --scheduler wrr
  weir doctor -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			given, err := overridesOf(config.WeirFields{ServiceCIDRs: cidrs})
			if err != nil {
				err = usageError{err}
			}
			if err := errors.Join(node.check(), output.check(), names.check(), err); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			ranges := given.ServiceCIDRs
			if ranges == nil {
				ranges = rangesInForce(ctx, state)
			}
			report := examine(ctx, newPlatform(hclog.NewNullLogger(), node, false), ranges, state)
			report.Node = append(report.Node, names.examine(ctx, state)...)
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
	fs.StringVar(&node.mode, "mode", "", "the mode to check: "+orList(knownModes().names())+" (default: the one weir would use)")
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "proxy-mode" { // its name everywhere else
			name = "mode"
		}
		return pflag.NormalizedName(name)
	})
	node.addScheduler(fs)
	node.addVariant(fs)
	fs.StringSliceVar(&cidrs, "service-cidrs", nil, "ranges of the ClusterIPs (default: those of the weir that runs with --state-dir, else those without a configuration)")
	fs.StringVar(&state, "state-dir", spec.DefaultWeirConfiguration().StateDir, "the state directory of weir run, which remembers the values that kernel parameters had")
	names.add(fs)
	output.add(cmd, "what was found")
	return cmd
}

// rangesInForce returns the ranges of ClusterIPs of the weir that runs with this state directory, or nil if none answers.
func rangesInForce(ctx context.Context, stateDir string) []netip.Prefix {
	ctx, cancel := context.WithTimeout(ctx, stall.Limit)
	defer cancel()
	s, err := status.Get(ctx, stateDir, noService, false)
	if err != nil {
		return nil
	}
	var ranges []netip.Prefix
	for _, text := range s.ServiceRanges {
		if r, err := netip.ParsePrefix(text); err == nil {
			ranges = append(ranges, r)
		}
	}
	return ranges
}

// noService is the name of no Service, for a status without any.
const noService = "-"

// namesAt says where weir answers for names, for the examination of the resolvers of the node.
type namesAt struct {
	listen, domain string
	at             netip.AddrPort
	set            *pflag.FlagSet
}

func (n *namesAt) add(fs *pflag.FlagSet) {
	n.set = fs
	d := spec.DefaultWeirConfiguration().DNS
	fs.StringVar(&n.listen, "dns-listen", d.Listen[0].String(), "ADDRESS:PORT at which weir run --dns answers the processes of this node, if the running weir is not to be asked for it")
	fs.StringVar(&n.domain, "cluster-domain", d.ClusterDomain, "domain that the names of Services end in, likewise")
}

func (n *namesAt) check() (err error) {
	if n.at, err = netip.ParseAddrPort(n.listen); err != nil {
		return usageError{fmt.Errorf("--dns-listen: %q is not ADDRESS:PORT, such as 127.0.0.1:53", n.listen)}
	}
	return nil
}

// examine asks weir, and then the resolvers of the node, for a name that only weir has. Where the running weir answers counts, unless
// flags say another place.
func (n *namesAt) examine(ctx context.Context, stateDir string) []doctor.Check {
	running, err := status.Zone(ctx, stateDir)
	runs := err == nil && running.InForce != nil && running.InForce.Serve
	if runs && !n.set.Changed("dns-listen") {
		n.at = askedAt(running.InForce.Listen)
	}
	if runs && !n.set.Changed("cluster-domain") {
		n.domain = running.InForce.ClusterDomain
	}
	kept := hostnet.NewNodeNames(hclog.NewNullLogger(), stateDir).Doctor(runs || dns.AnswersFor(ctx, n.at, n.domain))
	found := hostnet.Resolvers{}.Doctor(n.at, n.domain, func(server netip.AddrPort) bool { return dns.AnswersFor(ctx, server, n.domain) })
	if runs && len(kept) > 0 { // what weir has set tells how processes find names
		found = slices.DeleteFunc(found, func(c doctor.Check) bool { return c.Name == hostnet.NamesForProcesses })
	}
	return append(kept, found...)
}

// examine asks every mode. ranges are those of the ClusterIPs, nil for the default ones.
func examine(ctx context.Context, p *platform, ranges []netip.Prefix, stateDir string) doctor.Report {
	fams := families()
	forwarding := hostnet.Forwarding{IPv4: slices.Contains(fams, dataplane.IPv4), IPv6: slices.Contains(fams, dataplane.IPv6)}
	common := append([]doctor.Check{doctor.Kernel(), conntrack.Doctor(hostnet.Sysctl{})}, forwarding.Doctor(hostnet.Sysctl{}, func() (bool, error) { return p.guardsLoopback(ctx) })...)
	common = slices.Concat(common, hostnet.Recorded(hostnet.Sysctl{}, stateDir), hostnet.BridgeChecks(hostnet.Sysctl{}), networkChecks(ranges), podChecks(ctx))
	dropping, err := firewall.Dropping(ctx)
	_, _ = p.probeIPTables(ctx) // for the variant; the checks of the mode say what is wrong
	var sections []doctor.Section
	for _, m := range p.modes {
		checks := m.checks(ctx)
		if !m.traits.CarriesTraffic { // a proxy's connections come from the node itself
			checks = append(checks, firewall.Doctor(dropping, err, p.opening(m.name)))
		}
		sections = append(sections, doctor.Section{Name: m.name, Checks: checks, NeedsOneOf: m.needsOneOf})
	}
	return doctor.NewReport(common, sections, p.flags.mode, defaultModes...)
}

// guardsLoopback reports whether an Item of any mode keeps neighbours from the loopback addresses.
func guardsLoopback(i backends.Item) bool {
	return xtables.GuardsLoopback(i) || nftables.GuardsLoopback(i)
}

// guardsLoopback reports whether the kernel holds a rule of weir, in any mode, that keeps neighbours from the loopback
// addresses.
func (p *platform) guardsLoopback(ctx context.Context) (bool, error) {
	if !privileged() {
		return false, errUnprivileged
	}
	cfg := dataplane.Config{Families: families(), MasqueradeMark: nodeconfig.DefaultMasqueradeMark, LocalhostNodePorts: true}
	var failed error
	for _, s := range p.dataPathsOf(ctx, "", cfg) {
		plan, err := s.engine.PlanCleanup(ctx)
		if slices.ContainsFunc(plan.Changes, func(c backends.Change) bool {
			return c.Old != nil && guardsLoopback(c.Old)
		}) {
			return true, nil
		}
		failed = errors.Join(failed, err)
	}
	return false, failed
}

// podChecks examines the container runtimes at their usual sockets.
func podChecks(ctx context.Context) []doctor.Check {
	var checks []doctor.Check
	for _, r := range (&podFlags{}).look(ctx, spec.UsualPodSources, nil) {
		c := doctor.Check{Name: "pods of " + r.String(), State: doctor.OK}
		if pods, err := podReader(r, "").List(ctx); err != nil {
			c.State, c.Detail = doctor.Advice, "does not answer, so Services do not follow its pods: "+err.Error()
		} else {
			c.Detail = fmt.Sprintf("%s; weir run makes endpoints of those that Services select", plural(len(pods), "pod"))
		}
		checks = append(checks, c)
	}
	return checks
}

// networkChecks examines whether ClusterIPs and the networks of the node fit.
func networkChecks(ranges []netip.Prefix) []doctor.Check {
	found, err := hostnet.Networks()
	if err != nil {
		return []doctor.Check{{Name: "ClusterIPs", State: doctor.Advice, Detail: "the networks of this node cannot be read: " + err.Error()}}
	}
	sources, _ := hostnet.Sources() // the remedy has a placeholder then
	var checks []doctor.Check
	for _, e := range nodeconfig.ExamineRanges(ranges, networksOf(found), sources, hostnet.Reaches) {
		c := doctor.Check{Name: "ClusterIPs " + e.Range.String(), State: doctor.OK, Detail: e.Detail, Mend: e.Remedy}
		if e.Fault {
			c.State = doctor.Advice
		}
		checks = append(checks, c)
	}
	return checks
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
