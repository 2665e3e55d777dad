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
	acceptors []*acceptor
	paused    bool // no loop accepts

	mu     sync.Mutex
	conns  map[*pair]struct{}
	closed bool
	wg     sync.WaitGroup
}

// newTCPProxy makes all loops accept the connections of a listening socket, once resume is called.
func newTCPProxy(fd int, loops []*loop, p *pools, admit *admission, dialed *dialed, grace time.Duration, item *listen) *tcpProxy {
	t := &tcpProxy{loops: loops, pools: p, admit: admit, dialed: dialed, grace: grace, fd: fd, paused: true, conns: map[*pair]struct{}{}}
	t.item.Store(item)
	for _, l := range loops {
		t.acceptors = append(t.acceptors, &acceptor{proxy: t, loop: l})
	}
	return t
}

// acceptor accepts the connections of a proxy for one loop.
type acceptor struct {
	proxy *tcpProxy
	loop  *loop
	armed bool // the loop calls the acceptor; guarded by the proxy's accepting
}

// resume makes the loop call the acceptor for new connections.
func (a *acceptor) resume() {
	t := a.proxy
	t.accepting.Lock()
	defer t.accepting.Unlock()
	if t.fd < 0 || t.paused || a.armed {
		return
	}
	if a.armed = a.loop.serve(t.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, a) == nil; !a.armed {
		a.loop.after(acceptPause, a.resume)
	}
}

// pause stops accepting for a while.
func (a *acceptor) pause() {
	t := a.proxy
	t.accepting.Lock()
	defer t.accepting.Unlock()
	if t.fd >= 0 && a.armed {
		a.disarm()
		a.loop.after(acceptPause, a.resume)
	}
}

// disarm makes the loop call the acceptor no more. A socket that another process has too would stay in the loop even after
// it is closed here. The lock is held.
func (a *acceptor) disarm() {
	if a.armed {
		unix.EpollCtl(a.loop.epoll, unix.EPOLL_CTL_DEL, a.proxy.fd, nil)
		a.armed = false
	}
}

// pause stops accepting until resume. Connections wait in the queue of the socket meanwhile.
func (t *tcpProxy) pause() {
	t.accepting.Lock()
	defer t.accepting.Unlock()
	t.stopAccepting()
}

// stopAccepting is pause with the lock held.
func (t *tcpProxy) stopAccepting() {
	t.paused = true
	for _, a := range t.acceptors {
		a.disarm()
	}
}

// resume accepts, those connections first that have waited.
func (t *tcpProxy) resume() {
	t.accepting.Lock()
	t.paused = false
	t.accepting.Unlock()
	for _, a := range t.acceptors {
		a.loop.post(a.resume)
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
	if t.fd < 0 || t.paused {
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
	t.end(t.grace)
}

// end stops listening at once, and lets the open connections drain for a time. It may be called again to change the time.
// Connections that wait to be accepted are lost, unless another process has the socket too.
func (t *tcpProxy) end(grace time.Duration) {
	t.accepting.Lock()
	if t.fd >= 0 {
		t.stopAccepting()
		unix.Close(t.fd)
		t.fd = -1
	}
	t.accepting.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.conns {
		if t.closed && p.drain != nil { // its time was another one
			p.drain.Stop()
			p.drain = nil
		}
	}
	t.closed, t.grace = true, grace
	for p := range t.conns {
		t.drain(p)
	}
}

// descriptor returns the listening socket.
func (t *tcpProxy) descriptor() int {
	t.accepting.Lock()
	defer t.accepting.Unlock()
	return t.fd
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
