package main

import (
	"errors"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func newCleanup() *cobra.Command {
	var (
		node   nodeFlags
		logs   logFlags
		output outputFlag
		dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that weir programmed, in every mode",
		Long: `Remove from this node's kernel what weir owns, whatever mode programmed it, and nothing else. With --dry-run, print what
would go.

Exit codes: 0 nothing of weir's is left (or the plan was printed); 1 something could not be removed; 2 the command line
makes no sense.`,
		Example: "  weir cleanup --dry-run\n  weir cleanup",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(node.check(), logs.check(), output.check()); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			log := logs.logger(cmd.ErrOrStderr())
			if !dryRun {
				release, err := lockNode(log)
				if err != nil {
					return err
				}
				defer release()
			}
			if !privileged() {
				return errUnprivileged
			}
			others := (&wiring{log: log, flags: node}).others(ctx, "")
			if len(others) == 0 {
				return errors.New("this node has neither iptables nor nftables that could be read")
			}
			if dryRun {
				for _, other := range others {
					plan, err := other.engine.PlanCleanup(ctx)
					if err != nil {
						return readError(err)
					}
					if err := writePlan(cmd.OutOrStdout(), plan, output.format); err != nil {
						return err
					}
				}
				return nil
			}
			var failed error
			cleanup(ctx, others, func(name string, deleted int, err error) {
				if err != nil {
					failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
					return
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %d removed\n", name, deleted)
			})
			return failed
		},
	}
	node.addVariant(cmd.Flags())
	logs.add(cmd, "warn")
	output.add(cmd, "the plan of --dry-run")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be removed and change nothing")
	return cmd
}
