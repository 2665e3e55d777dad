package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"weir/reconcile/tell/status"
	"weir/spec"
)

// exitUnable is the exit code of weir handover if the running weir can only be restarted.
const exitUnable = 4

// unableError is returned if the running weir can only be restarted.
type unableError struct{ reason string }

func (e unableError) Error() string { return "the running weir can only be restarted: " + e.reason }

func newHandover() *cobra.Command {
	var (
		stateDir string
		drain    time.Duration
		timeout  time.Duration
		ifNeeded bool
	)
	cmd := &cobra.Command{
		Use:   "handover",
		Short: "Have the running weir replaced by the program that is installed now",
		Long: `Have the "weir run" of this node start the program again by which it was started, with the same arguments, and leave
everything to it once it has read the input and made its first round. No new connection is refused meanwhile: the new process
gets the sockets of the old one. In userspace mode the old process keeps its open connections until they end, for at most
--drain, and ends then. Names, health and metrics are answered throughout too.

If the new process fails, or is not ready in time, the old one goes on as if nothing had been, and the reason is
printed and logged. That is so for an input that cannot be used as well.

A UDP client's next datagram goes to the same endpoint from another port. Session affinity begins anew.

systemd learns of the new main process, and the unit stays active. Settings of the unit itself are taken by a restart only. A
weir that is process 1 of a container cannot be replaced, because the container ends with it; nor one that reads standard input.

Exit codes: 0 the new process is in charge; 1 it is not, or the running weir did not say so; 2 the command line is wrong; 3 no
weir is running; 4 the running weir can only be restarted.`,
		Example: `  weir handover
  weir handover --drain 1h
  weir handover --timeout 5m   # a large input, or a slow API server`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case drain < 0:
				return usageError{fmt.Errorf("--drain %s is negative", drain)}
			case timeout <= 0:
				return usageError{fmt.Errorf("--timeout %s leaves no time", timeout)}
			}
			a, err := status.HandOver(cmd.Context(), stateDir, status.HandoverRequest{Drain: drain, Timeout: timeout, OnlyIfNeeded: ifNeeded})
			switch {
			case errors.Is(err, status.ErrAbsent):
				if err = orUnreachable(err); errors.Is(err, status.ErrAbsent) {
					return err
				}
				return unableError{err.Error()}
			case errors.Is(err, status.ErrForbidden), errors.Is(err, status.ErrEnded):
				return err
			case err != nil:
				return unableError{err.Error()}
			case a.Unable != "":
				return unableError{a.Unable}
			case a.Error != "":
				return errors.New("the running weir was not replaced, and goes on: " + oneLine(a.Error))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "process %d is in charge; process %d has %s left\n", a.PID, a.Left, plural(a.Connections, "connection"))
			return nil
		},
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", spec.DefaultWeirConfiguration().StateDir, "state directory of the weir to replace")
	cmd.Flags().DurationVar(&drain, "drain", defaultDrain, "how long the old process may keep its open connections")
	cmd.Flags().DurationVar(&timeout, "timeout", ablePatience, "how long the new process may take to read its input")
	cmd.Flags().BoolVar(&ifNeeded, "if-needed", false, "do nothing, and exit with 4, if weir carries no connections and answers for no names: a restart interrupts nothing then")
	return cmd
}
