package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
)

// Chunk types of RFC 9260.
const (
	sctpInit    = 1
	sctpInitAck = 2
)

// sctpPacket is an SCTP packet with one INIT or INIT ACK chunk. An INIT ACK carries the server's answer as a state
// cookie.
type sctpPacket struct {
	src, dst uint16
	tag      uint32 // verification tag, 0 in a packet with INIT
	chunk    uint8
	initTag  uint32
	text     string
}

const (
	sctpHeaderLen = 12
	sctpChunkLen  = 20 // of an INIT without parameters
	cookieParam   = 7
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// marshal returns the packet with its CRC32c, which conntrack verifies.
func (p sctpPacket) marshal() []byte {
	chunk := make([]byte, sctpChunkLen)
	chunk[0] = p.chunk
	binary.BigEndian.PutUint32(chunk[4:], p.initTag)
	binary.BigEndian.PutUint32(chunk[8:], 65536) // receiver window
	binary.BigEndian.PutUint16(chunk[12:], 1)    // outbound streams
	binary.BigEndian.PutUint16(chunk[14:], 1)    // inbound streams
	binary.BigEndian.PutUint32(chunk[16:], p.initTag)
	if p.text != "" {
		chunk = binary.BigEndian.AppendUint16(chunk, cookieParam)
		chunk = binary.BigEndian.AppendUint16(chunk, uint16(4+len(p.text)))
		chunk = append(chunk, p.text...)
	}
	binary.BigEndian.PutUint16(chunk[2:], uint16(len(chunk)))
	for len(chunk)%4 != 0 {
		chunk = append(chunk, 0)
	}

	b := make([]byte, sctpHeaderLen, sctpHeaderLen+len(chunk))
	binary.BigEndian.PutUint16(b, p.src)
	binary.BigEndian.PutUint16(b[2:], p.dst)
	binary.BigEndian.PutUint32(b[4:], p.tag)
	b = append(b, chunk...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, castagnoli))
	return b
}

var errNotSCTP = errors.New("not an SCTP INIT or INIT ACK")

func parseSCTP(b []byte) (sctpPacket, error) {
	if len(b) < sctpHeaderLen+sctpChunkLen {
		return sctpPacket{}, errNotSCTP
	}
	p := sctpPacket{
		src:     binary.BigEndian.Uint16(b),
		dst:     binary.BigEndian.Uint16(b[2:]),
		tag:     binary.BigEndian.Uint32(b[4:]),
		chunk:   b[sctpHeaderLen],
		initTag: binary.BigEndian.Uint32(b[sctpHeaderLen+4:]),
	}
	if p.chunk != sctpInit && p.chunk != sctpInitAck {
		return sctpPacket{}, errNotSCTP
	}
	if param := b[sctpHeaderLen+sctpChunkLen:]; len(param) >= 4 {
		n := int(binary.BigEndian.Uint16(param[2:]))
		if n >= 4 && n <= len(param) {
			p.text = string(param[4:n])
		}
	}
	return p, nil
}

// dialSCTP opens a connected raw socket, to which the kernel reports ICMP errors, and prepares the INIT to send.
func dialSCTP(ctx context.Context, from, to netip.AddrPort) (net.Conn, sctpPacket, error) {
	network := "ip4:132"
	if to.Addr().Is6() {
		network = "ip6:132"
	}
	d := net.Dialer{Control: control}
	if from.Addr().IsValid() && !from.Addr().IsUnspecified() {
		d.LocalAddr = &net.IPAddr{IP: from.Addr().AsSlice()}
	}
	conn, err := d.DialContext(ctx, network, to.Addr().String())
	if err != nil {
		return nil, sctpPacket{}, err
	}
	p := sctpPacket{src: from.Port(), dst: to.Port(), chunk: sctpInit, initTag: rand.Uint32() | 1}
	if p.src == 0 {
		p.src = uint16(32768 + rand.IntN(28000))
	}
	return conn, p, nil
}

// stripIPv4 removes the IPv4 header, which a connected raw socket delivers. No SCTP port is used here whose first byte
// looks like such a header.
func stripIPv4(b []byte) []byte {
	if len(b) > 20 && b[0] == 0x45 && b[9] == 132 {
		return b[20:]
	}
	return b
}
