package userspace

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/dataplane"
)

// Limits bound the resources that the proxy takes from the node. The zero value of a field means its default.
type Limits struct {
	// Connections bounds the open connections and UDP flows of the whole process. The default is what the descriptor
	// limit allows, at two descriptors for each and a reserve for everything else.
	Connections int64
	// PerListener bounds those of one Service port; the default is half of Connections.
	PerListener int64
	// Grace is how long a connection may go on after its endpoint or its Service was deleted; the default is 30 s.
	Grace time.Duration

	// pipes bounds the number of pipes that are lent to connections with a slow receiver.
	pipes int64
	// linger is how long a listener still serves connections that were redirected to it before the redirection was
	// deleted.
	linger time.Duration
}

const descriptorsKept = 256

// defaultLinger lets a client send its SYN three times: at once, after 1 s and after 3 s. The kernel redirects them all
// like the first.
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

// descriptors returns how many descriptors this process may have.
func descriptors() int64 {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return 8192
	}
	return int64(min(files.Cur, 1<<24))
}

// Listeners are the sockets of this process that serve Service ports. They are to this backend what the kernel's tables
// are to the others. They outlive the Backend that opened them, so that a change of the configuration closes none of
// them. Listeners are safe for concurrent use.
type Listeners struct {
	limits Limits
	all    admission
	dialed dialed

	// ending counts the closed listeners whose connections are still open.
	ending sync.WaitGroup

	mu   sync.Mutex
	mark uint32 // of the listeners' packets; 0 means none
	open map[netip.AddrPort]map[dataplane.Protocol]*listener
	// missing are those of Loopbacks that are wanted and could not be opened.
	missing map[backends.ID]*missed
	loops   []*loop // started with the first listener
	// paused reports whether another process serves the clients of the listeners.
	paused bool
	// ended are the listeners whose connections drain.
	ended []*listener
}

// listener is one open socket and the proxy behind it.
type listener struct {
	item  *listen
	pools *pools
	admit *admission
	proxy interface {
		endpointsChanged()
		setMark(uint32) error
		pause()
		resume()
		close()
		end(grace time.Duration)
		wait()
		open() int
		descriptor() int
	}
	current func(*listen)
	// leaving closes the listener; nil as long as it is wanted.
	leaving *time.Timer
}

// NewListeners returns Listeners without any open socket.
func NewListeners(limits Limits) *Listeners {
	l := &Listeners{limits: limits.withDefaults(), open: map[netip.AddrPort]map[dataplane.Protocol]*listener{}, missing: map[backends.ID]*missed{}}
	l.all.limit = l.limits.Connections
	return l
}

// missed is a listener that is wanted and cannot be opened, and why.
type missed struct {
	item *listen
	err  error
}

// miss records that a listener is wanted and cannot be opened, or with nil that it is so no more. It returns what was recorded.
func (l *Listeners) miss(id backends.ID, now *missed) (before *missed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before = l.missing[id]
	if delete(l.missing, id); now != nil {
		l.missing[id] = now
	}
	return before
}

// allMissing returns the listeners that are wanted and cannot be opened.
func (l *Listeners) allMissing() []*missed {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.missing))
}

// items returns the open listeners, without the lingering ones, and those that are wanted and cannot be opened.
func (l *Listeners) items() []*listen {
	l.mu.Lock()
	defer l.mu.Unlock()
	var items []*listen
	for _, m := range l.missing {
		items = append(items, m.item)
	}
	for _, protocols := range l.open {
		for _, o := range protocols {
			if o.leaving == nil {
				items = append(items, o.item)
			}
		}
	}
	return items
}

// Any reports whether there are listeners, missing ones too, lingering ones aside.
func (l *Listeners) Any() bool { return len(l.items()) > 0 }

// set opens the listener, or changes the settings of an open one without closing it. It returns the previous settings,
// or nil if it was not open, or lingered.
func (l *Listeners) set(item *listen) (before *listen, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.open[item.bind][item.protocol]
	if o != nil && o.leaving != nil && o.item.use() != item.use() {
		l.close(o) // connections redirected for one Service must not reach another
		o = nil
	}
	if o != nil && !o.item.inherited {
		if o.leaving == nil {
			before = o.item
		}
		o.stay()
		o.change(item)
		return before, nil
	}
	fd := -1
	if o != nil { // no client is served by it yet, so that there is nothing to go back to
		fd, before = o.proxy.descriptor(), item
	}
	o = &listener{item: item, pools: newPools(item), admit: &admission{parent: &l.all, limit: l.limits.PerListener}}
	if err := l.listen(o, fd); err != nil {
		return nil, fmt.Errorf("%s: %w", item.key, err)
	}
	if !l.paused {
		o.proxy.resume()
	}
	l.put(o)
	return before, nil
}

// put makes a listener one of the open ones. The lock is held.
func (l *Listeners) put(o *listener) {
	if l.open[o.item.bind] == nil {
		l.open[o.item.bind] = map[dataplane.Protocol]*listener{}
	}
	l.open[o.item.bind][o.item.protocol] = o
}

// setMark sets the mark of the packets of all listeners. Connections that were accepted before keep theirs.
func (l *Listeners) setMark(mark uint32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mark == mark {
		return nil
	}
	for _, protocols := range l.open {
		for _, o := range protocols {
			if err := o.proxy.setMark(mark); err != nil {
				return fmt.Errorf("%s: %w", o.item.key, err)
			}
		}
	}
	l.mark = mark
	return nil
}

func (o *listener) change(item *listen) {
	o.item = item
	o.pools.set(item)
	o.current(item)
	o.proxy.endpointsChanged()
}

// remove closes the listener; its connections may go on for the grace time. If traffic was redirected to it until now,
// it lingers first. Otherwise a connection that was just redirected would be refused.
func (l *Listeners) remove(item *listen, redirected bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.open[item.bind][item.protocol]
	switch {
	case o == nil || o.leaving != nil:
	case redirected && !o.item.inherited:
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

// stay keeps a lingering listener open. The lock is held.
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
	l.leave(o)
}

// leave takes a listener that was closed from the open ones; the lock is held.
func (l *Listeners) leave(o *listener) {
	l.ending.Go(o.proxy.wait)
	if delete(l.open[o.item.bind], o.item.protocol); len(l.open[o.item.bind]) == 0 {
		delete(l.open, o.item.bind)
	}
}

// Drain closes every listener and waits until their connections have ended, for the grace time or until ctx is done. It
// returns how many were still open then. The Listeners must not be used after Drain.
func (l *Listeners) Drain(ctx context.Context) int {
	l.mu.Lock()
	for _, protocols := range l.open {
		for _, o := range protocols {
			l.close(o)
		}
	}
	l.mu.Unlock()
	return l.drained(ctx)
}

// drained waits until the connections of closed listeners have ended, or until ctx is done, and returns how many have not.
func (l *Listeners) drained(ctx context.Context) int {
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

// Open returns the number of open connections and UDP flows.
func (l *Listeners) Open() int { return int(l.all.open.Load()) }

// listen makes the proxy of a listener, for a socket that is there already, or for a new one if fd is negative.
func (l *Listeners) listen(o *listener, fd int) (err error) {
	switch o.item.protocol {
	case dataplane.TCP:
		if err := l.begin(); err != nil {
			return err
		}
		if fd < 0 {
			if fd, err = listenTCP(o.item.bind, l.mark); err != nil {
				return explain(err, o.item.bind)
			}
		}
		t := newTCPProxy(fd, l.loops, o.pools, o.admit, &l.dialed, l.limits.Grace, o.item)
		o.proxy, o.current = t, t.item.Store
	case dataplane.UDP:
		conn, err := l.listenUDP(o.item.bind, fd)
		if err != nil {
			return explain(err, o.item.bind)
		}
		u := newUDPProxy(conn, o.pools, o.admit, &l.dialed, o.item)
		o.proxy, o.current = u, u.item.Store
	default:
		return fmt.Errorf("%s cannot be proxied in userspace mode; use mode iptables, ipvs or nftables for this Service", o.item.protocol)
	}
	return nil
}

func (l *Listeners) listenUDP(bind netip.AddrPort, fd int) (*net.UDPConn, error) {
	var conn net.PacketConn
	var err error
	if fd < 0 {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return markRaw(c, l.mark) }}
		conn, err = lc.ListenPacket(context.Background(), "udp", bind.String())
	} else {
		conn, err = packetConn(fd)
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.UDPConn), nil
}

// packetConn takes a socket over, unless it returns an error.
func packetConn(fd int) (net.PacketConn, error) {
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(again), "")
	defer f.Close()
	conn, err := net.FilePacketConn(f)
	if err == nil {
		unix.Close(fd)
	}
	return conn, err
}

// begin starts a loop for each core, unless the loops are running.
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
