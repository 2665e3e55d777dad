package health

import (
	"container/list"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxConns is how many connections a server has open at once. Probes and scrapers need a few.
const maxConns = 128

// connLimit bounds how many connections are open. The oldest makes room for a new one: a client that opens connections and says
// nothing keeps no probe from its answer.
type connLimit struct {
	max int

	mu    sync.Mutex
	order list.List // of net.Conn, the oldest first
	open  map[net.Conn]*list.Element
}

func newConnLimit(n int) *connLimit {
	return &connLimit{max: n, open: map[net.Conn]*list.Element{}}
}

// newTotalLimit bounds the connections of several servers together, so that most descriptors are left for files, for
// sockets to the kernel and for children.
func newTotalLimit() *connLimit {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return newConnLimit(maxConns)
	}
	return newConnLimit(int(min(max(files.Cur/8, 8), 4*maxConns)))
}

func (l *connLimit) add(c net.Conn) {
	l.mu.Lock()
	l.open[c] = l.order.PushBack(c)
	full := l.order.Len() > l.max
	l.mu.Unlock()
	if full {
		l.closeOldest()
	}
}

func (l *connLimit) remove(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.open[c]; e != nil {
		l.order.Remove(e)
		delete(l.open, c)
	}
}

func (l *connLimit) closeOldest() {
	l.mu.Lock()
	e := l.order.Front()
	l.mu.Unlock()
	if e != nil {
		e.Value.(net.Conn).Close() // which removes it
	}
}

// leavePatience is how long awaitNone waits for clients.
const leavePatience = 2 * time.Second

// awaitNone waits until no connection is open, but not for ever. One that was accepted just before may not be known yet, so it
// waits a little in any case. http.Server.Shutdown would not answer a question that it reads later.
func (l *connLimit) awaitNone() {
	const step = 50 * time.Millisecond
	for began, none := time.Now(), 0; none < 2 && time.Since(began) < leavePatience; time.Sleep(step) {
		l.mu.Lock()
		if l.order.Len() == 0 {
			none++
		}
		l.mu.Unlock()
	}
}

// limited is a listener whose connections are bounded.
type limited struct {
	net.Listener
	own, total *connLimit
}

func limit(ln net.Listener, total *connLimit) net.Listener {
	return &limited{Listener: ln, own: newConnLimit(maxConns), total: total}
}

// Accept implements net.Listener. If there are no descriptors left the oldest connection gives up its own, and the server
// tries again within a second.
func (l *limited) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		l.total.closeOldest()
	}
	if err != nil {
		return nil, err
	}
	counted := &countedConn{Conn: c, limits: [2]*connLimit{l.own, l.total}}
	for _, limit := range counted.limits {
		limit.add(counted)
	}
	return counted, nil
}

// countedConn is a connection that counts until it is closed. The server closes each that it accepted, in the end.
type countedConn struct {
	net.Conn
	limits [2]*connLimit
}

func (c *countedConn) Close() error {
	for _, limit := range c.limits {
		limit.remove(c)
	}
	return c.Conn.Close()
}
