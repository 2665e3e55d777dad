package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"

	"golang.org/x/sys/unix"
)

// scope distinguishes the two kinds of frontends: an address with a port, and a node port.
type scope uint8

const (
	addrScope scope = iota
	nodePortScope
)

// frontKey names a frontend.
type frontKey struct {
	fam   dataplane.Family
	scope scope
	proto dataplane.Protocol
	port  uint16
	addr  netip.Addr // none for a node port
}

func addrFront(a netip.Addr, p dataplane.Protocol, port uint16) frontKey {
	return frontKey{dataplane.FamilyOf(a), addrScope, p, port, a}
}

func nodePortFront(f dataplane.Family, p dataplane.Protocol, port uint16) frontKey {
	return frontKey{fam: f, scope: nodePortScope, proto: p, port: port}
}

// String returns "10.96.0.1 tcp 80", or "node port tcp 30080".
func (k frontKey) String() string {
	p := strings.ToLower(k.proto.String())
	if k.scope == nodePortScope {
		return fmt.Sprintf("node port %s %d", p, k.port)
	}
	return fmt.Sprintf("%s %s %d", k.addr, p, k.port)
}

func (k frontKey) id() backends.ID {
	return backends.ID(familyName(k.fam) + " front " + k.String())
}

// protoPortLen is the length in bytes of protocol and port in a kernel key, each padded to four.
const protoPortLen = 8

// kernelKey returns the beginning of the kernel's keys for the frontend: every field padded to four bytes.
func (k frontKey) kernelKey() []byte {
	b := make([]byte, 0, 40)
	if k.scope == addrScope {
		b = appendAddr(b, k.addr)
	}
	b = append(b, byte(k.proto), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(b, k.port), 0, 0)
}

// parseFront parses the frontend at the beginning of a kernel key, and returns the rest of the key.
func parseFront(f dataplane.Family, s scope, key []byte) (frontKey, []byte, bool) {
	k := frontKey{fam: f, scope: s}
	if s == addrScope {
		n := addrLen(f)
		if len(key) < n {
			return k, nil, false
		}
		k.addr, _ = netip.AddrFromSlice(key[:n])
		key = key[n:]
	}
	if len(key) < protoPortLen {
		return k, nil, false
	}
	k.proto, k.port = dataplane.Protocol(key[0]), binary.BigEndian.Uint16(key[4:])
	return k, key[protoPortLen:], true
}

func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is4() {
		four := a.As4()
		return append(b, four[:]...)
	}
	sixteen := a.As16()
	return append(b, sixteen[:]...)
}

func addrLen(f dataplane.Family) int {
	if f == dataplane.IPv6 {
		return 16
	}
	return 4
}

func familyName(f dataplane.Family) string {
	if f == dataplane.IPv6 {
		return "ip6"
	}
	return "ip"
}

// nfproto returns the kernel's number of the family.
func nfproto(f dataplane.Family) uint8 {
	if f == dataplane.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}
