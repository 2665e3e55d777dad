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

	"weir/reconcile/findings"
	"weir/reconcile/review"
	"weir/spec"
)

func newValidate() *cobra.Command {
	var (
		input  inputFlags
		format string
		failOn string
	)
	cmd := &cobra.Command{
		Use:   "validate -f DIR|FILE|-",
		Short: "Say whether an input is valid, without touching this node",
		Long: `Read the input as "weir run" would and print every problem as "file:line: kind namespace/name: field: problem". Nothing
on this node is looked at or changed, so it can run anywhere, for instance on a pull request.

With -o json, junit, sarif or github (workflow commands, which GitHub shows at their lines) all there is to say goes to
standard output. Notices that have an ID can be silenced by a Service's annotation weir/silence; see weir help warnings.

Exit codes: 0 the input is valid (notices may have been printed); 1 it is not, or --fail-on found something; 2 the command
line makes no sense.`,
		Example: `  weir validate -f ./cluster
  weir validate -f ./cluster -o sarif > weir.sarif
  weir validate -f ./cluster --config kube-proxy.yaml --fail-on warning
  kustomize build overlays/edge | weir validate -f -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := oneOf("--output", format, append([]string{"text"}, findings.Formats...)...); err != nil {
				return err
			}
			if failOn != "" {
				if err := oneOf("--fail-on", failOn, "warning"); err != nil {
					return err
				}
			}
			source, err := input.source(hclog.NewNullLogger())
			if err != nil {
				return err
			}
			report := validate(cmd.Context(), source)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if format == "text" {
				err = printFindings(cmd, report)
			} else {
				err = report.Write(cmd.OutOrStdout(), format, thisBuild().Version)
			}
			if err == nil && (!report.Valid() || failOn != "" && report.Count(findings.SeverityWarning) > 0) {
				err = errReported
			}
			return err
		},
	}
	input.add(cmd)
	cmd.Flags().StringVarP(&format, "output", "o", "text", "how to print what was found: text, json, junit, sarif or github")
	cmd.Flags().StringVar(&failOn, "fail-on", "", "exit with 1 for a valid input if there are any: warning")
	return cmd
}

func validate(ctx context.Context, source spec.Source) findings.Report {
	snap, err := source.Load(ctx)
	if err != nil {
		return findings.Refused(err)
	}
	return findings.Accepted(snap, summary(snap))
}

// printFindings prints for people: what is wrong to standard error, that all is well to standard output.
func printFindings(cmd *cobra.Command, r findings.Report) error {
	out, errOut := cmd.OutOrStdout(), cmd.ErrOrStderr()
	for _, f := range r.Findings {
		switch id := review.ID(f.Rule); {
		case f.Severity == findings.SeverityError:
			fmt.Fprintln(errOut, f)
		case f.Rule == findings.Notice:
			fmt.Fprintf(errOut, "%s %s\n", paint(errOut, yellow, "notice:"), f)
		default:
			fmt.Fprintf(errOut, "%s %s [%s]\n", paint(errOut, yellow, "notice:"), f, id.Short())
		}
	}
	if !r.Valid() {
		_, err := fmt.Fprintf(errOut, "%s %s\n", paint(errOut, red, "invalid:"), plural(r.Count(findings.SeverityError), "problem"))
		return err
	}
	_, err := fmt.Fprintf(out, "%s %s\n", paint(out, green, "ok:"), r.Summary)
	return err
}

// printProblems prints each problem of an input that cannot be used on a line of its own, and a count.
func printProblems(w io.Writer, err error) {
	lines := problemLines(err)
	for _, line := range lines {
		fmt.Fprintln(w, line)
	}
	fmt.Fprintf(w, "%s %s\n", paint(w, red, "invalid:"), plural(len(lines), "problem"))
}

func problemLines(err error) []string {
	var problems spec.Problems
	if !errors.As(err, &problems) {
		return []string{err.Error()}
	}
	lines := make([]string, len(problems))
	for i, p := range problems {
		lines[i] = p.Error()
	}
	return lines
}

// summary counts what was read: "12 Services, 3 EndpointSlices, 40 documents of other kinds skipped".
func summary(snap *spec.Snapshot) string {
	slicesCount, skipped := 0, 0
	for svc := range snap.Services() {
		slicesCount += len(svc.Slices)
	}
	for _, n := range snap.Skipped {
		skipped += n
	}
	parts := []string{plural(snap.Len(), "Service"), plural(slicesCount, "EndpointSlice")}
	if n := len(snap.Nodes); n > 0 {
		parts = append(parts, plural(n, "Node"))
	}
	if skipped > 0 {
		kinds := slices.Sorted(maps.Keys(snap.Skipped))
		parts = append(parts, fmt.Sprintf("%s of other kinds skipped (%s)", plural(skipped, "document"), strings.Join(kinds, ", ")))
	}
	return strings.Join(parts, ", ")
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
