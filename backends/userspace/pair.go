package userspace

import (
	"net"
	"net/netip"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// dialTimeouts bound the attempts of one connection to reach an endpoint. The last one applies to all further
// endpoints. kube-proxy's userspace mode used the same steps.
var dialTimeouts = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

// pair is a client's connection, joined to an endpoint's. It belongs to a loop.
type pair struct {
	proxy *tcpProxy
	loop  *loop
	pool  *pool

	from, front      netip.AddrPort // the client, and the address that it connected to
	client, server   side
	request, answers direction
	rescheduled      bool // it is in the loop's list

	endpoint netip.AddrPort
	dialed   connection // to the endpoint
	dialling *attempt   // nil once an endpoint has answered

	drain *time.Timer // guarded by the proxy's lock
}

// attempt is the search for an endpoint that answers.
type attempt struct {
	tried []netip.AddrPort
	timer *time.Timer
}

// allEvents asks epoll to report each change once.
const allEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET

func newPair(t *tcpProxy, l *loop, fd int, from, front netip.AddrPort, pool *pool) *pair {
	p := &pair{proxy: t, loop: l, pool: pool, from: from, front: front, dialling: &attempt{}}
	p.client, p.server = side{pair: p, fd: fd}, side{pair: p, fd: -1}
	p.request, p.answers = direction{from: &p.client, to: &p.server}, direction{from: &p.server, to: &p.client}
	return p
}

// start begins to search for an endpoint.
func (p *pair) start() {
	if err := p.loop.serve(p.client.fd, allEvents, &p.client); err != nil {
		p.abort()
		return
	}
	p.dial()
}

// dial tries endpoints until one does not fail at once. The client is refused when all have been tried.
func (p *pair) dial() {
	d := p.dialling
	for {
		endpoint, ok := p.pool.pick(p.from.Addr(), d.tried)
		if !ok {
			p.proxy.admit.failed.Add(1)
			p.abort()
			return
		}
		p.endpoint = endpoint
		timeout := dialTimeouts[min(len(d.tried), len(dialTimeouts)-1)]
		d.tried = append(d.tried, endpoint)
		if p.connect(endpoint) == nil {
			d.timer = p.loop.after(timeout, func() {
				if p.dialling != nil && p.endpoint == endpoint {
					p.failed()
				}
			})
			return
		}
		p.pool.failed(endpoint)
	}
}

// connect starts to connect to the endpoint.
func (p *pair) connect(endpoint netip.AddrPort) error {
	fd, err := newSocket(endpoint.Addr())
	if err != nil {
		return err
	}
	if err = unix.Connect(fd, sockaddr(endpoint)); err == nil || err == unix.EINPROGRESS {
		p.server = side{pair: p, fd: fd}
		if name, err := unix.Getsockname(fd); err == nil {
			p.dialed = connection{addrPortOf(name), endpoint}
			p.proxy.dialed.add(p.dialed)
		}
		err = p.loop.serve(fd, allEvents, &p.server)
	}
	if err != nil {
		unix.Close(fd)
		p.server.fd = -1
		p.forgetDialed()
	}
	return err
}

// failed is called if the endpoint did not answer.
func (p *pair) failed() {
	p.dialling.timer.Stop()
	p.pool.failed(p.endpoint)
	p.closeSide(&p.server)
	p.dial()
}

// connected is called when the endpoint has answered, even with a refusal.
func (p *pair) connected() {
	if p.proxy.dialed.own(connection{p.from, p.front}) { // the dialling side had not added its address when this side accepted
		p.abort()
		return
	}
	if code, err := unix.GetsockoptInt(p.server.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 || !p.sendProxyHeader() {
		p.failed()
		return
	}
	p.dialling.timer.Stop()
	p.dialling = nil
	p.pool.succeeded(p.from.Addr(), p.endpoint)
	p.proxy.add(p)
	p.pump()
}

// sendProxyHeader sends the client's address to the endpoint if the Service wants it.
func (p *pair) sendProxyHeader() bool {
	if !p.proxy.item.Load().proxyProtocol {
		return true
	}
	header := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(p.from), net.TCPAddrFromAddrPort(p.front))
	b, err := header.Format()
	if err != nil {
		return false
	}
	n, err := unix.SendmsgN(p.server.fd, b, nil, nil, unix.MSG_NOSIGNAL) // the header fits into the buffer of a new connection
	return err == nil && n == len(b)
}

// ready implements handler.
func (e *side) ready(events uint32) {
	const gone = unix.EPOLLERR | unix.EPOLLHUP
	e.readable = e.readable || events&(unix.EPOLLIN|unix.EPOLLRDHUP|gone) != 0
	e.writable = e.writable || events&(unix.EPOLLOUT|gone) != 0
	e.ending = e.ending || events&(unix.EPOLLRDHUP|unix.EPOLLPRI|gone) != 0
	p := e.pair
	switch {
	case p.dialling == nil:
		p.pump()
		// The side has ended its sending before, so no read will report its reset.
		if events&unix.EPOLLERR != 0 && p.directionFrom(e).ended {
			p.abort()
		}
	case e == &p.server && events&(unix.EPOLLOUT|gone) != 0:
		p.connected()
	case e == &p.client && events&unix.EPOLLERR != 0:
		p.abort()
	}
}

// directionFrom returns the direction that starts at a side.
func (p *pair) directionFrom(from *side) *direction {
	if from == &p.client {
		return &p.request
	}
	return &p.answers
}

// pump moves as many bytes as possible in both directions.
func (p *pair) pump() {
	p.rescheduled = false
	for _, w := range [...]*direction{&p.request, &p.answers} {
		if p.client.fd < 0 {
			return
		}
		ended := w.ended
		more, err := w.move(&p.loop.pipes)
		if err == nil && w.ended && !ended {
			err = p.ended(w)
		}
		switch {
		case err != nil:
			p.abort()
		case more && !p.rescheduled:
			p.rescheduled = true
			p.loop.rescheduled = append(p.loop.rescheduled, p)
		}
	}
}

// ended passes on that one side has ended its sending (half-close). After the second side has, the pair ends.
func (p *pair) ended(w *direction) error {
	if p.request.ended && p.answers.ended {
		p.close()
		return nil
	}
	return unix.Shutdown(w.to.fd, unix.SHUT_WR)
}

// abort ends both connections with RST, so that neither peer takes an incomplete answer for a complete one.
func (p *pair) abort() {
	for _, e := range [...]*side{&p.client, &p.server} {
		if e.fd >= 0 {
			resetOnClose(e.fd)
		}
	}
	p.close()
}

// close ends the pair. It may be called again.
func (p *pair) close() {
	if p.client.fd < 0 {
		return
	}
	if p.dialling != nil && p.server.fd >= 0 {
		p.dialling.timer.Stop()
		p.pool.leave(p.endpoint)
	}
	p.dialling = nil
	p.request.drop(&p.loop.pipes)
	p.answers.drop(&p.loop.pipes)
	p.closeSide(&p.client)
	p.closeSide(&p.server)
	p.proxy.remove(p)
}

func (p *pair) closeSide(e *side) {
	if e.fd >= 0 {
		p.loop.forget(e.fd)
		unix.Close(e.fd)
	}
	if e == &p.server {
		p.forgetDialed()
	}
	*e = side{pair: p, fd: -1}
}

func (p *pair) forgetDialed() {
	if p.dialed != (connection{}) {
		p.proxy.dialed.remove(p.dialed)
		p.dialed = connection{}
	}
}
