package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weir/reconcile/status"
	"weir/spec"
)

// watchInterval is how often weir status --watch looks.
const watchInterval = time.Second

func newStatus() *cobra.Command {
	var (
		stateDir string
		output   outputFlag
		watch    bool
		traffic  bool
	)
	cmd := &cobra.Command{
		Use:   "status [NAME | NAMESPACE/NAME]",
		Short: "Say what the running weir is doing",
		Long: `Ask the "weir run" of this node what is in force: the mode and revision, a revision that was refused with its errors, the
last sync, and each Service with its addresses and endpoints; or only the Services of one name.

Exit codes: 0 it was told; 1 it could not be asked, or there is no Service of that name; 2 the command line makes no
sense; 3 no weir is running.`,
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
				return status.Get(ctx, stateDir, name, traffic)
			})
		},
	}
	cmd.Flags().StringVar(&stateDir, "state-dir", spec.DefaultWeirConfiguration().StateDir, "state directory of the weir to ask")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "print it again whenever it changes, until interrupted")
	cmd.Flags().BoolVar(&traffic, "traffic", false, "also count the connections of each Service, where the proxy mode does; takes a full read of the kernel")
	output.add(cmd, "the status")
	return cmd
}

// showStatus prints what ask returns; with watch, again whenever that changes.
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
		Long: `Print, as JSON, what the running weir has programmed; without one, what weir programmed last. A dry run anywhere else can
then be made against it: weir reconcile -f DIR --dry-run --against FILE.

Exit codes: 0 it was printed; 1 it could not be read; 2 the command line makes no sense; 3 weir has not programmed this
node.`,
		Example: `  weir snapshot > edge-7.json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rec, err := status.Snapshot(cmd.Context(), stateDir)
			if errors.Is(err, status.ErrAbsent) {
				if saved, loadErr := status.LoadRecord(stateDir); loadErr == nil {
					rec, err = saved, nil
				}
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
