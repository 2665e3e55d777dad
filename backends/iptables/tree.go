package iptables

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net/netip"
	"strconv"
	"sync"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// The levels of the tree of node ports. There are few levels, because iptables-nft slows down with the number of
// chains.
var portLevels = []int{8, 12}

// The levels of the tree of addresses, as masks of the last bits of a packet's address. The last bits are spread
// evenly, whether ClusterIPs were allocated at random or consecutively. So the chains stay about equal in length, and
// there are at most 256 of them.
var addrLevels = []byte{0x0f, 0xff}

// branch is a chain at the bottom of a tree, with the Items on the path from the root to it.
type branch struct {
	chain string
	items []backends.Item
}

type branchKey struct {
	table, root string
	proto       dataplane.Protocol // of a node port
	last        uint16             // the last byte of the address, or the block of the port
}

// trees makes the branches of one family, and keeps them, since most Services share theirs with others. It is safe for
// concurrent use.
type trees struct {
	family   dataplane.Family
	portRoot string
	mu       sync.RWMutex
	branches map[branchKey]*branch
}

func newTrees(f dataplane.Family, portRoot string) *trees {
	return &trees{family: f, portRoot: portRoot, branches: make(map[branchKey]*branch)}
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

// lastBits returns an address that is zero except for its last byte.
func (t *trees) lastBits(b byte) string {
	if t.family == dataplane.IPv6 {
		return netip.AddrFrom16([16]byte{15: b}).String()
	}
	return netip.AddrFrom4([4]byte{3: b}).String()
}

// port returns the branch for a node port.
func (t *trees) port(table string, proto dataplane.Protocol, port uint16) *branch {
	block := port >> (16 - portLevels[len(portLevels)-1])
	return t.get(branchKey{table: table, root: t.portRoot, proto: proto, last: block}, func() *branch {
		b := &branch{chain: t.portRoot}
		for _, bits := range portLevels {
			size := 1 << (16 - bits)
			lo := int(port) / size * size
			first, last := strconv.Itoa(lo), strconv.Itoa(lo+size-1)
			name := xtables.ProtocolName(proto)
			t.grow(b, table, t.portRoot+"-"+name+"-"+first+"-"+last,
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
	at := xtables.At(t.family, table)
	b.items = append(b.items, xtables.Item(at+chain), xtables.Item(at+b.chain+" "+match+" -j "+chain))
	b.chain = chain
}

// hash returns 16 letters and digits, a hash of the texts.
func hash(texts ...string) string {
	var buf [256]byte
	b := buf[:0]
	for _, t := range texts {
		b = append(append(b, t...), 0)
	}
	sum := sha256.Sum256(b)
	return base32.StdEncoding.EncodeToString(sum[:10])
}
