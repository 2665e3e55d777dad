// Command weir gives a Linux node Kubernetes Services from a directory of YAML.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/document"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // the input is invalid, or the kernel does not hold what was asked for
	exitUsage   = 2 // the command line is invalid
	exitAbsent  = 3 // no weir run answers
	exitChanges = 2 // with --exit-code: there are changes
)

// usageError is a mistake on the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errChanges is returned by a command whose exit code was asked to report changes.
var errChanges = errors.New("there are changes")

// errReported is returned by a command that has already printed the error.
var errReported = errors.New("reported")

func main() {
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// execute runs the command line and returns the exit code.
func execute(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := checkCommand(root, args)
	if err == nil {
		err = root.ExecuteContext(context.Background())
	}
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailure
	case errors.Is(err, errChanges):
		return exitChanges
	}
	fmt.Fprintf(stderr, "%s %s\n", paint(stderr, red, "error:"), strings.Join(errorLines(err), "\n"))
	if errors.As(err, new(usageError)) {
		fmt.Fprintln(stderr, `Run "weir --help", or "weir COMMAND --help", for what there is.`)
		if slices.Contains(args, "--exit-code") {
			return exitFailure // 2 would mean "there are changes"
		}
		return exitUsage
	}
	switch {
	case errors.Is(err, status.ErrAbsent):
		return exitAbsent
	case errors.As(err, new(unableError)):
		return exitUnable
	}
	return exitFailure
}

// errorLines returns the lines of an error. Only errors that were joined are on several, so that the text of one, such as a
// file name in it, cannot make a line.
func errorLines(err error) []string {
	text := err.Error()
	var parts []error
	switch e := err.(type) {
	case spec.Problems:
		for _, p := range e {
			parts = append(parts, p)
		}
	case interface{ Unwrap() []error }:
		parts = e.Unwrap()
	case interface{ Unwrap() error }:
		inner := e.Unwrap()
		if inner == nil {
			break
		}
		if before, ok := strings.CutSuffix(text, inner.Error()); ok {
			lines := errorLines(inner)
			lines[0] = oneLine(before) + lines[0]
			return lines
		}
	}
	var lines, texts []string
	for _, p := range parts {
		lines, texts = append(lines, errorLines(p)...), append(texts, p.Error())
	}
	if len(lines) == 0 || strings.Join(texts, "\n") != text {
		return []string{oneLine(text)}
	}
	return lines
}

// oneLine returns text on one line, and clean.
func oneLine(text string) string {
	return spec.Clean(strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "; "))
}

func newRoot() *cobra.Command {
	version := false
	root := &cobra.Command{
		Use:   "weir",
		Short: "Kubernetes Services on a Linux node, from a directory of YAML",
		Long: `weir gives a Linux node Kubernetes Services without a control plane. It reads a directory of YAML (a Git checkout,
say) with a KubeProxyConfiguration and Service, EndpointSlice, Endpoints and HealthCheckPolicy manifests, works out what this
node's data path should be, reads what the kernel holds, and applies the difference.

Exit codes: 0 success; 1 the input is not valid, or the kernel could not be programmed; 2 the command
line is wrong.`,
		Example: `  # Is this directory valid? What would it change on this node?
  weir validate -f ./cluster
  weir plan -f ./cluster

  # Make it so once; make it so and keep it so
  weir reconcile -f ./cluster
  weir run -f ./cluster`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if version {
				return printVersion(cmd.OutOrStdout())
			}
			return cmd.Help()
		},
		SuggestionsMinimumDistance: 2,
	}
	root.Flags().BoolVar(&version, "version", false, "print the version of weir")
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(newRun(), newReconcile(), newPlan(), newValidate(), newAllocate(), newStatus(), newHandover(), newSnapshot(), newCleanup(), newDoctor(), newDiscover(), newProbe(), newDNS(), newExplain(), newVersion(), newMan(), newWarningsHelp())
	for _, cmd := range root.Commands() {
		if cmd.ValidArgsFunction == nil && cmd.Name() != "man" { // which takes a directory
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
	return root
}

// checkCommand returns an error if the first argument should be a command and is none. Cobra would report the flags first.
func checkCommand(root *cobra.Command, args []string) error {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") || strings.HasPrefix(args[0], "__") { // cobra's own begin with __
		return nil
	}
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	if cmd, _, err := root.Find(args); err == nil && cmd == root {
		return unknownCommand(root, args[0])
	}
	return nil
}

// unknownCommand returns the error for a command that does not exist, with the ones that may have been meant.
func unknownCommand(root *cobra.Command, name string) error {
	text := fmt.Sprintf("unknown command %q", name)
	if near := root.SuggestionsFor(name); len(near) > 0 {
		text += "; did you mean weir " + strings.Join(near, ", or weir ") + "?"
	}
	return usageError{errors.New(text)}
}

// flagError returns the error for flags that cannot be parsed. For one that does not exist it names those that may have been
// meant.
func flagError(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return usageError{err}
	}
	given, _, _ := strings.Cut(cmp.Or(unknown.GetSpecifiedShortnames(), unknown.GetSpecifiedName()), "=")
	if near := nearFlags(cmd.Flags(), given); len(near) > 0 {
		err = fmt.Errorf("%w; did you mean %s?", err, strings.Join(near, ", or "))
	}
	return usageError{err}
}

// nearFlags returns the flags that a misspelt name may mean: those that differ in a letter or two, or else those of whose words
// it is a part.
func nearFlags(flags *pflag.FlagSet, given string) (near []string) {
	joined := func(name string) string { return strings.ToLower(strings.NewReplacer("-", "", "_", "").Replace(name)) }
	if len(given) < 3 {
		return nil
	}
	least := min(3, len(joined(given))/2)
	var part []string
	flags.VisitAll(func(f *pflag.Flag) {
		switch d := document.Distance(joined(given), joined(f.Name), least+1); {
		case f.Hidden:
		case d < least:
			least, near = d, []string{"--" + f.Name}
		case d == least && d < 3 && len(near) > 0:
			near = append(near, "--"+f.Name)
		}
		if !f.Hidden && strings.Contains("-"+f.Name+"-", "-"+strings.ToLower(given)+"-") {
			part = append(part, "--"+f.Name)
		}
	})
	if len(near) > 0 {
		return near
	}
	return part
}

// noArgs refuses arguments that are not flags, and explains how to give a path.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q; paths are given with -f", args[0])}
	}
	return nil
}
