package nfnl

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"

	"golang.org/x/sys/unix"
)

// Rule is one rule of a chain. Expressions is the list of attributes in which the kernel takes the expressions.
type Rule struct {
	Chain                 string
	Expressions, Userdata []byte
}

// AppendRule appends a rule to its chain.
func AppendRule(t Table, r Rule) Message {
	e := t.encoder(unix.NFTA_RULE_TABLE)
	e.String(unix.NFTA_RULE_CHAIN, r.Chain)
	e.Bytes(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, r.Expressions)
	if r.Userdata != nil {
		e.Bytes(unix.NFTA_RULE_USERDATA, r.Userdata)
	}
	return Message{Type: unix.NFT_MSG_NEWRULE, Flags: unix.NLM_F_CREATE | unix.NLM_F_APPEND, Data: e.B}
}

// FlushChain deletes the rules of a chain.
func FlushChain(t Table, name string) Message {
	e := t.encoder(unix.NFTA_RULE_TABLE)
	e.String(unix.NFTA_RULE_CHAIN, name)
	return Message{Type: unix.NFT_MSG_DELRULE, Data: e.B}
}

// ReadRules returns the rules of a table, those of one chain in their order.
func ReadRules(ctx context.Context, c Conn, t Table) (rules []Rule, err error) {
	err = c.Ask(ctx, t.request(unix.NFT_MSG_GETRULE), func(data []byte) error {
		rules = append(rules, ParseRule(body(data)))
		return nil
	})
	return rules, err
}

// ParseRule reads the attributes of a rule.
func ParseRule(attributes []byte) (r Rule) {
	Attributes(attributes, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_RULE_CHAIN:
			r.Chain = cString(value)
		case unix.NFTA_RULE_EXPRESSIONS:
			r.Expressions = bytes.Clone(value)
		case unix.NFTA_RULE_USERDATA:
			r.Userdata = bytes.Clone(value)
		}
	})
	return r
}

// EachExpression calls f with the name and the data of each expression of the rule. It returns false if there is no
// list of expressions.
func (r Rule) EachExpression(f func(name string, data []byte)) bool {
	return Attributes(r.Expressions, func(_ uint16, item []byte) {
		var name string
		var content []byte
		Attributes(item, func(typ uint16, value []byte) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				name = cString(value)
			case unix.NFTA_EXPR_DATA:
				content = value
			}
		})
		f(name, content)
	})
}

// The kernel does not return a rule as it was sent: it fills in defaults, and leaves out numbers that only had a
// meaning within the transaction. Later versions also add attributes. Canonical converts both forms into one that can
// be compared.

// natImplied are the flags of a translation that the kernel sets by itself if it gets an address or a port.
const natImplied = 1<<1 /* NF_NAT_RANGE_PROTO_SPECIFIED */ | 1<<0 /* NF_NAT_RANGE_MAP_IPS */

// nestedAttributes names the attributes of an expression that hold data in a nested attribute.
var nestedAttributes = map[string][]uint16{
	"bitwise":   {unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR, 7 /* NFTA_BITWISE_DATA */},
	"cmp":       {unix.NFTA_CMP_DATA},
	"immediate": {unix.NFTA_IMMEDIATE_DATA},
}

// transient names the attributes that only have a meaning within the transaction.
var transient = map[string]uint16{
	"lookup": unix.NFTA_LOOKUP_SET_ID,
	"dynset": unix.NFTA_DYNSET_SET_ID,
}

// Canonical returns the rule's expressions and user data in a form that can be compared, or "" if there is no list of
// expressions.
func (r Rule) Canonical() string {
	var b strings.Builder
	ok := r.EachExpression(func(name string, data []byte) {
		b.WriteString("\x00" + name)
		canonicalExpression(&b, name, data)
	})
	if !ok {
		return ""
	}
	b.WriteString("\x00#")
	b.Write(r.Userdata)
	return b.String()
}

func canonicalExpression(b *strings.Builder, name string, data []byte) {
	values := make(map[uint16]string)
	Attributes(data, func(typ uint16, value []byte) {
		for _, n := range nestedAttributes[name] {
			if n == typ {
				Attributes(value, func(inner uint16, v []byte) { values[typ] += string(rune(inner)) + innerData(inner, v) })
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

// innerData returns a value unchanged, and a verdict as its parts.
func innerData(typ uint16, v []byte) string {
	if typ != unix.NFTA_DATA_VERDICT {
		return string(v)
	}
	s := ""
	Attributes(v, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			s += "code" + string(value)
		case unix.NFTA_VERDICT_CHAIN:
			s += "chain" + cString(value)
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
			values[unix.NFTA_NAT_FLAGS] = string(binary.BigEndian.AppendUint32(nil, n))
		}
	}
}
