package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"
)

const (
	// maxBody is how much of an answer is read.
	maxBody = 10 << 10
	// maxHeader is how much before an answer is read.
	maxHeader = 256 << 10
	// maxMessage bounds the Message of a Result, in bytes.
	maxMessage = 256
)

// Run asks the Target once. It returns when the Timeout is over, at the latest, or when ctx is done.
func (p *Probe) Run(ctx context.Context, to Target) Result {
	r, wait := p.Start(to)
	if wait != nil {
		return wait(ctx)
	}
	return r
}

// Start asks the Target and does not block. It returns the Result if that is there at once, as where a connection to this node is
// all that is asked for. Otherwise it returns a function to be called without delay, which does the rest of Run.
func (p *Probe) Start(to Target) (Result, func(context.Context) Result) {
	start := time.Now()
	at, err := p.resolve(&to)
	var connecting *socket
	if err == nil && p.Kind == TCP && p.bare(at) && p.Send == "" && p.Expect == "" {
		var connected bool
		switch connecting, connected, err = connect(at, to.Mark); {
		case err != nil:
			return failure(p.fault(context.Background(), err)).after(start), nil
		case connected:
			connecting.Close()
			return success("").after(start), nil
		}
	}
	return Result{}, func(ctx context.Context) Result {
		ctx, cancel := context.WithDeadline(ctx, start.Add(p.Timeout))
		defer cancel()
		return p.ask(ctx, &to, at, err, connecting).after(start)
	}
}

// ask asks the Target, whose address is known unless err is set.
func (p *Probe) ask(ctx context.Context, to *Target, at netip.AddrPort, err error, connecting *socket) Result {
	c := &connection{ctx: ctx, probe: p, to: to, at: at}
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()
	switch {
	case p.Kind == Exec:
		return p.exec(ctx, to)
	case err != nil:
		return unknown(err.Error())
	case p.Host != at.Addr().String() && p.Refused(to.Policy) != "":
		return unknown(p.Refused(to.Policy))
	case p.Kind == HTTP:
		return p.http(c)
	case p.Kind == TCP:
		return p.tcp(c, connecting)
	case p.Kind == GRPC:
		return p.grpc(c)
	}
	return unknown("there is no such kind of probe")
}

// after returns the Result of a Probe that started then.
func (r Result) after(start time.Time) Result {
	r.Message = printable(r.Message, maxMessage)
	r.Took = time.Since(start)
	return r
}

// Refused returns why the Probe is not asked at any endpoint, unless that is its Host; "" if it is.
func (p *Probe) Refused(by *Policy) string {
	switch {
	case p.Host != "" && !by.Allows(p.Host):
		return fmt.Sprintf("connects to host %q, and liveness.allowHosts does not have it", p.Host)
	case p.unnamed():
		return fmt.Sprintf("asks port %q, and its container has none of that name", p.Port.Name)
	}
	return ""
}

// unnamed reports whether the Probe of a container names a port that the container does not have; else it has a number.
func (p *Probe) unnamed() bool { return p.Port.Name != "" && p.Origin.Form == ReadinessProbe }

func success(message string) Result { return Result{Verdict: Success, Message: message} }
func failure(message string) Result { return Result{Verdict: Failure, Message: message} }
func unknown(message string) Result { return Result{Verdict: Unknown, Message: message} }

// connection is what a dialer needs to know of one run.
type connection struct {
	ctx   context.Context // that of the run
	probe *Probe
	to    *Target
	at    netip.AddrPort // the address to ask

	buffers *buffers // those of HTTP

	mu     sync.Mutex
	open   []io.Closer
	closed bool
}

// keep has the connection closed at the end of the run, whatever a library makes of it; at once if that was before.
func (c *connection) keep(conn io.Closer) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		conn.Close()
		return net.ErrClosed
	}
	c.open = append(c.open, conn)
	return nil
}

// close ends the run.
func (c *connection) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.open {
		conn.Close()
	}
	c.open = nil
}

// bare reports whether a socket is enough to connect to the address. A name is not, nor is an address with a zone.
func (p *Probe) bare(at netip.AddrPort) bool {
	return p.Host == "" && !p.ProxyHeader && at.Addr().Zone() == ""
}

// stream connects as dialTo does, at less cost where that is possible.
func (c *connection) stream(port uint16) (io.ReadWriter, error) {
	at := netip.AddrPortFrom(c.at.Addr(), port)
	if !c.probe.bare(at) {
		return c.dialTo(c.ctx, port)
	}
	s, connected, err := connect(at, c.to.Mark)
	if err != nil {
		return nil, err
	}
	return c.streamOf(s, connected)
}

// streamOf returns the connection of a socket, once it is there.
func (c *connection) streamOf(s *socket, connected bool) (io.ReadWriter, error) {
	f := s.file()
	if err := c.keep(f); err != nil || connected {
		return f, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fault error
	err = raw.Write(func(uintptr) (done bool) {
		connected, fault = s.connected()
		return connected || fault != nil
	})
	return f, errors.Join(err, fault)
}

// dial connects to the address of the connection, or to the Host of the Probe. Closing what it returns resets the connection, so
// that no port is held in TIME_WAIT.
func (c *connection) dial(ctx context.Context) (net.Conn, error) { return c.dialTo(ctx, c.at.Port()) }

// dialTo is dial for another port, which a redirect may have named.
func (c *connection) dialTo(ctx context.Context, port uint16) (conn net.Conn, err error) {
	d := net.Dialer{Control: c.control, KeepAlive: -1, FallbackDelay: -1}
	d.Deadline, _ = c.ctx.Deadline() // http dials with a context of its own
	if c.probe.Host == "" {
		conn, err = d.DialTCP(ctx, "tcp", netip.AddrPort{}, netip.AddrPortFrom(c.at.Addr(), port))
	} else {
		conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(c.probe.Host, strconv.Itoa(int(port))))
	}
	if err != nil {
		return nil, err
	}
	if err := c.keep(conn); err != nil {
		return nil, err
	}
	if c.probe.ProxyHeader {
		if err := writeProxyHeader(ctx, conn); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return conn, nil
}

// control is prepare for a net.Dialer.
func (c *connection) control(_, _ string, raw syscall.RawConn) error {
	var fault error
	mark := c.to.Mark
	if c.probe.Host != "" { // another host may well be reached through a Service
		mark = 0
	}
	err := raw.Control(func(fd uintptr) { fault = prepare(int(fd), mark) })
	return errors.Join(err, fault)
}

// writeProxyHeader tells the server which connection this is, as a proxy in front of it would.
func writeProxyHeader(ctx context.Context, conn net.Conn) error {
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	from, to := conn.LocalAddr().(*net.TCPAddr).AddrPort(), conn.RemoteAddr().(*net.TCPAddr).AddrPort()
	family := "TCP4"
	if !to.Addr().Unmap().Is4() {
		family = "TCP6"
	}
	_, err := fmt.Fprintf(conn, "PROXY %s %s %s %d %d\r\n", family, from.Addr().Unmap(), to.Addr().Unmap(), from.Port(), to.Port())
	return err
}

// fault returns the message for an error of a connection.
func (p *Probe) fault(ctx context.Context, err error) string {
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		return "no answer within " + p.Timeout.String()
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "connection refused"
	}
	if err == io.EOF {
		return "the connection was closed without an answer"
	}
	return err.Error()
}

// printable returns text that cannot control a terminal, cut to at most max bytes.
func printable(s string, max int) string {
	cut := len(s) > max
	if cut {
		s = s[:max]
	}
	ok := func(r rune) bool { return r != utf8.RuneError && !unicode.IsControl(r) && !unicode.Is(unicode.Cf, r) }
	if strings.IndexFunc(s, func(r rune) bool { return !ok(r) }) >= 0 || !utf8.ValidString(s) {
		var b strings.Builder
		for _, r := range s {
			switch {
			case ok(r):
				b.WriteRune(r)
			case b.Len() > 0 && !strings.HasSuffix(b.String(), " "):
				b.WriteByte(' ')
			}
		}
		s = strings.TrimSpace(b.String())
	}
	if cut {
		s += " ..."
	}
	return s
}
