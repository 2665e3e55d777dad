package ipvs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
)

// maxMembers bounds a set. The kernel's default of 65536 is not enough for 20,000 Services.
const maxMembers = 1 << 21

// ipsets is a connection to the kernel's ip_set. vishvananda/netlink supports ip_set too, but it does not know the
// marks of members, and panics on errors that are not numbers. So only its constants are used.
type ipsets struct{ conn *netlink.Conn }

func openIPSets() (*ipsets, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	return &ipsets{conn}, nil
}

func (s *ipsets) close() { s.conn.Close() }

// do sends one request. set may be "".
func (s *ipsets) do(cmd int, flags netlink.HeaderFlags, set string, attrs func(*netlink.AttributeEncoder)) ([]netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Uint8(nl.IPSET_ATTR_PROTOCOL, nl.IPSET_PROTOCOL)
	if set != "" {
		e.String(nl.IPSET_ATTR_SETNAME, set)
	}
	if attrs != nil {
		attrs(e)
	}
	data, err := e.Encode()
	if err != nil {
		return nil, err
	}
	replies, err := s.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_IPSET<<8 | cmd), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.AF_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	})
	if errno := syscall.Errno(0); errors.As(err, &errno) && errno >= nl.IPSET_ERR_PRIVATE {
		err = nl.IPSetError(errno)
	}
	return replies, err
}

// probe returns an error if the kernel has no ipsets.
func (s *ipsets) probe() error {
	_, err := s.do(nl.IPSET_CMD_PROTOCOL, 0, "", nil)
	return err
}

// revisions are the oldest ones that have the features used of each type.
var revisions = map[string]uint8{typePort: 1, typePortIP: 1, typePortNet: 2, typeAddr: 0, typePortOnly: 0}

// marksRevision is the oldest of hash:ip,port with marks.
const marksRevision = 5

func (s *ipsets) create(set Set) error {
	revision := revisions[set.Type]
	if set.Marks {
		revision = marksRevision
	}
	family := map[dataplane.Family]uint8{dataplane.IPv4: unix.AF_INET, dataplane.IPv6: unix.AF_INET6}[set.Family]
	_, err := s.do(nl.IPSET_CMD_CREATE, netlink.Acknowledge|netlink.Create, set.Name, func(e *netlink.AttributeEncoder) {
		e.String(nl.IPSET_ATTR_TYPENAME, set.Type)
		e.Uint8(nl.IPSET_ATTR_REVISION, revision)
		e.Uint8(nl.IPSET_ATTR_FAMILY, family)
		e.Nested(nl.IPSET_ATTR_DATA, func(e *netlink.AttributeEncoder) error {
			if set.Family == 0 {
				e.Uint16(nl.IPSET_ATTR_PORT_FROM|netlink.NetByteOrder, 0)
				e.Uint16(nl.IPSET_ATTR_PORT_TO|netlink.NetByteOrder, 65535)
			} else {
				e.Uint32(nl.IPSET_ATTR_MAXELEM|netlink.NetByteOrder, maxMembers)
			}
			if set.Marks {
				e.Uint32(nl.IPSET_ATTR_CADT_FLAGS|netlink.NetByteOrder, nl.IPSET_FLAG_WITH_SKBINFO)
			}
			return nil
		})
	})
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("there is an ipset of that name and another kind: remove it with `weir cleanup`: %w", err)
	case errors.Is(err, nl.IPSetError(nl.IPSET_ERR_FIND_TYPE)):
		return fmt.Errorf("the kernel has no ipset of type %s: load the module with `modprobe ip_set_%s`", set.Type,
			strings.NewReplacer(":", "_", ",", "").Replace(set.Type))
	}
	return err
}

func (s *ipsets) destroy(set Set) error {
	_, err := s.do(nl.IPSET_CMD_DESTROY, netlink.Acknowledge, set.Name, nil)
	return err
}

// membersAtOnce bounds the members of one request. The list of members is bounded by 64 KiB, and the longest member has
// 80 bytes.
const membersAtOnce = 500

// add adds members to the set of the first one. All members must be of that set.
func (s *ipsets) add(members []Member) error {
	_, err := s.do(nl.IPSET_CMD_ADD, netlink.Acknowledge, members[0].Set, func(e *netlink.AttributeEncoder) {
		e.Uint32(nl.IPSET_ATTR_LINENO, 0) // the kernel requires it with a list
		e.Nested(nl.IPSET_ATTR_ADT, func(e *netlink.AttributeEncoder) error {
			for _, m := range members {
				m.encode(e)
			}
			return nil
		})
	})
	return err
}

func (s *ipsets) del(m Member) error {
	m.Mark = 0
	_, err := s.do(nl.IPSET_CMD_DEL, netlink.Acknowledge, m.Set, m.encode)
	return err
}

func (m Member) encode(e *netlink.AttributeEncoder) {
	e.Nested(nl.IPSET_ATTR_DATA, func(e *netlink.AttributeEncoder) error {
		encodeAddr(e, nl.IPSET_ATTR_IP, m.Addr)
		if m.Protocol != 0 {
			e.Uint8(nl.IPSET_ATTR_PROTO, uint8(m.Protocol))
		}
		if m.Port != 0 {
			e.Uint16(nl.IPSET_ATTR_PORT|netlink.NetByteOrder, m.Port)
		}
		encodeAddr(e, nl.IPSET_ATTR_IP2, m.Other.Addr())
		if strings.HasPrefix(m.Set, allowSet) {
			e.Uint8(nl.IPSET_ATTR_CIDR2, uint8(m.Other.Bits()))
		}
		if m.Mark != 0 {
			e.Uint64(nl.IPSET_ATTR_SKBMARK|netlink.NetByteOrder, uint64(m.Mark)<<32|0xffffffff)
		}
		return nil
	})
}

func encodeAddr(e *netlink.AttributeEncoder, attr uint16, a netip.Addr) {
	if !a.IsValid() {
		return
	}
	e.Nested(attr, func(e *netlink.AttributeEncoder) error {
		kind := uint16(nl.IPSET_ATTR_IPADDR_IPV4)
		if a.Is6() {
			kind = nl.IPSET_ATTR_IPADDR_IPV6
		}
		e.Bytes(kind|netlink.NetByteOrder, a.AsSlice())
		return nil
	})
}

// list returns weir's sets with their members. The kernel answers with several messages for a large set.
func (s *ipsets) list() (sets []Set, members []Member, err error) {
	replies, err := s.do(nl.IPSET_CMD_LIST, netlink.Dump, "", nil)
	if err != nil {
		return nil, nil, err
	}
	seen := map[string]bool{}
	for _, reply := range replies {
		if len(reply.Data) < 4 {
			return nil, nil, fmt.Errorf("the kernel's answer is truncated: %d bytes", len(reply.Data))
		}
		set, more, err := parseSet(reply.Data[4:])
		if err != nil {
			return nil, nil, err
		}
		if !strings.HasPrefix(set.Name, prefix) {
			continue
		}
		if !seen[set.Name] {
			seen[set.Name] = true
			sets = append(sets, set)
		}
		members = append(members, more...)
	}
	return sets, members, nil
}

// walk calls f for each attribute in data.
func walk(data []byte, f func(*netlink.AttributeDecoder)) error {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		f(d)
	}
	return d.Err()
}

func parseSet(data []byte) (set Set, members []Member, err error) {
	family := uint8(0)
	var entries []byte
	err = walk(data, func(d *netlink.AttributeDecoder) {
		switch d.Type() {
		case nl.IPSET_ATTR_SETNAME:
			set.Name = d.String()
		case nl.IPSET_ATTR_TYPENAME:
			set.Type = d.String()
		case nl.IPSET_ATTR_FAMILY:
			family = d.Uint8()
		case nl.IPSET_ATTR_DATA:
			d.Nested(func(d *netlink.AttributeDecoder) error {
				for d.Next() {
					if d.Type() == nl.IPSET_ATTR_CADT_FLAGS {
						set.Marks = d.Uint32()&nl.IPSET_FLAG_WITH_SKBINFO != 0
					}
				}
				return nil
			})
		case nl.IPSET_ATTR_ADT:
			entries = d.Bytes()
		}
	})
	if err != nil || !strings.HasPrefix(set.Name, prefix) {
		return set, nil, err
	}
	switch {
	case set.Type == typePortOnly:
	case family == unix.AF_INET:
		set.Family = dataplane.IPv4
	case family == unix.AF_INET6:
		set.Family = dataplane.IPv6
	}
	var bad error
	err = walk(entries, func(d *netlink.AttributeDecoder) {
		m, err := parseMember(set, d.Bytes())
		members, bad = append(members, m), errors.Join(bad, err)
	})
	return set, members, errors.Join(err, bad)
}

func parseMember(set Set, data []byte) (Member, error) {
	m := Member{Set: set.Name}
	var other netip.Addr
	bits := -1
	err := walk(data, func(d *netlink.AttributeDecoder) {
		switch d.Type() {
		case nl.IPSET_ATTR_IP:
			m.Addr = parseAddr(d.Bytes())
		case nl.IPSET_ATTR_IP2:
			other = parseAddr(d.Bytes())
		case nl.IPSET_ATTR_CIDR2:
			bits = int(d.Uint8())
		case nl.IPSET_ATTR_PROTO:
			m.Protocol = dataplane.Protocol(d.Uint8())
		case nl.IPSET_ATTR_PORT:
			m.Port = d.Uint16()
		case nl.IPSET_ATTR_SKBMARK:
			m.Mark = uint32(d.Uint64() >> 32)
		}
	})
	if other.IsValid() {
		if bits < 0 {
			bits = other.BitLen()
		}
		m.Other = netip.PrefixFrom(other, bits)
	}
	return m, err
}

func parseAddr(nested []byte) (addr netip.Addr) {
	_ = walk(nested, func(d *netlink.AttributeDecoder) { addr, _ = netip.AddrFromSlice(d.Bytes()) })
	return addr
}
