package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"weir/spec/config/schema"
)

func newExplain() *cobra.Command {
	var (
		output    string
		recursive bool
	)
	cmd := &cobra.Command{
		Use:   "explain [FIELD]",
		Short: "Explain the fields of the configuration",
		Long: `Print what a field of the configuration means, its type, its default and the words that it takes, as kubectl explain does for
objects. Nothing on this node is looked at.

FIELD is a kind, WeirConfiguration or KubeProxyConfiguration, or the path of a field, such as dns.listen. A path may begin
with the kind; without one it is looked up in WeirConfiguration, and then in KubeProxyConfiguration. Paths as weir's messages
have them are understood too, such as dns.listen[0]. Without FIELD the fields of both kinds are listed.

With -o jsonschema the JSON Schema (draft 7) of the kind is printed, for editors, kubeconform and other programs that check
documents. It knows the structure: fields, types and words. "weir validate" knows all the rest.

Exit codes: 0 explained; 2 there is no such field, or the command line is wrong.`,
		Example: `  weir explain
  weir explain dns
  weir explain dns.listen
  weir explain KubeProxyConfiguration.iptables.syncPeriod
  weir explain KubeProxyConfiguration --recursive

  # For an editor: its YAML language server reads the schema that the first line of a document names
  weir explain WeirConfiguration -o jsonschema > weirconfiguration.json
  sed -i '1i # yaml-language-server: $schema=weirconfiguration.json' weir.yaml

  # For kubeconform, which looks for files of the kinds' names in lower case
  mkdir -p schemas
  weir explain WeirConfiguration -o jsonschema > schemas/weirconfiguration.json
  weir explain KubeProxyConfiguration -o jsonschema > schemas/kubeproxyconfiguration.json
  kubeconform -schema-location default -schema-location 'schemas/{{.ResourceKind}}.json' cluster/`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("give one field, not %d", len(args))}
			}
			return nil
		},
		ValidArgsFunction: completeField,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf("--output", output, "text", "jsonschema"); err != nil {
				return err
			}
			if len(args) == 0 {
				return explainKinds(cmd.OutOrStdout(), output, recursive)
			}
			f, err := schema.Lookup(args[0])
			switch {
			case err != nil:
				return usageError{err}
			case output == "jsonschema" && len(f.Path) > 0:
				return usageError{fmt.Errorf("a schema is of one kind: name %s", f.Kind.Name)}
			case output == "jsonschema":
				_, err = cmd.OutOrStdout().Write(f.Kind.Text)
			case recursive:
				err = f.Tree(cmd.OutOrStdout(), -1)
			default:
				err = f.Explain(cmd.OutOrStdout())
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "how to print it: text, or jsonschema for the schema of the kind")
	completeValues(cmd, "output", "text", "jsonschema")
	cmd.Flags().BoolVar(&recursive, "recursive", false, "print the names and types of all fields below, without descriptions")
	return cmd
}

// explainKinds lists the fields of each kind, with recursive also those below them.
func explainKinds(w io.Writer, output string, recursive bool) error {
	if output == "jsonschema" {
		return usageError{errors.New("a schema is of one kind: name WeirConfiguration or KubeProxyConfiguration")}
	}
	depth := 1
	if recursive {
		depth = -1
	}
	for i, k := range schema.Kinds() {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := k.Field().Tree(w, depth); err != nil {
			return err
		}
	}
	return nil
}

// completeField completes the path of a field, one name at a time.
func completeField(_ *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	paths, on := schema.Complete(begun)
	if on {
		return paths, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
	return paths, cobra.ShellCompDirectiveNoFileComp
}
