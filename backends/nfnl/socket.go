package nfnl

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

// Sizes of the socket.
const (
	sendBuffer    = 32 << 20 // a batch is one packet
	receiveBuffer = 8 << 20
	readSize      = 256 << 10 // the kernel fills at most 32 KiB of it
	socketTimeout = 60 * time.Second
)

// maxBatch bounds a transaction, at about 10,000 Services. If any process listens to notifications, in any network
// namespace, the kernel keeps a page for every element until the commit. For 50,000 Services at once it keeps 1.2 GB,
// and takes several times as long as for smaller transactions, which reuse the pages.
const maxBatch = 8 << 20

// Netlink is the Kernel of this machine. A connection reaches the network namespace of the thread that opens it.
type Netlink struct{}

// Dial implements Kernel.
func (Netlink) Dial() (Conn, error) {
	s, err := open()
	if err != nil {
		return nil, err
	}
	// If the process may not force the size, the kernel bounds it by net.core.wmem_max.
	_ = s.nl.SetWriteBuffer(sendBuffer)
	_ = s.nl.SetReadBuffer(receiveBuffer)
	_ = s.nl.SetOption(netlink.CapAcknowledge, true)
	_ = s.nl.SetOption(netlink.ExtendedAcknowledge, true)
	size, err := s.nl.WriteBuffer()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("size of the nf_tables socket: %w", err), s.Close())
	}
	return &conn{socket: s, limit: min(size-4096, maxBatch)}, nil
}

// socket is one netlink socket.
type socket struct {
	nl  *netlink.Conn
	buf []byte
}

func open() (*socket, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open the nf_tables socket: %w", err)
	}
	return &socket{nl: nl, buf: make([]byte, readSize)}, nil
}

// Close implements io.Closer.
func (s *socket) Close() error { return s.nl.Close() }

// send writes raw messages.
func (s *socket) send(ctx context.Context, b []byte) error {
	deadline := time.Now().Add(socketTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := s.nl.SetDeadline(deadline); err != nil {
		return err
	}
	raw, err := s.nl.SyscallConn()
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
	seq        uint32
	data       []byte
}

// receive reads one datagram and calls f with its messages. Without wait it returns EAGAIN if there is none.
func (s *socket) receive(wait bool, f func(reply) error) error {
	raw, err := s.nl.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var recvErr error
	err = raw.Read(func(fd uintptr) bool {
		n, _, recvErr = unix.Recvfrom(int(fd), s.buf, unix.MSG_DONTWAIT)
		return recvErr != unix.EAGAIN || !wait
	})
	if err := errors.Join(err, recvErr); err != nil {
		return err
	}
	for b := s.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return errors.New("nf_tables: a truncated message from the kernel")
		}
		r := reply{
			typ: binary.NativeEndian.Uint16(b[4:]), flags: binary.NativeEndian.Uint16(b[6:]),
			seq: binary.NativeEndian.Uint32(b[8:]), data: b[unix.SizeofNlMsghdr:length],
		}
		if err := f(r); err != nil {
			return err
		}
		b = b[min((length+3)&^3, len(b)):]
	}
	return nil
}

// drain discards the messages of an earlier exchange.
func (s *socket) drain() {
	for s.receive(false, func(reply) error { return nil }) == nil {
	}
}

// duplicate returns another descriptor of the socket.
func (s *socket) duplicate() (*os.File, error) {
	raw, err := s.nl.SyscallConn()
	if err != nil {
		return nil, err
	}
	var file *os.File
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		var dup int
		if dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); dupErr == nil {
			file = os.NewFile(uintptr(dup), "nf_tables") // the socket is not blocking either
		}
	})
	return file, errors.Join(err, dupErr)
}

// messageType returns the type that a message of nf_tables has on the wire.
func messageType(typ uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | typ }

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

// answerError returns the error in an acknowledgement with the kernel's text, nil if it confirms.
func answerError(r reply) error {
	if len(r.data) < 4 {
		return errors.New("nf_tables: a truncated answer from the kernel")
	}
	code := int32(binary.NativeEndian.Uint32(r.data))
	if code == 0 {
		return nil
	}
	err := error(unix.Errno(-code))
	if r.flags&unix.NLM_F_ACK_TLVS == 0 || len(r.data) < 20 {
		return err
	}
	skip := 20 // the code and the header of the message that failed
	if r.flags&unix.NLM_F_CAPPED == 0 {
		skip = 4 + (int(binary.NativeEndian.Uint32(r.data[4:]))+3)&^3
	}
	if skip <= len(r.data) {
		Attributes(r.data[skip:], func(typ uint16, value []byte) {
			if typ == unix.NLMSGERR_ATTR_MSG && len(value) > 1 {
				err = fmt.Errorf("%w (%s)", err, value[:len(value)-1])
			}
		})
	}
	return err
}
