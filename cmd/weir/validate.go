package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"weir/cmd/weir/internal/garbage"
	"weir/reconcile/tell/changes"
	"weir/reconcile/tell/findings"
	"weir/spec"
	"weir/spec/kubedns"
)

func newValidate() *cobra.Command {
	var (
		input   inputFlags
		format  string
		failOn  string
		verbose bool
	)
	cmd := &cobra.Command{
		Use:   "validate -f DIR|FILE|-",
		Short: "Say whether an input is valid, without touching this node",
		Long: `Read the input as "weir run" would and print every problem as "file:line: kind namespace/name: field: problem". Nothing
on this node is looked at or changed, so it can run anywhere, for instance on a pull request.

With -o json, junit, sarif or github (workflow commands, which GitHub shows at their lines) all there is to say goes to
standard output. Every notice has an ID by which it can be silenced, and by which --fail-on selects it; see weir help
warnings. Notices of one kind are told on one line with the first places; --verbose prints each.

Exit codes: 0 the input is valid (notices may have been printed); 1 it is not, or --fail-on found something; 2 the command
line is wrong.`,
		Example: `  weir validate -f ./cluster
  weir validate -f ./cluster -o sarif > weir.sarif
  weir validate -f ./cluster --config kube-proxy.yaml --fail-on warning,W009
  kustomize build overlays/edge | weir validate -f -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf("--output", format, validateFormats...); err != nil {
				return err
			}
			if err := checkFailOn(failOn); err != nil {
				return err
			}
			garbage.Pace(gcPercentValidate)
			source, err := input.source(hclog.NewNullLogger())
			if err != nil {
				return err
			}
			report := validate(cmd.Context(), source)
			report.FailOn = failOn
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if format == "text" {
				err = printFindings(cmd, report, verbose)
			} else {
				err = report.Write(cmd.OutOrStdout(), format, thisBuild().Version)
			}
			if err == nil && (!report.Valid() || report.Failures() > 0) {
				err = errReported
			}
			return err
		},
	}
	input.add(cmd)
	cmd.Flags().StringVarP(&format, "output", "o", "text", "how to print what was found: text, json, junit, sarif or github")
	cmd.Flags().StringVar(&failOn, "fail-on", "", "exit with 1 for a valid input if there are any notices of these severities or IDs, such as warning or W005,W009")
	cmd.Flags().BoolVar(&verbose, "verbose", false, "print each notice on a line of its own")
	completeValues(cmd, "output", validateFormats...)
	completeFlag(cmd, "fail-on", completeNotices)
	return cmd
}

var validateFormats = append([]string{"text"}, findings.Formats...)

func validate(ctx context.Context, source spec.Source) findings.Report {
	snap, err := source.Load(ctx)
	if err != nil {
		return findings.Refused(err)
	}
	text := summary(snap)
	if snap, err = planned(ctx, snap); err != nil {
		return findings.Refused(err)
	}
	with := *snap
	with.Notices = slices.Concat(snap.Notices, kubedns.Notices(snap))
	return findings.Accepted(&with, text)
}

// printFindings prints text: problems and notices to standard error, the success to standard output.
func printFindings(cmd *cobra.Command, r findings.Report, verbose bool) error {
	out, errOut := cmd.OutOrStdout(), cmd.ErrOrStderr()
	var notices []spec.Notice
	for _, n := range r.Notices {
		if n.Severity() == spec.SeverityError {
			fmt.Fprintln(errOut, spec.Clean(n.Error()))
		} else {
			notices = append(notices, n)
		}
	}
	groups := changes.GroupNotices(notices, verbose)
	for _, g := range groups {
		fmt.Fprintf(errOut, "%s %s [%s]\n", paint(errOut, yellow, "notice:"), g, g.ID.Short())
	}
	if changes.Folded(groups) {
		fmt.Fprintln(errOut, "(--verbose prints each notice; weir help warnings tells how to silence them)")
	}
	var err error
	switch failures := r.Failures(); {
	case !r.Valid():
		_, err = fmt.Fprintf(errOut, "%s %s\n", paint(errOut, red, "invalid:"), plural(r.Problems(), "problem"))
	case failures > 0:
		_, err = fmt.Fprintf(errOut, "%s %s\n", paint(errOut, red, "failed:"), failedText(failures, r.FailOn, r.Summary))
	default:
		_, err = fmt.Fprintf(out, "%s %s\n", paint(out, green, "ok:"), r.Summary)
	}
	return err
}

// failedText says why --fail-on makes a command fail although the input is valid.
func failedText(failures int, failOn, summary string) string {
	return fmt.Sprintf("%s of what --fail-on %s names, in a valid input: %s", plural(failures, "notice"), failOn, summary)
}

// checkFailOn checks the value of --fail-on.
func checkFailOn(list string) error {
	if err := spec.CheckNoticeList(list); err != nil {
		return usageError{fmt.Errorf("--fail-on: %w", err)}
	}
	return nil
}

// printProblems prints each problem of a refused input on its own line, and a count.
func printProblems(w io.Writer, err error) {
	lines := problemLines(err)
	for _, line := range lines {
		fmt.Fprintln(w, line)
	}
	fmt.Fprintf(w, "%s %s\n", paint(w, red, "invalid:"), plural(len(lines), "problem"))
}

// problemLines returns the lines of an error of a Source: one for each problem.
func problemLines(err error) []string {
	var problems spec.Problems
	if errors.As(err, &problems) {
		err = problems
	}
	return errorLines(err)
}

// summary says what is in force, on one line: "12 Services (9 ClusterIP, 3 headless), 3 EndpointSlices; configuration
// kube-proxy.yaml:1; mode nftables; skipped: 40 documents of other kinds (Deployment)".
func summary(snap *spec.Snapshot) string {
	slicesCount := 0
	for svc := range snap.Services.All() {
		slicesCount += len(svc.Slices)
	}
	services := plural(snap.Services.Len(), "Service")
	if types := changes.ServiceTypes(snap); types != "" {
		services += " (" + types + ")"
	}
	objects := []string{services, plural(slicesCount, "EndpointSlice")}
	if n := len(snap.Nodes); n > 0 {
		objects = append(objects, plural(n, "Node"))
	}
	if n := snap.Templates.Len(); n > 0 {
		objects = append(objects, plural(n, "template")+" of pods")
	}
	if n := snap.Pods.Len(); n > 0 {
		objects = append(objects, plural(n, "pod"))
	}
	if n := probesIn(snap); n > 0 {
		objects = append(objects, plural(n, "probe"))
	}
	mode := string(snap.Config.Mode)
	if mode == "" {
		mode = "chosen by each node"
	}
	configuration := "default configuration"
	if at := snap.ConfigOrigin.String(); at != "" {
		configuration = "configuration " + at
	}
	parts := []string{strings.Join(objects, ", "), configuration, "mode " + mode}
	if by := snap.Revision.Signer; by != "" {
		parts = append(parts, "signed by "+spec.Clean(by))
	}
	if skipped := skippedText(snap); skipped != "" {
		parts = append(parts, "skipped: "+skipped)
	}
	return strings.Join(parts, "; ")
}

// probesIn counts the probes that are written in the input.
func probesIn(snap *spec.Snapshot) (n int) {
	for svc := range snap.Services.All() {
		for range svc.Probes.All() {
			n++
		}
	}
	for t := range snap.Templates.All() {
		n += len(t.Probes)
	}
	return n
}

// maxKinds is how many kinds of skipped documents a summary names.
const maxKinds = 5

// skippedText counts what was found and not read: "13 charts, 11 kustomizations, 78 other files; 93 documents of other kinds
// (Deployment, Ingress)". It returns "" for nothing.
func skippedText(snap *spec.Snapshot) string {
	var files, parts []string
	for _, c := range []struct {
		n    int
		noun string
	}{{snap.SkippedFiles.Charts, "chart"}, {snap.SkippedFiles.Kustomizations, "kustomization"}, {snap.SkippedFiles.Others, "other file"},
		{snap.SkippedFiles.Excluded, "excluded file"}, {snap.SkippedFiles.ExcludedDirs, "excluded folder"}} {
		if c.n > 0 {
			files = append(files, plural(c.n, c.noun))
		}
	}
	if len(files) > 0 {
		parts = append(parts, strings.Join(files, ", "))
	}
	documents := 0
	var kinds []string
	for _, kind := range slices.Sorted(maps.Keys(snap.Skipped)) {
		switch kind {
		case spec.SkippedChart, spec.SkippedKustomization, spec.SkippedFile, spec.SkippedSymlink, spec.SkippedUnread, spec.SkippedOutside: // counted as files
		case spec.SkippedUnchosen:
			parts = append(parts, plural(snap.Skipped[kind], "document")+" not chosen")
		default:
			documents += snap.Skipped[kind]
			kinds = append(kinds, kind)
		}
	}
	if more := len(kinds) - maxKinds; more > 0 {
		kinds = append(kinds[:maxKinds], fmt.Sprintf("and %d more", more))
	}
	if documents > 0 {
		parts = append(parts, fmt.Sprintf("%s of other kinds (%s)", plural(documents, "document"), strings.Join(kinds, ", ")))
	}
	return strings.Join(parts, "; ")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
