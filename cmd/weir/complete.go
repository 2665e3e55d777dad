package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weir/reconcile/tell/status"
	"weir/spec"
)

// completionLimit is how long a shell that completes a word waits for the running weir.
const completionLimit = 300 * time.Millisecond

// completed asks the running weir how a name may go on. Without an answer in time there is nothing to complete, and nothing to
// tell: the person is in the middle of a line.
func completed(cmd *cobra.Command, stateDir, prefix string) status.Completions {
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionLimit)
	defer cancel()
	c, err := status.Completed(ctx, stateDir, prefix)
	if err != nil {
		return status.Completions{}
	}
	return c
}

// completeService completes the one argument [NAMESPACE/]NAME: a name that has been begun, or a namespace and then a name in it.
func completeService(stateDir *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c := completed(cmd, *stateDir, begun)
		found, directive := map[string]bool{}, cobra.ShellCompDirectiveNoFileComp
		severalNamespaces := len(c.Namespaces) > 1
		for _, n := range c.Services {
			if begun != "" && strings.HasPrefix(n.Name, begun) {
				found[n.Name] = true
			}
			if !severalNamespaces && strings.HasPrefix(n.String(), begun) {
				found[n.String()] = true
			}
		}
		if severalNamespaces {
			for _, n := range c.Namespaces {
				found[n+"/"] = true
			}
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		return slices.Sorted(maps.Keys(found)), directive
	}
}

// completeDNSName completes the name of a Service as clients write it, NAME.NAMESPACE, and then a type of record.
func completeDNSName(stateDir *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) (found []cobra.Completion, _ cobra.ShellCompDirective) {
		switch len(args) {
		case 0:
			name, _, _ := strings.Cut(begun, ".")
			for _, n := range completed(cmd, *stateDir, name).Services {
				if full := n.Name + "." + n.Namespace; strings.HasPrefix(full, begun) {
					found = append(found, full)
				}
			}
		case 1:
			found = slices.Sorted(maps.Keys(recordTypes))
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeNamespace completes the value of --namespace.
func completeNamespace(stateDir *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return completed(cmd, *stateDir, begun).Namespaces, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeValues has the values of a flag completed.
func completeValues(cmd *cobra.Command, flag string, values ...string) {
	completeFlag(cmd, flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
}

// completeNotices completes the last of a list of severities and IDs of notices.
func completeNotices(_ *cobra.Command, _ []string, begun string) (found []cobra.Completion, _ cobra.ShellCompDirective) {
	i := strings.LastIndexByte(begun, ',') + 1
	list, last := begun[:i], begun[i:]
	add := func(name, meaning string) {
		if strings.HasPrefix(name, last) && !slices.Contains(strings.Split(list, ","), name) {
			if list != "" { // the script for bash does not find its word again in one that has a comma and a description
				meaning = ""
			}
			found = append(found, cobra.CompletionWithDesc(list+name, meaning))
		}
	}
	for _, s := range []spec.Severity{spec.SeverityWarning, spec.SeverityInfo} {
		add(string(s), "all of this severity")
	}
	for _, k := range spec.NoticeKinds() {
		add(k.ID.Short(), k.Meaning)
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// completeFlag has the value of a flag completed. It panics if there is no such flag.
func completeFlag(cmd *cobra.Command, flag string, complete cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err)
	}
}
