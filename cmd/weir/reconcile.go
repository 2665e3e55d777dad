package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/hostnet"
	"weir/reconcile"
	"weir/reconcile/tell/changes"
	"weir/spec"
	"weir/spec/join"
	"weir/spec/liveness"
	"weir/spec/stall"
)

// reconcileFlags are the flags of weir reconcile.
type reconcileFlags struct {
	input  inputFlags
	api    apiFlags
	pods   podFlags
	node   nodeFlags
	logs   logFlags
	plan   planFlags
	dryRun bool
}

func newReconcile() *cobra.Command {
	var f reconcileFlags
	cmd := &cobra.Command{
		Use:        "reconcile -f DIR|FILE|-",
		SuggestFor: []string{"apply", "sync", "install"},
		Short:      "Program this node once, or say what would change",
		Long: `Read the input, compare it with what the kernel holds, apply the difference, and end. With --dry-run, print the
difference as a plan and change nothing; weir plan is another name for that.

Exit codes: 0 the node is as the input says (or the plan was printed); 1 the input is not valid, something cannot be
applied, or --fail-on found something; 2 the command line is wrong, or --exit-code was given and there are changes
(what else is wrong is then 1).`,
		Example: `  weir reconcile -f ./cluster --dry-run
  weir reconcile -f ./cluster --hostname-override edge-7
  weir reconcile --config /var/lib/kube-proxy/config.conf --dry-run   # what would change if weir took over from kube-proxy`,
	}
	f.add(cmd, "with --dry-run, ", "how to print the plan or the outcome: text or json; a plan also as yaml or markdown")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "print the plan and change nothing")
	return cmd
}

func newPlan() *cobra.Command {
	f := reconcileFlags{dryRun: true}
	cmd := &cobra.Command{
		Use:        "plan -f DIR|FILE|-",
		SuggestFor: []string{"diff", "dry-run", "preview", "show"},
		Short:      "Say what would change on this node, or on others",
		Long: `Read the input, compare it with what the kernel holds, print the difference, and change nothing: the same as
"weir reconcile --dry-run". It needs no more privileges than it takes to read the kernel's rules.

With --against, it compares with something else than this node's kernel: nothing on this node is then looked at, and no
privileges are needed. That is for CI: what will this pull request do on the nodes? If the input to compare with has
problems, they are printed with its name, and the plan begins with what was valid in it.

Notices of one kind are told on one line with the first places; --verbose prints each. See weir help warnings.

Exit codes: 0 the plan was printed; 1 the input is not valid, something cannot be applied, or --fail-on found something;
2 the command line is wrong, or --exit-code was given and there are changes (what else is wrong is then 1).`,
		Example: `  weir plan -f ./cluster
  weir plan -f ./cluster --detail rules
  weir plan -f ./cluster --against git:origin/main -o markdown
  weir plan -f ./cluster --against empty --node nodes.yaml`,
	}
	f.add(cmd, "", "how to print the plan: text, json, yaml or markdown")
	return cmd
}

// add adds the flags to a command, and its work. when is what the help says first of the flags of a plan.
func (f *reconcileFlags) add(cmd *cobra.Command, when, output string) {
	cmd.Args = noArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := errors.Join(f.node.check(), f.logs.check(), f.plan.check(cmd, f.dryRun)); err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		return f.run(ctx, cmd)
	}
	f.input.add(cmd)
	f.api.add(cmd)
	f.pods.add(cmd.Flags())
	f.node.add(cmd)
	f.logs.add(cmd, "warn")
	f.plan.add(cmd, when, output)
}

func (f *reconcileFlags) run(ctx context.Context, cmd *cobra.Command) error {
	log := f.logs.logger(cmd.ErrOrStderr())
	f.input.more = f.pods.fields
	var pods []join.Layer
	if !f.dryRun || f.plan.kernel() { // a plan of inputs needs no runtime, as in CI
		pods = f.pods.layers(ctx, &f.node, log)
		f.api.taken = takenHere
		f.api.filters = []join.Filter{liveness.New(liveness.Options{Remembered: true, Exec: f.pods.exec})}
	} else {
		pods = f.plan.recordedPods(ctx)
	}
	f.api.planned = f.dryRun
	source, err := f.api.source(&f.input, &f.node, pods, log, nil)
	if err != nil {
		return err
	}
	if f.dryRun && !f.plan.kernel() {
		return f.plan.planInputs(ctx, cmd, &f.input, &f.api, &f.node, source)
	}
	if !f.dryRun {
		lock, err := lockNode(log)
		if err != nil {
			return err
		}
		defer lock.release()
	}
	snap, err := source.Load(ctx)
	if err != nil {
		printProblems(cmd.ErrOrStderr(), err)
		return errReported
	}
	var answered map[string]dataplane.ServiceName
	if f.dryRun {
		answered, snap = answeredNow(ctx, snap)
	}
	m := newModeManager(log, f.node, false)
	t, err := m.resolve(ctx, snap)
	if err != nil {
		return err
	}
	if !f.dryRun && t.Traits.CarriesTraffic {
		return fmt.Errorf("%s mode works only as long as its process runs: use weir run", t.Mode)
	}
	if managed, ok := t.DataPath.Backend.(*hostnet.Managed); ok && f.dryRun && snap.Weir.DNS.Serve {
		names := hostnet.NewNodeNames(log, snap.Weir.StateDir) // which weir run sets
		names.Want(namesWanted(snap, zoneOf(snap)))
		managed.Names(names)
	}
	engine := reconcile.NewEngine(reconcile.Options{DataPath: t.DataPath, Node: t.Node, Log: log.Named("engine")})
	engine.SetSnapshot(snap, spec.Delta{All: true})
	if f.dryRun {
		return f.plan.planKernel(ctx, cmd, engine, t, f.api.described(&f.input, snap), snap, answered, func(mode string) bool { return m.holds(ctx, t.Mode, mode) })
	}
	newHost(log).apply(ctx, t)
	r := engine.Round(ctx, reconcile.Request{Reason: "weir reconcile", Full: true})
	if r.Err == nil {
		if err := saveRecord(ctx, &stall.Gate{}, laterLimit, snap.Weir.StateDir, func() *changes.Record { return recordOf(engine, t, snap) }); err != nil {
			warnUnrecorded(log, err)
		}
	}
	return printReport(cmd, &r, f.plan.format)
}

func writePlan(w io.Writer, plan backends.Plan, format string) error {
	if format == "json" {
		return writeJSON(w, plan)
	}
	_, err := io.WriteString(w, plan.String())
	return err
}

// readError returns what to do if the kernel's rules may not be read.
func readError(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", errUnprivileged, err)
	}
	return fmt.Errorf("the kernel's rules cannot be read: %w", err)
}

// outcome is a Report in the form of "weir reconcile -o json".
type outcome struct {
	APIVersion string             `json:"apiVersion"`
	Kind       string             `json:"kind"` // "Outcome"
	Mode       string             `json:"mode"`
	Revision   string             `json:"revision,omitempty"`
	Services   int                `json:"services"`
	Created    int                `json:"created"`
	Updated    int                `json:"updated"`
	Deleted    int                `json:"deleted"`
	HeldBack   map[string]string  `json:"heldBack,omitempty"`
	Seconds    map[string]float64 `json:"seconds"`
	Error      string             `json:"error,omitempty"`
}

// printReport prints what was done. It returns an error if the kernel does not hold all that was asked for.
func printReport(cmd *cobra.Command, r *reconcile.Report, format string) error {
	out, errOut := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if format == "json" {
		o := outcome{APIVersion: changes.APIVersion, Kind: "Outcome", Mode: r.Mode, Revision: r.Revision, Services: r.Services, Created: r.Created, Updated: r.Updated, Deleted: r.Deleted,
			Seconds: r.Stages.Seconds()}
		for _, i := range r.HeldBack {
			if o.HeldBack == nil {
				o.HeldBack = map[string]string{}
			}
			o.HeldBack[i.String()] = i.Err.Error()
		}
		if r.Err != nil {
			o.Error = r.Err.Error()
		}
		if err := writeJSON(out, o); err != nil {
			return err
		}
	} else if r.Err == nil {
		fmt.Fprintf(out, "%s: %d created, %d updated, %d deleted; %s in %v (observe %v, plan %v, apply %v)\n",
			r.Mode, r.Created, r.Updated, r.Deleted, plural(r.Services, "Service"), ms(r.Stages.Total),
			ms(r.Stages.Observe), ms(r.Stages.Resolve+r.Stages.Plan), ms(r.Stages.Apply))
	}
	for _, i := range r.HeldBack {
		fmt.Fprintf(errOut, "%s %s: %s: %v\n", paint(errOut, red, "held back:"), spec.Clean(i.Origin), i, oneLine(i.Err.Error()))
	}
	switch {
	case r.Err != nil:
		return r.Err
	case len(r.HeldBack) > 0:
		return errReported
	}
	return nil
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
