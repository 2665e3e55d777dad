package userspace

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends"
)

// Limits keep a node alive under load. The zero value of a field means its default.
type Limits struct {
	// Connections bounds the open connections and UDP flows of the whole process; the default is what the descriptor limit
	// allows, at two for each and some left over for everything else.
	Connections int64
	// PerListener bounds those of one Service port; the default is half of Connections.
	PerListener int64
	// Grace is how long a connection may go on after its endpoint or its Service went; the default is 30 s.
	Grace time.Duration

	// pipes bounds the pipes that are lent to connections whose receiver is slow.
	pipes int64
	// linger is how long a listener still serves what was redirected to it before the redirection went.
	linger time.Duration
}

const descriptorsKept = 256

// defaultLinger has a client send its SYN three times: at once, after 1 s and after 3 s. The kernel redirects them all as it
// did the first.
const defaultLinger = 5 * time.Second

func (l Limits) withDefaults() Limits {
	files := descriptors()
	if l.pipes == 0 {
		l.pipes = min(max(files/32, 32), 512)
	}
	if l.Connections == 0 {
		l.Connections = max(64, (files-descriptorsKept-2*l.pipes)/2)
	}
	if l.PerListener == 0 {
		l.PerListener = max(1, l.Connections/2)
	}
	if l.Grace == 0 {
		l.Grace = 30 * time.Second
	}
	if l.linger == 0 {
		l.linger = defaultLinger
	}
	return l
}

// descriptors returns how many this process may have.
func descriptors() int64 {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return 8192
	}
	return int64(min(files.Cur, 1<<24))
}

// Listeners are the sockets of this process that serve Service ports: what the kernel's tables are to the other backends.
// They outlive the Backend that opened them, so that a change of the configuration takes none of them down. Listeners are
// safe for concurrent use.
type Listeners struct {
	limits Limits
	all    admission

	// ending counts the closed listeners whose connections have not ended.
	ending sync.WaitGroup

	mu    sync.Mutex
	open  map[netip.AddrPort]map[backends.Protocol]*listener
	loops []*loop // begun with the first listener
}

// listener is one open socket and the proxy behind it.
type listener struct {
	item  *listen
	pools *pools
	admit *admission
	proxy interface {
		endpointsChanged()
		close()
		wait()
		open() int
	}
	current func(*listen)
	// leaving closes the listener; nil as long as it is wanted.
	leaving *time.Timer
}

// NewListeners returns none yet.
func NewListeners(limits Limits) *Listeners {
	l := &Listeners{limits: limits.withDefaults(), open: map[netip.AddrPort]map[backends.Protocol]*listener{}}
	l.all.limit = l.limits.Connections
	return l
}

// items returns what is open, without what lingers.
func (l *Listeners) items() []*listen {
	l.mu.Lock()
	defer l.mu.Unlock()
	var items []*listen
	for _, protocols := range l.open {
		for _, o := range protocols {
			if o.leaving == nil {
				items = append(items, o.item)
			}
		}
	}
	return items
}

// set opens the listener, or changes what an open one does without closing it. It returns what the listener did before, or
// nil if it was not open, or lingered.
func (l *Listeners) set(item *listen) (before *listen, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.open[item.bind][item.protocol]
	if o != nil && o.leaving != nil && o.item.use() != item.use() {
		l.close(o) // what was redirected for one Service is not for another
		o = nil
	}
	if o != nil {
		if o.leaving == nil {
			before = o.item
		}
		o.stay()
		o.change(item)
		return before, nil
	}
	o = &listener{item: item, pools: newPools(item), admit: &admission{parent: &l.all, limit: l.limits.PerListener}}
	if err := l.listen(o); err != nil {
		return nil, fmt.Errorf("%s: %w", item.key, err)
	}
	if l.open[item.bind] == nil {
		l.open[item.bind] = map[backends.Protocol]*listener{}
	}
	l.open[item.bind][item.protocol] = o
	return nil, nil
}

func (o *listener) change(item *listen) {
	o.item = item
	o.pools.set(item)
	o.current(item)
	o.proxy.endpointsChanged()
}

// remove closes the listener; its connections may go on for the grace time. If traffic was redirected to it until now, it
// lingers before: a connection that was redirected a moment ago would be refused otherwise.
func (l *Listeners) remove(item *listen, redirected bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.open[item.bind][item.protocol]
	switch {
	case o == nil || o.leaving != nil:
	case redirected:
		var timer *time.Timer
		timer = time.AfterFunc(l.limits.linger, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			if o.leaving == timer {
				l.close(o)
			}
		})
		o.leaving = timer
	default:
		l.close(o)
	}
}

// stay has a listener that lingers stay open. The lock is held.
func (o *listener) stay() {
	if o.leaving != nil {
		o.leaving.Stop()
		o.leaving = nil
	}
}

// close closes a listener; the lock is held.
func (l *Listeners) close(o *listener) {
	o.stay()
	o.proxy.close()
	l.ending.Go(o.proxy.wait)
	if delete(l.open[o.item.bind], o.item.protocol); len(l.open[o.item.bind]) == 0 {
		delete(l.open, o.item.bind)
	}
}

// Drain closes every listener and waits until their connections have ended, for the grace time or until ctx is done. It
// returns how many were still open then. Nothing but Drain is done with the Listeners thereafter.
func (l *Listeners) Drain(ctx context.Context) int {
	l.mu.Lock()
	for _, protocols := range l.open {
		for _, o := range protocols {
			l.close(o)
		}
	}
	l.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		l.ending.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		for _, loop := range l.loops {
			loop.stop()
		}
	case <-ctx.Done():
	}
	return int(l.all.open.Load())
}

// Open returns how many connections and UDP flows there are.
func (l *Listeners) Open() int { return int(l.all.open.Load()) }

func (l *Listeners) listen(o *listener) error {
	switch o.item.protocol {
	case backends.TCP:
		if err := l.begin(); err != nil {
			return err
		}
		t, err := newTCPProxy(l.loops, o.pools, o.admit, l.limits.Grace, o.item)
		if err != nil {
			return explain(err, o.item.bind)
		}
		o.proxy, o.current = t, t.item.Store
	case backends.UDP:
		var lc net.ListenConfig
		sock, err := lc.ListenPacket(context.Background(), "udp", o.item.bind.String())
		if err != nil {
			return explain(err, o.item.bind)
		}
		u := newUDPProxy(sock.(*net.UDPConn), o.pools, o.admit, o.item)
		o.proxy, o.current = u, u.item.Store
	default:
		return fmt.Errorf("%s cannot be proxied in userspace mode; use mode iptables, ipvs or nftables for this Service", o.item.protocol)
	}
	return nil
}

// begin starts a loop for each core, unless that has been done.
func (l *Listeners) begin() error {
	if len(l.loops) > 0 {
		return nil
	}
	n := runtime.GOMAXPROCS(0)
	for range n {
		loop, err := newLoop(int(l.limits.pipes) / n)
		if err != nil {
			return err
		}
		l.loops = append(l.loops, loop)
	}
	return nil
}

func explain(err error, bind netip.AddrPort) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%s is in use by another process: %w", bind, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%s is not an address of this node: %w", bind, err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("listening on %s needs CAP_NET_BIND_SERVICE, or a lower net.ipv4.ip_unprivileged_port_start: %w", bind, err)
	}
	return err
}
