package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"weir/backends/dataplane"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/liveness"
	"weir/spec/probe"
)

// probesAtOnce is how many probes weir probe runs at a time.
const probesAtOnce = 64

// probeFlags are the flags of weir probe.
type probeFlags struct {
	input  inputFlags
	api    apiFlags
	pods   podFlags
	node   nodeFlags
	output outputFlag
}

func newProbe() *cobra.Command {
	var f probeFlags
	cmd := &cobra.Command{
		Use:        "probe [NAME | NAMESPACE/NAME]",
		SuggestFor: []string{"check", "ping", "liveness"},
		Short:      "Ask the endpoints of Services their probes, once, from here",
		Long: `Ask each endpoint of a Service its probes once, from this node and as weir run does, and print what the servers said. Without
a name, ask those of all Services. The Services are those of the running weir, or with -f or -k those of the input. Nothing is
changed, and what weir run has found out does not count.

Exit codes: 0 every probe succeeded; 1 one failed, or there is none; 2 the command line is wrong; 3 no weir is running.`,
		Example: `  weir probe web
  weir probe default/web -f ./cluster
  weir probe -o json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("one name at most, not %d", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.output.check(); err != nil {
				return err
			}
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return f.run(ctx, cmd, name)
		},
	}
	f.input.add(cmd)
	f.pods.add(cmd.Flags())
	cmd.Flags().StringVar(&f.node.hostname, "hostname-override", "", "name of this node (default: the host name)")
	f.output.add(cmd, "the results")
	cmd.ValidArgsFunction = completeService(&f.input.stateDir)
	return cmd
}

func (f *probeFlags) run(ctx context.Context, cmd *cobra.Command, name string) error {
	questions, policy, err := f.questions(ctx, cmd, name)
	if err != nil {
		return err
	}
	if len(questions) == 0 {
		if name == "" {
			return errors.New("no Service has probes that can be asked")
		}
		return fmt.Errorf("no Service named %q has probes that can be asked and endpoints", name)
	}
	answers := make([]probeAnswer, len(questions))
	var g errgroup.Group
	g.SetLimit(probesAtOnce)
	for i, q := range questions {
		g.Go(func() error {
			to := probe.Target{Address: q.Address, Ports: q.Ports, Policy: policy, Mark: dataplane.ProbeMark, Body: true}
			if q.Probe.Kind == probe.Exec {
				to.Exec = f.pods.exec(q.Pod)
			}
			answers[i] = answerOf(q, q.Probe.Run(ctx, to))
			return nil
		})
	}
	_ = g.Wait() // none returns an error
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if f.output.format == "json" {
		err = writeJSON(cmd.OutOrStdout(), answers)
	} else {
		err = writeAnswers(cmd.OutOrStdout(), answers)
	}
	if err != nil {
		return err
	}
	for _, a := range answers {
		if a.Result != probe.Success.String() {
			return errReported
		}
	}
	return nil
}

// questions returns what is to be asked, and which other hosts may be connected to.
func (f *probeFlags) questions(ctx context.Context, cmd *cobra.Command, name string) ([]liveness.Question, *probe.Policy, error) {
	if f.input.none() {
		answer, err := status.Questions(ctx, f.input.stateDir, name)
		if err != nil {
			return nil, nil, orUnreachable(err)
		}
		if slices.ContainsFunc(answer.Questions, func(q liveness.Question) bool { return q.Probe.Kind == probe.Exec }) {
			for _, r := range f.pods.inForce(ctx, spec.WeirConfiguration{StateDir: f.input.stateDir}) {
				f.pods.followed(r, podReader(r, ""))
			}
		}
		return answer.Questions, answer.Hosts, nil
	}
	log := hclog.NewNullLogger()
	f.input.more = f.pods.fields
	source, err := f.api.source(&f.input, &f.node, f.pods.layers(ctx, &f.node, log), log, nil)
	if err != nil {
		return nil, nil, err
	}
	snap, err := source.Load(ctx)
	if err != nil {
		printProblems(cmd.ErrOrStderr(), err)
		return nil, nil, errReported
	}
	var all []liveness.Question
	for svc := range snap.Services.All() {
		if name == "" || name == svc.Name.Name || name == svc.Name.String() {
			all = append(all, liveness.Questions(svc)...)
		}
	}
	return all, snap.Weir.Liveness.Hosts, nil
}

// probeAnswer is what came of one Probe.
type probeAnswer struct {
	Service  string  `json:"service"`
	Endpoint string  `json:"endpoint"`
	Asked    string  `json:"asked"` // the address that was asked
	Result   string  `json:"result"`
	Seconds  float64 `json:"seconds"`
	Said     string  `json:"said,omitempty"`
	Body     string  `json:"body,omitempty"` // the beginning of the answer over HTTP
	Probe    string  `json:"probe"`
	From     string  `json:"from"`
}

func answerOf(q liveness.Question, r probe.Result) probeAnswer {
	return probeAnswer{
		Service: q.Service.String(), Endpoint: q.Address.String(), Asked: q.Probe.Address(probe.Target{Address: q.Address, Ports: q.Ports}).String(),
		Result: r.Verdict.String(), Seconds: r.Took.Seconds(), Said: r.Message, Body: r.Body, Probe: q.Probe.String(), From: liveness.From(q.Probe),
	}
}

// writeAnswers prints a table for each Service and Probe.
func writeAnswers(w io.Writer, answers []probeAnswer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	service, asked := "", ""
	for _, a := range answers {
		if a.Service != service {
			if service != "" {
				fmt.Fprintln(t)
			}
			fmt.Fprintf(t, "%s\n", spec.Clean(a.Service))
			service, asked = a.Service, ""
		}
		if what := a.Probe + a.From; what != asked {
			fmt.Fprintf(t, "  %s\n  from %s\n", spec.Clean(a.Probe), spec.Clean(a.From))
			asked = what
		}
		at := a.Endpoint
		if a.Asked != a.Endpoint {
			at += ", at " + a.Asked
		}
		took := time.Duration(a.Seconds * float64(time.Second)).Round(100 * time.Microsecond)
		said := spec.Clean(a.Said)
		if a.Body != "" {
			said += fmt.Sprintf(", %q", spec.Clean(a.Body))
		}
		fmt.Fprintf(t, "    %s\t%s\t%s\t%s\n", at, a.Result, took, said)
	}
	return t.Flush()
}
