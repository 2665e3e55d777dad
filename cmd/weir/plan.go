package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"weir/backends"
	"weir/reconcile"
	"weir/reconcile/review"
	"weir/reconcile/status"
	"weir/spec"
	"weir/spec/filesource"
	"weir/spec/gitsource"
)

// planFlags say what a dry run compares with, and how it prints what it finds.
type planFlags struct {
	against  string
	nodes    []string
	detail   string
	format   string
	exitCode bool
	failOn   string
}

const (
	detailServices = "services"
	detailRules    = "rules"
	detailKernel   = "kernel"
)

func (f *planFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.against, "against", "kernel", "with --dry-run, what to compare with: kernel, empty, a directory or file of manifests, git:REVISION of what -f names, or a file written by weir snapshot")
	fs.StringArrayVar(&f.nodes, "node", nil, "with --against, a file with the Node manifests of the nodes to plan for; may be repeated (default: the Nodes among the manifests)")
	fs.StringVar(&f.detail, "detail", detailServices, "with --dry-run: services; rules, to add every change of a kernel object and the input of the programs that make them; or kernel, for the changes alone")
	fs.BoolVar(&f.exitCode, "exit-code", false, "with --dry-run, exit with 2 if there are changes")
	fs.StringVar(&f.failOn, "fail-on", "", "with --dry-run, exit with 1 if there are any: warning")
}

func (f *planFlags) check(cmd *cobra.Command, dryRun bool) error {
	if !dryRun {
		for _, name := range []string{"against", "node", "detail", "exit-code", "fail-on"} {
			if cmd.Flags().Changed(name) {
				return usageError{fmt.Errorf("--%s is for --dry-run", name)}
			}
		}
		return oneOf("--output", f.format, "text", "json")
	}
	if f.failOn != "" {
		if err := oneOf("--fail-on", f.failOn, "warning"); err != nil {
			return err
		}
	}
	if f.kernel() && len(f.nodes) > 0 {
		return usageError{errors.New("--node is for --against: the kernel is that of this node")}
	}
	if !f.kernel() && f.detail != detailServices {
		return usageError{errors.New("--detail is for a plan against the kernel; without one there are no kernel objects")}
	}
	return errors.Join(oneOf("--output", f.format, "text", "json", "yaml", "markdown"), oneOf("--detail", f.detail, detailServices, detailRules, detailKernel))
}

func (f *planFlags) kernel() bool { return f.against == "kernel" || f.against == "" }

// planKernel prints what a round of the Engine would do on this node.
func (f *planFlags) planKernel(ctx context.Context, cmd *cobra.Command, engine *reconcile.Engine, t *target, to review.Input, snap *spec.Snapshot) error {
	c, err := engine.Compare(ctx, "weir reconcile --dry-run")
	if err != nil {
		return readError(err)
	}
	if f.detail == detailKernel {
		return writePlan(cmd.OutOrStdout(), c.Plan, f.format)
	}
	var applied *review.State
	if rec, err := status.LoadRecord(snap.Weir.StateDir); err == nil {
		applied = &rec.State
	}
	group := review.AgainstKernel(t.Node.Name, c, applied, f.detail == detailRules)
	var warnings []review.Warning
	if applied != nil {
		warnings = review.Warn(*applied, review.State{Mode: t.Mode, Entries: c.Entries})
	} else {
		warnings = review.Warn(review.State{}, review.State{Mode: t.Mode, Entries: c.Entries})
	}
	warnings = append(warnings, review.InputWarnings(nil, snap)...)
	plan := review.New(review.Input{Kind: "kernel"}, to, len(serviceNames(c.Entries)), []review.Group{group}, review.Silence(warnings, review.SilenceIn(snap)))
	return f.print(cmd, plan)
}

// serviceNames returns the names of the Services that are programmed: a headless one, for instance, is not.
func serviceNames(entries []*backends.Entry) map[backends.ServiceName]bool {
	names := map[backends.ServiceName]bool{}
	for _, e := range entries {
		names[e.Key.Service] = true
	}
	return names
}

// planInputs prints what changes from one input to another, without looking at this node.
func (f *planFlags) planInputs(ctx context.Context, cmd *cobra.Command, input *inputFlags, api *apiFlags, node *nodeFlags, source spec.Source) error {
	var before *spec.Snapshot
	var record *review.Record
	var from review.Input
	var after *spec.Snapshot
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		from, before, record, err = f.base(gctx, input)
		return err
	})
	g.Go(func() (err error) {
		after, err = source.Load(gctx)
		return err
	})
	if err := g.Wait(); err != nil {
		if errors.As(err, new(spec.Problems)) {
			printProblems(cmd.ErrOrStderr(), err)
			return errReported
		}
		return err
	}
	nodes, err := f.nodesOf(ctx, node, after, record)
	if err != nil {
		return err
	}
	var groups []review.Group
	var names []string
	each := make([][]review.Warning, len(nodes))
	programmed := map[backends.ServiceName]bool{}
	for i, n := range nodes {
		old := review.State{}
		switch {
		case record != nil:
			old = record.State
		case before != nil:
			old = review.StateOf(before, &n, offlineMode(node, before))
		}
		now := review.StateOf(after, &n, offlineMode(node, after))
		groups, names = append(groups, review.Compare(n.Name, old, now)), append(names, n.Name)
		each[i] = review.Warn(old, now)
		maps.Copy(programmed, serviceNames(now.Entries))
	}
	warnings := append(review.MergeWarnings(names, each), review.InputWarnings(before, after)...)
	plan := review.New(from, api.described(input, after), len(programmed), groups, review.Silence(warnings, review.SilenceIn(after, before)))
	return f.print(cmd, plan)
}

func offlineMode(flags *nodeFlags, snap *spec.Snapshot) string {
	switch {
	case flags.mode != "":
		return flags.mode
	case snap.Config.Mode != "":
		return string(snap.Config.Mode)
	}
	return modeIPTables
}

// base reads what is compared with.
func (f *planFlags) base(ctx context.Context, input *inputFlags) (review.Input, *spec.Snapshot, *review.Record, error) {
	weir, err := input.weir()
	if err != nil {
		return review.Input{}, nil, nil, usageError{err}
	}
	lenient := func(c *spec.WeirConfiguration) {
		weir(c)
		c.AllowEmpty = true // that there was nothing before is no mistake
	}
	in := review.Input{Kind: "files", Name: f.against}
	var snap *spec.Snapshot
	switch rev, isGit := strings.CutPrefix(f.against, "git:"); {
	case f.against == "empty":
		return review.Input{Kind: "empty"}, nil, nil, nil
	case isGit:
		in = review.Input{Kind: "git", Name: rev}
		snap, err = gitsource.Load(ctx, gitsource.Options{Rev: rev, Paths: input.files, Config: input.config, Weir: lenient})
	default:
		if rec, recErr := snapshotFile(f.against); recErr == nil {
			return review.Input{Kind: "snapshot", Name: f.against, Revision: rec.Revision}, nil, rec, nil
		} else if strings.HasSuffix(f.against, ".json") && !errors.Is(recErr, os.ErrNotExist) {
			err = recErr
			break
		}
		snap, err = filesource.New(filesource.Options{Paths: []string{f.against}, Weir: lenient, Log: hclog.NewNullLogger()}).Load(ctx)
	}
	if err != nil {
		return in, nil, nil, fmt.Errorf("--against %s: %w", f.against, err)
	}
	in.Revision = snap.Revision.String()
	return in, snap, nil, nil
}

// snapshotFile reads a file that weir snapshot wrote; a directory is none.
func snapshotFile(name string) (*review.Record, error) {
	if fi, err := os.Stat(name); err != nil || fi.IsDir() {
		return nil, errors.Join(err, os.ErrNotExist)
	}
	return status.ReadRecordFile(name)
}

// nodesOf returns the nodes to plan for: those that --node names, or the one of the snapshot, or the one that
// --hostname-override names, or all that the input declares, or else one that no endpoint is on.
func (f *planFlags) nodesOf(ctx context.Context, flags *nodeFlags, snap *spec.Snapshot, record *review.Record) ([]reconcile.Node, error) {
	objects := snap.Nodes
	if len(f.nodes) > 0 {
		empty := func(c *spec.WeirConfiguration) { c.AllowEmpty = true }
		given, err := filesource.New(filesource.Options{Paths: f.nodes, Weir: empty, Log: hclog.NewNullLogger()}).Load(ctx)
		if err != nil {
			return nil, fmt.Errorf("--node: %w", err)
		}
		if objects = given.Nodes; len(objects) == 0 {
			return nil, usageError{fmt.Errorf("--node %s: there is no Node in it", strings.Join(f.nodes, ", "))}
		}
	}
	name := strings.ToLower(flags.hostname)
	if name == "" {
		name = strings.ToLower(snap.Config.HostnameOverride)
	}
	switch {
	case record != nil:
		return []reconcile.Node{{Name: record.Node, Zone: record.Zone, Families: record.Families}}, nil
	case len(f.nodes) == 0 && name != "":
		return []reconcile.Node{review.NodeOf(name, objects[name])}, nil
	case len(objects) == 0:
		return []reconcile.Node{review.NodeOf("any node", (*corev1.Node)(nil))}, nil
	}
	var nodes []reconcile.Node
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		nodes = append(nodes, review.NodeOf(name, objects[name]))
	}
	return nodes, nil
}

// print prints the plan as asked, and says by its error what the exit code is to be.
func (f *planFlags) print(cmd *cobra.Command, plan *review.Plan) error {
	if err := writeReview(cmd.OutOrStdout(), plan, f.format); err != nil {
		return err
	}
	if plan.Summary.Isolated > 0 || f.failOn != "" && plan.Worst() == review.SeverityWarning {
		return errReported
	}
	if f.exitCode && !plan.Empty() {
		return errChanges
	}
	return nil
}

func writeReview(w io.Writer, plan *review.Plan, format string) error {
	switch format {
	case "json":
		return writeJSON(w, plan)
	case "yaml":
		text, err := yaml.Marshal(plan)
		if err == nil {
			_, err = w.Write(text)
		}
		return err
	case "markdown":
		return plan.WriteMarkdown(w)
	}
	style := review.Style{}
	if coloured(w) {
		colours := map[string]string{"+": green, "-": red, "~": yellow, "!": yellow}
		style.Paint = func(sign, text string) string { return paint(w, colours[sign], text) }
	}
	return plan.WriteText(w, style)
}
