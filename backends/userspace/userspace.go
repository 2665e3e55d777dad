// Package userspace is the proxy mode that needs least of the kernel: weir itself accepts the connections to a Service and
// carries their bytes to an endpoint. It is slower than the kernel's own ways and hides the client's address from the
// endpoint, but it tries the next endpoint when one does not answer, and it runs where there is no netfilter and no
// privilege.
//
// There are two forms. In the redirecting form every Service port has a listener on a port of its own, and another
// backend, which programs the kernel, sends the traffic of the Service there. In the rootless form the listeners are on
// the Services' own addresses, as far as the node has them, and the kernel is not programmed at all.
package userspace

import (
	"context"
	"fmt"
	"hash/fnv"
	"iter"
	"net/netip"
	"sync"

	"weir/backends"
)

// Ports are the local ports that Service ports are proxied on in the redirecting form. A Service port always asks for the
// same one first, so that the redirection of a process that was killed fits its successor. Ports are safe for concurrent
// use.
type Ports struct {
	min, max uint16
	mu       sync.Mutex
	byKey    map[portUse]uint16
	taken    map[uint16]portUse
}

type portUse struct {
	key   backends.PortKey
	local bool
}

// NewPorts takes ports from min to max, both inclusive (portRange in the configuration).
func NewPorts(min, max uint16) *Ports {
	return &Ports{min: min, max: max, byKey: map[portUse]uint16{}, taken: map[uint16]portUse{}}
}

// port returns the port of a Service port, the same one every time.
func (p *Ports) port(use portUse) (uint16, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if port, ok := p.byKey[use]; ok {
		return port, nil
	}
	size := uint32(p.max) - uint32(p.min) + 1
	h := fnv.New32a()
	fmt.Fprint(h, use.key, use.local)
	for i := range size {
		port := uint16(uint32(p.min) + (h.Sum32()+i)%size)
		if _, taken := p.taken[port]; !taken {
			p.byKey[use], p.taken[port] = port, use
			return port, nil
		}
	}
	return 0, fmt.Errorf("all %d ports of portRange %d-%d are in use; widen it", size, p.min, p.max)
}

// avoid makes a Service port ask for another port: this one turned out to be somebody else's.
func (p *Ports) avoid(port uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if use, ok := p.taken[port]; ok {
		delete(p.byKey, use)
		p.taken[port] = portUse{}
	}
}

// Options are what a Backend is built from besides the node-wide Config.
type Options struct {
	// Listeners are this process's; a Backend's successor is given the same.
	Listeners *Listeners
	// Redirect sends the traffic of Services to the listeners; nil means the rootless form.
	Redirect backends.Backend
	// Ports is used by the redirecting form only.
	Ports *Ports
	// BindAddress, if valid, is where the rootless form listens for every Service, at the Service's port and node port.
	BindAddress netip.Addr
	// Warn is told, in the rootless form, of each address of a Service that cannot be served, and why. It may be nil.
	Warn func(key backends.PortKey, problem string)
}

// Backend is the userspace proxy as a backends.Backend: its listeners are Items, and so is what redirects to them.
type Backend struct {
	cfg backends.Config
	Options
}

// New returns a Backend. Nothing is opened before Apply.
func New(cfg backends.Config, o Options) *Backend {
	if o.Warn == nil {
		o.Warn = func(backends.PortKey, string) {}
	}
	return &Backend{cfg: cfg, Options: o}
}

// Base returns the scaffolding of the redirection.
func (b *Backend) Base() []backends.Item {
	if b.Redirect == nil {
		return nil
	}
	return b.Redirect.Base()
}

// Render returns the listeners of an Entry and what redirects its traffic to them.
func (b *Backend) Render(e *backends.Entry) ([]backends.Item, error) {
	if e.Key.Protocol == backends.SCTP {
		return nil, fmt.Errorf("SCTP cannot be proxied in userspace mode; use mode iptables, ipvs or nftables for this Service")
	}
	if b.Redirect == nil {
		return b.renderRootless(e), nil
	}
	return b.renderRedirected(e)
}

func (b *Backend) renderRedirected(e *backends.Entry) ([]backends.Item, error) {
	target, err := b.target(e.Key.Family)
	if err != nil {
		return nil, err
	}
	redirected := *e
	redirected.Affinity, redirected.Endpoints = 0, nil
	var items []backends.Item
	for _, local := range []bool{false, true} {
		endpoints := e.ClusterEndpoints()
		if local {
			endpoints = e.LocalEndpoints()
		}
		if len(endpoints) == 0 || local && !e.InternalLocal && !e.ExternalLocal {
			continue
		}
		port, err := b.Ports.port(portUse{e.Key, local})
		if err != nil {
			return nil, err
		}
		bind := netip.AddrPortFrom(target, port)
		items = append(items, b.listen(e, bind, endpoints))
		redirected.Endpoints = append(redirected.Endpoints, backends.Endpoint{Addr: bind, Cluster: !local, Local: local, Remote: true, Weight: 1})
	}
	below, err := b.Redirect.Render(&redirected)
	return append(items, below...), err
}

func (b *Backend) listen(e *backends.Entry, bind netip.AddrPort, endpoints []backends.Endpoint) *listen {
	return &listen{protocol: e.Key.Protocol, bind: bind, key: e.Key, endpoints: endpoints, affinity: e.Affinity, proxyProtocol: e.ProxyProtocol}
}

// target is the address that traffic is redirected to: not a loopback address, which packets from outside may not have.
func (b *Backend) target(f backends.Family) (netip.Addr, error) {
	for _, a := range b.cfg.NodeAddresses {
		if backends.FamilyOf(a) == f && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("the node has no %s address to redirect to", f)
}

// renderRootless returns a listener for every address of the Entry that this process can have.
func (b *Backend) renderRootless(e *backends.Entry) []backends.Item {
	var items []backends.Item
	seen := map[netip.AddrPort]bool{}
	add := func(addr netip.Addr, port uint16, endpoints []backends.Endpoint, sources []netip.Prefix) {
		bind := netip.AddrPortFrom(addr, port)
		if seen[bind] {
			return
		}
		seen[bind] = true
		l := b.listen(e, bind, endpoints)
		l.sources = sources
		items = append(items, l)
	}
	serve := func(what string, addr netip.Addr, endpoints []backends.Endpoint, sources []netip.Prefix) {
		if !b.local(addr) {
			b.Warn(e.Key, fmt.Sprintf("%s %s is not an address of this node, and without kernel rules only those can be served; add it to an interface, or use --bind-address", what, addr))
			return
		}
		add(addr, e.Port, endpoints, sources)
	}
	if b.BindAddress.IsValid() {
		if backends.FamilyOf(b.BindAddress) != e.Key.Family {
			b.Warn(e.Key, fmt.Sprintf("the bind address %s is not of family %s", b.BindAddress, e.Key.Family))
			return nil
		}
		add(b.BindAddress, e.Port, e.InternalEndpoints(), nil)
	} else {
		serve("ClusterIP", e.ClusterIP, e.InternalEndpoints(), nil)
		for _, a := range e.ExternalIPs {
			serve("external IP", a, e.ExternalEndpoints(), nil)
		}
		for _, a := range e.LoadBalancerIPs {
			serve("load balancer IP", a, e.ExternalEndpoints(), e.SourceRanges)
		}
	}
	if e.NodePort != 0 {
		for _, a := range b.nodePortAddresses(e.Key.Family) {
			add(a, e.NodePort, e.ExternalEndpoints(), nil)
		}
	}
	return items
}

func (b *Backend) local(addr netip.Addr) bool {
	if addr.Is4() && addr.IsLoopback() {
		return true
	}
	for _, a := range b.cfg.NodeAddresses {
		if a == addr {
			return true
		}
	}
	return false
}

func (b *Backend) nodePortAddresses(f backends.Family) []netip.Addr {
	if b.BindAddress.IsValid() {
		return []netip.Addr{b.BindAddress}
	}
	candidates := b.cfg.NodePortAddresses
	if candidates == nil {
		candidates = b.cfg.NodeAddresses
		if b.cfg.LocalhostNodePorts && f == backends.IPv4 {
			candidates = append([]netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}, candidates...)
		}
	}
	var addrs []netip.Addr
	for _, a := range candidates {
		if backends.FamilyOf(a) == f {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// Observe lists the listeners of this process and the redirection that the kernel holds.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		for _, l := range b.Listeners.items() {
			if !yield(l, nil) {
				return
			}
		}
		if b.Redirect == nil {
			return
		}
		for item, err := range b.Redirect.Observe(ctx) {
			if !yield(item, err) {
				return
			}
		}
	}
}

// Apply opens and changes listeners, then redirects, then closes the listeners that nothing leads to any more.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	refused := map[backends.ID]error{}
	var gone []*listen
	below := backends.Plan{Backend: p.Backend, Reason: p.Reason}
	for _, c := range p.Changes {
		l, isListener := c.New.(*listen)
		old, wasListener := c.Old.(*listen)
		switch {
		case isListener:
			if err := b.Listeners.set(l); err != nil {
				b.avoid(l)
				refused[c.ID] = err
			}
		case wasListener:
			gone = append(gone, old)
		default:
			below.Changes = append(below.Changes, c)
		}
	}
	if len(refused) > 0 {
		return backends.Result{Refused: refused, Err: fmt.Errorf("%d listeners could not be opened", len(refused))}
	}
	if b.Redirect != nil && !below.Empty() {
		if result := b.Redirect.Apply(ctx, below); result.Err != nil || len(result.Refused) > 0 {
			return result
		}
	}
	for _, l := range gone {
		b.Listeners.remove(l)
	}
	return backends.Result{}
}

func (b *Backend) avoid(l *listen) {
	if b.Redirect != nil {
		b.Ports.avoid(l.bind.Port())
	}
}
