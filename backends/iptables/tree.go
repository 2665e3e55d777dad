package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strconv"
	"sync"

	"weir/backends"
)

// The shared chains. Each root is the top of a tree of chains in which a packet meets only the rules of addresses
// with the same last bits, or of its own block of ports. The nat and the filter table have trees of the same names.
const (
	addrRoot    = "WEIR-IP"
	portRoot    = "WEIR-NP"
	hairpinRoot = "WEIR-HP"
	healthChain = "WEIR-HEALTH"
)

// The levels of the tree of node ports. iptables-nft grows slow with the number of chains, so that there are few levels.
var portLevels = []int{8, 12}

// The levels of the tree of addresses: the bits that a packet's address is told apart by, from the last. The last bits are
// spread evenly both where ClusterIPs were allocated at random and where they follow one another, so that the chains stay
// about equal and, however many Services there are, no more than 256.
var addrLevels = []byte{0x0f, 0xff}

// branch is a chain at the bottom of a tree, with the Items of the way from the root to it.
type branch struct {
	chain string
	items []backends.Item
}

type branchKey struct {
	table, root string
	proto       backends.Protocol // of a node port
	last        uint16            // the last byte of the address, or the block of the port
}

// trees makes the branches of one family. They are kept, since most Services share theirs with others. It is safe for
// concurrent use.
type trees struct {
	family   backends.Family
	mu       sync.RWMutex
	branches map[branchKey]*branch
}

func newTrees(f backends.Family) *trees {
	return &trees{family: f, branches: make(map[branchKey]*branch)}
}

// addr returns the branch for an address; match is the option that holds the address, "-d" or "-s".
func (t *trees) addr(table, root, match string, a netip.Addr) *branch {
	raw := a.As16()
	last := raw[15]
	return t.get(branchKey{table: table, root: root, last: uint16(last)}, func() *branch {
		b := &branch{chain: root}
		for i, mask := range addrLevels {
			name := fmt.Sprintf("%s-%0*X", root, i+1, last&mask)
			t.grow(b, table, name, match+" "+t.lastBits(last&mask)+"/"+t.lastBits(mask))
		}
		return b
	})
}

// lastBits returns an address of zeroes but for its last byte.
func (t *trees) lastBits(b byte) string {
	if t.family == backends.IPv6 {
		return netip.AddrFrom16([16]byte{15: b}).String()
	}
	return netip.AddrFrom4([4]byte{3: b}).String()
}

// port returns the branch for a node port.
func (t *trees) port(table string, proto backends.Protocol, port uint16) *branch {
	block := port >> (16 - portLevels[len(portLevels)-1])
	return t.get(branchKey{table: table, root: portRoot, proto: proto, last: block}, func() *branch {
		b := &branch{chain: portRoot}
		for _, bits := range portLevels {
			size := 1 << (16 - bits)
			lo := int(port) / size * size
			first, last := strconv.Itoa(lo), strconv.Itoa(lo+size-1)
			name := protoName(proto)
			t.grow(b, table, portRoot+"-"+name+"-"+first+"-"+last,
				"-p "+name+" -m "+name+" --dport "+first+":"+last)
		}
		return b
	})
}

func (t *trees) get(k branchKey, make func() *branch) *branch {
	t.mu.RLock()
	b := t.branches[k]
	t.mu.RUnlock()
	if b == nil {
		b = make()
		t.mu.Lock()
		t.branches[k] = b
		t.mu.Unlock()
	}
	return b
}

// grow adds one level to a branch: the chain and the jump to it.
func (t *trees) grow(b *branch, table, chain, match string) {
	at := tag(t.family) + " " + table + " "
	b.items = append(b.items, item(at+chain), item(at+b.chain+" "+match+" -j "+chain))
	b.chain = chain
}

// hash returns 16 letters and digits that stand for the texts.
func hash(texts ...string) string {
	var buf [256]byte
	b := buf[:0]
	for _, t := range texts {
		b = append(append(b, t...), 0)
	}
	sum := sha256.Sum256(b)
	return base32.StdEncoding.EncodeToString(sum[:10])
}

func protoName(p backends.Protocol) string {
	switch p {
	case backends.TCP:
		return "tcp"
	case backends.UDP:
		return "udp"
	}
	return "sctp"
}

// appendAddr writes an address as iptables-save does: as inet_ntop, which differs from netip for addresses that embed an
// IPv4 address without a prefix of ffff.
func appendAddr(b []byte, a netip.Addr) []byte {
	if a.Is6() {
		raw := a.As16()
		if [12]byte(raw[:12]) == [12]byte{} && (raw[12] != 0 || raw[13] != 0) {
			return netip.AddrFrom4([4]byte(raw[12:])).AppendTo(append(b, "::"...))
		}
	}
	return a.AppendTo(b)
}

func prefixText(p netip.Prefix) string {
	b := appendAddr(make([]byte, 0, 48), p.Addr())
	return string(strconv.AppendInt(append(b, '/'), int64(p.Bits()), 10))
}
