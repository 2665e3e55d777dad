package apitest

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy forwards TCP connections. Stall makes it keep connections open, accept new ones, and forward nothing. Slow
// makes it slow.
type Proxy struct {
	ln      net.Listener
	dial    func() (net.Conn, error)
	stalled atomic.Bool
	delay   atomic.Int64
	mu      sync.Mutex
	conns   []net.Conn
}

// NewProxy forwards to an address until the test ends.
func NewProxy(t testing.TB, to string) *Proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return NewProxyOn(t, ln, func() (net.Conn, error) { return net.Dial("tcp", to) })
}

// NewProxyOn forwards connections from a listener to the dialed address, until the test ends.
func NewProxyOn(t testing.TB, ln net.Listener, dial func() (net.Conn, error)) *Proxy {
	p := &Proxy{ln: ln, dial: dial}
	t.Cleanup(func() {
		ln.Close()
		p.Cut()
	})
	go p.accept()
	return p
}

// Address returns the address that the Proxy listens on.
func (p *Proxy) Address() string { return p.ln.Addr().String() }

// Stall stops or resumes forwarding. A stalled connection stays stalled; after a resume only new ones are forwarded.
func (p *Proxy) Stall(yes bool) { p.stalled.Store(yes) }

// Slow delays each piece of up to 32 KiB by that time.
func (p *Proxy) Slow(delay time.Duration) { p.delay.Store(int64(delay)) }

// Cut ends all current connections. Later ones are forwarded.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *Proxy) accept() {
	for {
		in, err := p.ln.Accept()
		if err != nil {
			return
		}
		p.keep(in)
		if p.stalled.Load() {
			continue
		}
		out, err := p.dial()
		if err != nil {
			in.Close()
			continue
		}
		p.keep(out)
		go p.forward(in, out)
		go p.forward(out, in)
	}
}

func (p *Proxy) keep(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
}

func (p *Proxy) forward(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if p.stalled.Load() {
			_, _ = io.Copy(io.Discard, from) // until the peer closes it
			return
		}
		time.Sleep(time.Duration(p.delay.Load()))
		if _, e := to.Write(buf[:n]); e != nil || err != nil {
			from.Close()
			to.Close()
			return
		}
	}
}
