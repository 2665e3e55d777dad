package nfnl

import (
	"encoding/binary"
	"errors"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// noticeBuffer holds the notifications that the kernel sends at once when another process empties a map of 250,000
// elements. The memory is used for that moment only. Notifications that do not fit are lost.
const noticeBuffer = 32 << 20

// listener is the Listener of a socket.
type listener struct {
	*socket
	// pollFD is another descriptor of the same socket. It is never read from; it only shows when there is data to read.
	pollFD *os.File
}

// Listen implements Kernel. own must be a Conn of Netlink.
func (Netlink) Listen(own Conn, arrived chan<- struct{}) (Listener, error) {
	s, err := open()
	if err != nil {
		return nil, err
	}
	_ = s.nl.SetReadBuffer(noticeBuffer)
	// Notifications carry the port of the socket that committed; the filter reads it in network order.
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: networkOrder(own.(*conn).nl.PID()), SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 30},
		bpf.RetConstant{Val: 0},
	})
	if err == nil {
		err = s.nl.SetBPF(filter)
	}
	l := &listener{socket: s}
	if err == nil {
		err = l.Resume()
	}
	if err == nil {
		l.pollFD, err = s.duplicate()
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	go notify(l.pollFD, arrived)
	return l, nil
}

func networkOrder(n uint32) uint32 {
	return binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, n))
}

// notify sends to arrived whenever data arrives at the socket, until the socket is closed.
func notify(pollFD *os.File, arrived chan<- struct{}) {
	raw, err := pollFD.SyscallConn()
	for err == nil {
		waited := false
		err = raw.Read(func(uintptr) bool {
			again := waited
			waited = true
			return again
		})
		if err == nil {
			select {
			case arrived <- struct{}{}:
			default: // the receiver has not yet taken the last one
			}
		}
	}
}

// Receive implements Listener.
func (l *listener) Receive(timeout time.Duration, f func(Notification)) error {
	take := func(r reply) error {
		if r.typ>>8 == unix.NFNL_SUBSYS_NFTABLES {
			f(ParseNotification(r.typ&0xff, r.data))
		}
		return nil
	}
	if timeout <= 0 {
		// A deadline in the past would prevent any read of the socket.
		if err := l.nl.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		if err := l.receive(false, take); !errors.Is(err, unix.EAGAIN) {
			return err
		}
		return os.ErrDeadlineExceeded
	}
	if err := l.nl.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	return l.receive(true, take)
}

// Pause implements Listener.
func (l *listener) Pause() error { return l.nl.LeaveGroup(unix.NFNLGRP_NFTABLES) }

// Resume implements Listener.
func (l *listener) Resume() error { return l.nl.JoinGroup(unix.NFNLGRP_NFTABLES) }

// Close implements Listener.
func (l *listener) Close() error { return errors.Join(l.pollFD.Close(), l.socket.Close()) }
