package userspace

import (
	"encoding/binary"
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// originalDst returns where the client sent its connection before the kernel redirected it, or false if the kernel does
// not know the connection.
func originalDst(c *net.TCPConn) (netip.AddrPort, bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, false
	}
	// SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST have the same number, and return a sockaddr of their family.
	var sa unix.RawSockaddrInet6
	size := uint32(unsafe.Sizeof(sa))
	level := uintptr(unix.SOL_IPV6)
	if addrPort(c.LocalAddr()).Addr().Is4() {
		level = unix.SOL_IP
	}
	var errno unix.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, level, unix.SO_ORIGINAL_DST,
			uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err != nil || errno != 0 {
		return netip.AddrPort{}, false
	}
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:])
	if sa.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port), true
	}
	return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), port), true
}
