package main

import (
	"github.com/spf13/cobra"

	"weir/reconcile/review"
)

// newWarningsHelp is no command, but a page that "weir help warnings" prints.
func newWarningsHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "warnings",
		Short: "What the warnings of plans and of validate mean, and how to silence them",
		Long: `Every kind of warning has an ID that never changes. A Service's annotation lists those that its authors know and accept:

    metadata:
      annotations:
        weir/silence: W001,W004

"weir reconcile --dry-run --fail-on warning" and "weir validate --fail-on warning" fail for those of severity warning that
are not silenced.

` + review.KindsText(),
	}
}
