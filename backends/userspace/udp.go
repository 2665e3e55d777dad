package userspace

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// udpProxy serves the datagrams of one Service port. Datagrams from one client address and port are a flow: they go to one
// endpoint, and its answers go back, until neither side has sent anything for the idle time.
type udpProxy struct {
	pools  *pools
	item   atomic.Pointer[listen]
	admit  *admission
	conn   *net.UDPConn
	socket batchConn

	mu     sync.Mutex
	flows  map[netip.AddrPort]*flow
	closed bool
	wg     sync.WaitGroup
}

type flow struct {
	proxy   *udpProxy
	pool    *pool
	client  netip.AddrPort
	to      atomic.Pointer[upstream]
	lastUse atomic.Int64 // Unix nanoseconds
	// first is the datagram that opened the flow, kept until the endpoint has answered anything, so that another endpoint
	// can be given it if this one refuses.
	first []byte
	tried []netip.AddrPort
}

// upstream is a flow's socket to its endpoint.
type upstream struct {
	endpoint netip.AddrPort
	conn     *net.UDPConn
	socket   batchConn
}

func newUDPProxy(conn *net.UDPConn, p *pools, admit *admission, item *listen) *udpProxy {
	u := &udpProxy{pools: p, admit: admit, conn: conn, socket: batched(conn), flows: map[netip.AddrPort]*flow{}}
	u.item.Store(item)
	u.wg.Add(1)
	go u.receive()
	return u
}

// receive reads what clients send and passes it on, all datagrams of one flow in a batch together.
func (u *udpProxy) receive() {
	defer u.wg.Done()
	for {
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
		if f := u.flow(client, all[0].bytes); f != nil {
			f.lastUse.Store(time.Now().UnixNano())
			b.write(f.to.Load().socket, nil, all[:next])
		}
		all = all[next:]
	}
}

// flow returns the client's flow, opening one if there is none, or nil if it may not have one.
func (u *udpProxy) flow(client netip.AddrPort, first []byte) *flow {
	u.mu.Lock()
	defer u.mu.Unlock()
	if f := u.flows[client]; f != nil {
		return f
	}
	item := u.item.Load()
	if u.closed || !item.allows(client.Addr()) || !u.admit.enter() {
		return nil
	}
	f := &flow{proxy: u, pool: u.pools.of(client.Addr(), item), client: client, first: append([]byte(nil), first...)}
	if !f.connect() {
		u.admit.leave()
		return nil
	}
	u.flows[client] = f
	u.wg.Add(1)
	go f.run()
	return f
}

// connect gives the flow an endpoint that it has not tried.
func (f *flow) connect() bool {
	for {
		endpoint, ok := f.pool.pick(f.client.Addr(), f.tried)
		if !ok {
			return false
		}
		f.tried = append(f.tried, endpoint)
		conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(endpoint))
		if err != nil {
			f.pool.failed(endpoint)
			continue
		}
		f.to.Store(&upstream{endpoint, conn, batched(conn)})
		f.lastUse.Store(time.Now().UnixNano())
		return true
	}
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
		f.to.Load().conn.Close()
	}()
	for {
		idleAt := time.Unix(0, f.lastUse.Load()).Add(u.item.Load().idle)
		conn := f.to.Load().conn
		conn.SetReadDeadline(idleAt)
		err := waitReadable(conn)
		switch {
		case err == nil:
			f.answer()
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !time.Now().Before(time.Unix(0, f.lastUse.Load()).Add(u.item.Load().idle)) {
				return
			}
		case errors.Is(err, unix.ECONNREFUSED) && f.first != nil:
			if !f.retry() {
				return
			}
		case errors.Is(err, unix.ECONNREFUSED):
			// An endpoint that answered before is restarting; the client decides whether to send again.
		default:
			return
		}
	}
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
		f.first, f.tried = nil, nil
	}
	f.lastUse.Store(time.Now().UnixNano())
	b.write(f.proxy.socket, net.UDPAddrFromAddrPort(f.client), all)
}

// retry moves a flow that was refused to the next endpoint and sends its first datagram again.
func (f *flow) retry() bool {
	u := f.proxy
	refused := f.to.Load()
	f.pool.failed(refused.endpoint)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.flows[f.client] != f || !f.connect() {
		return false
	}
	refused.conn.Close()
	_, err := f.to.Load().conn.Write(f.first)
	return err == nil
}

// endpointsChanged ends the flows whose endpoint is gone: UDP has no end of its own to wait for, and the client's next
// datagram opens a flow to another endpoint.
func (u *udpProxy) endpointsChanged() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, f := range u.flows {
		if to := f.to.Load(); u.closed || !f.pool.has(to.endpoint) {
			to.conn.Close()
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

func (u *udpProxy) wait() { u.wg.Wait() }

func (u *udpProxy) open() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.flows)
}

// waitReadable blocks until something has arrived on the socket, or its deadline has passed, or an error is pending.
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

// peek says whether a read of the socket would return at once.
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
