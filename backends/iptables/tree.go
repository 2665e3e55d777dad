package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"weir/backends"
)

// The shared chains. Each root is the top of a tree of chains in which a packet meets only the rules of its own address
// prefix or block of ports. The nat and the filter table have trees of the same names.
const (
	addrRoot    = "WEIR-IP"
	portRoot    = "WEIR-NP"
	hairpinRoot = "WEIR-HP"
	healthChain = "WEIR-HEALTH"
)

// The levels of the trees. Every level costs a packet at most as many rules as it has branches, and iptables-nft grows
// slow with the number of chains. A service CIDR of 10.96.0.0/12 from which 10,000 ClusterIPs were allocated at random
// gives chains of ten rules at /22, where /24 would give one or two to each of nearly 4,000 chains.
var (
	addrLevels4 = []int{16, 19, 22}
	addrLevels6 = []int{64, 112, 116, 120}
	portLevels  = []int{8, 12}
)

// branch is a chain at the bottom of a tree, with the Items of the way from the root to it.
type branch struct {
	chain string
	items []backends.Item
}

type branchKey struct {
	table, root string
	prefix      netip.Prefix
	proto       backends.Protocol
	block       uint16
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

// addr returns the branch for an address; match is the option that holds the prefix, "-d" or "-s".
func (t *trees) addr(table, root, match string, a netip.Addr) *branch {
	levels := addrLevels4
	if t.family == backends.IPv6 {
		levels = addrLevels6
	}
	leaf, _ := a.Prefix(levels[len(levels)-1])
	return t.get(branchKey{table: table, root: root, prefix: leaf}, func() *branch {
		b := &branch{chain: root}
		for _, bits := range levels {
			p, _ := a.Prefix(bits)
			t.grow(b, table, root+"-"+prefixName(p, 27-len(root)), match+" "+prefixText(p))
		}
		return b
	})
}

// port returns the branch for a node port.
func (t *trees) port(table string, proto backends.Protocol, port uint16) *branch {
	block := port >> (16 - portLevels[len(portLevels)-1])
	return t.get(branchKey{table: table, root: portRoot, proto: proto, block: block}, func() *branch {
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

// prefixName names a prefix in at most limit characters, in a form that nft also reads as an identifier.
func prefixName(p netip.Prefix, limit int) string {
	if name := strings.ReplaceAll(p.String(), ":", "."); len(name) <= limit {
		return name
	}
	return hash(p.String())[:limit-4] + "/" + strconv.Itoa(p.Bits())
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
