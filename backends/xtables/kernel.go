package xtables

import (
	"context"
	"errors"
	"fmt"
	"io"

	"weir/backends/dataplane"
)

// Mode is the mechanism by which iptables reaches the kernel. A node should use only one of the two.
type Mode string

// The two mechanisms.
const (
	NFT    Mode = "nft"
	Legacy Mode = "legacy"
)

// Features are the differences between nodes that change which rules can be written.
type Features struct {
	// Families are the families that can be programmed; nil stands for all.
	Families []dataplane.Family
	// RandomFully reports whether MASQUERADE can choose source ports at random (--random-fully). This avoids a race
	// between connections that are opened at the same moment.
	RandomFully bool
	// BPF reports whether rules can match by a small program (xt_bpf).
	BPF bool
	// Labels reports whether rules can set and match labels of connections (xt_connlabel).
	Labels bool
	// Untracked reports whether rules can exempt packets from connection tracking (xt_CT, in the table raw).
	Untracked bool
}

// Kernel is the part of iptables that weir uses.
type Kernel interface {
	// Features returns the features that rules may use. The answer never changes.
	Features() Features

	// Save returns a table as iptables-save prints it, or all tables if table is "". If Close returns an error, the
	// text is incomplete and must not be used.
	Save(ctx context.Context, f dataplane.Family, table string) (io.ReadCloser, error)

	// Counters returns the same as Save, with the counters of every rule.
	Counters(ctx context.Context, f dataplane.Family, table string) (io.ReadCloser, error)

	// Restore executes input as iptables-restore --noflush does: each table of it is one transaction, in order. A
	// rejected input returns a *RestoreError.
	Restore(ctx context.Context, f dataplane.Family, input []byte) error

	// RestoreCommand returns the command that Restore runs.
	RestoreCommand(f dataplane.Family) []string

	// Generation returns a number that every transaction of any process increments by one. It returns an error if the
	// number is unknown, as for the legacy mechanism.
	Generation(ctx context.Context) (uint64, error)
}

// RestoreError is the error of an input that iptables-restore rejected.
type RestoreError struct {
	// Line is the faulty line of the input, from 1; 0 if it is not known.
	Line int
	// Retry reports whether the input itself may be right: another process held the lock, or a resource was short.
	Retry bool
	// TooLong reports whether the input did not fit into one message to the kernel. Only root can choose the size of a
	// message.
	TooLong bool
	// Message is the output of iptables-restore, quoted, and the exit code.
	Message string
}

// Error returns the message with its line.
func (e *RestoreError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("iptables-restore rejected line %d: %s", e.Line, e.Message)
	}
	return "iptables-restore: " + e.Message
}

// errNoGeneration is returned if changes cannot be noticed without reading the tables.
var errNoGeneration = errors.New("iptables-legacy has no generation number: changes by other processes are found only when the tables are read")
