package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/signal"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"weir/reconcile/tell/changes"
	"weir/reconcile/tell/status"
	"weir/spec"
)

// watchInterval is how often weir status --watch asks.
const watchInterval = time.Second

func newStatus() *cobra.Command {
	var (
		stateDir string
		output   outputFlag
		watch    bool
		traffic  bool
		verbose  bool
	)
	cmd := &cobra.Command{
		Use:   "status [NAME | NAMESPACE/NAME]",
		Short: "Say what the running weir is doing",
		Long: `Ask the "weir run" of this node for its state: the mode and revision, a refused revision with its errors, the last sync,
the present notices, and each Service with its addresses and endpoints. With a name, print only the Services of that name.

Exit codes: 0 the state was printed; 1 weir could not be asked, or there is no Service of that name; 2 the command line is
wrong; 3 no weir is running.`,
		Example: `  weir status
  weir status default/web
  weir status web --traffic
  weir status -o json --watch`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("one name at most, not %d", len(args))}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := output.check(); err != nil {
				return err
			}
			name := ""
			if len(args) > 0 {
				name = args[0]
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return showStatus(ctx, cmd.OutOrStdout(), output.format, watch, name, func(ctx context.Context) (*status.Status, error) {
				s, err := status.Get(ctx, stateDir, name, traffic)
				if err == nil {
					s.AskedBy(thisBuild().Version)
				}
				if err == nil && verbose {
					s.ListNotices()
				}
				return s, orUnreachable(err)
			})
		},
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", spec.DefaultWeirConfiguration().StateDir, "state directory of the weir to ask")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "print the state again when it changes, until interrupted")
	cmd.Flags().BoolVar(&traffic, "traffic", false, "also print the number of connections of each Service, if the proxy mode counts them; needs a full read of the kernel")
	cmd.Flags().BoolVar(&verbose, "verbose", false, "print each notice on a line of its own")
	output.add(cmd, "the status")
	cmd.ValidArgsFunction = completeService(&stateDir)
	return cmd
}

// orUnreachable returns a different error if a weir runs but its socket is missing, and if that cannot be told.
func orUnreachable(err error) error {
	if !errors.Is(err, status.ErrAbsent) {
		return err
	}
	held, pid, unknown := running()
	switch {
	case unknown != nil:
		return fmt.Errorf("%v; whether a weir runs all the same cannot be told: %v", err, unknown)
	case !held:
		return err
	}
	process := "a process"
	if pid != 0 {
		process = fmt.Sprintf("process %d", pid)
	}
	return fmt.Errorf("%s runs as weir in this network namespace but cannot be reached: its socket is not there; it makes the socket again with each sync, and logs why if it cannot; or its --state-dir is another one (%v)", process, err)
}

// showStatus prints the result of ask; with watch, again whenever it changes.
func showStatus(ctx context.Context, w io.Writer, format string, watch bool, name string, ask func(context.Context) (*status.Status, error)) error {
	var last []byte
	for {
		s, err := ask(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case name != "" && len(s.Services) == 0 && !watch:
			return fmt.Errorf("no Service named %q is in force", name)
		}
		var b bytes.Buffer
		if format == "json" {
			err = writeJSON(&b, s)
		} else {
			err = s.WriteText(&b)
		}
		if err == nil && !bytes.Equal(b.Bytes(), last) {
			if last != nil && format == "text" {
				fmt.Fprintln(w)
			}
			last = b.Bytes()
			_, err = w.Write(last)
		}
		if err != nil || !watch {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchInterval):
		}
	}
}

func newSnapshot() *cobra.Command {
	var stateDir string
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Print what is in force on this node, for --against",
		Long: `Print, as JSON, what the running weir has programmed. If none runs, print what weir programmed last, if the kernel still
holds it.
A dry run anywhere else can then be made against it: weir plan -f DIR --against FILE.

Exit codes: 0 the state was printed; 1 it could not be read; 2 the command line is wrong; 3 nothing that weir programmed is in
force on this node.`,
		Example: `  weir snapshot > edge-7.json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rec, err := status.Snapshot(cmd.Context(), stateDir)
			if err = orUnreachable(err); errors.Is(err, status.ErrAbsent) {
				rec, err = lastInForce(cmd, stateDir, err)
			}
			if err != nil {
				return err
			}
			return rec.Write(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", spec.DefaultWeirConfiguration().StateDir, "state directory of weir on this node")
	return cmd
}

// lastInForce returns the record of what weir programmed last, if the kernel still holds it. After a reboot, after weir
// cleanup and in another network namespace it does not. absent is why no running weir was asked.
func lastInForce(cmd *cobra.Command, stateDir string, absent error) (*changes.Record, error) {
	rec, err := status.LoadRecord(cmd.Context(), stateDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, absent
	case err != nil:
		return nil, err
	case traitsOf(rec.Mode).CarriesTraffic:
		return nil, fmt.Errorf("%w, and %s mode serves nothing without its process", absent, rec.Mode)
	case !privileged():
		return nil, fmt.Errorf("weir is not running, and whether the kernel still holds what it programmed cannot be read: %w", errUnprivileged)
	}
	if !newPlatform(hclog.NewNullLogger(), nodeFlags{}, false).holds(cmd.Context(), "", rec.Mode) {
		return nil, fmt.Errorf("%w, and the kernel does not hold what weir programmed last any more (revision %s, %s mode)", absent, rec.Revision, rec.Mode)
	}
	return rec, nil
}
