package userspace

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

const (
	batchSize   = 16
	maxDatagram = 65535
	// The kernel cuts one message into at most this many datagrams (UDP_MAX_SEGMENTS was 64 at first), which together
	// fit into one packet.
	maxSegments = 64
	maxJoined   = 65000
)

// batchConn is the common part of ipv4.PacketConn and ipv6.PacketConn: many messages in one system call.
type batchConn interface {
	ReadBatch(ms []ipv4.Message, flags int) (int, error)
	WriteBatch(ms []ipv4.Message, flags int) (int, error)
}

// receiveBuffer bounds the datagrams that wait for a busy proxy, because the clients of a Service port share one
// socket. Without privilege the kernel gives less (net.core.rmem_max).
const receiveBuffer = 4 << 20

// batched prepares a socket for batches, and for datagrams that the kernel joined (UDP_GRO, if the kernel has it).
func batched(c *net.UDPConn) batchConn {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_GRO, 1)
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			}
		})
	}
	if c.LocalAddr().(*net.UDPAddr).IP.To4() != nil {
		return ipv4.NewPacketConn(c)
	}
	return ipv6.NewPacketConn(c)
}

// datagram is one datagram as it was sent. It is valid until the batch is used again.
type datagram struct {
	from  netip.AddrPort
	bytes []byte
}

// batch holds the messages of one system call, each of which may be many datagrams of one sender. Sockets borrow a
// batch when datagrams have arrived, so that an idle socket costs no buffer.
type batch struct {
	in, out []ipv4.Message
	all     []datagram
}

var batches = sync.Pool{New: func() any {
	b := &batch{in: make([]ipv4.Message, batchSize)}
	for i := range b.in {
		b.in[i].Buffers = [][]byte{make([]byte, maxDatagram)}
		b.in[i].OOB = make([]byte, unix.CmsgSpace(4))
	}
	return b
}}

// read returns the datagrams that have arrived at the socket, without waiting.
func (b *batch) read(socket batchConn) []datagram {
	b.all = b.all[:0]
	n, err := socket.ReadBatch(b.in, unix.MSG_DONTWAIT)
	if err != nil {
		return nil
	}
	for _, m := range b.in[:n] {
		ap := m.Addr.(*net.UDPAddr).AddrPort()
		from := netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
		rest, size := m.Buffers[0][:m.N], segmentSize(m.OOB[:m.NN])
		for size > 0 && len(rest) > size {
			b.all = append(b.all, datagram{from, rest[:size]})
			rest = rest[size:]
		}
		b.all = append(b.all, datagram{from, rest})
	}
	return b.all
}

// segmentSize returns the size of the datagrams that the kernel joined into a message, or 0 if it is a single one.
func segmentSize(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_UDP && m.Header.Type == unix.UDP_GRO && len(m.Data) >= 4 {
			return int(binary.NativeEndian.Uint32(m.Data))
		}
	}
	return 0
}

// write sends the datagrams to an address, or to the endpoint of a connected socket if that is nil. Datagrams of one
// size go to the kernel as one message (UDP_SEGMENT). If that fails, they go one by one.
func (b *batch) write(socket batchConn, to net.Addr, all []datagram) {
	b.out = b.out[:0]
	for len(all) > 0 {
		n := joinable(all)
		m := ipv4.Message{Addr: to}
		for _, d := range all[:n] {
			m.Buffers = append(m.Buffers, d.bytes)
		}
		if n > 1 {
			m.OOB = segmented(len(all[0].bytes))
		}
		b.out, all = append(b.out, m), all[n:]
	}
	send(socket, b.out)
}

// joinable returns how many of the datagrams, from the first on, can be one message. They must have one size, except
// the last, which may be smaller.
func joinable(all []datagram) int {
	size, n := len(all[0].bytes), 1
	for total := size; size > 0 && n < min(len(all), maxSegments); n++ {
		next := len(all[n].bytes)
		if total += next; next == 0 || next > size || total > maxJoined {
			break
		}
		if next < size {
			return n + 1
		}
	}
	return n
}

// segmented returns the control message that asks the kernel to cut a message into datagrams.
func segmented(size int) []byte {
	oob := make([]byte, unix.CmsgSpace(2))
	header := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	header.Level, header.Type = unix.SOL_UDP, unix.UDP_SEGMENT
	header.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(size))
	return oob
}

// send sends as many messages as possible. A write may return the error of an earlier datagram, for example that its
// port is closed. Then this message was not sent, and send tries it once more.
func send(socket batchConn, ms []ipv4.Message) {
	again := true
	for len(ms) > 0 {
		n, err := socket.WriteBatch(ms, 0)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case n > 0:
			ms, again = ms[n:], true
		case again:
			again = false
		default: // too long, no route, or cannot be cut here: the others are tried
			if len(ms[0].Buffers) > 1 {
				send(socket, singly(ms[0]))
			}
			ms, again = ms[1:], true
		}
	}
}

// singly returns the datagrams of a message as messages.
func singly(m ipv4.Message) []ipv4.Message {
	ms := make([]ipv4.Message, len(m.Buffers))
	for i, b := range m.Buffers {
		ms[i] = ipv4.Message{Buffers: [][]byte{b}, Addr: m.Addr}
	}
	return ms
}
