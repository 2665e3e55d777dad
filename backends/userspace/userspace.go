// Package userspace is the proxy mode that requires least of the kernel: weir itself accepts the connections to a
// Service and copies their bytes to an endpoint. It is slower than the kernel's modes and hides the client's address
// from the endpoint. But it tries the next endpoint if one does not answer, and it runs without netfilter and without
// privileges.
//
// There are two forms. In the redirecting form every Service port has a listener on a local port, and another backend
// programs the kernel to redirect the Service's traffic there. In the rootless form the listeners are on the Services'
// own addresses, as far as the node has them, and the kernel is not programmed.
//
// A client is connected before an endpoint is, so a connection that no endpoint takes is accepted first and then reset.
// SCTP is not served. When the process ends, no Service is served until its successor runs. An endpoint sees the
// proxy's address as the client's, unless the Service wants a PROXY protocol header. Dialling from the client's address
// (IP_TRANSPARENT) is not offered. It would need policy routes that lead the answers back to the proxy, and endpoints
// on other nodes do not answer through this node.
//
// The key types are Backend and Listeners. Only cmd/weir and tests may import the package.
package userspace

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/dataplane"
)

// Options are the inputs of a Backend besides the node-wide Config.
type Options struct {
	// Listeners are this process's sockets; a Backend's successor gets the same. With nil the Backend only plans: it
	// observes the listeners of the weir that runs in this network namespace, and cannot apply.
	Listeners *Listeners
	// Redirect sends the traffic of Services to the listeners; nil means the rootless form. No other code may use the
	// objects that it owns.
	Redirect backends.Backend
	// Ports is used by the redirecting form only.
	Ports *Ports
	// BindAddress, if valid, is the address on which the rootless form listens for every Service, at the Service's port
	// and node port. An unspecified address stands for all addresses of the node.
	BindAddress netip.Addr
	// UDPIdle is how long a UDP flow outlives its last datagram; the default is 250 ms, as in kube-proxy.
	UDPIdle time.Duration
	// Warn is called, in the rootless form, for each address of a Service that cannot be served, with the reason. It
	// may be nil.
	Warn func(key dataplane.ServicePortName, problem string)
}

const defaultUDPIdle = 250 * time.Millisecond

// Backend is the userspace proxy as a backends.Backend. Its Items are its listeners and the Items of the redirection.
type Backend struct {
	cfg dataplane.Config
	Options
}

var (
	_ backends.Backend           = (*Backend)(nil)
	_ backends.ConnectionCounter = (*Backend)(nil)
)

// New returns a Backend. It opens nothing before Apply.
func New(cfg dataplane.Config, o Options) *Backend {
	if o.Warn == nil {
		o.Warn = func(dataplane.ServicePortName, string) {}
	}
	if o.UDPIdle == 0 {
		o.UDPIdle = defaultUDPIdle
	}
	return &Backend{cfg: cfg, Options: o}
}

// Base returns the Items of the redirection that exist without Services.
func (b *Backend) Base() []backends.Item {
	if b.Redirect == nil {
		return nil
	}
	return b.Redirect.Base()
}

// Render returns the listeners of a ServicePort and the Items that redirect its traffic to them.
func (b *Backend) Render(e *dataplane.ServicePort) ([]backends.Item, error) {
	if e.Key.Protocol == dataplane.SCTP {
		return nil, fmt.Errorf("SCTP cannot be proxied in userspace mode; use mode iptables, ipvs or nftables for this Service")
	}
	if err := e.Check(); err != nil {
		return nil, err
	}
	switch {
	case b.Redirect == nil:
		return b.renderRootless(e), nil
	case e.Answered: // the kernel delivers its packets to weir as they are
		return b.Redirect.Render(e)
	}
	return b.renderRedirected(e)
}

func (b *Backend) renderRedirected(e *dataplane.ServicePort) ([]backends.Item, error) {
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

// Redirected returns the ServicePort as the kernel has it in the redirecting form: its endpoints are this node's
// listeners. In the rootless form it returns nil.
func (b *Backend) Redirected(e *dataplane.ServicePort) (*dataplane.ServicePort, error) {
	if b.Redirect == nil {
		return nil, nil
	}
	redirected, _, err := b.redirect(e)
	return redirected, err
}

// redirect returns the listeners of a ServicePort, one for each policy that it uses, and a ServicePort that has them as
// endpoints.
func (b *Backend) redirect(e *dataplane.ServicePort) (*dataplane.ServicePort, []*listen, error) {
	redirected := *e
	redirected.Affinity, redirected.Endpoints, redirected.Serving = 0, nil, nil
	if e.Answered {
		return &redirected, nil, nil
	}
	target, err := b.target(e.Key.Family)
	if err != nil {
		return nil, nil, err
	}
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
		l.redirected, l.local = e.Key.Protocol == dataplane.TCP, local
		if local {
			l.draining = draining(e.ServingLocal, l)
		}
		listeners = append(listeners, l)
		redirected.Endpoints = append(redirected.Endpoints, dataplane.Endpoint{Addr: l.bind, Cluster: !local, Local: local, Remote: true, Weight: 1})
	}
	slices.SortFunc(redirected.Endpoints, func(a, b dataplane.Endpoint) int { return a.Addr.Compare(b.Addr) })
	return &redirected, listeners, nil
}

// usable reports whether any endpoint takes new connections.
func usable(endpoints []dataplane.Endpoint) bool {
	return slices.ContainsFunc(endpoints, func(e dataplane.Endpoint) bool { return e.Weight > 0 })
}

func (b *Backend) listen(e *dataplane.ServicePort, bind netip.AddrPort, endpoints []dataplane.Endpoint) *listen {
	l := &listen{protocol: e.Key.Protocol, bind: bind, key: e.Key, endpoints: endpoints, affinity: e.Affinity, proxyProtocol: e.ProxyProtocol, reset: e.Reset}
	if e.Key.Protocol == dataplane.UDP {
		l.idle, l.proxyProtocol = b.UDPIdle, false
	}
	l.draining = draining(e.Serving, l)
	return l
}

// draining returns those of the serving endpoints that keep their connections, and get no new ones through this
// listener.
func draining(serving []netip.AddrPort, l *listen) (addrs []netip.AddrPort) {
	for _, a := range serving {
		chosen := func(ep dataplane.Endpoint) bool { return ep.Addr == a }
		if !slices.ContainsFunc(l.endpoints, chosen) && !slices.ContainsFunc(l.localClientEndpoints, chosen) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// target returns the address to which traffic is redirected. It is not a loopback address, because packets from outside
// may not have one.
func (b *Backend) target(f dataplane.Family) (netip.Addr, error) {
	for _, a := range b.cfg.NodeAddresses {
		if dataplane.FamilyOf(a) == f && !a.IsLoopback() && !a.IsLinkLocalUnicast() {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("the node has no %s address to redirect to", f)
}

// Close closes the redirection. The owner of the Listeners closes those.
func (b *Backend) Close() error {
	if b.Redirect == nil {
		return nil
	}
	return b.Redirect.Close()
}

// Optional returns the capabilities of the redirection, except that this process counts the connections itself. No
// other process changes the listeners, so a Watcher has to watch the redirection only.
func (b *Backend) Optional() backends.Optional {
	if b.Redirect == nil {
		return backends.Optional{Watcher: unmoved{}, ConnectionCounter: b}
	}
	o := b.Redirect.Optional()
	o.ConnectionCounter = b
	o.Describer = nil // it would describe the listeners as the endpoints
	if o.CommandLister != nil {
		o.CommandLister = redirectCommands{o.CommandLister}
	}
	return o
}

// unmoved is the Watcher of the rootless form. Only this process changes its listeners.
type unmoved struct{}

// Wake implements backends.Watcher.
func (unmoved) Wake() <-chan struct{} { return nil }

// Moved implements backends.Watcher.
func (unmoved) Moved(context.Context) (bool, error) { return false, nil }

// Reread implements backends.Watcher.
func (unmoved) Reread(context.Context, backends.LastObserved) (map[backends.ID]backends.Item, bool, error) {
	return nil, true, nil
}

// Observe lists the listeners of this process, or of the running one, and the redirection that the kernel holds.
func (b *Backend) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	return observeBoth(ctx, b.observeListeners, b.Redirect)
}

// observeBoth lists listeners, and the Items of a Backend below them, which may be nil.
func observeBoth(ctx context.Context, observe func() ([]backends.Item, error), below backends.Backend) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		listeners, err := observe()
		if err != nil {
			yield(nil, err)
			return
		}
		for _, l := range listeners {
			if !yield(l, nil) {
				return
			}
		}
		if below == nil {
			return
		}
		for item, err := range below.Observe(ctx) {
			if !yield(item, err) {
				return
			}
		}
	}
}

// observeListeners returns the listeners. A redirection leads to none at ::1: those are a Loopback's.
func (b *Backend) observeListeners() (items []backends.Item, err error) {
	if b.Redirect != nil {
		defer func() { items = slices.DeleteFunc(items, atLoopbackIPv6) }()
	}
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

// ErrPlansOnly is returned if Apply is called on a Backend without Listeners.
var ErrPlansOnly = errors.New("userspace mode works only as long as its process runs: use weir run")

// Apply opens and changes listeners, then redirects, then closes the listeners to which nothing is redirected any more.
// If a listener cannot be opened, Apply changes nothing.
func (b *Backend) Apply(ctx context.Context, p backends.Plan) backends.Result {
	if b.Listeners == nil && !p.Empty() {
		return backends.Result{Err: ErrPlansOnly}
	}
	if b.Redirect != nil && b.Listeners != nil {
		// The redirection drops answers without this mark, since they come from a user who listens on a port that weir
		// left when it was killed.
		if err := b.Listeners.setMark(b.cfg.MasqueradeMark); err != nil {
			return backends.Result{Err: fmt.Errorf("mark the listeners' answers: %w", err)}
		}
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
			if result.Err == nil { // some of it may be in force: only the next Observe tells what is safe to close
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

// redirectCommands lists the commands of the redirection; no command opens the listeners.
type redirectCommands struct{ redirect backends.CommandLister }

// Commands implements backends.CommandLister.
func (r redirectCommands) Commands(p backends.Plan) ([]backends.Command, error) {
	p.Changes = slices.DeleteFunc(slices.Clone(p.Changes), isListener)
	return r.redirect.Commands(p)
}

// isListener reports whether a Change is of a listener.
func isListener(c backends.Change) bool {
	_, is := boundTo(c.New)
	_, was := boundTo(c.Old)
	return is || was
}

// avoid makes the Service port ask for another port if another process has this one.
func (b *Backend) avoid(l *listen, err error) {
	if b.Redirect != nil && errors.Is(err, unix.EADDRINUSE) {
		b.Ports.avoid(l.use())
	}
}
