package nftables

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"

	"weir/backends/dataplane"
	"weir/backends/nfnl"
)

// element is one element of a frontend's maps. The set determines which of the values it has.
type element struct {
	elementKey
	verdict  nfnl.Verdict
	endpoint netip.AddrPort
	identity uint32
	comment  string // names the Service on dispatching elements
}

// elementKey is the key that distinguishes the elements of a frontend.
type elementKey struct {
	set setID
	// slot is the slot of an endpoint, or an identity in the map from identities to endpoints.
	slot uint32
	// from and to bound a range of source addresses.
	from, to netip.Addr
}

// localSlots is the first slot of the endpoints that only policy Local uses. Slots below are for policy Cluster.
const localSlots = 1 << 16

var drop = nfnl.Verdict{Code: nfnl.Drop}

func gotoChain(name string) nfnl.Verdict { return nfnl.Verdict{Code: nfnl.Goto, Chain: name} }

func compareElements(a, b element) int {
	return cmp.Or(cmp.Compare(a.set, b.set), cmp.Compare(a.slot, b.slot), a.from.Compare(b.from), a.to.Compare(b.to))
}

// kernelElement returns the element as the kernel has it; front is the kernel's key of its frontend.
func (e element) kernelElement(front []byte) nfnl.Element {
	x := nfnl.Element{Comment: e.comment}
	x.Key = append(make([]byte, 0, len(front)+16), front...)
	switch sets[e.set].suffix {
	case slotSuffix:
		x.Key = binary.NativeEndian.AppendUint32(x.Key, e.slot)
	case rangeSuffix:
		x.End = appendAddr(append(make([]byte, 0, len(front)+16), front...), e.to)
		x.Key = appendAddr(x.Key, e.from)
	}
	switch sets[e.set].value {
	case verdictValue:
		v := e.verdict // so that the whole element is not moved to the heap
		x.Verdict = &v
	case addrPortValue:
		x.Value = appendAddr(make([]byte, 0, 20), e.endpoint.Addr())
		x.Value = append(binary.BigEndian.AppendUint16(x.Value, e.endpoint.Port()), 0, 0)
	case markValue:
		x.Value = native32(e.identity)
	}
	return x
}

// parseFrontKey parses the key of an element of a set whose keys begin with a frontend, without the end of a range. It
// returns false if the key does not fit the set.
func parseFrontKey(f dataplane.Family, id setID, key []byte) (frontKey, elementKey, bool) {
	e := elementKey{set: id}
	k, rest, ok := parseFront(f, sets[id].scope, key)
	if !ok || len(rest) != map[suffix]int{slotSuffix: 4, rangeSuffix: addrLen(f)}[sets[id].suffix] {
		return k, e, false
	}
	switch sets[id].suffix {
	case slotSuffix:
		e.slot = binary.NativeEndian.Uint32(rest)
	case rangeSuffix:
		e.from, _ = netip.AddrFromSlice(rest)
	}
	return k, e, true
}

// parseFrontElement parses an element of a set whose keys begin with a frontend. It returns false if the element does
// not fit the set, which the definition of the set rules out.
func parseFrontElement(f dataplane.Family, id setID, x nfnl.Element) (frontKey, element, bool) {
	k, key, ok := parseFrontKey(f, id, x.Key)
	if !ok || !sets[id].fits(f, x) {
		return k, element{}, false
	}
	e := element{elementKey: key, comment: x.Comment}
	if sets[id].suffix == rangeSuffix {
		e.to, _ = netip.AddrFromSlice(x.End[len(x.End)-addrLen(f):])
	}
	switch sets[id].value {
	case verdictValue:
		e.verdict = shortVerdict(*x.Verdict)
	case addrPortValue:
		n := addrLen(f)
		a, _ := netip.AddrFromSlice(x.Value[:n])
		e.endpoint = netip.AddrPortFrom(a, binary.BigEndian.Uint16(x.Value[n:]))
	case markValue:
		e.identity = binary.NativeEndian.Uint32(x.Value)
	}
	return k, e, true
}

// fits reports whether an element has the end and the value that the set's types require.
func (s set) fits(f dataplane.Family, x nfnl.Element) bool {
	if s.suffix == rangeSuffix && len(x.End) != len(x.Key) {
		return false
	}
	switch s.value {
	case verdictValue:
		return x.Verdict != nil
	case addrPortValue:
		return len(x.Value) == addrLen(f)+4
	case markValue:
		return len(x.Value) == 4
	}
	return true
}

// shortVerdict returns a verdict that fits a packed element. It changes only verdicts that weir did not make. Those
// only have to differ from weir's.
func shortVerdict(v nfnl.Verdict) nfnl.Verdict {
	v.Code = int32(int8(v.Code))
	if len(v.Chain) > maxChainName {
		v.Chain = hash(v.Chain)
	}
	return v
}

func (e element) String() string {
	s := e.keyText()
	v := e.valueText()
	if s != "" && v != "" {
		s += " → "
	}
	s += v
	if e.comment != "" {
		s += " (" + e.comment + ")"
	}
	return s
}

func (e element) keyText() string {
	switch s := sets[e.set]; {
	case s.suffix == rangeSuffix:
		return e.from.String() + "-" + e.to.String()
	case e.set == setsOf[s.scope].stickyEndpoints:
		return fmt.Sprintf("%08x", e.slot)
	case s.suffix == slotSuffix && e.local():
		return fmt.Sprintf("local %d", e.slot-localSlots)
	case s.suffix == slotSuffix:
		return fmt.Sprint(e.slot)
	}
	return ""
}

// local reports whether only policy Local uses the slot.
func (e element) local() bool { return e.slot >= localSlots }

func (e element) valueText() string {
	switch sets[e.set].value {
	case verdictValue:
		return verdictText(e.verdict)
	case addrPortValue:
		return e.endpoint.String()
	case markValue:
		return fmt.Sprintf("%08x", e.identity)
	}
	return ""
}

func verdictText(v nfnl.Verdict) string {
	switch v.Code {
	case nfnl.Goto:
		return "goto " + v.Chain
	case nfnl.Jump:
		return "jump " + v.Chain
	case nfnl.Drop:
		return "drop"
	case nfnl.Accept:
		return "accept"
	}
	return fmt.Sprintf("verdict %d %s", v.Code, v.Chain)
}
