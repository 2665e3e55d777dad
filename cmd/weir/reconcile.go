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
	"weir/backends/userspace"
	"weir/reconcile"
	"weir/reconcile/review"
	"weir/spec"
)

// reconcileFlags are those of weir reconcile.
type reconcileFlags struct {
	input  inputFlags
	api    apiFlags
	node   nodeFlags
	logs   logFlags
	plan   planFlags
	dryRun bool
}

func newReconcile() *cobra.Command {
	var f reconcileFlags
	cmd := &cobra.Command{
		Use:   "reconcile -f DIR|FILE|-",
		Short: "Program this node once, or say what would change",
		Long: `Read the input, compare it with what the kernel holds, apply the difference, and end. With --dry-run, print the
difference as a plan and change nothing; that needs no more privileges than it takes to read the kernel's rules.

With --against, a dry run compares with something else than this node's kernel: nothing on this node is then looked at, and
no privileges are needed. That is for CI: what will this pull request do on the nodes?

A Service's annotation weir/silence lists warnings that are known and accepted: "W001,W004".

Exit codes: 0 the node is as the input says (or the plan was printed); 1 the input is not valid, something cannot be
applied, or --fail-on found something; 2 the command line makes no sense, or --exit-code was given and there are changes
(what else is wrong is then 1).`,
		Example: `  weir reconcile -f ./cluster --dry-run
  weir reconcile -f ./cluster --dry-run --detail rules
  weir reconcile -f ./cluster --dry-run --against git:origin/main -o markdown
  weir reconcile -f ./cluster --dry-run --against empty --node nodes.yaml
  weir reconcile -f ./cluster --hostname-override edge-7
  weir reconcile --config /var/lib/kube-proxy/config.conf --dry-run   # what would change if weir took over from kube-proxy`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(f.node.check(), f.logs.check(), f.plan.check(cmd, f.dryRun)); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return f.run(ctx, cmd)
		},
	}
	f.input.add(cmd)
	f.api.add(cmd)
	f.node.add(cmd)
	f.logs.add(cmd, "warn")
	cmd.Flags().StringVarP(&f.plan.format, "output", "o", "text", "how to print the plan or the outcome: text or json; a plan also as yaml or markdown")
	f.plan.add(cmd)
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "print the plan and change nothing")
	return cmd
}

func (f *reconcileFlags) run(ctx context.Context, cmd *cobra.Command) error {
	log := f.logs.logger(cmd.ErrOrStderr())
	source, err := f.api.source(&f.input, &f.node, log, nil)
	if err != nil {
		return err
	}
	if f.dryRun && !f.plan.kernel() {
		return f.plan.planInputs(ctx, cmd, &f.input, &f.api, &f.node, source)
	}
	if !f.dryRun {
		release, err := lockNode(log)
		if err != nil {
			return err
		}
		defer release()
	}
	snap, err := source.Load(ctx)
	if err != nil {
		printProblems(cmd.ErrOrStderr(), err)
		return errReported
	}
	w := &wiring{log: log, flags: f.node}
	t, err := w.target(ctx, snap)
	if err != nil {
		return err
	}
	if !f.dryRun && t.Mode == modeUserspace {
		return userspace.ErrPlansOnly
	}
	engine := reconcile.NewEngine(reconcile.Options{Mode: t.Mode, Backend: t.Backend, Node: t.Node, Flows: &w.flows, Log: log.Named("engine")})
	engine.SetSnapshot(snap, spec.Delta{All: true})
	if f.dryRun {
		return f.plan.planKernel(ctx, cmd, engine, t, f.api.described(&f.input, snap), snap)
	}
	newHost(log).apply(t)
	r := engine.Round(ctx, reconcile.Request{Reason: "weir reconcile", Full: true})
	if r.Err == nil {
		saveRecord(log, snap.Weir.StateDir, recordOf(engine, t, snap.Revision))
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

// readError says what to do if the kernel's rules may not be read.
func readError(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", errUnprivileged, err)
	}
	return fmt.Errorf("the kernel's rules cannot be read: %w", err)
}

// outcome is a Report as "weir reconcile -o json" prints it.
type outcome struct {
	APIVersion string             `json:"apiVersion"`
	Kind       string             `json:"kind"` // "Outcome"
	Mode       string             `json:"mode"`
	Revision   string             `json:"revision,omitempty"`
	Services   int                `json:"services"`
	Created    int                `json:"created"`
	Updated    int                `json:"updated"`
	Deleted    int                `json:"deleted"`
	Isolated   map[string]string  `json:"isolated,omitempty"`
	Seconds    map[string]float64 `json:"seconds"`
	Error      string             `json:"error,omitempty"`
}

// printReport prints what was done. It is an error if the kernel does not hold all that was asked.
func printReport(cmd *cobra.Command, r *reconcile.Report, format string) error {
	out, errOut := cmd.OutOrStdout(), cmd.ErrOrStderr()
	if format == "json" {
		o := outcome{APIVersion: review.APIVersion, Kind: "Outcome", Mode: r.Mode, Revision: r.Revision, Services: r.Services, Created: r.Created, Updated: r.Updated, Deleted: r.Deleted,
			Seconds: r.Stages.Seconds()}
		for _, i := range r.Isolated {
			if o.Isolated == nil {
				o.Isolated = map[string]string{}
			}
			o.Isolated[i.String()] = i.Err.Error()
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
	for _, i := range r.Isolated {
		fmt.Fprintf(errOut, "%s %s: %s: %v\n", paint(errOut, red, "not programmed:"), i.Origin, i, i.Err)
	}
	switch {
	case r.Err != nil:
		return r.Err
	case len(r.Isolated) > 0:
		return errReported
	}
	return nil
}

func ms(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
