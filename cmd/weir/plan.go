package main

import (
	"cmp"
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
	"weir/backends/dataplane"
	"weir/backends/hostnet"
	"weir/reconcile"
	"weir/reconcile/tell/changes"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/filesource"
	"weir/spec/gitsource"
	"weir/spec/join"
	"weir/spec/kubedns"
	"weir/spec/stall"
)

// planFlags say what a dry run compares with, and how it prints the result.
type planFlags struct {
	against  string
	nodes    []string
	detail   string
	format   string
	exitCode bool
	failOn   string
	verbose  bool
}

// anyNode is the name of the node of a plan for which none is known.
const anyNode = "any node"

const (
	detailServices = "services"
	detailRules    = "rules"
	detailKernel   = "kernel"
)

func (f *planFlags) add(cmd *cobra.Command, when, output string) {
	fs := cmd.Flags()
	fs.StringVarP(&f.format, "output", "o", "text", output)
	fs.StringVar(&f.against, "against", "kernel", when+"what to compare with: kernel, empty, a directory or file of manifests, git:REVISION of what -f names, or a file written by weir snapshot")
	fs.StringArrayVar(&f.nodes, "node", nil, "with --against, a file with the Node manifests of the nodes to plan for; may be repeated (default: the Nodes among the manifests)")
	fs.StringVar(&f.detail, "detail", detailServices, "with --dry-run: services; rules, to add every change of a kernel object and the input of the programs that make them; or kernel, for the changes alone")
	fs.BoolVar(&f.exitCode, "exit-code", false, when+"exit with 2 if there are changes")
	fs.BoolVar(&f.verbose, "verbose", false, when+"print each notice on a line of its own")
	fs.StringVar(&f.failOn, "fail-on", "", when+"exit with 1 if there are any notices of these severities or IDs, such as warning or W005,W009")
	completeValues(cmd, "output", planFormats...)
	completeValues(cmd, "detail", planDetails...)
	completeFlag(cmd, "fail-on", completeNotices)
}

var (
	planFormats = []string{"text", "json", "yaml", "markdown"}
	planDetails = []string{detailServices, detailRules, detailKernel}
)

func (f *planFlags) check(cmd *cobra.Command, dryRun bool) error {
	if !dryRun {
		for _, name := range []string{"against", "node", "detail", "exit-code", "fail-on", "verbose"} {
			if cmd.Flags().Changed(name) {
				return usageError{fmt.Errorf("--%s is for --dry-run", name)}
			}
		}
		return oneOf("--output", f.format, "text", "json")
	}
	if err := checkFailOn(f.failOn); err != nil {
		return err
	}
	if f.kernel() && len(f.nodes) > 0 {
		return usageError{errors.New("--node is for --against: the kernel is that of this node")}
	}
	if !f.kernel() && f.detail != detailServices {
		return usageError{errors.New("--detail is for a plan against the kernel; without one there are no kernel objects")}
	}
	return errors.Join(oneOf("--output", f.format, planFormats...), oneOf("--detail", f.detail, planDetails...))
}

func (f *planFlags) kernel() bool { return f.against == "kernel" || f.against == "" }

// planKernel prints what a round of the Engine would do on this node. holds reports whether the kernel holds objects of
// weir for a mode.
func (f *planFlags) planKernel(ctx context.Context, cmd *cobra.Command, engine *reconcile.Engine, t *nodeConfig, to changes.Input, snap *spec.Snapshot, answered map[string]dataplane.ServiceName, holds func(mode string) bool) error {
	c, err := engine.Compare(ctx, "weir reconcile --dry-run")
	if err != nil {
		return readError(err)
	}
	if f.detail == detailKernel {
		return writePlan(cmd.OutOrStdout(), c.Plan, f.format)
	}
	applied := appliedBefore(ctx, snap.Weir.StateDir, c, holds)
	var before changes.State
	if applied != nil {
		applied.Traits = traitsOf(applied.Mode)
		before = *applied
	}
	group := changes.FromKernel(t.Node.Name, c, applied, f.detail == detailRules)
	var refused []spec.Notice
	if err := refusal(ctx, c.Backend); err != nil {
		refused = append(refused, spec.TableOwned.Notice(spec.Origin{}, "", "", "the kernel would refuse the changes: "+err.Error()))
	}
	promised := changes.PromisedIn(snap)
	group.Promise(promised)
	found := changes.Warn(before, changes.State{Mode: t.Mode, Traits: t.Traits, ServicePorts: c.ServicePorts, Promised: promised, Hints: changes.HintsIn(snap)})
	var nameChanges *changes.NameChanges
	if answered != nil { // else those before are not known
		var gone []spec.Notice
		nameChanges, gone = changes.NamesBetween(answered, namesIn(snap))
		found = append(found, gone...)
	}
	here := unsilenced(slices.Concat(t.Notices, found), snap)
	warnings := changes.Warnings(group.Nodes, [][]spec.Notice{append(refused, here...)}, changes.NewNotices(nil, snap, &t.Node))
	plan := changes.New(changes.Input{Kind: "kernel"}, to, len(serviceNames(c.ServicePorts)), changes.NotProxied(snap), []changes.Group{group}, warnings)
	plan.Names = nameChanges
	return f.print(cmd, plan)
}

// answeredNow returns the names that the running weir answers, nil if none does, and the Snapshot as that weir would have it: its
// flags may have it answer, and serve kube-dns.
func answeredNow(ctx context.Context, snap *spec.Snapshot) (map[string]dataplane.ServiceName, *spec.Snapshot) {
	answered, err := status.Zone(ctx, snap.Weir.StateDir)
	if err != nil || answered.Given == nil {
		return answered.Names, snap
	}
	with := *snap
	with.Weir.DNS = *answered.Given
	return answered.Names, kubedns.Added(&with, takenHere)
}

// refusal returns why the kernel would refuse every change, or nil.
func refusal(ctx context.Context, b backends.Backend) error {
	if b == nil {
		return nil
	}
	if r := b.Optional().Refuser; r != nil {
		return r.Refused(ctx)
	}
	return nil
}

// unsilenced returns the notices that no author silenced.
func unsilenced(notices []spec.Notice, snaps ...*spec.Snapshot) []spec.Notice {
	return slices.DeleteFunc(notices, func(n spec.Notice) bool { return changes.Silenced(n, snaps...) })
}

// appliedBefore returns the state that weir last applied to this node, from its record. It returns nil without a
// record, or if the kernel contradicts it: after a reboot, after a cleanup, or in another network namespace that state
// is gone.
func appliedBefore(ctx context.Context, stateDir string, c *reconcile.Comparison, holds func(mode string) bool) *changes.State {
	rec, err := status.LoadRecord(ctx, stateDir)
	if err != nil {
		return nil
	}
	inForce := slices.ContainsFunc(c.Observed, func(i backends.Item) bool { return !hostnet.IsParameter(i) })
	if rec.Mode != c.Plan.Backend {
		inForce = holds(rec.Mode)
	}
	if !inForce {
		return nil
	}
	return &rec.State
}

// serviceNames returns the names of the Services that are programmed. A headless Service, for example, is not.
func serviceNames(servicePorts []*dataplane.ServicePort) map[dataplane.ServiceName]bool {
	names := map[dataplane.ServiceName]bool{}
	for _, e := range servicePorts {
		names[e.Key.Service] = true
	}
	return names
}

// planInputs prints what changes from one input to another, without looking at this node.
func (f *planFlags) planInputs(ctx context.Context, cmd *cobra.Command, input *inputFlags, api *apiFlags, node *nodeFlags, source spec.Source) error {
	var before *spec.Snapshot
	var record *changes.Record
	var from changes.Input
	var after *spec.Snapshot
	g, gctx := errgroup.WithContext(ctx)
	var broken spec.Problems // of the input to compare with
	g.Go(func() (err error) {
		from, before, record, err = f.base(gctx, input, &broken)
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
	for _, p := range broken {
		errOut := cmd.ErrOrStderr()
		fmt.Fprintf(errOut, "%s %s\n", paint(errOut, yellow, "left out:"), spec.Clean(p.Error()))
	}
	from.LeftOut = len(broken)
	before, err := planned(ctx, before)
	if err != nil {
		return err
	}
	before = kubedns.Added(before, api.taken)
	nodes, err := f.nodesOf(ctx, node, after, record)
	if err != nil {
		return err
	}
	var groups []changes.Group
	var names []string
	each := make([][]spec.Notice, len(nodes))
	programmed := map[dataplane.ServiceName]bool{}
	for i, n := range nodes {
		old := changes.State{}
		switch {
		case record != nil:
			old = record.State
			old.Traits = traitsOf(old.Mode)
		case before != nil:
			old = stateOf(before, &n, node)
		}
		now := stateOf(after, &n, node)
		groups, names = append(groups, changes.Between(n.Name, old, now)), append(names, n.Name)
		each[i] = unsilenced(changes.Warn(old, now), after, before)
		maps.Copy(programmed, serviceNames(now.ServicePorts))
	}
	nameChanges, gone := changedNames(before, after, record != nil)
	everywhere := append(changes.NewNotices(before, after, f.named(nodes, after)), unsilenced(gone, after, before)...)
	plan := changes.New(from, api.described(input, after), len(programmed), changes.NotProxied(after), groups, changes.Warnings(names, each, everywhere))
	plan.Names = nameChanges
	return f.print(cmd, plan)
}

// planned returns the Snapshot of files with what they know of pods.
func planned(ctx context.Context, snap *spec.Snapshot) (*spec.Snapshot, error) {
	if snap == nil {
		return nil, nil
	}
	return join.New(join.Given(snap)).Planned().Load(ctx)
}

// recordedPods returns layers with the pods that ran on the node that weir snapshot has written down, if the plan is made
// against such a file and that has any. There is more than one if several runtimes had a pod of the same name.
func (f *planFlags) recordedPods(ctx context.Context) (layers []join.Layer) {
	rec, err := snapshotFile(ctx, f.against)
	if err != nil {
		return nil // base tells what is wrong with it
	}
	for left := rec.Pods; len(left) > 0 && len(layers) <= spec.MaxPodSources; {
		b := spec.Pods{}.Edit()
		var again []*corev1.Pod
		for _, pod := range left {
			name := dataplane.ServiceName{Namespace: pod.Namespace, Name: pod.Name}
			if b.Get(name) != nil {
				again = append(again, pod)
				continue
			}
			b.Put(name, pod)
		}
		layer := join.Fixed("the snapshot of "+rec.Node, join.Given(&spec.Snapshot{Pods: b.Commit()}))
		layer.GivesPods = true
		layers, left = append(layers, layer), again
	}
	return layers
}

// named returns the node of a plan for the one node that was named, or nil.
func (f *planFlags) named(nodes []reconcile.Node, snap *spec.Snapshot) *reconcile.Node {
	if len(nodes) != 1 || nodes[0].Name == anyNode {
		return nil
	}
	n := nodes[0]
	n.External = reconcile.ExternalPolicyOf(&snap.Weir, nil)
	return &n
}

// stateOf returns the state that a Snapshot asks of a node, in the mode that the flags or the Snapshot name.
func stateOf(snap *spec.Snapshot, node *reconcile.Node, flags *nodeFlags) changes.State {
	mode := offlineMode(flags, snap)
	return changes.StateOf(snap, node, mode, traitsOf(mode))
}

// offlineMode returns the mode to plan for without looking at a node.
func offlineMode(flags *nodeFlags, snap *spec.Snapshot) string {
	return cmp.Or(flags.mode, string(snap.Config.Mode), defaultModes[0])
}

// base reads the input to compare with. Every problem of it names the input; broken gets those of files that were left out.
func (f *planFlags) base(ctx context.Context, input *inputFlags, broken *spec.Problems) (changes.Input, *spec.Snapshot, *changes.Record, error) {
	overrides, err := input.overrides()
	if err != nil {
		return changes.Input{}, nil, nil, usageError{err}
	}
	overrides = overrides.AllowingEmpty() // an empty input is no mistake here
	in := changes.Input{Kind: "files", Name: f.against}
	var snap *spec.Snapshot
	switch rev, isGit := strings.CutPrefix(f.against, "git:"); {
	case f.against == "empty":
		return changes.Input{Kind: "empty"}, nil, nil, nil
	case isGit:
		in = changes.Input{Kind: "git", Name: rev}
		snap, err = gitsource.Load(ctx, gitsource.Options{Rev: rev, Paths: input.files, Kustomize: input.kustomize, Config: input.config, Lock: input.lock, Overrides: overrides, StrictTree: input.strictTree,
			Broken: func(p spec.Problems) { *broken = append(*broken, f.ofBase(p)...) }})
	default:
		if rec, recErr := snapshotFile(ctx, f.against); recErr == nil {
			return changes.Input{Kind: "snapshot", Name: f.against, Revision: rec.Revision}, nil, rec, nil
		} else if strings.HasSuffix(f.against, ".json") && !errors.Is(recErr, os.ErrNotExist) {
			err = recErr
			break
		}
		snap, err = filesource.New(filesource.Options{Paths: []string{f.against}, Unsigned: true, Overrides: overrides, Log: hclog.NewNullLogger()}).Load(ctx)
	}
	if problems := (spec.Problems)(nil); errors.As(err, &problems) {
		return in, nil, nil, f.ofBase(problems)
	}
	if err != nil {
		return in, nil, nil, fmt.Errorf("--against %s: %w", f.against, err)
	}
	in.Revision = snap.Revision.String()
	return in, snap, nil, nil
}

// ofBase returns problems whose places name the input to compare with: "git:main:web.yaml:3".
func (f *planFlags) ofBase(problems spec.Problems) spec.Problems {
	named := slices.Clone(problems)
	for i := range named {
		if o := &named[i].Origin; o.File == "" || strings.HasPrefix(f.against, "git:") {
			o.File = strings.TrimSuffix(f.against+":"+o.File, ":")
		}
	}
	return named
}

// snapshotFile reads a file that weir snapshot wrote. A directory is no such file.
func snapshotFile(ctx context.Context, name string) (*changes.Record, error) {
	fi, err := stall.Do(ctx, stall.Limit, "looking at "+name, func() (os.FileInfo, error) { return os.Stat(name) })
	if err != nil || fi.IsDir() {
		return nil, errors.Join(err, os.ErrNotExist)
	}
	return status.ReadRecordFile(ctx, name)
}

// nodesOf returns the nodes to plan for. The first of these that exists is used: the nodes of --node, the node of the
// snapshot, the one of --hostname-override, all nodes of the input, and a node without endpoints.
func (f *planFlags) nodesOf(ctx context.Context, flags *nodeFlags, snap *spec.Snapshot, record *changes.Record) ([]reconcile.Node, error) {
	objects := snap.Nodes
	if len(f.nodes) > 0 {
		given, err := filesource.New(filesource.Options{Paths: f.nodes, Unsigned: true, Overrides: spec.Overrides{}.AllowingEmpty(), Log: hclog.NewNullLogger()}).Load(ctx)
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
		return []reconcile.Node{changes.NodeOf(name, objects[name])}, nil
	case len(objects) == 0:
		return []reconcile.Node{changes.NodeOf(anyNode, (*corev1.Node)(nil))}, nil
	}
	var nodes []reconcile.Node
	for _, name := range slices.Sorted(maps.Keys(objects)) {
		nodes = append(nodes, changes.NodeOf(name, objects[name]))
	}
	return nodes, nil
}

// print prints the plan in the chosen format. Its error determines the exit code.
func (f *planFlags) print(cmd *cobra.Command, plan *changes.Diff) error {
	if err := writeReview(cmd.OutOrStdout(), plan, f.format, f.verbose); err != nil {
		return err
	}
	if n := plan.Selected(f.failOn); n > 0 {
		errOut := cmd.ErrOrStderr()
		fmt.Fprintf(errOut, "%s %s of what --fail-on %s names\n", paint(errOut, red, "failed:"), plural(n, "notice"), f.failOn)
		return errReported
	}
	if plan.Summary.HeldBack > 0 {
		return errReported
	}
	if f.exitCode && !plan.Empty() {
		return errChanges
	}
	return nil
}

func writeReview(w io.Writer, plan *changes.Diff, format string, verbose bool) error {
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
	style := changes.Style{Verbose: verbose}
	if coloured(w) {
		colours := map[string]string{"+": green, "-": red, "~": yellow, "!": yellow}
		style.Paint = func(sign, text string) string { return paint(w, colours[sign], text) }
	}
	return plan.WriteText(w, style)
}
