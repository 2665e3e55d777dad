package userspace

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tcpProxy serves the TCP connections of one Service port. Its listener outlives changes of the endpoints.
type tcpProxy struct {
	loops []*loop
	pools *pools
	item  atomic.Pointer[listen]
	admit *admission
	// dialed holds the connections to endpoints of all proxies.
	dialed *dialed
	grace  time.Duration

	accepting sync.Mutex // so that no descriptor is closed while a loop uses it
	fd        int        // -1 if it is closed

	mu     sync.Mutex
	conns  map[*pair]struct{}
	closed bool
	wg     sync.WaitGroup
}

// newTCPProxy listens, and makes all loops accept connections.
func newTCPProxy(loops []*loop, p *pools, admit *admission, dialed *dialed, grace time.Duration, mark uint32, item *listen) (*tcpProxy, error) {
	fd, err := listenTCP(item.bind, mark)
	if err != nil {
		return nil, err
	}
	t := &tcpProxy{loops: loops, pools: p, admit: admit, dialed: dialed, grace: grace, fd: fd, conns: map[*pair]struct{}{}}
	t.item.Store(item)
	for _, l := range loops {
		a := &acceptor{t, l}
		l.post(a.resume)
	}
	return t, nil
}

// acceptor accepts the connections of a proxy for one loop.
type acceptor struct {
	proxy *tcpProxy
	loop  *loop
}

// resume makes the loop call the acceptor for new connections.
func (a *acceptor) resume() {
	t := a.proxy
	t.accepting.Lock()
	defer t.accepting.Unlock()
	if t.fd >= 0 && a.loop.serve(t.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, a) != nil {
		a.loop.after(acceptPause, a.resume)
	}
}

// pause stops accepting for a while.
func (a *acceptor) pause() {
	t := a.proxy
	t.accepting.Lock()
	defer t.accepting.Unlock()
	if t.fd >= 0 {
		unix.EpollCtl(a.loop.epoll, unix.EPOLL_CTL_DEL, t.fd, nil)
		a.loop.after(acceptPause, a.resume)
	}
}

const (
	// acceptPause follows an error that only time resolves, such as a lack of descriptors.
	acceptPause = 20 * time.Millisecond
	// maxAccepts bounds how many connections a loop accepts before the others have their turn.
	maxAccepts = 16
)

// ready implements handler.
func (a *acceptor) ready(uint32) {
	for range maxAccepts {
		fd, from, err := a.proxy.accept()
		switch err {
		case nil:
			a.proxy.serve(a.loop, fd, from)
		case unix.EAGAIN, unix.EBADF:
			return
		case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
			a.pause()
			return
		}
	}
}

// accept returns a connection. From then on wait also waits for it.
func (t *tcpProxy) accept() (int, netip.AddrPort, error) {
	t.accepting.Lock()
	defer t.accepting.Unlock()
	if t.fd < 0 {
		return -1, netip.AddrPort{}, unix.EBADF
	}
	fd, from, err := unix.Accept4(t.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err == nil {
		t.wg.Add(1)
	}
	return fd, addrPortOf(from), err
}

// serve admits a connection, or resets it.
func (t *tcpProxy) serve(l *loop, fd int, from netip.AddrPort) {
	item := t.item.Load()
	front, ok := t.front(fd, item)
	if !ok || !item.allows(from.Addr()) || t.dialed.own(connection{from, front}) || !t.admit.enter() {
		resetOnClose(fd)
		unix.Close(fd)
		t.wg.Done()
		return
	}
	newPair(t, l, fd, from, front, t.pools.of(from.Addr(), item)).start()
}

// front returns the address that the client connected to. It returns false for a connection that was not redirected
// although it had to be.
func (t *tcpProxy) front(fd int, item *listen) (netip.AddrPort, bool) {
	switch {
	case item.redirected:
		original, ok := originalDst(fd, item.bind.Addr().Is4())
		return original, ok && original != item.bind
	case item.proxyProtocol:
		name, err := unix.Getsockname(fd)
		return addrPortOf(name), err == nil
	}
	return item.bind, true
}

// add records a pair that has found its endpoint.
func (t *tcpProxy) add(p *pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns[p] = struct{}{}
	t.drain(p) // the endpoint may have been deleted meanwhile
}

// remove is called once when a pair ends, whether or not it has found an endpoint.
func (t *tcpProxy) remove(p *pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.drain != nil {
		p.drain.Stop()
	}
	delete(t.conns, p)
	t.admit.leave()
	t.wg.Done()
}

// drain starts the grace time of a connection whose endpoint was deleted, and ends it if the endpoint exists again. Without grace
// time the connection ends. The lock is held.
func (t *tcpProxy) drain(p *pair) {
	gone := t.closed || !p.pool.has(p.endpoint)
	switch {
	case gone && !t.closed && t.item.Load().reset:
		if p.drain != nil {
			p.drain.Stop()
		}
		p.drain = p.loop.after(0, p.abort)
	case gone && p.drain == nil:
		p.drain = p.loop.after(t.grace, p.abort)
	case !gone && p.drain != nil:
		p.drain.Stop()
		p.drain = nil
	}
}

func (t *tcpProxy) endpointsChanged() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.conns {
		t.drain(p)
	}
}

// close stops listening at once and lets the open connections drain, including those that wait to be accepted.
func (t *tcpProxy) close() {
	for i := range backlog {
		fd, from, err := t.accept()
		if err != nil {
			break
		}
		l := t.loops[i%len(t.loops)]
		l.post(func() { t.serve(l, fd, from) })
	}
	t.accepting.Lock()
	unix.Close(t.fd)
	t.fd = -1
	t.accepting.Unlock()
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.endpointsChanged()
}

// setMark sets the mark of connections that will be accepted.
func (t *tcpProxy) setMark(mark uint32) error {
	t.accepting.Lock()
	defer t.accepting.Unlock()
	if t.fd < 0 {
		return nil
	}
	return setMark(t.fd, mark)
}

func (t *tcpProxy) wait() { t.wg.Wait() }

func (t *tcpProxy) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns)
}
