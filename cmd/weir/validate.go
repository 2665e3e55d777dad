package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"weir/reconcile"
	"weir/spec"
)

func newValidate() *cobra.Command {
	var input inputFlags
	cmd := &cobra.Command{
		Use:   "validate -f DIR|FILE|-",
		Short: "Say whether an input is valid, without touching this node",
		Long: `Read the input as "weir run" would and print every problem as "file:line: kind namespace/name: field: problem". Nothing
on this node is looked at or changed, so it can run anywhere, for instance on a pull request.

Exit codes: 0 the input is valid (notices may have been printed); 1 it is not; 2 the command line makes no sense.`,
		Example: `  weir validate -f ./cluster
  weir validate -f ./cluster --config kube-proxy.yaml
  kustomize build overlays/edge | weir validate -f -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := input.source(hclog.NewNullLogger())
			if err != nil {
				return err
			}
			snap, err := source.Load(cmd.Context())
			if err == nil {
				err = checkConfigured(snap)
			}
			if err != nil {
				printProblems(cmd.ErrOrStderr(), err)
				return errReported
			}
			printNotices(cmd.ErrOrStderr(), snap)
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\n", paint(cmd.OutOrStdout(), green, "ok:"), summary(snap))
			return err
		},
	}
	input.add(cmd)
	return cmd
}

// checkConfigured finds fault with a configuration that is valid, but that this build cannot serve.
func checkConfigured(snap *spec.Snapshot) error {
	if err := checkMode(string(snap.Config.Mode)); err != nil {
		return spec.Problems{{Origin: snap.ConfigOrigin, Object: "KubeProxyConfiguration", Field: "mode", Detail: err.Error()}}
	}
	return nil
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

// printNotices prints what the authors should know: on the input, and on how Services resolve whatever the node.
func printNotices(w io.Writer, snap *spec.Snapshot) {
	seen := map[string]struct{}{}
	tell := func(problems []spec.Problem) {
		for _, p := range problems {
			if _, told := seen[p.Error()]; !told {
				seen[p.Error()] = struct{}{}
				fmt.Fprintf(w, "%s %s\n", paint(w, yellow, "notice:"), p.Error())
			}
		}
	}
	tell(snap.Notices)
	for svc := range snap.Services() {
		tell(svc.Notices)
		_, problems := reconcile.Resolve(svc, &reconcile.Node{Families: bothFamilies})
		tell(problems)
	}
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
