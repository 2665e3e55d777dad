package nftables

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"strings"

	"weir/backends"

	"golang.org/x/sys/unix"
)

// The kernel does not give a rule back as it was sent: it fills in defaults, leaves out numbers that only meant something
// within the transaction, and later versions add attributes. canonical brings both forms to one, in which rules compare.

// Flags of a translation that the kernel sets by itself once it is told an address or a port.
const natImplied = 1<<1 /* NF_NAT_RANGE_PROTO_SPECIFIED */ | 1<<0 /* NF_NAT_RANGE_MAP_IPS */

// nestedAttributes names the attributes of an expression that hold data in a nested attribute.
var nestedAttributes = map[string][]uint16{
	"bitwise":   {unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR, 7 /* NFTA_BITWISE_DATA */},
	"cmp":       {unix.NFTA_CMP_DATA},
	"immediate": {unix.NFTA_IMMEDIATE_DATA},
}

// transient names the attributes that are only for the transaction.
var transient = map[string]uint16{
	"lookup": unix.NFTA_LOOKUP_SET_ID,
	"dynset": unix.NFTA_DYNSET_SET_ID,
}

// canonicalRule returns a rule's expressions, as a list of attributes, and its user data in the form in which they
// compare, or "" if the list is not one.
func canonicalRule(expressions, userdata []byte) string {
	var b strings.Builder
	ok := attributes(expressions, func(_ uint16, item []byte) {
		name := ""
		attributes(item, func(typ uint16, value []byte) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				name = strings.TrimRight(string(value), "\x00")
				b.WriteString("\x00" + name)
			case unix.NFTA_EXPR_DATA:
				canonicalExpression(&b, name, value)
			}
		})
	})
	if !ok {
		return ""
	}
	b.WriteString("\x00#")
	b.Write(userdata)
	return b.String()
}

func canonicalExpression(b *strings.Builder, name string, data []byte) {
	values := make(map[uint16]string)
	attributes(data, func(typ uint16, value []byte) {
		for _, n := range nestedAttributes[name] {
			if n == typ {
				attributes(value, func(inner uint16, v []byte) { values[typ] += string(rune(inner)) + innerData(inner, v) })
				return
			}
		}
		if typ != transient[name] && strings.Trim(string(value), "\x00") != "" {
			values[typ] = string(value)
		}
	})
	if name == "nat" {
		canonicalNAT(values)
	}
	for typ := uint16(0); typ < 64; typ++ {
		if v, ok := values[typ]; ok {
			b.Write([]byte{byte(typ), byte(len(v) >> 8), byte(len(v))})
			b.WriteString(v)
		}
	}
}

// innerData returns a value as it is, and a verdict by its parts.
func innerData(typ uint16, v []byte) string {
	if typ != unix.NFTA_DATA_VERDICT {
		return string(v)
	}
	s := ""
	attributes(v, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			s += "code" + string(value)
		case unix.NFTA_VERDICT_CHAIN:
			s += "chain" + strings.TrimRight(string(value), "\x00")
		}
	})
	return s
}

func canonicalNAT(values map[uint16]string) {
	if values[unix.NFTA_NAT_REG_ADDR_MAX] == values[unix.NFTA_NAT_REG_ADDR_MIN] {
		delete(values, unix.NFTA_NAT_REG_ADDR_MAX)
	}
	if values[unix.NFTA_NAT_REG_PROTO_MAX] == values[unix.NFTA_NAT_REG_PROTO_MIN] {
		delete(values, unix.NFTA_NAT_REG_PROTO_MAX)
	}
	if flags := values[unix.NFTA_NAT_FLAGS]; len(flags) == 4 {
		if n := binary.BigEndian.Uint32([]byte(flags)) &^ natImplied; n == 0 {
			delete(values, unix.NFTA_NAT_FLAGS)
		} else {
			values[unix.NFTA_NAT_FLAGS] = string(big32(n))
		}
	}
}

// canonical returns the form in which the rule compares with what the kernel gives back.
func (r rule) canonical(f backends.Family) string {
	exprs, err := r.expressions(f)
	if err != nil {
		return ""
	}
	return canonicalRule(exprs, r.userdata())
}

// foreignRule says what can be said of a rule that is not weir's: the names of its expressions, and a hash of it all.
func foreignRule(expressions []byte, canonical string) string {
	var names []string
	attributes(expressions, func(_ uint16, item []byte) {
		attributes(item, func(typ uint16, value []byte) {
			if typ == unix.NFTA_EXPR_NAME {
				names = append(names, strings.TrimRight(string(value), "\x00"))
			}
		})
	})
	return "not weir's: " + strings.Join(names, " ") + " " + hash(canonical)
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:8])
}
