// Package nftables programs Services with nf_tables over netlink. All Services are elements of maps, and the rules are
// the same for any number of Services. So a change is a few elements in one transaction. No nft binary is needed.
//
// A new connection takes this path, in the table `weir` of its family:
//
//	prerouting, output (filter)  restricted ──▶ source-ranges: allowed-sources, else drop
//	prerouting, output (nat)     services ──▶ cluster-5, external-5, local-2-of-5, ...: mark for masquerade,
//	                             node-ports     choose a slot, endpoints[front . slot] ──▶ dnat
//	input, forward, output       no-endpoints, cluster-ips: reject or drop what found no endpoint
//	postrouting (nat)            masquerade what is marked and labelled, and what is its own client (hairpin)
//
// A frontend is an address with protocol and port, or a node port. A chain such as cluster-5 serves all frontends with
// five slots; an endpoint with more weight has more slots. All elements of a frontend are one Item, and one transaction
// changes them all.
//
// Rules write the map for session affinity: client and frontend to the identity of an endpoint. A second map leads from
// the identity to the address. If the endpoint was deleted, the second map has no such identity, and the client gets
// another endpoint.
//
// There are two limits; kube-proxy's nftables mode has the second too. A client's affinity is separate for each address
// of a Service. A verdict of weir cannot overrule a drop in a foreign table, so weir opens no port in a firewall.
//
// The key type is Backend. Package nfnl has the netlink side. Only cmd/weir and tests may import this package.
package nftables

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/nfnl"

	"golang.org/x/sys/unix"
)

// Backend is the nftables backend. It owns the tables `ip weir` and `ip6 weir`, or those of its other name if it
// redirects, and nothing else. They are in the network namespace in which the Backend was first used. Its methods may be
// called from any goroutine.
type Backend struct {
	cfg    dataplane.Config
	name   string   // of its tables
	labels bool     // whether connections are labelled
	shapes sync.Map // from shapeKey to *shapeChains

	mu    sync.Mutex // guards what follows
	conn  nfnl.Conn  // nil until the first use
	watch watcher
}

// New returns a Backend for the configuration. It opens nothing. The first use opens the connection, in the network
// namespace of its thread.
func New(cfg dataplane.Config, options ...Option) *Backend {
	b := newBackend(cfg, backendTable, nfnl.Netlink{})
	for _, o := range options {
		o(b)
	}
	return b
}

// Option changes what New returns.
type Option func(*Backend)

// ToListeners returns an Option for a Backend whose endpoints are sockets that userspace mode listens on. Its tables
// have a name of their own, so that it can be set up before nftables mode is removed, and the other way round. It drops
// answers of the endpoints that do not carry the masquerade mark. A user who listens on the port of a weir that was
// killed cannot set that mark.
func ToListeners() Option {
	return func(b *Backend) { b.name, b.watch.name = redirectTable, redirectTable }
}

// WithoutLabels returns an Option for a kernel without connection labels. What another program translated and marked is
// then masqueraded too.
func WithoutLabels() Option { return func(b *Backend) { b.labels = false } }

func newBackend(cfg dataplane.Config, name string, kernel nfnl.Kernel) *Backend {
	return &Backend{cfg: cfg, name: name, labels: true, watch: watcher{kernel: kernel, name: name, wake: make(chan struct{}, 1)}}
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Watcher = (*Backend)(nil)
)

// Optional implements backends.Backend.
func (b *Backend) Optional() backends.Optional {
	return backends.Optional{Watcher: b, Describer: b, Refuser: b}
}

// Close closes the sockets. The kernel keeps its objects. The Backend can be used again.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.watch.close()
	if b.conn != nil {
		err = errors.Join(err, b.conn.Close())
		b.conn = nil
	}
	return err
}

// open returns the connection.
func (b *Backend) open() (nfnl.Conn, error) {
	if b.conn == nil {
		c, err := b.watch.kernel.Dial()
		if err != nil {
			return nil, err
		}
		b.conn = c
	}
	return b.conn, nil
}

// Wake implements backends.Watcher. The channel receives from the first call of Observe or Moved on.
func (b *Backend) Wake() <-chan struct{} { return b.watch.wake }

// Moved implements backends.Watcher. It costs one small request if no process wrote at all. If another process wrote,
// it also reads the notifications.
func (b *Backend) Moved(ctx context.Context) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.open()
	if err == nil {
		err = b.watch.look(ctx, c)
	}
	if err != nil {
		return true, fmt.Errorf("nftables: %w", err)
	}
	return b.watch.moved, nil
}

// Probe returns the reason why this kernel or this process cannot run the backend, nil if they can. It changes nothing.
func Probe(ctx context.Context) error {
	c, err := nfnl.Netlink{}.Dial()
	if err != nil {
		return fmt.Errorf("nftables: %w: load nf_tables with `modprobe nf_tables`, or use a kernel that has it", err)
	}
	defer func() { _ = c.Close() }()
	if _, err := nfnl.Generation(ctx, c); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("nftables: %w: run as root or with CAP_NET_ADMIN", err)
		}
		return fmt.Errorf("nftables: %w: load nf_tables with `modprobe nf_tables`, or use a kernel that has it", err)
	}
	return nil
}

// Base returns the tables, maps and chains that exist without any Service, and the addresses that serve node ports.
func (b *Backend) Base() []backends.Item {
	var items []backends.Item
	for _, f := range b.cfg.Families {
		items = append(items, tableItem{table: table{f, b.name}})
		for id := range sets {
			if sets[id].redirects && !b.redirects() || sets[id].rare {
				continue
			}
			items = append(items, setItem{fam: f, name: sets[id].name})
		}
		for _, c := range b.builder(f).base() {
			items = append(items, newChainItem(f, c))
		}
		for _, a := range b.cfg.NodePortAddresses {
			if dataplane.FamilyOf(a) == f {
				items = append(items, member(nodePortAddresses, a))
			}
		}
	}
	return items
}

func (b *Backend) builder(f dataplane.Family) builder {
	return builder{fam: f, cfg: &b.cfg, redirects: b.redirects(), labels: b.labels}
}

// redirects reports whether the endpoints are sockets of userspace mode.
func (b *Backend) redirects() bool { return b.name == redirectTable }

// wantedChain returns weir's chain of a name, nil if it has none.
func (b *Backend) wantedChain(f dataplane.Family, name string) *chain {
	if s, ok := parseShape(name); ok {
		c := b.builder(f).chain(s)
		return &c
	}
	for _, c := range append(b.builder(f).base(), b.builder(f).answering()...) {
		if c.name == name {
			return &c
		}
	}
	return nil
}

type shapeKey struct {
	fam   dataplane.Family
	shape shape
}

// shapeChains are the chains of a shape, made once.
type shapeChains struct {
	verdict nfnl.Verdict // that leads to it
	items   []backends.Item
}

func (b *Backend) shapeChains(f dataplane.Family, s shape) *shapeChains {
	key := shapeKey{f, s}
	if c, ok := b.shapes.Load(key); ok {
		return c.(*shapeChains)
	}
	c := &shapeChains{verdict: gotoChain(s.name())}
	for _, ch := range b.builder(f).chains(s) {
		c.items = append(c.items, newChainItem(f, ch))
	}
	stored, _ := b.shapes.LoadOrStore(key, c)
	return stored.(*shapeChains)
}
