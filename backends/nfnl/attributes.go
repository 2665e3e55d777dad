package nfnl

import (
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// Encoder appends netlink attributes to a message. Close ends a nested attribute at the position that Open returned.
type Encoder struct{ B []byte }

// NewEncoder begins a message with the header that all nfnetlink messages have.
func NewEncoder(family uint8) *Encoder {
	return &Encoder{B: []byte{family, unix.NFNETLINK_V0, 0, 0}}
}

// Bytes appends an attribute.
func (e *Encoder) Bytes(typ uint16, data []byte) {
	e.header(4+len(data), typ)
	e.B = append(e.B, data...)
	e.pad()
}

// String appends a string with the zero byte that ends it.
func (e *Encoder) String(typ uint16, s string) {
	e.header(5+len(s), typ)
	e.B = append(append(e.B, s...), 0)
	e.pad()
}

// Uint32 appends a number in network order.
func (e *Encoder) Uint32(typ uint16, n uint32) {
	e.header(8, typ)
	e.B = binary.BigEndian.AppendUint32(e.B, n)
}

// Open begins a nested attribute.
func (e *Encoder) Open(typ uint16) (at int) {
	e.header(0, typ|unix.NLA_F_NESTED)
	return len(e.B) - 4
}

// Close ends a nested attribute.
func (e *Encoder) Close(at int) {
	binary.NativeEndian.PutUint16(e.B[at:], uint16(len(e.B)-at))
}

func (e *Encoder) header(length int, typ uint16) {
	e.B = binary.NativeEndian.AppendUint16(e.B, uint16(length))
	e.B = binary.NativeEndian.AppendUint16(e.B, typ)
}

func (e *Encoder) pad() {
	for len(e.B)%4 != 0 {
		e.B = append(e.B, 0)
	}
}

// Attributes calls f with every attribute of data, and its type without flags. It stops and returns false if the data
// is not a list of attributes.
func Attributes(data []byte, f func(typ uint16, value []byte)) bool {
	for len(data) >= 4 {
		n := int(binary.NativeEndian.Uint16(data))
		if n < 4 || n > len(data) {
			return false
		}
		f(binary.NativeEndian.Uint16(data[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), data[4:n])
		data = data[min((n+3)&^3, len(data)):]
	}
	return len(data) == 0
}

// body returns a message without the header that all nfnetlink messages have.
func body(data []byte) []byte { return data[min(4, len(data)):] }

// number reads a 32-bit attribute, 0 for one of another length.
func number(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func cString(b []byte) string { return strings.TrimRight(string(b), "\x00") }
