package main

import (
	"bytes"
	"context"
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

	"weir/reconcile/tell/changes"
	"weir/spec"
	"weir/spec/filesource"
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
		Long: `Show the ClusterIPs and node ports that weir allocates to Services that set none. They depend only on the names of the
Services, so that all nodes agree. A Service keeps its values unless a new Service of higher rank wants the same value, or
sets it.

With --write they are pinned in DIR/` + spec.LockFile + `, which is read with all other manifests: what is pinned never moves,
and a Service that sets what another one has pinned is refused. What no Service needs any more is dropped from the file, and
the file removed if nothing is left. Commit it. --lock names another file, which may be outside of DIR because other tools
that apply DIR do not know its kind; give it to every command.

Exit codes: 0 the values were shown, and written with --write; 1 the input is not valid, or the file could not be written; 2 the
command line is wrong.`,
		Example: `  weir allocate -f ./cluster
  weir allocate -f ./cluster --write
  weir allocate -k overlays/edge --lock edge.lock.yaml --write`,
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
			if snap.Weir.Objects() != (spec.ObjectChoice{}) {
				return errors.New("--write would drop what is pinned for Services that are not chosen: leave out --namespace and --selector, or those fields of the WeirConfiguration")
			}
			done, err := writeLock(cmd.Context(), snap, &input)
			if err == nil && done != "" && output.format == "text" {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), oneLine(done))
			}
			return err
		},
	}
	input.add(cmd)
	output.add(cmd, "what is allocated")
	cmd.Flags().BoolVar(&write, "write", false, "write the allocated values to "+spec.LockFile)
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
	for svc := range snap.Services.All() {
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
		}{changes.APIVersion, "Allocations", all})
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

// writeLock pins everything that is allocated, and returns what it did to the file, or "" for nothing.
func writeLock(ctx context.Context, snap *spec.Snapshot, input *inputFlags) (done string, err error) {
	file, err := lockFile(snap, input)
	if err != nil {
		return "", err
	}
	text, err := manifest.WriteLock(snap)
	if err != nil {
		return "", err
	}
	old, err := filesource.ReadFile(ctx, file)
	missing := errors.Is(err, os.ErrNotExist)
	empty := len(allocationsOf(snap)) == 0
	switch {
	case err != nil && !missing:
		return "", err
	case !missing && bytes.Equal(old, text) && !empty, missing && empty:
		return "", nil
	case !missing && !manifest.OnlyLock(old):
		return "", fmt.Errorf("%s holds more than an %s; move the rest to another file", file, spec.LockKind)
	case empty:
		return "removed " + file + ", since there is nothing to pin", os.Remove(file)
	}
	return "written to " + file, replaceFile(file, text)
}

// lockFile returns the file that has the lock, or where to write it.
func lockFile(snap *spec.Snapshot, input *inputFlags) (string, error) {
	var files []string
	for _, o := range snap.Locks {
		if !slices.Contains(files, o.File) {
			files = append(files, o.File)
		}
	}
	if input.lock != "" && !slices.Contains(files, filepath.Clean(input.lock)) {
		files = append(files, filepath.Clean(input.lock))
	}
	switch {
	case len(files) > 1:
		return "", fmt.Errorf("there are several files with an %s: %s; keep one", spec.LockKind, strings.Join(files, ", "))
	case len(files) == 1 && files[0] == "-":
		return "", fmt.Errorf("the %s comes from standard input; give --write the directory that it is in", spec.LockKind)
	case len(files) == 1:
		return files[0], nil
	}
	for _, path := range input.files {
		if fi, err := os.Stat(path); err == nil && fi.IsDir() {
			return filepath.Join(path, spec.LockFile), nil
		}
	}
	return "", usageError{errors.New("--write needs a directory given with -f, or a file given with --lock")}
}

// replaceFile writes a file atomically.
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
