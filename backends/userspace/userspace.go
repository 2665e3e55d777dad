// Package userspace is the proxy mode that needs least of the kernel: weir itself accepts the connections to a Service and
// carries their bytes to an endpoint. It is slower than the kernel's own ways and hides the client's address from the
// endpoint, but it tries the next endpoint when one does not answer, and it runs where there is no netfilter and no
// privilege.
//
// There are two forms. In the redirecting form every Service port has a listener on a port of its own, and another
// backend, which programs the kernel, sends the traffic of the Service there. In the rootless form the listeners are on
// the Services' own addresses, as far as the node has them, and the kernel is not programmed at all.
//
// An endpoint sees the proxy's address as the client's. A Service can have the client's own sent ahead in a PROXY protocol
// header. To dial from the client's address instead (IP_TRANSPARENT) is not offered: the endpoint's answers would have to
// be steered back to the proxy by a policy route and a mark for every interface that endpoints are behind, answers of
// endpoints on other nodes never pass through this one, and a client on the same node or in the same pod could not be told
// from its own connection.
//
// What differs from the modes that leave forwarding to the kernel: a client is connected before an endpoint is, so that a
// connection which no endpoint takes is accepted first and then reset; SCTP is not served; and when the process ends,
// nobody is served until its successor runs.
package userspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends"
)

// Options are what a Backend is built from besides the node-wide Config.
type Options struct {
	// Listeners are this process's; a Backend's successor is given the same. nil means that the Backend only plans: it
	// observes the listeners of the weir that runs in this network namespace, and cannot apply.
	Listeners *Listeners
	// Redirect sends the traffic of Services to the listeners; nil means the rootless form. Nobody else uses what it owns.
	Redirect backends.Backend
	// Ports is used by the redirecting form only.
	Ports *Ports
	// BindAddress, if valid, is where the rootless form listens for every Service, at the Service's port and node port. An
	// unspecified address stands for all that the node has.
	BindAddress netip.Addr
	// UDPIdle is how long a UDP flow outlives its last datagram; the default is 250 ms, as in kube-proxy.
	UDPIdle time.Duration
	// Warn is told, in the rootless form, of each address of a Service that cannot be served, and why. It may be nil.
	Warn func(key backends.PortKey, problem string)
}

const defaultUDPIdle = 250 * time.Millisecond

// Backend is the userspace proxy as a backends.Backend: its listeners are Items, and so is what redirects to them.
type Backend struct {
	cfg backends.Config
	Options
}

var (
	_ backends.Backend    = (*Backend)(nil)
	_ backends.Generation = (*Backend)(nil)
)

// New returns a Backend. Nothing is opened before Apply.
func New(cfg backends.Config, o Options) *Backend {
	if o.Warn == nil {
		o.Warn = func(backends.PortKey, string) {}
	}
	if o.UDPIdle == 0 {
		o.UDPIdle = defaultUDPIdle
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
	if err := e.Check(); err != nil {
		return nil, err
	}
	if b.Redirect == nil {
		return b.renderRootless(e), nil
	}
	return b.renderRedirected(e)
}

func (b *Backend) renderRedirected(e *backends.Entry) ([]backends.Item, error) {
	redirected, listeners, err := b.redirect(e)
	if err != nil {
		return nil, err
	}
	below, err := b.Redirect.Render(redirected)
	if err != nil {
		return nil, err
	}
	items := make([]backends.Item, 0, len(listeners)+len(below))
	for _, l := range listeners {
		items = append(items, l)
	}
	return append(items, below...), nil
}

// Redirected returns the Entry as the kernel has it in the redirecting form: its endpoints are this node's listeners. The
// rootless form returns nil.
func (b *Backend) Redirected(e *backends.Entry) (*backends.Entry, error) {
	if b.Redirect == nil {
		return nil, nil
	}
	redirected, _, err := b.redirect(e)
	return redirected, err
}

// redirect returns the listeners of an Entry, one for each policy that it uses, and an Entry that has them as endpoints.
func (b *Backend) redirect(e *backends.Entry) (*backends.Entry, []*listen, error) {
	target, err := b.target(e.Key.Family)
	if err != nil {
		return nil, nil, err
	}
	redirected := *e
	redirected.Affinity, redirected.Endpoints, redirected.Serving = 0, nil, nil
	var listeners []*listen
	for _, local := range []bool{false, true} {
		endpoints := e.ClusterEndpoints()
		if local {
			endpoints = e.LocalEndpoints()
		}
		if !usable(endpoints) || local && !e.InternalLocal && !e.ExternalLocal {
			continue
		}
		port, err := b.Ports.port(portUse{e.Key, local})
		if err != nil {
			return nil, nil, err
		}
		l := b.listen(e, netip.AddrPortFrom(target, port), endpoints)
		l.redirected, l.local = e.Key.Protocol == backends.TCP, local
		listeners = append(listeners, l)
		redirected.Endpoints = append(redirected.Endpoints, backends.Endpoint{Addr: l.bind, Cluster: !local, Local: local, Remote: true, Weight: 1})
	}
	slices.SortFunc(redirected.Endpoints, func(a, b backends.Endpoint) int { return a.Addr.Compare(b.Addr) })
	return &redirected, listeners, nil
}

// usable says whether any endpoint takes new connections.
func usable(endpoints []backends.Endpoint) bool {
	return slices.ContainsFunc(endpoints, func(e backends.Endpoint) bool { return e.Weight > 0 })
}

func (b *Backend) listen(e *backends.Entry, bind netip.AddrPort, endpoints []backends.Endpoint) *listen {
	l := &listen{protocol: e.Key.Protocol, bind: bind, key: e.Key, endpoints: endpoints, affinity: e.Affinity, proxyProtocol: e.ProxyProtocol}
	if e.Key.Protocol == backends.UDP {
		l.idle, l.proxyProtocol = b.UDPIdle, false
	}
	l.keeping = keeping(e, l)
	return l
}

// keeping returns the endpoints that serve what they have, and nothing new through this listener.
func keeping(e *backends.Entry, l *listen) (addrs []netip.AddrPort) {
	for _, a := range e.Serving {
		chosen := func(ep backends.Endpoint) bool { return ep.Addr == a }
		if !slices.ContainsFunc(l.endpoints, chosen) && !slices.ContainsFunc(l.nearEndpoints, chosen) {
			addrs = append(addrs, a)
		}
	}
	return addrs
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

// Close gives back what the redirection holds. The listeners belong to whoever made them.
func (b *Backend) Close() error {
	if c, ok := b.Redirect.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

// Generation moves when somebody else may have changed the redirection. Nobody else changes the listeners.
func (b *Backend) Generation(ctx context.Context) (uint64, error) {
	if b.Redirect == nil {
		return 0, nil
	}
	if g, ok := b.Redirect.(backends.Generation); ok {
		return g.Generation(ctx)
	}
	return 0, errors.New("the redirection cannot tell whether it was changed")
}

// Observe lists the listeners of this process, or of the one that runs, and the redirection that the kernel holds.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		listeners, err := b.observeListeners()
		if err != nil {
			yield(nil, err)
			return
		}
		for _, l := range listeners {
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

func (b *Backend) observeListeners() ([]backends.Item, error) {
	var items []backends.Item
	if b.Listeners != nil {
		for _, l := range b.Listeners.items() {
			items = append(items, l)
		}
		return items, nil
	}
	running, err := published()
	for _, p := range running {
		if use, port, ok := p.use(); ok && b.Ports != nil {
			b.Ports.follow(use, port)
		}
		items = append(items, p)
	}
	return items, err
}

// ErrPlansOnly says that a Backend without Listeners was asked to apply.
var ErrPlansOnly = errors.New("userspace mode works only as long as its process runs: use weir run")

// Apply opens and changes listeners, then redirects, then closes the listeners that nothing leads to any more. If a
// listener cannot be opened, nothing is done.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	if b.Listeners == nil && !p.Empty() {
		return backends.Result{Err: ErrPlansOnly}
	}
	var undo []func()
	var gone []*listen
	refused := map[backends.ID]error{}
	below := backends.Plan{Backend: p.Backend, Reason: p.Reason}
	for _, c := range p.Changes {
		l, isListener := c.New.(*listen)
		old, wasListener := c.Old.(*listen)
		switch {
		case isListener:
			before, err := b.Listeners.set(l)
			switch {
			case err != nil:
				refused[c.ID] = err
				b.avoid(l, err)
			case before == nil:
				undo = append(undo, func() { b.remove(l) })
			default:
				undo = append(undo, func() { b.Listeners.set(before) })
			}
		case wasListener:
			gone = append(gone, old)
		default:
			below.Changes = append(below.Changes, c)
		}
	}
	if len(refused) > 0 {
		for _, f := range undo {
			f()
		}
		return backends.Result{Refused: refused, Err: fmt.Errorf("%d listeners could not be opened", len(refused))}
	}
	if b.Redirect != nil && !below.Empty() {
		if result := b.Redirect.Apply(ctx, below); result.Err != nil || len(result.Refused) > 0 {
			if result.Err == nil { // some of it is in force: only a new look tells what is safe to close
				return backends.Result{Err: fmt.Errorf("%d redirections were refused", len(result.Refused))}
			}
			if len(result.Refused) > 0 {
				for _, f := range undo {
					f()
				}
			}
			return result
		}
	}
	for _, l := range gone {
		b.remove(l)
		if b.Redirect != nil {
			b.Ports.release(l.use(), l.bind.Port())
		}
	}
	return backends.Result{}
}

func (b *Backend) remove(l *listen) { b.Listeners.remove(l, b.Redirect != nil) }

// Script implements backends.Scripter for the redirection; the listeners are this process's own.
func (b *Backend) Script(p backends.Plan) ([]backends.Program, error) {
	redirect, ok := b.Redirect.(backends.Scripter)
	if !ok {
		return nil, nil
	}
	p.Changes = slices.DeleteFunc(slices.Clone(p.Changes), func(c backends.Change) bool {
		_, isListener := c.New.(*listen)
		_, wasListener := c.Old.(*listen)
		return isListener || wasListener
	})
	return redirect.Script(p)
}

// avoid has the Service port ask for another port if somebody else has this one.
func (b *Backend) avoid(l *listen, err error) {
	if b.Redirect != nil && errors.Is(err, unix.EADDRINUSE) {
		b.Ports.avoid(l.use())
	}
}
