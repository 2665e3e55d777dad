package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

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

// String returns "weir v0.4.0 commit 1a2b3c4d5e6f7081a2b3c4d5e6f7081a2b3c4d5e of 2026-11-30T03:15:00Z go1.26.8 linux/amd64".
// What is not known is left out.
func (b build) String() string {
	text := "weir " + b.Version
	if b.Commit != "" {
		text += " commit " + b.commit()
	}
	if b.Time != "" {
		text += " of " + b.Time
	}
	return text + " " + b.GoVersion + " " + b.Platform
}

// userAgent returns how weir names itself to servers: "weir/v0.4.0 (linux/amd64; commit 1a2b3c4d5e6f; 2026-11-30T03:15:00Z)".
func (b build) userAgent() string {
	comment := []string{b.Platform}
	if b.Commit != "" {
		comment = append(comment, "commit "+b.Commit[:min(12, len(b.Commit))])
	}
	if b.Time != "" {
		comment = append(comment, b.Time)
	}
	// The parentheses of "(devel)" would begin a comment.
	return "weir/" + strings.Trim(b.Version, "()") + " (" + strings.Join(comment, "; ") + ")"
}

// commit returns the commit, marked if the source differed from it.
func (b build) commit() string {
	if b.Modified && b.Commit != "" {
		return b.Commit + "-dirty"
	}
	return b.Commit
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
	_, err := fmt.Fprintln(w, thisBuild())
	return err
}

func writeJSON(w io.Writer, v any) error {
	return spec.WriteJSON(w, v, true)
}
