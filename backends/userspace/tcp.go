package userspace

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// dialTimeouts bound the attempts of one connection to reach an endpoint; the last one holds for all further endpoints.
// kube-proxy's userspace mode used the same steps.
var dialTimeouts = []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second}

const keepAlive = 15 * time.Second

// tcpProxy serves the TCP connections of one Service port. Its listeners outlive changes of the endpoints.
type tcpProxy struct {
	pool      *pool
	item      atomic.Pointer[listen]
	admit     *admission
	grace     time.Duration
	listeners []*net.TCPListener

	mu     sync.Mutex
	conns  map[*pair]struct{}
	closed bool
	wg     sync.WaitGroup
}

// pair is a client's connection and the endpoint's that it was joined to.
type pair struct {
	client, server *net.TCPConn
	endpoint       netip.AddrPort
	drain          *time.Timer
}

func newTCPProxy(listeners []*net.TCPListener, p *pool, admit *admission, grace time.Duration, item *listen) *tcpProxy {
	t := &tcpProxy{pool: p, admit: admit, grace: grace, listeners: listeners, conns: map[*pair]struct{}{}}
	t.item.Store(item)
	for _, l := range listeners {
		t.wg.Add(1)
		go t.accept(l)
	}
	return t
}

func (t *tcpProxy) accept(l *net.TCPListener) {
	defer t.wg.Done()
	var pause time.Duration
	for {
		c, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of descriptors or memory: connections end in a while, so accepting again at once would only spin.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			time.Sleep(pause)
			continue
		}
		pause = 0
		if !t.item.Load().allows(addrPort(c.RemoteAddr()).Addr()) || !t.admit.enter() {
			reset(c)
			continue
		}
		t.wg.Add(1)
		go func() {
			defer t.wg.Done()
			defer t.admit.leave()
			t.serve(c)
		}()
	}
}

func (t *tcpProxy) serve(client *net.TCPConn) {
	front := addrPort(client.LocalAddr())
	if item := t.item.Load(); item.redirected {
		original, ok := originalDst(client)
		if !ok || original == item.bind {
			reset(client)
			return
		}
		front = original
	}
	server, endpoint := t.connect(client, front)
	if server == nil {
		t.admit.failed.Add(1)
		reset(client)
		return
	}
	p := &pair{client: client, server: server, endpoint: endpoint}
	t.add(p)
	defer t.remove(p)
	p.join()
}

// connect tries one endpoint after the other until one answers.
func (t *tcpProxy) connect(client *net.TCPConn, front netip.AddrPort) (*net.TCPConn, netip.AddrPort) {
	from := addrPort(client.RemoteAddr())
	var tried []netip.AddrPort
	for {
		endpoint, ok := t.pool.pick(from.Addr(), tried)
		if !ok {
			return nil, netip.AddrPort{}
		}
		timeout := dialTimeouts[min(len(tried), len(dialTimeouts)-1)]
		server, err := t.dial(from, front, endpoint, timeout)
		if err == nil {
			t.pool.succeeded(from.Addr(), endpoint)
			return server, endpoint
		}
		t.pool.failed(endpoint)
		tried = append(tried, endpoint)
	}
}

func (t *tcpProxy) dial(client, front, endpoint netip.AddrPort, timeout time.Duration) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: timeout, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: keepAlive}}
	c, err := dialer.Dial("tcp", endpoint.String())
	if err != nil {
		return nil, err
	}
	server := c.(*net.TCPConn)
	if t.item.Load().proxyProtocol {
		header := proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(front))
		if _, err := header.WriteTo(server); err != nil {
			server.Close()
			return nil, err
		}
	}
	return server, nil
}

func (t *tcpProxy) add(p *pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conns[p] = struct{}{}
	// The endpoint may have gone while it was dialled.
	if t.closed || !t.pool.has(p.endpoint) {
		p.drain = time.AfterFunc(t.grace, p.abort)
	}
}

func (t *tcpProxy) remove(p *pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.drain != nil {
		p.drain.Stop()
	}
	delete(t.conns, p)
}

// endpointsChanged gives the connections to endpoints that are gone their time to end, and takes it back from those whose
// endpoint is there again.
func (t *tcpProxy) endpointsChanged() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for p := range t.conns {
		gone := t.closed || !t.pool.has(p.endpoint)
		switch {
		case gone && p.drain == nil:
			p.drain = time.AfterFunc(t.grace, p.abort)
		case !gone && p.drain != nil:
			p.drain.Stop()
			p.drain = nil
		}
	}
}

// close ends listening at once and lets the open connections drain.
func (t *tcpProxy) close() {
	for _, l := range t.listeners {
		l.Close()
	}
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.endpointsChanged()
}

func (t *tcpProxy) wait() { t.wg.Wait() }

func (t *tcpProxy) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns)
}

// join carries bytes both ways until both directions have ended. A side that ends its sending is passed on as such
// (half-close), and a reset as a reset.
func (p *pair) join() {
	done := make(chan error, 1)
	go func() { done <- carry(p.server, p.client) }()
	err := carry(p.client, p.server)
	if err != nil {
		p.abort()
	}
	if otherErr := <-done; otherErr != nil {
		p.abort()
		return
	}
	p.client.Close()
	p.server.Close()
}

func (p *pair) abort() {
	reset(p.client)
	reset(p.server)
}

// reset closes a connection with RST, so that the peer does not take an abnormal end for a complete answer.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// carry moves bytes from src to dst until src ends, and then ends dst's sending side. The bytes go through a pipe in the
// kernel (splice(2)). The pipe is only taken for bytes that have arrived: a connection that is idle holds none.
func carry(dst, src *net.TCPConn) error {
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	for {
		n, err := arrived(raw)
		if err != nil {
			reset(dst)
			reset(src)
			return err
		}
		if n == 0 {
			return dst.CloseWrite()
		}
		if _, err := io.CopyN(dst, src, int64(n)); err != nil {
			reset(dst)
			reset(src)
			return err
		}
	}
}

// arrived waits until there is something to read and returns how much, or 0 at the end of the stream.
func arrived(raw syscall.RawConn) (n int, err error) {
	var sockErr error
	err = raw.Read(func(fd uintptr) bool {
		if n, sockErr = unix.IoctlGetInt(int(fd), unix.SIOCINQ); sockErr != nil || n > 0 {
			return true
		}
		// Nothing has arrived, or the stream has ended: only a read tells one from the other.
		ready, err := peek(int(fd))
		if ready && err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ)
		}
		sockErr = err
		return ready
	})
	if err == nil {
		err = sockErr
	}
	return n, err
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

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
