package handover

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// raw is a socket or file as long as it is open.
type raw interface {
	SyscallConn() (syscall.RawConn, error)
}

// Sockets are the listening sockets of a process other than those that a Service has, by name. A process that replaces another
// one gets the other's. They are safe for concurrent use.
type Sockets struct {
	mu sync.Mutex
	// open are those that this process listens at, and inherited those that it may.
	open      map[string]raw
	inherited map[string]*os.File
	// reserved are the names of those that will be asked for later.
	reserved map[string]bool
	// serve is closed when those that were inherited may be accepted from.
	serve chan struct{}
}

// NewSockets returns Sockets of a process that has inherited none.
func NewSockets() *Sockets {
	s := &Sockets{open: map[string]raw{}, inherited: map[string]*os.File{}, reserved: map[string]bool{}, serve: make(chan struct{})}
	close(s.serve)
	return s
}

// Wait has clients of inherited sockets wait until Serve. It must be called before any other method.
func (s *Sockets) Wait() { s.serve = make(chan struct{}) }

// Serving is closed when clients of inherited sockets may be served.
func (s *Sockets) Serving() <-chan struct{} { return s.serve }

// ReserveBoth keeps what was inherited for an address for ListenBoth, which is called after Serve.
func (s *Sockets) ReserveBoth(at netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reserved["udp "+at.String()], s.reserved["tcp "+at.String()] = true, true
}

// Serve serves the clients of inherited sockets, and closes those that this process has not asked for.
func (s *Sockets) Serve() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, f := range s.inherited {
		if !s.reserved[name] {
			f.Close()
			delete(s.inherited, name)
		}
	}
	close(s.serve)
}

// Inherit takes a descriptor, and closes it if it returns an error: it is not what its name says.
func (s *Sockets) Inherit(name string, fd int) error {
	if err := check(name, fd); err != nil {
		unix.Close(fd)
		return fmt.Errorf("the descriptor of %q: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inherited[name] != nil {
		unix.Close(fd)
		return fmt.Errorf("%q was given twice", name)
	}
	s.inherited[name] = os.NewFile(uintptr(fd), name)
	return nil
}

// check returns an error for a descriptor that is not what its name says: a network and an address, as in net.Listen, or a
// file.
func check(name string, fd int) error {
	network, address, _ := strings.Cut(name, " ")
	if network == "file" {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return errors.New("it is no file")
		}
		return nil
	}
	family, kind, listening := 0, unix.SOCK_STREAM, 1
	switch network {
	case "tcp":
	case "udp":
		kind, listening = unix.SOCK_DGRAM, 0
	case "unix":
		family = unix.AF_UNIX
	default:
		return errors.New("it is of no kind that is handed over")
	}
	for option, want := range map[int]int{unix.SO_TYPE: kind, unix.SO_ACCEPTCONN: listening} {
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, option); err != nil {
			return err
		} else if got != want {
			return fmt.Errorf("it is no socket for %s", network)
		}
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	var at netip.AddrPort
	switch b := bound.(type) {
	case *unix.SockaddrUnix:
		if family != unix.AF_UNIX || b.Name != address {
			return fmt.Errorf("it is bound to %q", b.Name)
		}
		return unix.SetNonblock(fd, true)
	case *unix.SockaddrInet4:
		at = netip.AddrPortFrom(netip.AddrFrom4(b.Addr), uint16(b.Port))
	case *unix.SockaddrInet6:
		at = netip.AddrPortFrom(netip.AddrFrom16(b.Addr).Unmap(), uint16(b.Port))
	default:
		family = -1
	}
	if family != 0 {
		return errors.New("it is of another family")
	}
	want, err := netip.ParseAddrPort(address)
	switch {
	case err != nil: // a host's name, or no host
		return unix.SetNonblock(fd, true)
	case want.Port() != 0 && want.Port() != at.Port(), want.Addr() != at.Addr() && !(want.Addr().IsUnspecified() && at.Addr().IsUnspecified()):
		return fmt.Errorf("it is bound to %s", at)
	}
	return unix.SetNonblock(fd, true)
}

// take returns the file that was inherited by this name, or nil.
func (s *Sockets) take(name string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.inherited[name]
	delete(s.inherited, name)
	return f
}

// keep makes a socket one that is handed over, as long as it is open.
func (s *Sockets) keep(name string, r raw) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[name] = r
}

// Listen is net.Listen for "tcp", or takes the socket that was inherited for the address.
func (s *Sockets) Listen(network, address string) (net.Listener, error) {
	name := network + " " + address
	if f := s.take(name); f != nil {
		defer f.Close()
		ln, err := net.FileListener(f)
		if err != nil {
			return nil, err
		}
		tcp, ok := ln.(*net.TCPListener)
		if !ok {
			ln.Close()
			return nil, fmt.Errorf("what was inherited for %s is no socket of TCP", name)
		}
		s.keep(name, tcp)
		return &waiting{TCPListener: tcp, serve: s.serve, closed: make(chan struct{})}, nil
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	s.keep(name, ln.(raw))
	return ln, nil
}

// waiting is a listener that accepts only once it may.
type waiting struct {
	*net.TCPListener
	serve  <-chan struct{}
	once   sync.Once
	closed chan struct{}
}

// Accept implements net.Listener.
func (w *waiting) Accept() (net.Conn, error) {
	select {
	case <-w.serve:
		return w.TCPListener.Accept()
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (w *waiting) Close() error {
	w.once.Do(func() { close(w.closed) })
	return w.TCPListener.Close()
}

// ListenUnix listens at a Unix socket, or takes the one that was inherited by the name.
func (s *Sockets) ListenUnix(address string) (*net.UnixListener, error) {
	name := "unix " + address
	var ln *net.UnixListener
	f := s.take(name)
	if f == nil {
		var err error
		if ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: address, Net: "unix"}); err != nil {
			return nil, err
		}
	} else {
		defer f.Close()
		any, err := net.FileListener(f)
		if err != nil {
			return nil, err
		}
		ln = any.(*net.UnixListener) // as check has found
	}
	s.keep(name, ln)
	return ln, nil
}

// ListenBoth opens sockets for UDP and TCP at an address with a function, or takes those that were inherited for the address.
func (s *Sockets) ListenBoth(at netip.AddrPort, open func() (*net.UDPConn, *net.TCPListener, error)) (udp *net.UDPConn, tcp *net.TCPListener, err error) {
	udpName, tcpName := "udp "+at.String(), "tcp "+at.String()
	u, t := s.take(udpName), s.take(tcpName)
	if u != nil && t != nil {
		udp, tcp, err = both(u, t)
	}
	for _, f := range []*os.File{u, t} {
		if f != nil {
			f.Close()
		}
	}
	if udp == nil && err == nil {
		udp, tcp, err = open()
	}
	if err != nil {
		return nil, nil, err
	}
	s.keep(udpName, udp)
	s.keep(tcpName, tcp)
	return udp, tcp, nil
}

func both(u, t *os.File) (*net.UDPConn, *net.TCPListener, error) {
	conn, err := net.FilePacketConn(u)
	if err != nil {
		return nil, nil, err
	}
	ln, err := net.FileListener(t)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn.(*net.UDPConn), ln.(*net.TCPListener), nil // as check has found
}

// Keep has a file handed over by its name.
func (s *Sockets) Keep(name string, f *os.File) { s.keep("file "+name, f) }

// KeepUnix has a Unix socket handed over by its address.
func (s *Sockets) KeepUnix(address string, ln *net.UnixListener) { s.keep("unix "+address, ln) }

// Has reports whether something was inherited by this name, and is not taken yet.
func (s *Sockets) Has(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inherited[name] != nil
}

// File returns the file that was inherited by its name, or nil.
func (s *Sockets) File(name string) *os.File {
	f := s.take("file " + name)
	if f != nil {
		s.keep("file "+name, f)
	}
	return f
}

// With calls f with what is open. It is valid until f returns.
func (s *Sockets) With(f func([]Socket) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Socket
	var use func(names []string) error
	use = func(names []string) error {
		if len(names) == 0 {
			return f(all)
		}
		conn, err := s.open[names[0]].SyscallConn()
		if err != nil {
			return use(names[1:])
		}
		var result error
		entered := false
		err = conn.Control(func(fd uintptr) { // it is not closed meanwhile
			entered = true
			all = append(all, Socket{names[0], int(fd)})
			result = use(names[1:])
		})
		if err != nil && !entered { // it was closed before
			delete(s.open, names[0])
			return use(names[1:])
		}
		return result
	}
	names := make([]string, 0, len(s.open))
	for name := range s.open {
		names = append(names, name)
	}
	return use(names)
}
