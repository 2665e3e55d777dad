package probe

import (
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// maxConnects is how often a connection is tried when the kernel finds no free port, as package net does.
const maxConnects = 3

// socket is a TCP socket that connects without blocking. It costs half of a net.Conn, because it needs no poller, goroutine or
// timer when the other side is on this node: such a connection is there, or refused, as soon as it is asked for.
type socket struct {
	fd int
	to netip.AddrPort
}

// connect begins a connection. Closing the socket resets the connection, so that no port is held in TIME_WAIT.
func connect(to netip.AddrPort, mark uint32) (s *socket, connected bool, err error) {
	for range maxConnects {
		if s, err = newSocket(to, mark); err != nil {
			return nil, false, err
		}
		if err = unix.Connect(s.fd, s.sockaddr()); err == nil || errors.Is(err, unix.EINPROGRESS) {
			connected, err = s.connected()
		}
		if err == nil {
			return s, connected, nil
		}
		s.Close()
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			break
		}
	}
	return nil, false, os.NewSyscallError("connect", err)
}

func newSocket(to netip.AddrPort, mark uint32) (*socket, error) {
	family := unix.AF_INET
	if to.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := prepare(fd, mark); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &socket{fd, to}, nil
}

// prepare sets the options of a socket before it connects.
func prepare(fd int, mark uint32) error {
	if mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil && !errors.Is(err, unix.EPERM) {
			return err
		}
	}
	return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

func (s *socket) sockaddr() unix.Sockaddr {
	if s.to.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: s.to.Addr().As4(), Port: int(s.to.Port())}
	}
	return &unix.SockaddrInet6{Addr: s.to.Addr().As16(), Port: int(s.to.Port())}
}

// connected reports whether the connection is there. It returns an error if there will be none.
func (s *socket) connected() (bool, error) {
	switch err := unix.Connect(s.fd, s.sockaddr()); err {
	case nil, unix.EISCONN:
	case unix.EALREADY, unix.EINPROGRESS:
		return false, nil
	default:
		return false, err
	}
	// Where no server listens on a port of the range for clients, a socket may be given that port and meet itself.
	if own, err := unix.Getsockname(s.fd); err != nil {
		return false, err
	} else if addrPort(own) == s.to {
		return false, unix.ECONNREFUSED
	}
	return true, nil
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Close resets the connection.
func (s *socket) Close() error { return unix.Close(s.fd) }

// file returns the connection as something to read and write. It closes the socket.
func (s *socket) file() *os.File { return os.NewFile(uintptr(s.fd), "tcp "+s.to.String()) }
