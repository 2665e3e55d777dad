// Package nfnl speaks nf_tables over netlink: it sends transactions and requests, receives notifications, and turns
// tables, sets, chains, rules and elements into messages and back.
//
// The package has these objects as the kernel has them, in plain values. It does not know what they mean to weir. A
// Kernel opens connections; a Conn commits and asks. Package nfnltest has a Kernel in memory, which is tested against
// the real one. Any backend may import the package.
//
// Only the expressions and types of google/nftables are used. That library makes several allocations for each element,
// so that it needs twice the time of this package to write 50,000 Services. It reads with buffers of one page, so that
// the kernel restarts a dump for every page, and the time to read a set is quadratic in its size.
package nfnl

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Kernel opens connections to the nf_tables of one network namespace.
type Kernel interface {
	// Dial opens a connection.
	Dial() (Conn, error)
	// Listen subscribes to the notifications of all commits except those of own. It sends to arrived, without waiting,
	// when there are notifications to receive.
	Listen(own Conn, arrived chan<- struct{}) (Listener, error)
}

// Conn is a connection. It serves one goroutine at a time.
type Conn interface {
	// Commit makes the messages one transaction. It returns a *BatchError if the kernel rejected them; then nothing has
	// changed. After any other error the result of the transaction is unknown.
	Commit(ctx context.Context, messages []Message) error
	// Ask calls f with the data of each answer to a request. If a single object is absent, there is no answer. The data
	// is valid only until f returns.
	Ask(ctx context.Context, r Request, f func(data []byte) error) error
	// MaxBatch returns the maximum size of a transaction in bytes, as BatchSize counts them.
	MaxBatch() int
	Close() error
}

// Listener receives notifications. It serves one goroutine at a time.
type Listener interface {
	// Receive waits for notifications, at most for the timeout, and calls f with those that arrived together. It
	// returns os.ErrDeadlineExceeded if none arrived. After any other error some may be lost.
	Receive(timeout time.Duration, f func(Notification)) error
	// Pause ends the subscription until Resume begins it anew. Notifications that arrived before can still be received.
	Pause() error
	Resume() error
	Close() error
}

// ErrInterrupted is returned if another process wrote while a list was read.
var ErrInterrupted = errors.New("the ruleset changed while it was read")

// Message is one message of a transaction, without the header.
type Message struct {
	Type  uint16 // unix.NFT_MSG_*
	Flags uint16 // besides NLM_F_REQUEST
	Data  []byte
	// Owner is the sender's note of the purpose of the message. It is not sent; a Failure returns it.
	Owner int32
}

// NoOwner is the Owner of a message that has several purposes.
const NoOwner = -1

// Request asks for one object, or for a list.
type Request struct {
	Type uint16 // unix.NFT_MSG_GET*
	List bool
	Data []byte
}

// BatchError is the error of a transaction that the kernel rejected as a whole. It holds the messages that the kernel
// found wrong.
type BatchError struct{ Failures []Failure }

// Failure is one message that the kernel found wrong.
type Failure struct {
	Index int // in the transaction
	Owner int32
	Err   error
}

// Error implements error.
func (e *BatchError) Error() string {
	f := e.Failures[0]
	return fmt.Sprintf("the kernel rejected message %d of the transaction, %d in all: %v", f.Index, len(e.Failures), f.Err)
}

// Unwrap returns the kernel's errors.
func (e *BatchError) Unwrap() []error {
	errs := make([]error, len(e.Failures))
	for i, f := range e.Failures {
		errs[i] = f.Err
	}
	return errs
}

// BatchSize returns the maximum size of the transaction in bytes.
func BatchSize(messages []Message) int {
	n := 64
	for _, m := range messages {
		n += m.Size()
	}
	return n
}

// Size returns the maximum size of the message in a transaction, in bytes.
func (m Message) Size() int { return unix.SizeofNlMsghdr + len(m.Data) + 3 }

// Generation returns the number that every commit to the ruleset of the namespace increments by one.
func Generation(ctx context.Context, c Conn) (uint32, error) {
	var id uint32
	r := Request{Type: unix.NFT_MSG_GETGEN, Data: []byte{0, unix.NFNETLINK_V0, 0, 0}}
	err := c.Ask(ctx, r, func(data []byte) error {
		id = parseGeneration(data)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read the generation of the ruleset: %w", err)
	}
	return id, nil
}

func parseGeneration(data []byte) uint32 {
	var id uint32
	Attributes(body(data), func(typ uint16, value []byte) {
		if typ == unix.NFTA_GEN_ID && len(value) == 4 {
			id = binary.BigEndian.Uint32(value)
		}
	})
	return id
}
