package iptables

import (
	"context"
	"errors"
	"fmt"
	"io"

	"weir/backends"
)

// Mode says by which of its two mechanisms iptables reaches the kernel. A node should use one of them only.
type Mode string

// The two mechanisms.
const (
	NFT    Mode = "nft"
	Legacy Mode = "legacy"
)

// Features are what differs between nodes and changes what is rendered.
type Features struct {
	// Families are those that can be programmed; nil stands for all.
	Families []backends.Family
	// RandomFully says that MASQUERADE can choose source ports at random (--random-fully), which avoids a race between
	// connections that are opened at the same moment.
	RandomFully bool
	// BPF says that rules can match by a small program (xt_bpf). One rule then recognises every hairpin connection, where
	// otherwise each endpoint needs a rule of its own.
	BPF bool
}

// Kernel is all that the backend needs of iptables.
type Kernel interface {
	// Features says what the rules may use. The answer never changes.
	Features() Features

	// Save returns a table as iptables-save prints it, or all of them if table is "". Close says whether all of it was read; if Close returns an error,
	// what was read must not be relied upon.
	Save(ctx context.Context, f backends.Family, table string) (io.ReadCloser, error)

	// Restore executes input as iptables-restore --noflush does: each table of it is one transaction, in order. A
	// rejected input returns a *RestoreError.
	Restore(ctx context.Context, f backends.Family, input []byte) error

	// Generation returns a number that every transaction of anybody increments by one. An error means that it is not
	// known, as for the legacy mechanism.
	Generation(ctx context.Context) (uint64, error)
}

// RestoreError says that iptables-restore rejected its input.
type RestoreError struct {
	// Line is the line of the input that was at fault, from 1; 0 if it is not known.
	Line int
	// Retry says that the input itself may be right: somebody else held the lock, or a resource was short.
	Retry bool
	// TooLong says that the input did not fit into one message to the kernel, whose size only root can choose.
	TooLong bool
	// Message is what iptables-restore said.
	Message string
}

// Error returns the message with its line.
func (e *RestoreError) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("iptables-restore rejected line %d: %s", e.Line, e.Message)
	}
	return "iptables-restore: " + e.Message
}

// errNoGeneration is returned where changes cannot be noticed without reading the tables.
var errNoGeneration = errors.New("iptables-legacy has no generation number: changes by others are found when the tables are read")
