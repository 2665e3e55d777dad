package nfnl

import (
	"context"

	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Verdict is the decision of a rule or an element.
type Verdict struct {
	Code  int32
	Chain string // of a jump or goto
}

// The codes of verdicts.
const (
	Drop   = 0
	Accept = 1
	Jump   = -3
	Goto   = -4
)

// Element is one element of a set.
type Element struct {
	Key, End []byte // End is the last key of an interval; no Key: the catchall element
	Value    []byte // of a map of values
	Verdict  *Verdict
	Comment  string
}

// maxList bounds the list of elements of one message, because an attribute has a 16-bit length.
const maxList = 60 << 10

// Elements collects elements of one set into as few messages as the kernel accepts.
type Elements struct {
	table    Table
	set      string
	deleting bool
	// Size is the size of the messages so far, in bytes.
	Size     int
	messages []Message
	e        *Encoder
	at       int
}

// AddTo returns a list of elements to add to a set. If a map already has an element, its value must be the same.
func AddTo(t Table, set string) *Elements { return &Elements{table: t, set: set} }

// DeleteFrom returns a list of elements to delete from a set. They must exist, and only their keys count.
func DeleteFrom(t Table, set string) *Elements { return &Elements{table: t, set: set, deleting: true} }

// Append appends an element to the last message, or to a new one.
func (l *Elements) Append(x Element) {
	if l.e == nil {
		l.e = elementsOf(l.table, l.set)
		l.at = l.e.Open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
		l.Size += len(l.e.B) + unix.SizeofNlMsghdr
	}
	before := len(l.e.B)
	appendElement(l.e, x, !l.deleting)
	l.Size += len(l.e.B) - before
	if len(l.e.B)-l.at > maxList {
		l.EndMessage(NoOwner)
	}
}

// EndMessage ends the message that Append appends to, and sets its owner.
func (l *Elements) EndMessage(owner int32) {
	if l.e == nil {
		return
	}
	l.e.Close(l.at)
	m := Message{Type: unix.NFT_MSG_DELSETELEM, Data: l.e.B, Owner: owner}
	if !l.deleting {
		m.Type, m.Flags = unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE
	}
	l.messages, l.e = append(l.messages, m), nil
}

// Messages returns the messages. Those that EndMessage did not end have no owner.
func (l *Elements) Messages() []Message {
	l.EndMessage(NoOwner)
	return l.messages
}

// FlushSet deletes all elements of a set.
func FlushSet(t Table, set string) Message {
	return Message{Type: unix.NFT_MSG_DELSETELEM, Data: elementsOf(t, set).B}
}

func elementsOf(t Table, set string) *Encoder {
	e := t.encoder(unix.NFTA_SET_ELEM_LIST_TABLE)
	e.String(unix.NFTA_SET_ELEM_LIST_SET, set)
	return e
}

func appendElement(e *Encoder, x Element, withValue bool) {
	item := e.Open(unix.NFTA_LIST_ELEM)
	if x.Key != nil {
		appendValue(e, unix.NFTA_SET_ELEM_KEY, x.Key)
	} else {
		e.Uint32(unix.NFTA_SET_ELEM_FLAGS, elemCatchall)
	}
	if x.End != nil {
		appendValue(e, elemKeyEnd, x.End)
	}
	if withValue {
		if x.Verdict != nil {
			data := e.Open(unix.NFTA_SET_ELEM_DATA)
			v := e.Open(unix.NFTA_DATA_VERDICT)
			e.Uint32(unix.NFTA_VERDICT_CODE, uint32(x.Verdict.Code))
			if x.Verdict.Chain != "" {
				e.String(unix.NFTA_VERDICT_CHAIN, x.Verdict.Chain)
			}
			e.Close(v)
			e.Close(data)
		} else if x.Value != nil {
			appendValue(e, unix.NFTA_SET_ELEM_DATA, x.Value)
		}
		if x.Comment != "" {
			e.Bytes(unix.NFTA_SET_ELEM_USERDATA, userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, x.Comment))
		}
	}
	e.Close(item)
}

func appendValue(e *Encoder, typ uint16, data []byte) {
	at := e.Open(typ)
	e.Bytes(unix.NFTA_DATA_VALUE, data)
	e.Close(at)
}

// EachElement calls f with every element of a set. The bytes of an element are valid only until f returns.
func EachElement(ctx context.Context, c Conn, t Table, set string, f func(Element)) error {
	r := Request{Type: unix.NFT_MSG_GETSETELEM, List: true, Data: elementsOf(t, set).B}
	return c.Ask(ctx, r, func(data []byte) error {
		ParseElements(body(data), f)
		return nil
	})
}

// ReadElement calls f with the element of a key, if there is one. Its bytes are valid only until f returns.
func ReadElement(ctx context.Context, c Conn, t Table, set string, key []byte, f func(Element)) error {
	e := elementsOf(t, set)
	list := e.Open(unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	appendElement(e, Element{Key: key}, false)
	e.Close(list)
	return c.Ask(ctx, Request{Type: unix.NFT_MSG_GETSETELEM, Data: e.B}, func(data []byte) error {
		ParseElements(body(data), f)
		return nil
	})
}

// ParseElements calls f with the elements in the attributes of a message. Their bytes share the memory of the
// attributes.
func ParseElements(attributes []byte, f func(Element)) {
	Attributes(attributes, func(typ uint16, list []byte) {
		if typ == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			Attributes(list, func(_ uint16, item []byte) { f(ParseElement(item)) })
		}
	})
}

// ParseElement parses the attributes of an element. The element shares their memory.
func ParseElement(attributes []byte) Element {
	var x Element
	Attributes(attributes, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			Attributes(value, func(_ uint16, v []byte) { x.Key = v })
		case elemKeyEnd:
			Attributes(value, func(_ uint16, v []byte) { x.End = v })
		case unix.NFTA_SET_ELEM_DATA:
			Attributes(value, func(typ uint16, v []byte) {
				if typ == unix.NFTA_DATA_VALUE {
					x.Value = v
				} else {
					x.Verdict = parseVerdict(v)
				}
			})
		case unix.NFTA_SET_ELEM_USERDATA:
			x.Comment = parseComment(value)
		}
	})
	return x
}

// parseComment returns the comment in user data: a list of type, length and value. Any process may have written that
// data.
func parseComment(data []byte) string {
	for len(data) >= 2 && len(data) >= 2+int(data[1]) {
		if userdata.Type(data[0]) == userdata.NFTNL_UDATA_SET_ELEM_COMMENT {
			return cString(data[2 : 2+int(data[1])])
		}
		data = data[2+int(data[1]):]
	}
	return ""
}

// ImmediateVerdict returns the verdict in the data of an immediate expression, and one that leads on if it holds none.
func ImmediateVerdict(data []byte) Verdict {
	v := Verdict{Code: unix.NFT_CONTINUE}
	Attributes(data, func(typ uint16, value []byte) {
		if typ != unix.NFTA_IMMEDIATE_DATA {
			return
		}
		Attributes(value, func(typ uint16, value []byte) {
			if typ == unix.NFTA_DATA_VERDICT {
				v = *parseVerdict(value)
			}
		})
	})
	return v
}

func parseVerdict(attributes []byte) *Verdict {
	v := &Verdict{}
	Attributes(attributes, func(typ uint16, value []byte) {
		switch typ {
		case unix.NFTA_VERDICT_CODE:
			v.Code = int32(number(value))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = cString(value)
		}
	})
	return v
}
