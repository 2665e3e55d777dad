package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"
)

// newMan returns the command that packages are made with. People read the pages.
func newMan() *cobra.Command {
	return &cobra.Command{
		Use:     "man DIR",
		Short:   "Write the man pages into a directory",
		Example: "  weir man /usr/local/share/man/man8",
		Hidden:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{fmt.Errorf("give the one directory to write to, not %d", len(args))}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return err
			}
			return writeManPages(args[0], thisBuild())
		},
	}
}

// writeManPages writes a page for each command. The same build always writes the same.
func writeManPages(dir string, b build) error {
	header := &doc.GenManHeader{Section: "8", Source: "weir " + b.Version, Manual: "weir", Date: &time.Time{}}
	if t, err := time.Parse(time.RFC3339, b.Time); err == nil {
		header.Date = &t
	}
	root := newRoot()
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	literally(root)
	return doc.GenManTree(root, header, dir)
}

// literally has the texts of a command and of those below it printed as they are, because the library takes them for Markdown.
func literally(cmd *cobra.Command) {
	cmd.DisableAutoGenTag = true
	cmd.InitDefaultHelpFlag()
	cmd.Short, cmd.Long = unmarked.Replace(cmd.Short), unmarked.Replace(cmd.Long)
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) { f.Usage = unmarked.Replace(f.Usage) })
	for _, c := range cmd.Commands() {
		literally(c)
	}
}

// unmarked takes the meaning from the characters that have one in Markdown.
var unmarked = strings.NewReplacer(`\`, `\\`, "*", `\*`, "_", `\_`, "`", "\\`", "<", `\<`, "[", `\[`, "]", `\]`, "#", `\#`)
