package nftables

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"weir/backends"
)

// setID numbers the maps and sets of a table. The order is the one in which a front's elements are kept and printed.
type setID uint8

// Maps whose keys begin with an address front (address, protocol, port) come first, then the same for node ports, then
// the sets that do not belong to a front.
const (
	services setID = iota
	noEndpoints
	endpoints
	stickySlots
	stickyEndpoints
	restricted
	allowedSources

	nodePorts
	nodePortNoEndpoints
	nodePortEndpoints
	nodePortStickySlots
	nodePortStickyEndpoints

	clusterIPs
	hairpin
	nodePortAddresses
	stickyClients
	nodePortStickyClients
	numSets
)

// suffix is what a key holds besides the front.
type suffix uint8

const (
	noSuffix suffix = iota
	slotSuffix
	rangeSuffix // a range of source addresses
)

// value is what an element maps to.
type value uint8

const (
	noValue value = iota
	verdictValue
	addrPortValue
	markValue
)

// scope says what a front is: an address with a port, or a node port.
type scope uint8

const (
	addrScope scope = iota
	nodePortScope
)

// localSlots is where the slots of the endpoints begin that only policy Local uses; those below are for policy Cluster.
const localSlots = 1 << 16

// verdict codes, as the kernel has them.
const (
	verdictGoto = -4
	verdictDrop = 0
)

// element is one element of a front's maps in the compact form that a front Item is made of: the suffix of its key, most
// significant byte first so that bytes sort like numbers, and its value.
type element struct {
	set    setID
	suffix string
	value  string
	// comment names the Service on dispatching elements.
	comment string
}

// frontKey is family, scope, address (none for a node port), protocol and port, in network order.
type frontKey string

func addrFront(a netip.Addr, p backends.Protocol, port uint16) frontKey {
	b := make([]byte, 0, 21)
	b = append(b, byte(backends.FamilyOf(a)), byte(addrScope))
	b = append(b, a.AsSlice()...)
	return frontKey(binary.BigEndian.AppendUint16(append(b, byte(p)), port))
}

func nodePortFront(f backends.Family, p backends.Protocol, port uint16) frontKey {
	return frontKey([]byte{byte(f), byte(nodePortScope), byte(p), byte(port >> 8), byte(port)})
}

func (k frontKey) family() backends.Family { return backends.Family(k[0]) }
func (k frontKey) scope() scope            { return scope(k[1]) }
func (k frontKey) protocol() backends.Protocol {
	return backends.Protocol(k[len(k)-3])
}
func (k frontKey) port() uint16 { return binary.BigEndian.Uint16([]byte(k[len(k)-2:])) }
func (k frontKey) addr() netip.Addr {
	a, _ := netip.AddrFromSlice([]byte(k[2 : len(k)-3]))
	return a
}

// keyLen returns how long the key of a front of this family and scope is.
func keyLen(f backends.Family, s scope) int {
	if s == nodePortScope {
		return 5
	}
	return 5 + addrLen(f)
}

func addrLen(f backends.Family) int {
	if f == backends.IPv6 {
		return 16
	}
	return 4
}

// kernel returns the front as the kernel's keys begin: every field padded to four bytes.
func (k frontKey) kernel() []byte {
	b := make([]byte, 0, 40)
	b = append(b, k[2:len(k)-3]...)
	return append(b, k[len(k)-3], 0, 0, 0, k[len(k)-2], k[len(k)-1], 0, 0)
}

// parseFront reads the front from the beginning of a kernel key and returns the rest of it.
func parseFront(f backends.Family, s scope, key []byte) (frontKey, []byte, bool) {
	n := 0
	if s == addrScope {
		n = addrLen(f)
	}
	if len(key) < n+8 {
		return "", nil, false
	}
	b := make([]byte, 0, 21)
	b = append(b, byte(f), byte(s))
	b = append(b, key[:n]...)
	b = append(b, key[n], key[n+4], key[n+5])
	return frontKey(b), key[n+8:], true
}

// String returns "10.96.0.1 tcp 80", or "node port tcp 30080".
func (k frontKey) String() string {
	p := strings.ToLower(k.protocol().String())
	if k.scope() == nodePortScope {
		return fmt.Sprintf("node port %s %d", p, k.port())
	}
	return fmt.Sprintf("%s %s %d", k.addr(), p, k.port())
}

func slotKey(n uint32) string { return string(binary.BigEndian.AppendUint32(nil, n)) }

func addrPortOf(a netip.AddrPort) string {
	return string(binary.BigEndian.AppendUint16(a.Addr().AsSlice(), a.Port()))
}

func gotoChain(name string) string { return "\xfc" + name }

const drop = "\x00"

func compareElements(a, b element) int {
	if a.set != b.set {
		return int(a.set) - int(b.set)
	}
	return strings.Compare(a.suffix, b.suffix)
}

// frontItem is everything that the maps hold for one front, as one string: the front's key, then its elements in order.
// An element is its set, its suffix and value each with a length byte, and its comment likewise.
type frontItem string

func newFrontItem(k frontKey, elements []element) frontItem {
	slices.SortFunc(elements, compareElements)
	n := len(k)
	for _, e := range elements {
		n += 4 + len(e.suffix) + len(e.value) + len(e.comment)
	}
	b := make([]byte, 0, n)
	b = append(b, k...)
	for _, e := range elements {
		b = append(b, byte(e.set))
		for _, s := range []string{e.suffix, e.value, e.comment} {
			b = append(b, byte(len(s)))
			b = append(b, s...)
		}
	}
	return frontItem(b)
}

func (i frontItem) key() frontKey {
	return frontKey(i[:keyLen(backends.Family(i[0]), scope(i[1]))])
}

// elements calls f with every element, in order.
func (i frontItem) elements(f func(element)) {
	rest := string(i[len(i.key()):])
	field := func() string {
		n := int(rest[0])
		s := rest[1 : 1+n]
		rest = rest[1+n:]
		return s
	}
	for rest != "" {
		e := element{set: setID(rest[0])}
		rest = rest[1:]
		e.suffix, e.value, e.comment = field(), field(), field()
		f(e)
	}
}

// ID implements backends.Item.
func (i frontItem) ID() backends.ID {
	k := i.key()
	return backends.ID(familyName(k.family()) + " front " + k.String())
}

// String implements backends.Item.
func (i frontItem) String() string {
	var b strings.Builder
	b.WriteString(string(i.ID()))
	fam := i.key().family()
	last := numSets
	i.elements(func(e element) {
		if e.set != last {
			b.WriteString("\n  " + sets[e.set].name + ": ")
			last = e.set
		} else {
			b.WriteString(", ")
		}
		b.WriteString(e.text(fam))
	})
	return b.String()
}

func (e element) text(fam backends.Family) string {
	s := e.suffixText(fam)
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

func (e element) suffixText(fam backends.Family) string {
	switch sets[e.set].suffix {
	case slotSuffix:
		n := binary.BigEndian.Uint32([]byte(e.suffix))
		switch {
		case sets[e.set].value == addrPortValue && (e.set == stickyEndpoints || e.set == nodePortStickyEndpoints):
			return fmt.Sprintf("%08x", n)
		case n >= localSlots:
			return fmt.Sprintf("local %d", n-localSlots)
		}
		return fmt.Sprint(n)
	case rangeSuffix:
		n := addrLen(fam)
		from, _ := netip.AddrFromSlice([]byte(e.suffix[:n]))
		to, _ := netip.AddrFromSlice([]byte(e.suffix[n:]))
		return from.String() + "-" + to.String()
	}
	return ""
}

func (e element) valueText() string {
	switch sets[e.set].value {
	case verdictValue:
		return verdictText(e.value)
	case addrPortValue:
		n := len(e.value) - 2
		a, _ := netip.AddrFromSlice([]byte(e.value[:n]))
		return netip.AddrPortFrom(a, binary.BigEndian.Uint16([]byte(e.value[n:]))).String()
	case markValue:
		return fmt.Sprintf("%08x", binary.BigEndian.Uint32([]byte(e.value)))
	}
	return ""
}

func verdictText(v string) string {
	switch code := int8(v[0]); code {
	case verdictGoto:
		return "goto " + v[1:]
	case -3:
		return "jump " + v[1:]
	case verdictDrop:
		return "drop"
	case 1:
		return "accept"
	default:
		return fmt.Sprintf("verdict %d %s", code, v[1:])
	}
}

// memberItem is an element of a set that belongs to no front: family, set, and the address.
type memberItem string

func newMember(set setID, a netip.Addr) memberItem {
	return memberItem(append([]byte{byte(backends.FamilyOf(a)), byte(set)}, a.AsSlice()...))
}

// parseMember reads a member from the kernel's key.
func parseMember(f backends.Family, id setID, key []byte) (memberItem, bool) {
	n := addrLen(f)
	want := n
	if id == hairpin {
		want = 2 * n
	}
	if len(key) != want {
		return "", false
	}
	if id == hairpin && bytes.Equal(key[:n], key[n:]) {
		key = key[:n]
	}
	return memberItem(append([]byte{byte(f), byte(id)}, key...)), true
}

func (i memberItem) family() backends.Family { return backends.Family(i[0]) }
func (i memberItem) set() setID              { return setID(i[1]) }

// kernelKey returns the key as the kernel has it: the address, and for a hairpin the address twice, unless somebody else
// put two different ones there.
func (i memberItem) kernelKey() []byte {
	key := []byte(i[2:])
	if i.set() == hairpin && len(key) == addrLen(i.family()) {
		key = append(key, i[2:]...)
	}
	return key
}

// ID implements backends.Item.
func (i memberItem) ID() backends.ID { return backends.ID(i.String()) }

// String implements backends.Item.
func (i memberItem) String() string {
	s := familyName(i.family()) + " " + sets[i.set()].name
	addrs := i[2:]
	n := addrLen(i.family())
	for len(addrs) >= n {
		a, _ := netip.AddrFromSlice([]byte(addrs[:n]))
		s += " " + a.String()
		addrs = addrs[n:]
	}
	return s
}

// catchallItem is the element that stands for every key which a set does not have. weir has none; somebody else may have
// put one there.
type catchallItem struct {
	fam backends.Family
	set setID
}

// ID implements backends.Item.
func (i catchallItem) ID() backends.ID { return backends.ID(i.String()) }

// String implements backends.Item.
func (i catchallItem) String() string {
	return familyName(i.fam) + " " + sets[i.set].name + " all other keys, not weir's"
}

func familyName(f backends.Family) string {
	if f == backends.IPv6 {
		return "ip6"
	}
	return "ip"
}
