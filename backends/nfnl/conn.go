package nfnl

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// conn is the Conn of a socket.
type conn struct {
	*socket
	seq   uint32
	limit int
}

// MaxBatch implements Conn.
func (c *conn) MaxBatch() int { return c.limit }

// Commit implements Conn.
func (c *conn) Commit(ctx context.Context, messages []Message) error {
	if len(messages) == 0 {
		return nil
	}
	c.drain()
	first := c.seq + 1
	c.seq += uint32(len(messages)) + 2
	header := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	b := make([]byte, 0, BatchSize(messages))
	b = appendMessage(b, unix.NFNL_MSG_BATCH_BEGIN, 0, first, header)
	for i, m := range messages {
		flags := m.Flags
		if i == len(messages)-1 {
			// The kernel always answers errors, but answers success only on request. The last answer ends the wait.
			flags |= unix.NLM_F_ACK
		}
		b = appendMessage(b, messageType(m.Type), flags, first+1+uint32(i), m.Data)
	}
	b = appendMessage(b, unix.NFNL_MSG_BATCH_END, 0, first+uint32(len(messages))+1, header)
	if err := c.send(ctx, b); err != nil {
		return fmt.Errorf("send a transaction of %d bytes: %w", len(b), err)
	}
	return c.confirm(first, messages)
}

// confirm reads the answers to a batch that began with the number first.
func (c *conn) confirm(first uint32, messages []Message) error {
	last := first + uint32(len(messages))
	failed := map[int]error{}
	var whole error
	for done := false; !done; {
		err := c.receive(true, func(r reply) error {
			if r.typ != unix.NLMSG_ERROR || r.seq < first || r.seq > last+1 {
				return nil
			}
			err := answerError(r)
			switch {
			case err != nil && (r.seq == first || r.seq == last+1):
				whole, done = err, true
			case err != nil:
				failed[int(r.seq-first-1)] = err
			}
			done = done || r.seq == last
			return nil
		})
		if err != nil {
			return fmt.Errorf("read the kernel's answer to a transaction: %w", err)
		}
	}
	if len(failed) == 0 {
		return whole
	}
	return NewBatchError(messages, failed)
}

// NewBatchError returns the error of a transaction, given the errors by the index of the message.
func NewBatchError(messages []Message, failed map[int]error) *BatchError {
	e := &BatchError{}
	for i, m := range messages {
		if err := failed[i]; err != nil {
			e.Failures = append(e.Failures, Failure{i, m.Owner, err})
		}
	}
	return e
}

// Ask implements Conn.
func (c *conn) Ask(ctx context.Context, r Request, f func([]byte) error) error {
	c.drain()
	c.seq++
	seq := c.seq
	flags := uint16(unix.NLM_F_ACK)
	if r.List {
		flags = unix.NLM_F_DUMP
	}
	if err := c.send(ctx, appendMessage(nil, messageType(r.Type), flags, seq, r.Data)); err != nil {
		return err
	}
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := c.receive(true, func(r reply) error {
			if r.seq != seq {
				return nil
			}
			if r.flags&unix.NLM_F_DUMP_INTR != 0 {
				return ErrInterrupted
			}
			switch r.typ {
			case unix.NLMSG_DONE:
				done = true
				return answerError(r)
			case unix.NLMSG_ERROR:
				done = true
				if err := answerError(r); err != nil && !errors.Is(err, unix.ENOENT) {
					return err
				}
			default:
				return f(r.data)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
