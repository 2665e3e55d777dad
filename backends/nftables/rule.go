package nftables

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/backends/dataplane"
	"weir/backends/nfnl"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// part is a piece of a rule: its text in nft's syntax, and its expressions for the kernel.
type part struct {
	text  string
	exprs []expr.Any
}

// rule is a complete rule.
type rule struct {
	text    string
	exprs   []expr.Any
	comment string
}

func newRule(comment string, parts ...part) rule {
	r := rule{comment: comment}
	texts := make([]string, len(parts))
	for i, p := range parts {
		texts[i] = p.text
		r.exprs = append(r.exprs, p.exprs...)
	}
	r.text = strings.Join(texts, " ")
	return r
}

// reg returns the number of the n-th 32-bit register as the kernel prints it. At the beginning of a 128-bit register,
// that is the number of the 128-bit register.
func reg(n uint32) uint32 {
	if n%4 == 0 {
		return unix.NFT_REG_1 + n/4
	}
	return unix.NFT_REG32_00 + n
}

// field loads one field of the packet into register n; width is the number of registers that it takes.
type field struct {
	text  string
	width uint32
	load  func(register uint32) []expr.Any
}

func payload(text string, base expr.PayloadBase, offset, length uint32) field {
	return field{text, (length + 3) / 4, func(r uint32) []expr.Any {
		return []expr.Any{&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: r, Base: base, Offset: offset, Len: length}}
	}}
}

func meta(text string, key expr.MetaKey) field {
	return field{text, 1, func(r uint32) []expr.Any { return []expr.Any{&expr.Meta{Key: key, Register: r}} }}
}

func saddr(f dataplane.Family) field {
	if f == dataplane.IPv6 {
		return payload("ip6 saddr", expr.PayloadBaseNetworkHeader, 8, 16)
	}
	return payload("ip saddr", expr.PayloadBaseNetworkHeader, 12, 4)
}

func daddr(f dataplane.Family) field {
	if f == dataplane.IPv6 {
		return payload("ip6 daddr", expr.PayloadBaseNetworkHeader, 24, 16)
	}
	return payload("ip daddr", expr.PayloadBaseNetworkHeader, 16, 4)
}

func l4proto() field { return meta("meta l4proto", expr.MetaKeyL4PROTO) }
func sport() field   { return payload("th sport", expr.PayloadBaseTransportHeader, 0, 2) }

// frontFields returns the fields of a packet that identify its frontend.
func frontFields(f dataplane.Family, s scope) []field {
	fields := []field{l4proto(), payload("th dport", expr.PayloadBaseTransportHeader, 2, 2)}
	if s == addrScope {
		fields = append([]field{daddr(f)}, fields...)
	}
	return fields
}

// random chooses one of k slots that begin at offset.
func random(k, offset int) field {
	text := fmt.Sprintf("numgen random mod %d", k)
	if offset != 0 {
		text += fmt.Sprintf(" offset %d", offset)
	}
	return field{text, 1, func(r uint32) []expr.Any {
		return []expr.Any{&expr.Numgen{Register: r, Modulus: uint32(k), Type: unix.NFT_NG_RANDOM, Offset: uint32(offset)}}
	}}
}

// concat loads fields one after the other, beginning at register n.
func concat(n uint32, fields ...field) part {
	var p part
	texts := make([]string, len(fields))
	for i, f := range fields {
		texts[i] = f.text
		p.exprs = append(p.exprs, f.load(reg(n))...)
		n += f.width
	}
	p.text = strings.Join(texts, " . ")
	return p
}

// lookup maps the fields through a map; the value goes to register 0.
func lookup(id setID, fields ...field) part {
	p := concat(0, fields...)
	p.text += " map @" + sets[id].name
	p.exprs = append(p.exprs, &expr.Lookup{SourceRegister: reg(0), DestRegister: reg(0), IsDestRegSet: true, SetName: sets[id].name})
	return p
}

func inSet(id setID, fields ...field) part {
	p := concat(0, fields...)
	p.text += " @" + sets[id].name
	p.exprs = append(p.exprs, &expr.Lookup{SourceRegister: reg(0), SetName: sets[id].name})
	return p
}

func vmap(id setID, fields ...field) part {
	p := concat(0, fields...)
	p.text += " vmap @" + sets[id].name
	p.exprs = append(p.exprs, &expr.Lookup{SourceRegister: reg(0), DestRegister: unix.NFT_REG_VERDICT, IsDestRegSet: true, SetName: sets[id].name})
	return p
}

func verdict(kind expr.VerdictKind, text, chain string) part {
	return part{strings.TrimSpace(text + " " + chain), []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}}
}

func gotoPart(chain string) part { return verdict(expr.VerdictGoto, "goto", chain) }
func jumpPart(chain string) part { return verdict(expr.VerdictJump, "jump", chain) }
func dropPart() part             { return verdict(expr.VerdictDrop, "drop", "") }
func returnPart() part           { return verdict(expr.VerdictReturn, "return", "") }

// dnatTo translates to the address and port in register 0.
func dnatTo(f dataplane.Family, to part) part {
	nat := &expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(nfproto(f)), RegAddrMin: reg(0), RegProtoMin: reg(uint32(addrLen(f) / 4))}
	return part{"dnat to " + to.text, append(to.exprs, nat)}
}

// dynset operations, as the kernel numbers them.
const (
	dynsetUpdate = 1
	dynsetDelete = 2
)

// scratch is the place where a rule leaves a number for the next one. A rule with two lookups, one for the key of the
// other, would need no such place, but nft 1.0.6 aborts when it prints such a rule. The packet's priority does the
// least harm of all candidates. Forwarding sets it anew, and only the first packet of a connection to a Service with
// session affinity is affected.
func scratch() field { return meta("meta priority", expr.MetaKeyPRIORITY) }

// setScratch stores the result of a lookup in the scratch.
func setScratch(from part) part {
	return part{"meta priority set " + from.text,
		append(from.exprs, &expr.Meta{Key: expr.MetaKeyPRIORITY, SourceRegister: true, Register: reg(0)})}
}

// remember stores the scratch under the key in a map of clients. An existing element keeps its value and gets a new
// timeout. Or remember deletes the element, depending on op.
func remember(op uint32, id setID, timeout time.Duration, key ...field) part {
	p := concat(0, key...)
	verb, expires := "update", fmt.Sprintf(" timeout %ds", int(timeout.Seconds()))
	d := &expr.Dynset{SrcRegKey: reg(0), SrcRegData: reg(lastRegister), SetName: sets[id].name, Operation: op, Timeout: timeout}
	if op == dynsetDelete {
		verb, expires, d.Timeout = "delete", "", 0
	}
	value := scratch()
	text := fmt.Sprintf("%s @%s { %s%s : %s }", verb, sets[id].name, p.text, expires, value.text)
	return part{text, append(append(p.exprs, value.load(reg(lastRegister))...), d)}
}

const lastRegister = 15

func native32(n uint32) []byte { return binaryutil.NativeEndian.PutUint32(n) }

// bits tests one bit of a 32-bit field.
func bits(f field, mask uint32, text string) part {
	return part{text, append(f.load(reg(0)),
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native32(mask), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: native32(0)})}
}

func ct(key expr.CtKey) field {
	return field{"", 1, func(r uint32) []expr.Any { return []expr.Any{&expr.Ct{Key: key, Register: r}} }}
}

func ctNew() part     { return bits(ct(expr.CtKeySTATE), expr.CtStateBitNEW, "ct state new") }
func ctInvalid() part { return bits(ct(expr.CtKeySTATE), expr.CtStateBitINVALID, "ct state invalid") }
func ctDNAT() part {
	const ipsDstNAT = 1 << 5
	return bits(ct(expr.CtKeySTATUS), ipsDstNAT, "ct status dnat")
}

func ctReply() part {
	return part{"ct direction reply", []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{1}},
	}}
}

// tcpButSynAck matches TCP segments other than the answer to the first one.
func tcpButSynAck() part {
	const synAck = 0x12
	return part{"meta l4proto tcp tcp flags & (syn | ack) != syn | ack", slices.Concat(l4proto().load(reg(0)), []expr.Any{
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: reg(0), Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 1, Mask: []byte{synAck}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: []byte{synAck}},
	})}
}

// unmarked matches packets without the bits of mask.
func unmarked(mask uint32) part {
	return part{fmt.Sprintf("meta mark & %#08x == 0", mask), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native32(mask), Xor: native32(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: native32(0)},
	}}
}

// notProbe matches all packets but those of probes.
func notProbe() part {
	return part{fmt.Sprintf("meta mark != %#08x", dataplane.ProbeMark), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: native32(dataplane.ProbeMark)},
	}}
}

// tcpReset matches the segments that reset a TCP connection.
func tcpReset() part {
	const flagsOffset, rst = 13, 0x04
	flags := payload("", expr.PayloadBaseTransportHeader, flagsOffset, 1)
	exprs := append(meta("", expr.MetaKeyL4PROTO).load(reg(0)), &expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{unix.IPPROTO_TCP}})
	exprs = append(append(exprs, flags.load(reg(0))...),
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 1, Mask: []byte{rst}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: []byte{0}})
	return part{"tcp flags rst", exprs}
}

func marked(mask uint32) part {
	return bits(meta("", expr.MetaKeyMARK), mask, fmt.Sprintf("meta mark & %#08x != 0", mask))
}

// setMark sets the bits of mask, or clears them.
func setMark(mask uint32, on bool) part {
	text, xor := fmt.Sprintf("meta mark set meta mark | %#08x", mask), mask
	if !on {
		text, xor = fmt.Sprintf("meta mark set meta mark & %#08x", ^mask), 0
	}
	return part{text, []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native32(^mask), Xor: native32(xor)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg(0)},
	}}
}

// fibLocal matches if the source or destination is an address of this node.
func fibLocal(source bool) part {
	text := "fib daddr type local"
	if source {
		text = "fib saddr type local"
	}
	return part{text, []expr.Any{
		&expr.Fib{Register: reg(0), ResultADDRTYPE: true, FlagSADDR: source, FlagDADDR: !source},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: native32(unix.RTN_LOCAL)},
	}}
}

// inPrefix compares an address field with a prefix.
func inPrefix(f field, p netip.Prefix, in bool) part {
	op, text := expr.CmpOpEq, f.text+" "
	if !in {
		op, text = expr.CmpOpNeq, f.text+" != "
	}
	n := p.Addr().BitLen() / 8
	exprs := f.load(reg(0))
	if p.Bits() < p.Addr().BitLen() {
		mask := make([]byte, n)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		exprs = append(exprs, &expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: uint32(n), Mask: mask, Xor: make([]byte, n)})
	}
	return part{text + p.String(), append(exprs, &expr.Cmp{Op: op, Register: reg(0), Data: p.Masked().Addr().AsSlice()})}
}

// fromInterface compares the incoming interface with a name, or with a prefix of one.
func fromInterface(name string, prefix, in bool) part {
	op, text := expr.CmpOpEq, "iifname "
	if !in {
		op, text = expr.CmpOpNeq, "iifname != "
	}
	data := make([]byte, unix.IFNAMSIZ)
	copy(data[:unix.IFNAMSIZ-1], name)
	if prefix {
		data = data[:min(len(name), unix.IFNAMSIZ-1)]
		name += "*"
	}
	return part{text + fmt.Sprintf("%q", name), []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg(0)},
		&expr.Cmp{Op: op, Register: reg(0), Data: data},
	}}
}

func notrack() part { return part{"notrack", []expr.Any{&expr.Notrack{}}} }

func masquerade() part {
	return part{"masquerade fully-random", []expr.Any{&expr.Masq{FullyRandom: true}}}
}

func reject(f dataplane.Family) part {
	const portUnreachable, portUnreachable6 = 3, 4 // ICMP and ICMPv6 codes
	code := uint8(portUnreachable)
	if f == dataplane.IPv6 {
		code = portUnreachable6
	}
	return part{"reject", []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code}}}
}

func (r rule) line() string {
	if r.comment == "" {
		return r.text
	}
	return r.text + " # " + r.comment
}

// encode returns the rule in the kernel's form.
func (r rule) encode(f dataplane.Family, chain string) (nfnl.Rule, error) {
	attrs := make([]netlink.Attribute, len(r.exprs))
	for i, x := range r.exprs {
		data, err := expr.Marshal(nfproto(f), x)
		if err != nil {
			return nfnl.Rule{}, fmt.Errorf("rule %q: %w", r.text, err)
		}
		attrs[i] = netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: data}
	}
	exprs, err := netlink.MarshalAttributes(attrs)
	if err != nil {
		return nfnl.Rule{}, fmt.Errorf("rule %q: %w", r.text, err)
	}
	encoded := nfnl.Rule{Chain: chain, Expressions: exprs}
	if r.comment != "" {
		encoded.Userdata = userdata.AppendString(nil, userdata.Type(userdata.TypeComment), r.comment)
	}
	return encoded, nil
}
