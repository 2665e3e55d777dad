package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"weir/backends/dataplane"
	"weir/backends/hostnet"
	"weir/reconcile"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/nodeconfig"
)

// cleanupFlags are those of weir cleanup.
type cleanupFlags struct {
	node   nodeFlags
	logs   logFlags
	output outputFlag
	dryRun bool
	state  string
}

func newCleanup() *cobra.Command {
	var f cleanupFlags
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that weir programmed, in every mode",
		Long: `Remove everything that weir owns from this node's kernel, in every mode, and nothing else. Kernel parameters and
bridge ports that weir set get the values back that they had, as the state directory of weir run remembers them, and what weir
added to the resolvers of the node goes, as do its local routes. With --dry-run, print what would be removed.

Exit codes: 0 nothing that is known to be weir's is left (or the plan was printed); 1 something could not be removed or put
back; 2 the command line is wrong.`,
		Example: "  weir cleanup --dry-run\n  weir cleanup",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.node.addVariant(cmd.Flags())
	f.logs.add(cmd, "warn")
	f.output.add(cmd, "the plan of --dry-run")
	cmd.Flags().StringVar(&f.state, "state-dir", spec.DefaultWeirConfiguration().StateDir, "the state directory of weir run, which remembers the values that kernel parameters had")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "print what would be removed and change nothing")
	return cmd
}

func (f *cleanupFlags) run(cmd *cobra.Command) error {
	if err := errors.Join(f.node.check(), f.logs.check(), f.output.check()); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := f.logs.logger(cmd.ErrOrStderr())
	if !f.dryRun {
		lock, err := lockNode(log)
		if err != nil {
			return err
		}
		defer lock.release()
	}
	if !privileged() {
		return errUnprivileged
	}
	p := newPlatform(log, f.node, false)
	stale := p.staleDataPaths(ctx, "")
	if len(stale) == 0 {
		return errors.New("this node has neither iptables nor nftables that could be read")
	}
	// What the rules guard is put back before they go.
	stale = append([]staleDataPath{p.staleParameters(f.state), p.staleNames(f.state)}, stale...)
	_, err := status.LoadRecord(ctx, f.state)
	recorded := err == nil || hostnet.HasRecord(f.state)
	if f.dryRun {
		found, err := f.print(ctx, cmd.OutOrStdout(), stale)
		if err == nil && !recorded {
			err = f.tellUnrecorded(cmd.ErrOrStderr(), found)
		}
		return err
	}
	var failed error
	removed := 0
	cleanup(ctx, stale, func(name string, deleted int, err error) {
		done := "removed"
		if name == parametersPath || name == namesPath {
			done = "put back"
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
			return
		}
		removed += deleted
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %d %s\n", name, deleted, done)
	})
	if !recorded {
		failed = errors.Join(failed, f.tellUnrecorded(cmd.ErrOrStderr(), removed > 0))
	}
	if text := hostnet.LoopbackWarning(hostnet.Sysctl{}, f.state); text != "" {
		fmt.Fprintln(cmd.ErrOrStderr(), text)
	}
	return failed
}

// tellUnrecorded tells that the state directory has no record of what weir set on objects of others, if weir may have set any: there
// was something of weir's on the node, or ports of bridges have hairpin mode. It is an error if the usual state directory has the
// record, because then something of weir's is certainly left.
func (f *cleanupFlags) tellUnrecorded(w io.Writer, found bool) error {
	text := fmt.Sprintf("%s has no record of the values that kernel parameters and bridge ports of this node had before weir set them, so that none is put back", f.state)
	if usual := spec.DefaultWeirConfiguration().StateDir; usual != f.state && hostnet.Remaining(hostnet.Sysctl{}, usual) {
		return fmt.Errorf("%s; %s has: weir cleanup --state-dir %s", text, usual, usual)
	}
	ports := hostnet.HairpinPorts()
	if !found && len(ports) == 0 {
		return nil
	}
	if len(ports) > 0 {
		text += "; hairpin mode is on at " + strings.Join(ports, ", ") + ", by weir or by another"
	}
	fmt.Fprintf(w, "%s %s; give the --state-dir of weir run if it was another one\n", paint(w, yellow, "notice:"), spec.Clean(text))
	return nil
}

// print prints what a cleanup would remove, and reports whether that is anything.
func (f *cleanupFlags) print(ctx context.Context, w io.Writer, stale []staleDataPath) (found bool, err error) {
	for _, s := range stale {
		plan, err := s.engine.PlanCleanup(ctx)
		if err != nil {
			return found, readError(err)
		}
		found = found || !plan.Empty()
		if f.output.format == "text" {
			plan.Backend = s.name // userspace mode may have left something in two mechanisms
		}
		if err := writePlan(w, plan, f.output.format); err != nil {
			return found, err
		}
	}
	return found, nil
}

// staleDataPath is a mechanism, not in use now, in which earlier runs may have left something.
type staleDataPath struct {
	name   string
	engine *reconcile.Engine
}

// staleDataPaths returns those of every mechanism of this node, except those that the mode in force uses. "" excludes
// nothing.
func (p *platform) staleDataPaths(ctx context.Context, inForce string) []staleDataPath {
	return p.dataPathsOf(ctx, inForce, dataplane.Config{Families: families(), MasqueradeMark: nodeconfig.DefaultMasqueradeMark})
}

// dataPathsOf is staleDataPaths with a configuration, whose rules are read as weir's.
func (p *platform) dataPathsOf(ctx context.Context, inForce string, cfg dataplane.Config) []staleDataPath {
	var all []staleDataPath
	for _, m := range p.modes {
		for _, l := range m.leftovers(ctx, cfg, m.name == inForce) {
			all = append(all, staleDataPath{l.name, reconcile.NewEngine(reconcile.Options{
				DataPath: reconcile.DataPath{Mode: m.name, Traits: m.traits, Backend: l.backend},
				Node:     reconcile.Node{Families: cfg.Families},
				Log:      p.log,
			})})
		}
	}
	return all
}

// parametersPath is the name of the stale data path that holds kernel parameters.
const parametersPath = "kernel parameters"

// staleParameters returns the kernel parameters that weir set and has not put back.
func (p *platform) staleParameters(stateDir string) staleDataPath {
	p.keeper.Remember(stateDir)
	return staleDataPath{parametersPath, reconcile.NewEngine(reconcile.Options{
		DataPath: reconcile.DataPath{Mode: parametersPath, Backend: p.keeper.Manage(nil, nil)}, Log: p.log,
	})}
}

// namesPath is the name of the stale data path that holds what has processes ask weir for names.
const namesPath = "resolvers"

// staleNames returns what weir added to the resolvers of the node and has not taken back.
func (p *platform) staleNames(stateDir string) staleDataPath {
	return staleDataPath{namesPath, reconcile.NewEngine(reconcile.Options{
		DataPath: reconcile.DataPath{Mode: namesPath, Backend: hostnet.NewNodeNames(p.log, stateDir)}, Log: p.log,
	})}
}

// holds reports whether the kernel holds objects of weir for a mode other than the one in force.
func (p *platform) holds(ctx context.Context, inForce, mode string) bool {
	for _, s := range p.staleDataPaths(ctx, inForce) {
		if plan, err := s.engine.PlanCleanup(ctx); err == nil && plan.Backend == mode && !plan.Empty() {
			return true
		}
	}
	return false
}

// cleanup empties each stale data path and calls done with the result. ipvs sets can be deleted only after every
// iptables variant has dropped its rules, so failures are retried at the end.
func cleanup(ctx context.Context, all []staleDataPath, done func(name string, deleted int, err error)) {
	deleted := map[string]int{}
	var again []staleDataPath
	for _, s := range all {
		r := s.engine.Cleanup(ctx)
		if deleted[s.name] = r.Deleted; unclean(r) != nil {
			again = append(again, s)
		} else {
			done(s.name, r.Deleted, nil)
		}
	}
	for _, s := range again {
		r := s.engine.Cleanup(ctx)
		done(s.name, deleted[s.name]+r.Deleted, unclean(r))
	}
}

// unclean returns why a cleanup was incomplete, or nil.
func unclean(r reconcile.Report) error {
	err := r.Err
	for _, i := range r.HeldBack {
		err = errors.Join(err, i.Err)
	}
	return err
}
