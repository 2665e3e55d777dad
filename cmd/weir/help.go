package main

import (
	"github.com/spf13/cobra"

	"weir/spec"
)

// newWarningsHelp returns a help topic: the page that "weir help warnings" prints.
func newWarningsHelp() *cobra.Command {
	return &cobra.Command{
		Use:   "warnings",
		Short: "What the warnings of plans and of validate mean, and how to silence them",
		Long: `Every kind of warning has an ID that never changes. What is known and accepted can be silenced, by IDs in short or whole,
for a Service by an annotation:

    metadata:
      annotations:
        weir/silence: W001,W004

for everything in a file by a comment among those at its head:

    # weir:silence W005,W017

and for all of the input in the WeirConfiguration:

    apiVersion: weir/v1alpha1
    kind: WeirConfiguration
    silence: [W009, W013]

"weir plan --fail-on LIST" and "weir validate --fail-on LIST" fail for those that are not silenced and that the list names by
severity or ID, such as warning or W005,W009.

` + spec.NoticeTable(),
	}
}
