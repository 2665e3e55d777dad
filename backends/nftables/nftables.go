// Package nftables programs Services with nf_tables over netlink. All Services live in maps and the rules are the same
// for any number of them, so that a change is a few set elements in one transaction. No nft binary is needed.
//
// The way of a new connection, in the table `weir` of its family:
//
//	prerouting, output (filter)  restricted ──▶ source-ranges: allowed-sources, else drop
//	prerouting, output (nat)     services ──▶ cluster-5, external-5, local-2-of-5, ...: mark for masquerade,
//	                             node-ports     choose a slot, endpoints[front . slot] ──▶ dnat
//	input, forward, output       no-endpoints, cluster-ips: reject or drop what found no endpoint
//	postrouting (nat)            masquerade what is marked, and what is its own client (hairpin)
//
// A front is an address with protocol and port, or a node port. A chain such as cluster-5 serves all fronts with five
// slots; an endpoint of more weight has more slots. Everything the maps hold for a front is one Item, and one transaction
// changes all of it.
//
// Session affinity is a map that the rules themselves write: client and front to the identity of an endpoint, which a
// second map leads to its address, so that an identity whose endpoint has gone leads nowhere and the client gets another.
//
// Limits, all but the second as in kube-proxy's nftables mode: no node ports on the loopback address of IPv6; a client's affinity is
// kept for each address of a Service by itself; a verdict of weir's cannot overrule a drop in somebody else's table, so that
// no port is opened in a firewall.
package nftables

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"weir/backends"

	"golang.org/x/sys/unix"
)

// Backend is the nftables backend. It owns the tables `ip weir` and `ip6 weir` of the network namespace that it was first
// used in, or those of its other name if it is a layer, and nothing else. Its methods may be called from any goroutine.
type Backend struct {
	cfg    backends.Config
	name   string   // of its tables
	shapes sync.Map // of shapeKey to *shapeChains

	// wake receives when somebody else may have written.
	wake chan struct{}

	mu    sync.Mutex // guards what follows
	conn  *conn
	watch watcher
	// batchLimit bounds a transaction besides the socket; 0 for no bound. Tests set it.
	batchLimit int
}

var (
	_ backends.Backend    = (*Backend)(nil)
	_ backends.Generation = (*Backend)(nil)
	_ backends.Notifier   = (*Backend)(nil)
)

// New returns a Backend for the configuration. It opens nothing: the kernel is reached at the first use, in the network
// namespace of the thread that makes it.
func New(cfg backends.Config) *Backend { return newBackend(cfg, backendTable) }

// NewLayer returns a Backend whose tables are named weir-userspace. Another proxy mode can use it below itself without
// sharing anything with nftables mode, so that one of the two can be set up before the other is taken down.
func NewLayer(cfg backends.Config) *Backend { return newBackend(cfg, layerTable) }

func newBackend(cfg backends.Config, name string) *Backend {
	return &Backend{cfg: cfg, name: name, wake: make(chan struct{}, 1)}
}

// Close gives back the sockets. What the kernel holds stays. The Backend can be used again.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.watch.close()
	if b.conn != nil {
		err = errors.Join(err, b.conn.close())
		b.conn = nil
	}
	return err
}

// open returns the socket.
func (b *Backend) open() (*conn, error) {
	if b.conn == nil {
		c, err := dial()
		if err != nil {
			return nil, err
		}
		b.conn = c
	}
	return b.conn, nil
}

// Probe says whether this kernel and this process can run the backend, and if not, why. It changes nothing.
func Probe(ctx context.Context) error {
	c, err := dial()
	if err != nil {
		return fmt.Errorf("nftables: %w: is nf_tables in this kernel?", err)
	}
	defer func() { _ = c.close() }()
	if _, err := c.generation(ctx); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("nftables: %w: run as root or with CAP_NET_ADMIN", err)
		}
		return fmt.Errorf("nftables: %w: is nf_tables in this kernel (modprobe nf_tables)?", err)
	}
	return nil
}

// Base returns the tables, maps and chains that are there without any Service, and the addresses that serve node ports.
func (b *Backend) Base() []backends.Item {
	var items []backends.Item
	for _, f := range b.cfg.Families {
		items = append(items, tableItem{table: table{f, b.name}})
		for id := range sets {
			items = append(items, setItem{fam: f, name: sets[id].name})
		}
		for _, c := range b.builder(f).base() {
			items = append(items, newChainItem(f, c))
		}
		for _, a := range b.cfg.NodePortAddresses {
			if backends.FamilyOf(a) == f {
				items = append(items, newMember(nodePortAddresses, a))
			}
		}
	}
	return items
}

func (b *Backend) builder(f backends.Family) builder { return builder{fam: f, cfg: &b.cfg} }

// wantedChain returns the chain that weir has under a name, nil if it has none.
func (b *Backend) wantedChain(f backends.Family, name string) *chain {
	if s, ok := parseShape(name); ok {
		c := b.builder(f).chain(s)
		return &c
	}
	for _, c := range b.builder(f).base() {
		if c.name == name {
			return &c
		}
	}
	return nil
}

type shapeKey struct {
	fam   backends.Family
	shape shape
}

// shapeChains is what a shape needs, made once.
type shapeChains struct {
	value string // of the map element that leads to it
	items []backends.Item
}

func (b *Backend) shapeChains(f backends.Family, s shape) *shapeChains {
	key := shapeKey{f, s}
	if c, ok := b.shapes.Load(key); ok {
		return c.(*shapeChains)
	}
	c := &shapeChains{value: gotoChain(s.name())}
	for _, ch := range b.builder(f).chains(s) {
		c.items = append(c.items, newChainItem(f, ch))
	}
	stored, _ := b.shapes.LoadOrStore(key, c)
	return stored.(*shapeChains)
}
