// Command weir gives a Linux node Kubernetes Services from a directory of YAML.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"weir/reconcile/status"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1 // the input is not valid, or the kernel could not be brought to what was asked
	exitUsage   = 2 // the command line makes no sense
	exitAbsent  = 3 // no weir is running
	exitChanges = 2 // with --exit-code: there is something to do
)

// usageError is a mistake on the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errChanges is returned by a command that was asked to say by its exit code that there is something to do.
var errChanges = errors.New("there are changes")

// errReported is returned by a command that has already printed what is wrong.
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
	err := root.ExecuteContext(context.Background())
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, errReported):
		return exitFailure
	case errors.Is(err, errChanges):
		return exitChanges
	}
	fmt.Fprintf(stderr, "%s %v\n", paint(stderr, red, "error:"), err)
	if errors.As(err, new(usageError)) {
		fmt.Fprintln(stderr, `Run "weir --help", or "weir COMMAND --help", for what there is.`)
		if slices.Contains(args, "--exit-code") {
			return exitFailure // 2 would be taken for "there are changes"
		}
		return exitUsage
	}
	if errors.Is(err, status.ErrAbsent) {
		return exitAbsent
	}
	return exitFailure
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "weir",
		Short: "Kubernetes Services on a Linux node, from a directory of YAML",
		Long: `weir gives a Linux node Kubernetes Services without a control plane. It reads a directory of YAML (a Git checkout,
say) with a KubeProxyConfiguration and Service, EndpointSlice and Endpoints manifests, works out what this node's data
path should be, reads what the kernel holds, and applies the difference.

Exit codes: 0 success; 1 the input is not valid, or the kernel could not be brought to what was asked; 2 the command
line makes no sense.`,
		Example: `  # Is this directory valid? What would it change on this node?
  weir validate -f ./cluster
  weir reconcile -f ./cluster --dry-run

  # Make it so once; make it so and keep it so
  weir reconcile -f ./cluster
  weir run -f ./cluster`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newRun(), newReconcile(), newValidate(), newAllocate(), newStatus(), newSnapshot(), newCleanup(), newDoctor(), newVersion(), newWarningsHelp())
	return root
}

// noArgs refuses arguments that are not flags, and says where a path belongs.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q; paths are given with -f", args[0])}
	}
	return nil
}
