package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"weir/reconcile/review"
	"weir/spec"
	"weir/spec/manifest"
)

func newAllocate() *cobra.Command {
	var (
		input  inputFlags
		output outputFlag
		write  bool
	)
	cmd := &cobra.Command{
		Use:   "allocate -f DIR",
		Short: "Show the ClusterIPs and node ports that Services are given, and pin them",
		Long: `Show which ClusterIPs and node ports weir gives to the Services that leave them open. They depend on the names of the
Services alone, so that all nodes agree, and a Service keeps them unless a new one of higher rank wants the same, or sets it.

With --write they are pinned in DIR/` + spec.LockFile + `, which is read with all other manifests: what is pinned never moves,
and a Service that sets what another one has pinned is refused. What no Service needs any more is dropped from the file.
Commit it.

Exit codes: 0 it was shown, and written if that was asked; 1 the input is not valid, or the file could not be written; 2 the
command line makes no sense.`,
		Example: `  weir allocate -f ./cluster
  weir allocate -f ./cluster --write`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := output.check(); err != nil {
				return err
			}
			source, err := input.source(hclog.NewNullLogger())
			if err != nil {
				return err
			}
			snap, err := source.Load(cmd.Context())
			if err != nil {
				printProblems(cmd.ErrOrStderr(), err)
				return errReported
			}
			if err := printAllocations(cmd.OutOrStdout(), snap, output.format); err != nil || !write {
				return err
			}
			file, changed, err := writeLock(snap, input.files)
			if err == nil && changed && output.format == "text" {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "written to %s\n", file)
			}
			return err
		},
	}
	input.add(cmd)
	output.add(cmd, "what is allocated")
	cmd.Flags().BoolVar(&write, "write", false, "pin what is allocated in "+spec.LockFile)
	return cmd
}

// allocation is one line of what "weir allocate -o json" prints.
type allocation struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Source    string `json:"source,omitempty"`
	Field     string `json:"field"`
	Value     string `json:"value"`
	Pinned    bool   `json:"pinned"`
}

func allocationsOf(snap *spec.Snapshot) []allocation {
	all := []allocation{}
	for svc := range snap.Services() {
		for _, a := range svc.Allocated {
			all = append(all, allocation{svc.Name.Namespace, svc.Name.Name, svc.Origin.String(), a.Field(), a.Value(svc.Object), a.Pinned})
		}
	}
	return all
}

func printAllocations(w io.Writer, snap *spec.Snapshot, format string) error {
	all := allocationsOf(snap)
	if format == "json" {
		return writeJSON(w, struct {
			APIVersion  string       `json:"apiVersion"`
			Kind        string       `json:"kind"`
			Allocations []allocation `json:"allocations"`
		}{review.APIVersion, "Allocations", all})
	}
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "nothing is allocated: every Service says what it wants")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SERVICE\tFIELD\tVALUE\tPINNED")
	pinned := 0
	for _, a := range all {
		yes := "no"
		if a.Pinned {
			yes = "yes"
			pinned++
		}
		fmt.Fprintf(table, "%s/%s\t%s\t%s\t%s\n", a.Namespace, a.Name, a.Field, a.Value, yes)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s allocated, %d pinned\n", plural(len(all), "value"), pinned)
	return err
}

// writeLock pins everything that is allocated, and says whether that changed the file.
func writeLock(snap *spec.Snapshot, paths []string) (file string, changed bool, err error) {
	if file, err = lockFile(snap, paths); err != nil {
		return "", false, err
	}
	text, err := manifest.WriteLock(snap)
	if err != nil {
		return file, false, err
	}
	old, err := os.ReadFile(file)
	switch {
	case err == nil && bytes.Equal(old, text):
		return file, false, nil
	case err == nil && !manifest.OnlyLock(old):
		return file, false, fmt.Errorf("%s holds more than an %s; move the rest to another file", file, spec.LockKind)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return file, false, err
	}
	return file, true, replaceFile(file, text)
}

// lockFile returns the file that has the lock, or is to have it.
func lockFile(snap *spec.Snapshot, paths []string) (string, error) {
	var files []string
	for _, o := range snap.Locks {
		if !slices.Contains(files, o.File) {
			files = append(files, o.File)
		}
	}
	switch {
	case len(files) > 1:
		return "", fmt.Errorf("there are several files with an %s: %s; keep one", spec.LockKind, strings.Join(files, ", "))
	case len(files) == 1 && files[0] == "-":
		return "", fmt.Errorf("the %s comes from standard input; give --write the directory that it is in", spec.LockKind)
	case len(files) == 1:
		return files[0], nil
	}
	for _, path := range paths {
		if fi, err := os.Stat(path); err == nil && fi.IsDir() {
			return filepath.Join(path, spec.LockFile), nil
		}
	}
	return "", usageError{errors.New("--write needs a directory: give one with -f")}
}

// replaceFile writes a file such that no reader ever sees half of it.
func replaceFile(file string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err := errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", f.Name(), err)
	}
	return os.Rename(f.Name(), file)
}
