package userspace

import (
	"encoding/binary"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Keepalive probes on both sides of the proxy notice a dead peer. The first probe is sent after this many seconds of
// silence, and the next ones at the same interval. The connection is reset when this many are not answered.
const (
	keepAliveSeconds = 15
	keepAliveProbes  = 9
)

// newSocket returns a non-blocking TCP socket for the family of the address.
func newSocket(a netip.Addr) (int, error) {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for _, o := range [...]struct{ level, name, value int }{
		{unix.SOL_TCP, unix.TCP_NODELAY, 1},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, keepAliveSeconds},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, keepAliveSeconds},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, keepAliveProbes},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// backlog bounds the connections that wait to be accepted, if net.core.somaxconn allows that many.
const backlog = 1<<16 - 1

// setMark sets the mark of the socket's packets. Only a privileged process can set one, so that the kernel can tell the
// listeners of this process from those of a user.
func setMark(fd int, mark uint32) error {
	return os.NewSyscallError("setsockopt SO_MARK", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
}

// listenTCP returns a listening socket. The connections that it accepts inherit its options and its mark.
func listenTCP(bind netip.AddrPort, mark uint32) (int, error) {
	fd, err := newSocket(bind.Addr())
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil && bind.Addr().Is6() {
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil && mark != 0 {
		err = setMark(fd, mark)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(bind))
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// resetOnClose makes the next close of the socket send RST.
func resetOnClose(fd int) {
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func addrPortOf(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// originalDst returns the destination of a connection before the kernel redirected it, or false if the kernel does not
// know the connection.
func originalDst(fd int, v4 bool) (netip.AddrPort, bool) {
	// SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST have the same number, and each returns a sockaddr of its family.
	var sa unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(sa))
	level := uintptr(unix.SOL_IPV6)
	if v4 {
		level = unix.SOL_IP
	}
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), level, unix.SO_ORIGINAL_DST,
		uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port), true
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), port), true
}
