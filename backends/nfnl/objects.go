package nfnl

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Attributes and flags that x/sys/unix does not name (include/uapi/linux/netfilter/nf_tables.h).
const (
	tableUserdata = 6
	tableOwner    = 7
	chainFlags    = 10
	chainUserdata = 12
	setDescConcat = 2
	setFieldLen   = 1
	elemKeyEnd    = 10

	// SetConcat is the flag of a set whose keys are several fields.
	SetConcat    = 0x80
	elemCatchall = 2
	chainIsBase  = 1
)

// Table names one table. Tables of different families are independent.
type Table struct {
	Family uint8 // unix.NFPROTO_*
	Name   string
}

// encoder begins a message about the table or an object in it.
func (t Table) encoder(tableAttr uint16) *Encoder {
	e := NewEncoder(t.Family)
	e.String(tableAttr, t.Name)
	return e
}

// request requests objects of the table; the attribute of the table's name has number 1 in all requests.
func (t Table) request(typ uint16) Request {
	return Request{Type: typ, List: true, Data: t.encoder(1).B}
}

// NewTable makes a table, unless it exists.
func NewTable(t Table, userdata []byte) Message {
	e := t.encoder(unix.NFTA_TABLE_NAME)
	e.Uint32(unix.NFTA_TABLE_FLAGS, 0)
	e.Bytes(tableUserdata, userdata)
	return Message{Type: unix.NFT_MSG_NEWTABLE, Flags: unix.NLM_F_CREATE, Data: e.B}
}

// DeleteTable deletes a table and everything in it.
func DeleteTable(t Table) Message {
	return Message{Type: unix.NFT_MSG_DELTABLE, Data: t.encoder(unix.NFTA_TABLE_NAME).B}
}

// ReadTable returns the flags of a table, and reports whether it exists.
func ReadTable(ctx context.Context, c Conn, t Table) (flags uint32, found bool, err error) {
	r := t.request(unix.NFT_MSG_GETTABLE)
	r.List = false
	err = c.Ask(ctx, r, func(data []byte) error {
		found = true
		Attributes(body(data), func(typ uint16, value []byte) {
			if typ == unix.NFTA_TABLE_FLAGS {
				flags = number(value)
			}
		})
		return nil
	})
	return flags, found, err
}

// ReadOwner returns the netlink port of the process that owns a table (NFT_TABLE_F_OWNER), which no other process can then
// change; 0 if there is none.
func ReadOwner(ctx context.Context, c Conn, t Table) (port uint32, err error) {
	r := t.request(unix.NFT_MSG_GETTABLE)
	r.List = false
	err = c.Ask(ctx, r, func(data []byte) error {
		Attributes(body(data), func(typ uint16, value []byte) {
			if typ == tableOwner {
				port = number(value)
			}
		})
		return nil
	})
	return port, err
}

// OwnerName names the process that owns a table, or returns "". The port of a process's first netlink socket is its ID.
func OwnerName(ctx context.Context, c Conn, t Table) string {
	port, err := ReadOwner(ctx, c, t)
	if err != nil || port == 0 {
		return ""
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", port))
	if err != nil {
		return fmt.Sprintf("the process with the netlink port %d", port)
	}
	return fmt.Sprintf("process %d (%s)", port, strings.TrimSpace(string(name)))
}

// Set is the definition of a set or map.
type Set struct {
	Name              string
	Flags             uint32 // unix.NFT_SET_*
	KeyType, KeyLen   uint32
	DataType, DataLen uint32 // of a map
	// Fields are the lengths of the fields of a concatenated key; nil if there is only one.
	Fields []uint32
	// Size bounds the number of elements, 0 for no bound.
	Size     uint32
	Userdata []byte
}

// NewSet makes a set, unless one of that name exists.
func NewSet(t Table, s Set) Message {
	e := t.encoder(unix.NFTA_SET_TABLE)
	e.String(unix.NFTA_SET_NAME, s.Name)
	e.Uint32(unix.NFTA_SET_FLAGS, s.Flags)
	e.Uint32(unix.NFTA_SET_KEY_TYPE, s.KeyType)
	e.Uint32(unix.NFTA_SET_KEY_LEN, s.KeyLen)
	if s.Flags&unix.NFT_SET_MAP != 0 {
		e.Uint32(unix.NFTA_SET_DATA_TYPE, s.DataType)
		e.Uint32(unix.NFTA_SET_DATA_LEN, s.DataLen)
	}
	e.Uint32(unix.NFTA_SET_ID, 1)
	if s.Size > 0 || len(s.Fields) > 0 {
		desc := e.Open(unix.NFTA_SET_DESC)
		if s.Size > 0 {
			e.Uint32(unix.NFTA_SET_DESC_SIZE, s.Size)
		}
		if len(s.Fields) > 0 {
			fields := e.Open(setDescConcat)
			for _, n := range s.Fields {
				field := e.Open(unix.NFTA_LIST_ELEM)
				e.Uint32(setFieldLen, n)
				e.Close(field)
			}
			e.Close(fields)
		}
		e.Close(desc)
	}
	e.Bytes(unix.NFTA_SET_USERDATA, s.Userdata)
	return Message{Type: unix.NFT_MSG_NEWSET, Flags: unix.NLM_F_CREATE, Data: e.B}
}

// DeleteSet deletes a set. No rule may refer to it.
func DeleteSet(t Table, name string) Message {
	e := t.encoder(unix.NFTA_SET_TABLE)
	e.String(unix.NFTA_SET_NAME, name)
	return Message{Type: unix.NFT_MSG_DELSET, Data: e.B}
}

// ReadSets returns the definitions of a table's sets, also of those that are part of a rule (unix.NFT_SET_ANONYMOUS).
func ReadSets(ctx context.Context, c Conn, t Table) (sets []Set, err error) {
	err = c.Ask(ctx, t.request(unix.NFT_MSG_GETSET), func(data []byte) error {
		sets = append(sets, ParseSet(body(data)))
		return nil
	})
	return sets, err
}

// ParseSet reads the attributes of a set.
func ParseSet(attributes []byte) Set {
	var s Set
	numbers := map[uint16]*uint32{
		unix.NFTA_SET_FLAGS: &s.Flags, unix.NFTA_SET_KEY_TYPE: &s.KeyType, unix.NFTA_SET_KEY_LEN: &s.KeyLen,
		unix.NFTA_SET_DATA_TYPE: &s.DataType, unix.NFTA_SET_DATA_LEN: &s.DataLen,
	}
	Attributes(attributes, func(typ uint16, value []byte) {
		switch {
		case typ == unix.NFTA_SET_NAME:
			s.Name = cString(value)
		case typ == unix.NFTA_SET_USERDATA:
			s.Userdata = bytes.Clone(value)
		case typ == unix.NFTA_SET_DESC:
			s.parseDescription(value)
		case numbers[typ] != nil && len(value) == 4:
			*numbers[typ] = binary.BigEndian.Uint32(value)
		}
	})
	return s
}

func (s *Set) parseDescription(attributes []byte) {
	Attributes(attributes, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_SET_DESC_SIZE:
			s.Size = number(value)
		case setDescConcat:
			Attributes(value, func(_ uint16, field []byte) {
				Attributes(field, func(typ uint16, value []byte) {
					if typ == setFieldLen {
						s.Fields = append(s.Fields, number(value))
					}
				})
			})
		}
	})
}

// Hook is the place where the kernel enters a base chain.
type Hook struct {
	Kind     string // "nat" or "filter"
	Number   uint32 // unix.NF_INET_*
	Priority int32
}

// Chain is a chain without its rules.
type Chain struct {
	Name     string
	Hook     *Hook // nil for a chain that is only jumped to
	Policy   uint32
	Flags    uint32 // flags other than that of a base chain
	Userdata []byte
}

// PolicyAccept is the policy of a base chain that accepts packets on which no rule decides.
const PolicyAccept = 1

// NewChain makes a chain, unless one of that name exists with the same hook.
func NewChain(t Table, c Chain) Message {
	e := t.encoder(unix.NFTA_CHAIN_TABLE)
	e.String(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook != nil {
		h := e.Open(unix.NFTA_CHAIN_HOOK)
		e.Uint32(unix.NFTA_HOOK_HOOKNUM, c.Hook.Number)
		e.Uint32(unix.NFTA_HOOK_PRIORITY, uint32(c.Hook.Priority))
		e.Close(h)
		e.Uint32(unix.NFTA_CHAIN_POLICY, c.Policy)
		e.String(unix.NFTA_CHAIN_TYPE, c.Hook.Kind)
	}
	if len(c.Userdata) > 0 {
		e.Bytes(chainUserdata, c.Userdata)
	}
	return Message{Type: unix.NFT_MSG_NEWCHAIN, Flags: unix.NLM_F_CREATE, Data: e.B}
}

// DeleteChain deletes a chain. No rule may lead to it.
func DeleteChain(t Table, name string) Message {
	e := t.encoder(unix.NFTA_CHAIN_TABLE)
	e.String(unix.NFTA_CHAIN_NAME, name)
	return Message{Type: unix.NFT_MSG_DELCHAIN, Data: e.B}
}

// ReadChains returns the chains of a table.
func ReadChains(ctx context.Context, c Conn, t Table) (chains []Chain, err error) {
	r := Request{Type: unix.NFT_MSG_GETCHAIN, List: true, Data: NewEncoder(t.Family).B} // the kernel lists the chains of all tables
	err = c.Ask(ctx, r, func(data []byte) error {
		if chain, table := ParseChain(body(data)); table == t.Name {
			chains = append(chains, chain)
		}
		return nil
	})
	return chains, err
}

// ParseChain reads the attributes of a chain, and the name of its table.
func ParseChain(attributes []byte) (c Chain, table string) {
	c.Policy = PolicyAccept
	var hook Hook
	Attributes(attributes, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_CHAIN_TABLE:
			table = cString(value)
		case unix.NFTA_CHAIN_NAME:
			c.Name = cString(value)
		case unix.NFTA_CHAIN_TYPE:
			hook.Kind = cString(value)
		case unix.NFTA_CHAIN_POLICY:
			c.Policy = number(value)
		case chainFlags:
			c.Flags = number(value) &^ chainIsBase
		case chainUserdata:
			c.Userdata = bytes.Clone(value)
		case unix.NFTA_CHAIN_HOOK:
			c.Hook = &hook
			Attributes(value, func(typ uint16, value []byte) {
				switch typ {
				case unix.NFTA_HOOK_HOOKNUM:
					hook.Number = number(value)
				case unix.NFTA_HOOK_PRIORITY:
					hook.Priority = int32(number(value))
				}
			})
		}
	})
	return c, table
}
