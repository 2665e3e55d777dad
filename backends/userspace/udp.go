package userspace

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// udpProxy serves the datagrams of one Service port. Datagrams from one client address and port are a flow. They go to
// one endpoint, and its answers go back, until neither side has sent anything for the idle time. While a question has
// no answer yet, the flow waits longer.
type udpProxy struct {
	pools  *pools
	item   atomic.Pointer[listen]
	admit  *admission
	dialed *dialed
	conn   *net.UDPConn
	socket batchConn

	// reading is held by the goroutine that receives, and paused tells it to end.
	reading sync.WaitGroup
	paused  atomic.Bool

	mu     sync.Mutex
	flows  map[netip.AddrPort]*flow
	closed bool
	wg     sync.WaitGroup
	// former has the endpoints of the flows of the process that this one replaces. A client's next datagram goes to its
	// former endpoint.
	former map[netip.AddrPort]netip.AddrPort
}

type flow struct {
	proxy   *udpProxy
	pool    *pool
	client  netip.AddrPort
	to      atomic.Pointer[upstream]
	lastUse atomic.Int64 // Unix nanoseconds
	// waiting is how many datagrams of the client have no answer yet, at most maxWaiting. One socket of a client may ask
	// several questions, of which one is answered sooner.
	waiting atomic.Int64
	// first is the datagram that opened the flow. It is kept until the endpoint has answered, so that another endpoint
	// can get it if this one refuses.
	first []byte
	tried []netip.AddrPort
}

// answerTimeout is how long a flow waits for an answer. A resolver that asks the internet takes seconds, and clients
// wait 5 seconds.
const answerTimeout = 10 * time.Second

// maxWaiting bounds the questions that a flow waits for, so that a client that is seldom answered does not keep it waiting
// after the answers to its last questions.
const maxWaiting = 64

// asked counts datagrams of the client, and answered those of the endpoint.
// await changes how many datagrams have no answer yet. Those of the client and of the endpoint are counted at the same time.
func (f *flow) await(more int) {
	for {
		before := f.waiting.Load()
		if f.waiting.CompareAndSwap(before, max(0, min(before+int64(more), maxWaiting))) {
			return
		}
	}
}

// idleAt returns when the flow ends if no more datagrams are sent.
func (f *flow) idleAt() time.Time {
	idle := f.proxy.item.Load().idle
	if f.waiting.Load() > 0 {
		idle = max(idle, answerTimeout)
	}
	return time.Unix(0, f.lastUse.Load()).Add(idle)
}

// upstream is a flow's socket to its endpoint.
type upstream struct {
	endpoint netip.AddrPort
	conn     *net.UDPConn
	socket   batchConn
	closing  sync.Once
	// unproven ends when the endpoint answers, which no address of a Service does that leads back here.
	unproven sync.Once
}

func localOf(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// close closes the socket. It may be called again.
func (u *upstream) close(d *dialed) {
	u.closing.Do(func() {
		u.proven(d)
		u.conn.Close()
	})
}

// dialed names the socket in dialed. A redirected datagram does not tell to which address it was sent.
func (u *upstream) dialed() connection { return connection{local: localOf(u.conn)} }

// proven removes the socket from dialed. It may be called again.
func (u *upstream) proven(d *dialed) { u.unproven.Do(func() { d.remove(u.dialed()) }) }

func newUDPProxy(conn *net.UDPConn, p *pools, admit *admission, dialed *dialed, item *listen) *udpProxy {
	u := &udpProxy{pools: p, admit: admit, dialed: dialed, conn: conn, socket: batched(conn), flows: map[netip.AddrPort]*flow{}}
	u.item.Store(item)
	u.paused.Store(true)
	return u
}

// resume receives the datagrams of clients, those first that have waited.
func (u *udpProxy) resume() {
	if !u.paused.Load() {
		return
	}
	u.paused.Store(false)
	u.conn.SetReadDeadline(time.Time{})
	u.reading.Go(u.receive)
}

// pause receives nothing until resume. Datagrams wait in the socket meanwhile, and flows go on.
func (u *udpProxy) pause() {
	u.paused.Store(true)
	u.conn.SetReadDeadline(time.Unix(1, 0))
	u.reading.Wait()
}

// setMark sets the mark of the answers.
func (u *udpProxy) setMark(mark uint32) error {
	raw, err := u.conn.SyscallConn()
	if err != nil {
		return err
	}
	return markRaw(raw, mark)
}

// markRaw sets the mark of a socket's packets, unless it is 0.
func markRaw(c syscall.RawConn, mark uint32) error {
	if mark == 0 {
		return nil
	}
	var failed error
	err := c.Control(func(fd uintptr) { failed = setMark(int(fd), mark) })
	return errors.Join(err, failed)
}

// receive reads the datagrams of clients and passes them on, all datagrams of one flow in a batch together.
func (u *udpProxy) receive() {
	for !u.paused.Load() {
		if err := waitReadable(u.conn); err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		u.receiveBatch()
	}
}

func (u *udpProxy) receiveBatch() {
	b := batches.Get().(*batch)
	defer batches.Put(b)
	all := b.read(u.socket)
	for len(all) > 0 {
		client, next := all[0].from, 1
		for next < len(all) && all[next].from == client {
			next++
		}
		if f := u.flow(client, all[0].bytes, next); f != nil {
			b.write(f.to.Load().socket, nil, all[:next])
		}
		all = all[next:]
	}
}

// flow returns the client's flow for so many datagrams, and opens one if there is none. It returns nil if the limits or the
// source ranges forbid a flow.
func (u *udpProxy) flow(client netip.AddrPort, first []byte, datagrams int) *flow {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.flows[client]; f != nil {
		f.await(datagrams)
		f.lastUse.Store(time.Now().UnixNano())
		return f
	}
	item := u.item.Load()
	if u.closed || !item.allows(client.Addr()) || u.dialed.own(connection{local: client}) || !u.admit.enter() {
		return nil
	}
	f := &flow{proxy: u, pool: u.pools.of(client.Addr(), item), client: client, first: append([]byte(nil), first...)}
	if !f.connect() {
		u.admit.leave()
		return nil
	}
	f.await(datagrams)
	u.flows[client] = f
	u.wg.Add(1)
	go f.run()
	return f
}

// connect connects the flow to an endpoint that it has not tried.
func (f *flow) connect() bool {
	for {
		endpoint, ok := f.formerEndpoint()
		if !ok {
			endpoint, ok = f.pool.pick(f.client.Addr(), f.tried)
		}
		if !ok {
			return false
		}
		f.tried = append(f.tried, endpoint)
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(endpoint))
		if err != nil {
			f.pool.failed(endpoint)
			continue
		}
		to := &upstream{endpoint: endpoint, conn: conn, socket: batched(conn)}
		f.proxy.dialed.add(to.dialed())
		f.to.Store(to)
		f.lastUse.Store(time.Now().UnixNano())
		return true
	}
}

// formerEndpoint returns, once, the endpoint that the client's flow had in the process that this one replaces, if it still
// gets flows. The lock is held.
func (f *flow) formerEndpoint() (netip.AddrPort, bool) {
	to, ok := f.proxy.former[f.client]
	if !ok {
		return to, false
	}
	delete(f.proxy.former, f.client)
	return to, f.pool.chooses(to)
}

// run passes the endpoint's answers to the client until the flow is idle.
func (f *flow) run() {
	u := f.proxy
	defer u.wg.Done()
	defer u.admit.leave()
	defer func() {
		u.mu.Lock()
		if u.flows[f.client] == f {
			delete(u.flows, f.client)
		}
		u.mu.Unlock()
		f.to.Load().close(u.dialed)
	}()
	for {
		conn := f.to.Load().conn
		conn.SetReadDeadline(f.idleAt())
		err := waitReadable(conn)
		switch {
		case err == nil:
			f.answer()
		case errors.Is(err, os.ErrDeadlineExceeded):
			if f.expire() {
				return
			}
		case errors.Is(err, unix.ECONNREFUSED) && f.first != nil:
			if !f.retry() {
				return
			}
		case errors.Is(err, unix.ECONNREFUSED):
			// An endpoint that answered before is restarting. The client decides whether to send again.
		default:
			return
		}
	}
}

// expire ends a flow that is idle, and reports whether it is. A datagram that comes at that moment is either of this flow, which
// goes on, or of a new one.
func (f *flow) expire() bool {
	f.proxy.mu.Lock()
	defer f.proxy.mu.Unlock()
	if time.Now().Before(f.idleAt()) {
		return false
	}
	if f.proxy.flows[f.client] == f {
		delete(f.proxy.flows, f.client)
	}
	return true
}

func (f *flow) answer() {
	b := batches.Get().(*batch)
	defer batches.Put(b)
	to := f.to.Load()
	all := b.read(to.socket)
	if len(all) == 0 {
		return
	}
	if f.first != nil {
		f.pool.succeeded(f.client.Addr(), to.endpoint)
		to.proven(f.proxy.dialed)
		f.first, f.tried = nil, nil
	}
	f.await(-len(all))
	f.lastUse.Store(time.Now().UnixNano())
	b.write(f.proxy.socket, net.UDPAddrFromAddrPort(f.client), all)
}

// retry moves a refused flow to the next endpoint and sends its first datagram again.
func (f *flow) retry() bool {
	u := f.proxy
	refused := f.to.Load()
	f.pool.failed(refused.endpoint)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.flows[f.client] != f || !f.connect() {
		return false
	}
	refused.close(u.dialed)
	_, err := f.to.Load().conn.Write(f.first)
	return err == nil
}

// endpointsChanged ends the flows whose endpoint was deleted, or whose client may no longer connect. UDP has no end of its own
// to wait for, and the client's next datagram opens a flow to another endpoint.
func (u *udpProxy) endpointsChanged() {
	u.mu.Lock()
	defer u.mu.Unlock()
	item := u.item.Load()
	for _, f := range u.flows {
		if to := f.to.Load(); u.closed || !f.pool.has(to.endpoint) || !item.allows(f.client.Addr()) {
			to.close(u.dialed)
			delete(u.flows, f.client)
		}
	}
}

func (u *udpProxy) close() {
	u.mu.Lock()
	u.closed = true
	u.mu.Unlock()
	u.conn.Close()
	u.endpointsChanged()
}

// end receives nothing more, and lets the flows answer until they are idle. Clients get the answers from the socket that
// another process has too.
func (u *udpProxy) end(time.Duration) { u.pause() }

func (u *udpProxy) wait() {
	u.reading.Wait()
	u.wg.Wait()
	u.conn.Close()
}

// descriptor returns the socket. It is valid until the proxy is closed.
func (u *udpProxy) descriptor() int {
	fd := -1
	if raw, err := u.conn.SyscallConn(); err == nil {
		raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

func (u *udpProxy) open() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.flows)
}

// waitReadable blocks until a datagram has arrived on the socket, its deadline has passed, or an error is pending.
func waitReadable(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sockErr error
	err = raw.Read(func(fd uintptr) bool {
		ready, err := peek(int(fd))
		sockErr = err
		return ready
	})
	return errors.Join(err, sockErr)
}

// peek reports whether a read of the socket would return at once.
func peek(fd int) (ready bool, err error) {
	var probe [1]byte
	for {
		_, _, err := unix.Recvfrom(fd, probe[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false, nil
		}
		return true, err
	}
}
