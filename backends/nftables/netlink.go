package nftables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Sizes of the socket. google/nftables sends each set element through several allocations and reads with buffers of one
// page, which makes the kernel begin a dump anew for every page of it; so this backend takes its expressions and types
// and talks to the socket itself.
const (
	sendBuffer    = 32 << 20 // a batch is one packet
	receiveBuffer = 8 << 20
	readSize      = 256 << 10 // the kernel fills at most 32 KiB of it
	socketTimeout = 60 * time.Second
)

// maxBatch bounds a transaction, at about 10,000 Services. As long as anybody listens to notifications, in whatever network
// namespace, the kernel keeps a page for every element until the commit: 1.2 GB for 50,000 Services at once, and several
// times the time of smaller transactions, which use the same pages again.
const maxBatch = 8 << 20

// conn is one nf_tables socket.
type conn struct {
	nl  *netlink.Conn
	seq uint32
	buf []byte
	// limit is how long a batch may be.
	limit int
}

func dial() (*conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open the nf_tables socket: %w", err)
	}
	// Where the process may not force the size, the kernel bounds it by net.core.wmem_max.
	_ = nl.SetWriteBuffer(sendBuffer)
	_ = nl.SetReadBuffer(receiveBuffer)
	_ = nl.SetOption(netlink.CapAcknowledge, true)
	_ = nl.SetOption(netlink.ExtendedAcknowledge, true)
	size, err := nl.WriteBuffer()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("size of the nf_tables socket: %w", err), nl.Close())
	}
	return &conn{nl: nl, buf: make([]byte, readSize), limit: min(size-4096, maxBatch)}, nil
}

func (c *conn) close() error { return c.nl.Close() }

// duplicate returns another descriptor of the socket.
func (c *conn) duplicate() (*os.File, error) {
	raw, err := c.nl.SyscallConn()
	if err != nil {
		return nil, err
	}
	var file *os.File
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		var dup int
		if dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); dupErr == nil {
			file = os.NewFile(uintptr(dup), "nf_tables") // not blocking, as the socket is
		}
	})
	return file, errors.Join(err, dupErr)
}

// send writes raw messages.
func (c *conn) send(ctx context.Context, b []byte) error {
	deadline := time.Now().Add(socketTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.nl.SetDeadline(deadline); err != nil {
		return err
	}
	raw, err := c.nl.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendto(int(fd), b, unix.MSG_DONTWAIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return sendErr != unix.EAGAIN
	})
	return errors.Join(err, sendErr)
}

// reply is one message that was received. Its data is valid until the next receive.
type reply struct {
	typ, flags uint16
	seq, pid   uint32
	data       []byte
}

// receive reads one datagram and calls f with its messages. Without wait it returns EAGAIN if there is none.
func (c *conn) receive(wait bool, f func(reply) error) error {
	raw, err := c.nl.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		n, _, recvErr = unix.Recvfrom(int(fd), c.buf, unix.MSG_DONTWAIT)
		return recvErr != unix.EAGAIN || !wait
	})
	if err := errors.Join(err, recvErr); err != nil {
		return err
	}
	for b := c.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return errors.New("nf_tables: a truncated message from the kernel")
		}
		r := reply{
			typ: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), pid: binary.NativeEndian.Uint32(b[12:]),
			data: b[unix.SizeofNlMsghdr:length],
		}
		if err := f(r); err != nil {
			return err
		}
		b = b[min((length+3)&^3, len(b)):]
	}
	return nil
}

func appendMessage(b []byte, typ, flags uint16, seq uint32, data []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags|unix.NLM_F_REQUEST)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func subsys(msg uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | msg }

// batchError is a transaction that the kernel rejected as a whole.
type batchError struct {
	// messages holds an error for each message, by its place in the batch, that the kernel found wrong.
	messages map[int]error
	// owned is the same by change, and transactions is how many transactions of the plan went before.
	owned        []ownedError
	transactions int
}

// ownedError is what the kernel found wrong with a change.
type ownedError struct {
	change int32
	err    error
}

func (e *batchError) Error() string {
	for i, err := range e.messages {
		return fmt.Sprintf("the kernel rejected message %d of the transaction, %d in all: %v", i, len(e.messages), err)
	}
	return "the kernel rejected the transaction"
}

func (e *batchError) Unwrap() []error {
	var errs []error
	for _, err := range e.messages {
		errs = append(errs, err)
	}
	return errs
}

// batchSize returns how long the batch of the messages is.
func batchSize(messages []message) int {
	n := 64
	for _, m := range messages {
		n += unix.SizeofNlMsghdr + len(m.data) + 3
	}
	return n
}

// commit sends the messages as one transaction. It returns a *batchError if the kernel rejected them, and any other error
// if it is not known what happened.
func (c *conn) commit(ctx context.Context, messages []message) error {
	if len(messages) == 0 {
		return nil
	}
	c.drain()
	first := c.seq + 1
	c.seq += uint32(len(messages)) + 2
	header := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	b := make([]byte, 0, batchSize(messages))
	b = appendMessage(b, unix.NFNL_MSG_BATCH_BEGIN, 0, first, header)
	for i, m := range messages {
		flags := m.flags
		if i == len(messages)-1 {
			// The kernel answers errors always, success only where it is asked to; the last answer ends the wait.
			flags |= unix.NLM_F_ACK
		}
		b = appendMessage(b, subsys(m.typ), flags, first+1+uint32(i), m.data)
	}
	last := first + uint32(len(messages))
	b = appendMessage(b, unix.NFNL_MSG_BATCH_END, 0, last+1, header)
	if err := c.send(ctx, b); err != nil {
		return fmt.Errorf("send a transaction of %d bytes: %w", len(b), err)
	}
	return c.confirm(first, last)
}

// confirm reads the answers to a batch whose messages have the numbers from first+1 to last.
func (c *conn) confirm(first, last uint32) error {
	failed := &batchError{messages: map[int]error{}}
	var whole error
	for done := false; !done; {
		err := c.receive(true, func(r reply) error {
			if r.typ != unix.NLMSG_ERROR || r.seq < first || r.seq > last+1 {
				return nil
			}
			err := ackError(r)
			switch {
			case err != nil && (r.seq == first || r.seq == last+1):
				whole, done = err, true
			case err != nil:
				failed.messages[int(r.seq-first-1)] = err
			}
			done = done || r.seq == last
			return nil
		})
		if err != nil {
			return fmt.Errorf("read the kernel's answer to a transaction: %w", err)
		}
	}
	if len(failed.messages) > 0 {
		return failed
	}
	return whole
}

// drain throws away what an earlier exchange left behind.
func (c *conn) drain() {
	for c.receive(false, func(reply) error { return nil }) == nil {
	}
}

// ackError returns the error in an acknowledgement with the kernel's own words for it, nil if it confirms.
func ackError(r reply) error {
	if len(r.data) < 4 {
		return errors.New("nf_tables: a truncated answer from the kernel")
	}
	code := int32(binary.NativeEndian.Uint32(r.data))
	if code == 0 {
		return nil
	}
	err := error(unix.Errno(-code))
	if r.flags&unix.NLM_F_ACK_TLVS != 0 && len(r.data) >= 20 {
		skip := 20 // the code and the header of the message that failed
		if r.flags&unix.NLM_F_CAPPED == 0 {
			skip = 4 + (int(binary.NativeEndian.Uint32(r.data[4:]))+3)&^3
		}
		if skip <= len(r.data) {
			attributes(r.data[skip:], func(typ uint16, value []byte) {
				if typ == unix.NLMSGERR_ATTR_MSG && len(value) > 1 {
					err = fmt.Errorf("%w (%s)", err, value[:len(value)-1])
				}
			})
		}
	}
	return err
}

// errInterrupted says that somebody wrote while a list was read.
var errInterrupted = errors.New("the ruleset changed while it was read")

// dump asks for a list and calls f with every message of it. Absent tables and sets give an empty list.
func (c *conn) dump(ctx context.Context, typ uint16, request []byte, f func([]byte) error) error {
	return c.ask(ctx, typ, unix.NLM_F_DUMP, request, f)
}

// get asks for one object.
func (c *conn) get(ctx context.Context, typ uint16, request []byte, f func([]byte) error) error {
	return c.ask(ctx, typ, unix.NLM_F_ACK, request, f)
}

func (c *conn) ask(ctx context.Context, typ, flags uint16, request []byte, f func([]byte) error) error {
	c.drain()
	c.seq++
	seq := c.seq
	if err := c.send(ctx, appendMessage(nil, subsys(typ), flags, seq, request)); err != nil {
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
				return errInterrupted
			}
			switch r.typ {
			case unix.NLMSG_DONE:
				done = true
				return ackError(r)
			case unix.NLMSG_ERROR:
				done = true
				if err := ackError(r); err != nil && !errors.Is(err, unix.ENOENT) {
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

// generation returns the number that every commit to the ruleset of the namespace raises by one.
func (c *conn) generation(ctx context.Context) (uint32, error) {
	var id uint32
	err := c.get(ctx, unix.NFT_MSG_GETGEN, []byte{0, unix.NFNETLINK_V0, 0, 0}, func(data []byte) error {
		id = generationOf(data)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("read the generation of the ruleset: %w", err)
	}
	return id, nil
}

func generationOf(data []byte) uint32 {
	var id uint32
	attributes(data[min(4, len(data)):], func(typ uint16, value []byte) {
		if typ == unix.NFTA_GEN_ID && len(value) == 4 {
			id = binary.BigEndian.Uint32(value)
		}
	})
	return id
}
