package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Outcome is the outcome of a probe.
type Outcome string

// The outcomes.
const (
	Answered    Outcome = "answered"
	Refused     Outcome = "refused"     // TCP reset, or ICMP port unreachable
	Unreachable Outcome = "unreachable" // ICMP network or host unreachable, or no route
	Dropped     Outcome = "dropped"     // nothing came back in time
)

// Reply is the result of a probe.
type Reply struct {
	Outcome Outcome
	// Server is the name of the host that answered, and Port the port on which it was asked.
	Server string
	Port   uint16
	// Source is the source address that the server saw.
	Source netip.AddrPort
	// Err is the error behind an outcome other than Answered.
	Err error
}

// String returns "pod1:80 saw 10.244.1.2:34567", or the outcome with its error.
func (r Reply) String() string {
	if r.Outcome == Answered {
		return fmt.Sprintf("%s:%d saw %s", r.Server, r.Port, r.Source)
	}
	return fmt.Sprintf("%s (%v)", r.Outcome, r.Err)
}

// Probe asks once, on a new connection, and waits at most timeout.
func (h *Host) Probe(proto Protocol, to netip.AddrPort, timeout time.Duration) Reply {
	f, err := h.Open(proto, to, timeout)
	if err != nil {
		return failed(err)
	}
	defer f.Close()
	return f.Ask(timeout)
}

// control lets a probe reuse the source port of an earlier one at once, and asks for every ICMP error.
func control(network, _ string, c syscall.RawConn) error {
	var errs []error
	set := func(fd, level, option int) { errs = append(errs, unix.SetsockoptInt(fd, level, option, 1)) }
	cerr := c.Control(func(fd uintptr) {
		set(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR)
		switch network {
		case "udp4", "ip4":
			set(int(fd), unix.SOL_IP, unix.IP_RECVERR)
		case "udp6", "ip6":
			set(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR)
		}
	})
	return errors.Join(append(errs, cerr)...)
}

// Flow is a connection, or a socket that keeps its source port. It can be used to ask again and again.
type Flow struct {
	proto Protocol
	conn  net.Conn
	lines *bufio.Reader
	sctp  sctpPacket
}

// Open connects to an address from a free source port.
func (h *Host) Open(proto Protocol, to netip.AddrPort, timeout time.Duration) (*Flow, error) {
	return h.OpenFrom(proto, netip.AddrPort{}, to, timeout)
}

// OpenFrom connects from a given source; a zero address or port is chosen by the kernel.
func (h *Host) OpenFrom(proto Protocol, from, to netip.AddrPort, timeout time.Duration) (*Flow, error) {
	f := &Flow{proto: proto}
	err := h.Do(func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		d := net.Dialer{Control: control}
		switch proto {
		case TCP:
			if from.IsValid() {
				d.LocalAddr = net.TCPAddrFromAddrPort(from)
			}
			f.conn, err = d.DialContext(ctx, "tcp", to.String())
		case UDP:
			if from.IsValid() {
				d.LocalAddr = net.UDPAddrFromAddrPort(from)
			}
			f.conn, err = d.DialContext(ctx, "udp", to.String())
		case SCTP:
			f.conn, f.sctp, err = dialSCTP(ctx, from, to)
		default:
			err = fmt.Errorf("unknown protocol %q", proto)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	f.lines = bufio.NewReader(f.conn)
	return f, nil
}

// Ask asks for the name of the server. A later Ask may be answered by another server, or not at all.
func (f *Flow) Ask(timeout time.Duration) Reply {
	if err := f.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return failed(err)
	}
	text, err := f.ask()
	if err != nil {
		return failed(err)
	}
	return parseAnswer(text)
}

func (f *Flow) ask() (string, error) {
	request := []byte("who?\n")
	if f.proto == SCTP {
		request = f.sctp.marshal()
	}
	// A packet that the local firewall discards fails with EPERM. The read from the socket reports the consequence.
	if _, err := f.conn.Write(request); err != nil && !errors.Is(err, syscall.EPERM) {
		return "", err
	}
	switch f.proto {
	case TCP:
		return f.lines.ReadString('\n')
	case UDP:
		buf := make([]byte, 1500)
		n, err := f.conn.Read(buf)
		return string(buf[:n]), err
	}
	for buf := make([]byte, 1500); ; {
		n, err := f.conn.Read(buf)
		if err != nil {
			return "", err
		}
		p, err := parseSCTP(stripIPv4(buf[:n]))
		if err == nil && p.chunk == sctpInitAck && p.dst == f.sctp.src && p.initTag == f.sctp.initTag {
			return p.text, nil
		}
	}
}

// LocalPort returns the source port of the flow.
func (f *Flow) LocalPort() uint16 {
	if f.proto == SCTP {
		return f.sctp.src
	}
	a, _ := netip.ParseAddrPort(f.conn.LocalAddr().String())
	return a.Port()
}

// Close ends the flow, TCP with a reset so that no TIME-WAIT state is left.
func (f *Flow) Close() {
	if c, ok := f.conn.(*net.TCPConn); ok {
		_ = c.SetLinger(0)
	}
	f.conn.Close()
}

func parseAnswer(text string) Reply {
	server, source, ok := strings.Cut(strings.TrimSpace(text), " ")
	if !ok {
		return failed(fmt.Errorf("strange answer %q", text))
	}
	r := Reply{Outcome: Answered}
	name, port, _ := strings.Cut(server, ":")
	r.Server = name
	if _, err := fmt.Sscan(port, &r.Port); err != nil {
		return failed(fmt.Errorf("strange answer %q", text))
	}
	var err error
	if r.Source, err = netip.ParseAddrPort(source); err != nil {
		return failed(fmt.Errorf("strange answer %q", text))
	}
	return r
}

// failed returns the outcome that belongs to a socket's error.
func failed(err error) Reply {
	r := Reply{Err: err}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF):
		r.Outcome = Refused
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EACCES):
		r.Outcome = Unreachable
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		r.Outcome = Dropped
	default:
		r.Outcome = Outcome("failed")
	}
	return r
}

// DialContext dials like net.Dialer, from the host's namespace. The address is an IP address with a port.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
