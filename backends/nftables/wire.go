package nftables

import (
	"encoding/binary"

	"weir/backends"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Attributes that x/sys/unix does not name (include/uapi/linux/netfilter/nf_tables.h).
const (
	nftaTableUserdata = 6
	nftaChainFlags    = 10
	nftaChainUserdata = 12
	nftaSetElemKeyEnd = nft.NFTA_SET_ELEM_KEY_END
	nftaSetDescConcat = nft.NFTA_SET_DESC_CONCAT

	nftSetElemCatchall = 2
)

// message is one netlink message of a batch, without its header.
type message struct {
	typ   uint16 // NFT_MSG_*
	flags uint16 // besides NLM_F_REQUEST
	data  []byte
	// owner is the change that the message makes, as an index into the plan, or -1 if it makes several.
	owner int32
}

// encoder appends netlink attributes to a buffer. A nested attribute is closed by the length that open returned.
type encoder struct{ b []byte }

func (e *encoder) bytes(typ uint16, data []byte) {
	e.b = binary.NativeEndian.AppendUint16(e.b, uint16(4+len(data)))
	e.b = binary.NativeEndian.AppendUint16(e.b, typ)
	e.b = append(e.b, data...)
	e.pad()
}

func (e *encoder) pad() {
	for len(e.b)%4 != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) string(typ uint16, s string) {
	e.b = binary.NativeEndian.AppendUint16(e.b, uint16(5+len(s)))
	e.b = binary.NativeEndian.AppendUint16(e.b, typ)
	e.b = append(append(e.b, s...), 0)
	e.pad()
}

func (e *encoder) uint32(typ uint16, n uint32) {
	e.b = binary.NativeEndian.AppendUint16(e.b, 8)
	e.b = binary.NativeEndian.AppendUint16(e.b, typ)
	e.b = binary.BigEndian.AppendUint32(e.b, n)
}

func (e *encoder) open(typ uint16) int {
	e.b = binary.NativeEndian.AppendUint16(e.b, 0)
	e.b = binary.NativeEndian.AppendUint16(e.b, typ|unix.NLA_F_NESTED)
	return len(e.b) - 4
}

func (e *encoder) close(at int) {
	binary.NativeEndian.PutUint16(e.b[at:], uint16(len(e.b)-at))
}

// newEncoder begins a message with the header that all nfnetlink messages have.
func newEncoder(f backends.Family) *encoder {
	return &encoder{b: []byte{nfproto(f), unix.NFNETLINK_V0, 0, 0}}
}

func nfproto(f backends.Family) byte {
	if f == backends.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func tableMessage(t table, typ, flags uint16) message {
	e := newEncoder(t.fam)
	e.string(unix.NFTA_TABLE_NAME, t.name)
	if typ == unix.NFT_MSG_NEWTABLE {
		e.uint32(unix.NFTA_TABLE_FLAGS, 0)
		e.bytes(nftaTableUserdata, userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, tableComment))
	}
	return message{typ: typ, flags: flags, data: e.b}
}

func setMessage(t table, s set) message {
	e := newEncoder(t.fam)
	e.string(unix.NFTA_SET_TABLE, t.name)
	e.string(unix.NFTA_SET_NAME, s.name)
	d := s.definition(t.fam)
	e.uint32(unix.NFTA_SET_FLAGS, d.flags)
	e.uint32(unix.NFTA_SET_KEY_TYPE, d.keyType)
	e.uint32(unix.NFTA_SET_KEY_LEN, d.keyLen)
	if s.value != noValue {
		e.uint32(unix.NFTA_SET_DATA_TYPE, d.dataType)
		e.uint32(unix.NFTA_SET_DATA_LEN, d.dataLen)
	}
	e.uint32(unix.NFTA_SET_ID, 1)
	types := s.keyTypes(t.fam)
	if s.dynamic || len(types) > 1 {
		desc := e.open(unix.NFTA_SET_DESC)
		if s.dynamic {
			e.uint32(unix.NFTA_SET_DESC_SIZE, maxClients)
		}
		if len(types) > 1 {
			fields := e.open(nftaSetDescConcat)
			for _, typ := range types {
				field := e.open(unix.NFTA_LIST_ELEM)
				e.uint32(1, typ.Bytes) // NFTA_SET_FIELD_LEN
				e.close(field)
			}
			e.close(fields)
		}
		e.close(desc)
	}
	e.bytes(unix.NFTA_SET_USERDATA, d.userdata)
	return message{typ: unix.NFT_MSG_NEWSET, flags: unix.NLM_F_CREATE, data: e.b}
}

// definition is what tells one set from another in the kernel.
type definition struct {
	flags, keyType, keyLen, dataType, dataLen uint32
	userdata                                  []byte
}

func (s set) definition(f backends.Family) definition {
	types := s.keyTypes(f)
	key := nft.MustConcatSetType(types...)
	d := definition{keyType: key.GetNFTMagic(), keyLen: key.Bytes}
	if len(types) > 1 {
		d.flags |= nft.NFT_SET_CONCAT
	}
	if s.dynamic {
		d.flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
	}
	if s.suffix == rangeSuffix {
		d.flags |= unix.NFT_SET_INTERVAL
	}
	// A single type has a byte order, by which nft prints it; those of a concatenation are known from its parts.
	const hostOrder, networkOrder = 1, 2
	if len(types) == 1 {
		d.userdata = userdata.AppendUint32(d.userdata, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, networkOrder)
	}
	if s.value != noValue {
		d.flags |= unix.NFT_SET_MAP
		if s.value == verdictValue {
			d.dataType = unix.NFT_DATA_VERDICT
		} else {
			data := nft.MustConcatSetType(s.dataTypes(f)...)
			d.dataType, d.dataLen = data.GetNFTMagic(), data.Bytes
		}
		if s.value == markValue {
			d.userdata = userdata.AppendUint32(d.userdata, userdata.NFTNL_UDATA_SET_DATABYTEORDER, hostOrder)
		}
	}
	d.userdata = userdata.AppendString(d.userdata, userdata.NFTNL_UDATA_SET_COMMENT, s.comment)
	return d
}

// named is a message that says only which chain, set or rule list of the table it is about.
func named(t table, typ uint16, tableAttr, nameAttr uint16, name string) message {
	e := newEncoder(t.fam)
	e.string(tableAttr, t.name)
	e.string(nameAttr, name)
	return message{typ: typ, data: e.b}
}

func deleteSet(t table, name string) message {
	return named(t, unix.NFT_MSG_DELSET, unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, name)
}

func deleteChain(t table, name string) message {
	return named(t, unix.NFT_MSG_DELCHAIN, unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, name)
}

func flushChain(t table, name string) message {
	return named(t, unix.NFT_MSG_DELRULE, unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, name)
}

func chainMessage(t table, c *chain) message {
	e := newEncoder(t.fam)
	e.string(unix.NFTA_CHAIN_TABLE, t.name)
	e.string(unix.NFTA_CHAIN_NAME, c.name)
	if c.hook != nil {
		h := e.open(unix.NFTA_CHAIN_HOOK)
		e.uint32(unix.NFTA_HOOK_HOOKNUM, c.hook.hook)
		e.uint32(unix.NFTA_HOOK_PRIORITY, uint32(c.hook.priority))
		e.close(h)
		e.uint32(unix.NFTA_CHAIN_POLICY, 1) // accept
		e.string(unix.NFTA_CHAIN_TYPE, c.hook.kind)
	}
	if c.comment != "" {
		e.bytes(nftaChainUserdata, userdata.AppendString(nil, userdata.Type(userdata.TypeComment), c.comment))
	}
	return message{typ: unix.NFT_MSG_NEWCHAIN, flags: unix.NLM_F_CREATE, data: e.b}
}

func (r rule) userdata() []byte {
	if r.comment == "" {
		return nil
	}
	return userdata.AppendString(nil, userdata.Type(userdata.TypeComment), r.comment)
}

// expressions encodes the expressions of a rule as the list that a message carries.
func (r rule) expressions(f backends.Family) ([]byte, error) {
	attrs := make([]netlink.Attribute, len(r.exprs))
	for i, x := range r.exprs {
		data, err := expr.Marshal(nfproto(f), x)
		if err != nil {
			return nil, err
		}
		attrs[i] = netlink.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: data}
	}
	return netlink.MarshalAttributes(attrs)
}

func ruleMessage(t table, chain string, r rule) (message, error) {
	exprs, err := r.expressions(t.fam)
	if err != nil {
		return message{}, err
	}
	e := newEncoder(t.fam)
	e.string(unix.NFTA_RULE_TABLE, t.name)
	e.string(unix.NFTA_RULE_CHAIN, chain)
	e.bytes(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, exprs)
	if u := r.userdata(); u != nil {
		e.bytes(unix.NFTA_RULE_USERDATA, u)
	}
	return message{typ: unix.NFT_MSG_NEWRULE, flags: unix.NLM_F_CREATE | unix.NLM_F_APPEND, data: e.b}, nil
}

// tableRequest asks for what a table holds; the attribute of the table's name has number 1 in all requests.
func tableRequest(t table) []byte {
	e := newEncoder(t.fam)
	e.string(1, t.name)
	return e.b
}

// elementsRequest asks for elements of a set, all of them unless a list of keys follows.
func elementsRequest(t table, id setID) *encoder {
	e := newEncoder(t.fam)
	e.string(unix.NFTA_SET_ELEM_LIST_TABLE, t.name)
	e.string(unix.NFTA_SET_ELEM_LIST_SET, sets[id].name)
	return e
}

// rawElement is an element as the kernel has it.
type rawElement struct {
	key, end []byte // no key: the catchall element
	value    []byte // of a map of values
	verdict  string // of a map of verdicts, as element has it
	comment  string
}

// element appends one element of a set's list; without its value if it is to be deleted.
func (e *encoder) element(x rawElement, withValue bool) {
	item := e.open(unix.NFTA_LIST_ELEM)
	if x.key != nil {
		e.nestedValue(unix.NFTA_SET_ELEM_KEY, x.key)
	} else {
		e.uint32(unix.NFTA_SET_ELEM_FLAGS, nftSetElemCatchall)
	}
	if x.end != nil {
		e.nestedValue(nftaSetElemKeyEnd, x.end)
	}
	if withValue {
		if x.verdict != "" {
			data := e.open(unix.NFTA_SET_ELEM_DATA)
			v := e.open(unix.NFTA_DATA_VERDICT)
			e.uint32(unix.NFTA_VERDICT_CODE, uint32(int32(int8(x.verdict[0]))))
			if len(x.verdict) > 1 {
				e.string(unix.NFTA_VERDICT_CHAIN, x.verdict[1:])
			}
			e.close(v)
			e.close(data)
		} else if x.value != nil {
			e.nestedValue(unix.NFTA_SET_ELEM_DATA, x.value)
		}
		if x.comment != "" {
			e.bytes(unix.NFTA_SET_ELEM_USERDATA, userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, x.comment))
		}
	}
	e.close(item)
}

func (e *encoder) nestedValue(typ uint16, data []byte) {
	at := e.open(typ)
	e.bytes(unix.NFTA_DATA_VALUE, data)
	e.close(at)
}

// attributes calls f with every attribute of data, its type without flags. It ends early, with false, where the data is
// not a list of attributes.
func attributes(data []byte, f func(typ uint16, value []byte)) bool {
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
