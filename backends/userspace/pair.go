package userspace

import (
	"net"
	"net/netip"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// dialTimeouts bound the attempts of one connection to reach an endpoint; the last one holds for all further endpoints.
// kube-proxy's userspace mode used the same steps.
var dialTimeouts = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

// pair is a client's connection and the endpoint's that it is joined to. It belongs to a loop.
type pair struct {
	proxy *tcpProxy
	loop  *loop
	pool  *pool

	from, front      netip.AddrPort // the client, and the address that it connected to
	client, server   end
	request, answers way
	again            bool // it is in the loop's list

	endpoint netip.AddrPort
	dialling *attempt // nil once an endpoint has answered

	drain *time.Timer // guarded by the proxy's lock
}

// attempt is the search for an endpoint that answers.
type attempt struct {
	tried []netip.AddrPort
	timer *time.Timer
}

// allEvents asks to be told once of each change.
const allEvents = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET

func newPair(t *tcpProxy, l *loop, fd int, from, front netip.AddrPort, pool *pool) *pair {
	p := &pair{proxy: t, loop: l, pool: pool, from: from, front: front, dialling: &attempt{}}
	p.client, p.server = end{pair: p, fd: fd}, end{pair: p, fd: -1}
	p.request, p.answers = way{from: &p.client, to: &p.server}, way{from: &p.server, to: &p.client}
	return p
}

// start begins to look for an endpoint.
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

// connect begins to connect to the endpoint.
func (p *pair) connect(endpoint netip.AddrPort) error {
	fd, err := newSocket(endpoint.Addr())
	if err != nil {
		return err
	}
	if err = unix.Connect(fd, sockaddr(endpoint)); err == nil || err == unix.EINPROGRESS {
		p.server = end{pair: p, fd: fd}
		err = p.loop.serve(fd, allEvents, &p.server)
	}
	if err != nil {
		unix.Close(fd)
		p.server.fd = -1
	}
	return err
}

// failed is called when the endpoint did not answer.
func (p *pair) failed() {
	p.dialling.timer.Stop()
	p.pool.failed(p.endpoint)
	p.closeEnd(&p.server)
	p.dial()
}

// connected is called when the endpoint has answered, be it with a refusal.
func (p *pair) connected() {
	if code, err := unix.GetsockoptInt(p.server.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 || !p.introduce() {
		p.failed()
		return
	}
	p.dialling.timer.Stop()
	p.dialling = nil
	p.pool.succeeded(p.from.Addr(), p.endpoint)
	p.proxy.add(p)
	p.pump()
}

// introduce tells the endpoint who the client is, if the Service wants it.
func (p *pair) introduce() bool {
	if !p.proxy.item.Load().proxyProtocol {
		return true
	}
	header := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(p.from), net.TCPAddrFromAddrPort(p.front))
	b, err := header.Format()
	if err != nil {
		return false
	}
	n, err := unix.SendmsgN(p.server.fd, b, nil, nil, unix.MSG_NOSIGNAL) // it fits into the buffer of a new connection
	return err == nil && n == len(b)
}

// ready implements handler.
func (e *end) ready(events uint32) {
	const gone = unix.EPOLLERR | unix.EPOLLHUP
	e.readable = e.readable || events&(unix.EPOLLIN|unix.EPOLLRDHUP|gone) != 0
	e.writable = e.writable || events&(unix.EPOLLOUT|gone) != 0
	e.ending = e.ending || events&(unix.EPOLLRDHUP|unix.EPOLLPRI|gone) != 0
	p := e.pair
	switch {
	case p.dialling == nil:
		p.pump()
		// A reset that no read meets, since the side had ended its sending before.
		if events&unix.EPOLLERR != 0 && p.way(e).ended {
			p.abort()
		}
	case e == &p.server && events&(unix.EPOLLOUT|gone) != 0:
		p.connected()
	case e == &p.client && events&unix.EPOLLERR != 0:
		p.abort()
	}
}

// way returns the direction that comes from an end.
func (p *pair) way(from *end) *way {
	if from == &p.client {
		return &p.request
	}
	return &p.answers
}

// pump moves what can be moved, in both directions.
func (p *pair) pump() {
	p.again = false
	for _, w := range [...]*way{&p.request, &p.answers} {
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
		case more && !p.again:
			p.again = true
			p.loop.again = append(p.loop.again, p)
		}
	}
}

// ended passes on that one side has ended its sending (half-close). The pair ends with the second.
func (p *pair) ended(w *way) error {
	if p.request.ended && p.answers.ended {
		p.close()
		return nil
	}
	return unix.Shutdown(w.to.fd, unix.SHUT_WR)
}

// abort ends both connections with RST, so that neither peer takes an abnormal end for a complete answer.
func (p *pair) abort() {
	for _, e := range [...]*end{&p.client, &p.server} {
		if e.fd >= 0 {
			resetOnClose(e.fd)
		}
	}
	p.close()
}

// close ends the pair; it may be called again.
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
	p.closeEnd(&p.client)
	p.closeEnd(&p.server)
	p.proxy.remove(p)
}

func (p *pair) closeEnd(e *end) {
	if e.fd >= 0 {
		p.loop.forget(e.fd)
		unix.Close(e.fd)
	}
	*e = end{pair: p, fd: -1}
}
