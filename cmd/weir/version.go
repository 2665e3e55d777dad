package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"weir/spec"
)

// build holds the facts about the binary itself.
type build struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	Modified  bool   `json:"modified,omitempty"`
	Time      string `json:"time,omitempty"`
	GoVersion string `json:"goVersion"`
	Platform  string `json:"platform"`
}

func thisBuild() build {
	b := build{Version: "(devel)", GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return b
	}
	if info.Main.Version != "" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		case "vcs.time":
			b.Time = s.Value
		}
	}
	return b
}

func newVersion() *cobra.Command {
	var output outputFlag
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of weir",
		Example: "  weir version\n  weir version -o json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			if output.format == "json" {
				return writeJSON(cmd.OutOrStdout(), thisBuild())
			}
			return printVersion(cmd.OutOrStdout())
		},
	}
	output.add(cmd, "it")
	return cmd
}

func printVersion(w io.Writer) error {
	b := thisBuild()
	commit := b.Commit
	if b.Modified {
		commit += "-dirty"
	}
	if commit != "" {
		commit = " commit " + commit
	}
	_, err := fmt.Fprintf(w, "weir %s%s %s %s\n", b.Version, commit, b.GoVersion, b.Platform)
	return err
}

func writeJSON(w io.Writer, v any) error {
	return spec.WriteJSON(w, v, true)
}
