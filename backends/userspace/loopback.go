package userspace

import (
	"cmp"
	"context"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/dataplane"
)

// Loopback serves node ports at ::1 beside a Backend of the kernel, where the kernel would drop the answers. Its Items are those
// of the Backend and a listener for each such port. SCTP is not served.
type Loopback struct {
	backends.Backend
	proxy *Backend
	// wanted reports whether the Config wants it. Otherwise the listeners of a predecessor go.
	wanted bool
	of     *Loopbacks
	number int64 // by the order in which they were made
}

// Loopbacks makes the Loopbacks of a process, one after the other.
type Loopbacks struct {
	// listeners is nil in a process that only plans.
	listeners *Listeners
	log       hclog.Logger
	made      atomic.Int64
	// owner is the newest one that has observed. Older ones, which leave, do not close what it has taken over.
	owner atomic.Pointer[Loopback]
}

// NewLoopbacks returns those that use listeners, which are nil in a process that only plans.
func NewLoopbacks(listeners *Listeners, log hclog.Logger) *Loopbacks {
	return &Loopbacks{listeners: listeners, log: log}
}

// NotServed is a node port at ::1 that cannot be served, and why.
type NotServed struct {
	Service  dataplane.ServiceName
	Protocol dataplane.Protocol
	Reason   string // with the port
}

// NotServed returns the node ports that cannot be served, mostly because another process has them, sorted. They are tried again
// whenever the kernel is read.
func (l *Loopbacks) NotServed() (all []NotServed) {
	if l.listeners == nil {
		return nil
	}
	for _, m := range l.listeners.allMissing() {
		all = append(all, NotServed{m.item.key.Service, m.item.protocol, strings.TrimPrefix(m.err.Error(), m.item.key.String()+": ")})
	}
	slices.SortFunc(all, func(a, b NotServed) int {
		return cmp.Or(a.Service.Compare(b.Service), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Reason, b.Reason))
	})
	return all
}

// Beside returns a Backend, with listeners beside it if the Config wants them or if there are some. A process that only plans
// has those of the weir that runs: without one, nothing could open them.
func (l *Loopbacks) Beside(b backends.Backend, cfg dataplane.Config) (backends.Backend, error) {
	all := &Loopback{
		Backend: b, proxy: New(cfg, Options{Listeners: l.listeners}), wanted: cfg.ProxiesLoopbackIPv6,
		of: l, number: l.made.Add(1),
	}
	if all.wanted && l.listeners != nil {
		return all, nil
	}
	open, err := all.open()
	if err != nil || len(open) == 0 {
		return b, err
	}
	return all, nil
}

// Render implements backends.Backend.
func (b *Loopback) Render(e *dataplane.ServicePort) ([]backends.Item, error) {
	items, err := b.Backend.Render(e)
	loopback := netip.IPv6Loopback()
	if err != nil || !b.wanted || e.Key.Family != dataplane.IPv6 || e.Key.Protocol == dataplane.SCTP || !e.ServesNodePortAt(loopback) {
		return items, err
	}
	// A client at ::1 is one of the node, for which policy Local does not count.
	if endpoints := e.ClusterEndpoints(); usable(endpoints) {
		items = append(items, b.proxy.listen(e, netip.AddrPortFrom(loopback, e.NodePort), endpoints))
	}
	return items, nil
}

// open returns the listeners at ::1.
func (b *Loopback) open() (items []backends.Item, err error) {
	all, err := b.proxy.observeListeners()
	for _, i := range all {
		if atLoopbackIPv6(i) {
			items = append(items, i)
		}
	}
	return items, err
}

// observed returns the listeners at ::1, after it has tried to open the missing ones.
func (b *Loopback) observed() ([]backends.Item, error) {
	b.retry()
	return b.open()
}

// retry tries to open the missing listeners, unless a newer Loopback has taken over.
func (b *Loopback) retry() {
	if b.proxy.Listeners == nil {
		return
	}
	for _, m := range b.proxy.Listeners.allMissing() {
		if !b.owns() {
			return
		}
		_, err := b.proxy.Listeners.set(m.item)
		if err != nil {
			b.proxy.Listeners.miss(m.item.ID(), &missed{m.item, err})
		} else {
			b.proxy.Listeners.miss(m.item.ID(), nil)
			b.of.log.Info("the port of a Service at ::1 is free, and served", "service", m.item.key.Service.String(), "address", m.item.bind.String())
		}
	}
}

// owns reports whether no newer Loopback has taken over.
func (b *Loopback) owns() bool {
	owner := b.of.owner.Load()
	return owner == nil || owner == b
}

func atLoopbackIPv6(i backends.Item) bool {
	at, ok := boundTo(i)
	return ok && at.Addr() == netip.IPv6Loopback()
}

// boundTo returns the address of a listener, or false for another Item.
func boundTo(i backends.Item) (netip.AddrPort, bool) {
	switch l := i.(type) {
	case *listen:
		return l.bind, true
	case publishedItem:
		return l.bind()
	}
	return netip.AddrPort{}, false
}

// Observe implements backends.Backend.
func (b *Loopback) Observe(ctx context.Context) iter.Seq2[backends.Item, error] {
	if owner := b.of.owner.Load(); owner == nil || owner.number < b.number {
		b.of.owner.Store(b)
	}
	return observeBoth(ctx, b.observed, b.Backend)
}

// Apply implements backends.Backend. Listeners are opened before the rest and closed after it.
func (b *Loopback) Apply(ctx context.Context, p backends.Plan) (r backends.Result) {
	below := p
	below.Changes = nil
	var undo []func()
	var gone []*listen
	for _, c := range p.Changes {
		opens, _ := c.New.(*listen)
		closes, _ := c.Old.(*listen)
		switch {
		case !isListener(c):
			below.Changes = append(below.Changes, c)
		case b.proxy.Listeners == nil:
			return backends.Result{Err: ErrPlansOnly}
		case opens != nil:
			undo = append(undo, b.set(opens))
		case closes != nil && b.owns():
			gone = append(gone, closes)
		}
	}
	if !below.Empty() {
		r = b.Backend.Apply(ctx, below)
	}
	switch {
	case r.Err == nil:
		for _, l := range gone {
			b.proxy.Listeners.miss(l.ID(), nil)
			b.proxy.remove(l)
		}
	case len(r.Refused) > 0: // nothing of the Plan is in force then
		for _, f := range undo {
			f()
		}
	}
	return r
}

// set opens or changes a listener, and returns what undoes that. One that cannot be opened, because another process has the port,
// counts as open, and is tried again whenever the kernel is read: nothing else of its Service depends on it.
func (b *Loopback) set(l *listen) (undo func()) {
	all, id := b.proxy.Listeners, l.ID()
	before, err := all.set(l)
	var now *missed
	if err != nil {
		now = &missed{l, err}
	}
	was := all.miss(id, now)
	return func() {
		switch {
		case before != nil:
			_, _ = all.set(before) // it is open
		case err == nil:
			b.proxy.remove(l)
		}
		all.miss(id, was)
	}
}

// Close implements backends.Backend.
func (b *Loopback) Close() error {
	b.of.owner.CompareAndSwap(b, nil)
	return b.Backend.Close()
}

// ReadUnwatched implements backends.Unwatched. No other process changes the listeners, but one may have left a port.
func (b *Loopback) ReadUnwatched(context.Context) (map[backends.ID]backends.Item, error) {
	b.retry()
	return nil, nil
}

// Optional implements backends.Backend.
func (b *Loopback) Optional() backends.Optional {
	o := b.Backend.Optional()
	if o.Unwatched == nil {
		o.Unwatched = b
	}
	if o.CommandLister != nil {
		o.CommandLister = redirectCommands{o.CommandLister}
	}
	return o
}
