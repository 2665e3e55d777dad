package main_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// What offers load to a proxy and takes it uses blocking system calls on threads of its own, and never looks at the bytes,
// so that it costs little beside what it measures.

// The servers of a proxy benchmark, by port.
const (
	floodPort = 8000 // sends without end
	shortPort = 8001 // answers one request and closes
	echoPort  = 8002 // answers every request
	udpPort   = 8003 // sends every datagram back
	idlePort  = 8004 // the same as echoPort
)

// messageSize is the size of a request, of an answer, and of a datagram.
const messageSize = 128

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// must ends the benchmark's goroutine on an error that is none of the proxy's.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// rawServe answers on a TCP port of the host until the benchmark ends.
func rawServe(b *testing.B, h *netlab.Host, port uint16, serve func(fd int)) {
	b.Helper()
	var fd int
	err := h.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err != nil {
			return err
		}
		return unix.Listen(fd, 4096)
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Shutdown(fd, unix.SHUT_RDWR); unix.Close(fd) })
	for range 4 {
		go func() {
			for {
				c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				if err == unix.EINTR || err == unix.ECONNABORTED {
					continue
				}
				if err != nil {
					return
				}
				serve(c)
			}
		}()
	}
}

func serveFlood(fd int) {
	go func() {
		defer unix.Close(fd)
		chunk := make([]byte, 256<<10)
		for {
			if _, err := unix.SendmsgN(fd, chunk, nil, nil, unix.MSG_NOSIGNAL); err != nil && err != unix.EINTR {
				return
			}
		}
	}()
}

func serveShort(fd int) {
	defer unix.Close(fd)
	buf := make([]byte, messageSize)
	if n, err := unix.Read(fd, buf); n == 0 || err != nil {
		return
	}
	unix.SendmsgN(fd, buf, nil, nil, unix.MSG_NOSIGNAL)
}

// echoes serves connections by the thousand from one thread.
type echoes struct{ epoll int }

func newEchoes(b *testing.B) *echoes {
	e := &echoes{must(unix.EpollCreate1(unix.EPOLL_CLOEXEC))}
	b.Cleanup(func() { unix.Close(e.epoll) })
	go e.run()
	return e
}

func (e *echoes) serve(fd int) {
	unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
	if unix.EpollCtl(e.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}) != nil {
		unix.Close(fd)
	}
}

func (e *echoes) run() {
	events, buf := make([]unix.EpollEvent, 128), make([]byte, messageSize)
	for {
		n, err := unix.EpollWait(e.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			return
		}
		for _, ev := range events[:max(n, 0)] {
			got, err := unix.Read(int(ev.Fd), buf)
			if got <= 0 || err != nil {
				unix.Close(int(ev.Fd))
				continue
			}
			unix.SendmsgN(int(ev.Fd), buf[:got], nil, nil, unix.MSG_NOSIGNAL)
		}
	}
}

// rawDial connects from the thread's namespace. What takes longer than the patience of a benchmark fails.
func rawDial(to netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	timeout := unix.NsecToTimeval(int64(answerWait))
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
	if err = unix.Connect(fd, sockaddr(to)); err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if err == unix.EINTR {
		return rawDial(to)
	}
	return -1, err
}

// ask sends a request and waits for the answer.
func rawAsk(fd int, buf []byte) error {
	if _, err := unix.SendmsgN(fd, buf[:messageSize], nil, nil, unix.MSG_NOSIGNAL); err != nil {
		return err
	}
	for got := 0; got < messageSize; {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return unix.ECONNRESET
		}
		got += n
	}
	return nil
}

// clients runs work on so many threads in the host's namespace until the time is over.
func clients(b *testing.B, h *netlab.Host, n int, work func(i int, over func() bool) error) (end func()) {
	b.Helper()
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := h.Do(func() error { return work(i, stop.Load) }); err != nil && !stop.Load() {
				b.Error(err)
			}
		})
	}
	return func() {
		stop.Store(true)
		wg.Wait()
	}
}

// download counts the bytes that come from to, without looking at them.
func download(to netip.AddrPort, over func() bool, bytes *atomic.Int64) error {
	fd, err := rawDial(to)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 1<<20)
	for !over() {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err != nil {
			return err
		}
		bytes.Add(int64(n))
	}
	return nil
}

// shortly makes connections for one question each.
func shortly(to netip.AddrPort, over func() bool, count *atomic.Int64) error {
	buf := make([]byte, messageSize)
	for !over() {
		fd, err := rawDial(to)
		if err != nil {
			return err
		}
		if err = rawAsk(fd, buf); err == nil {
			_, err = unix.Read(fd, buf) // the end
		}
		unix.Close(fd)
		if err != nil {
			return err
		}
		count.Add(1)
	}
	return nil
}

// paced asks at a fixed rate on one connection and notes how long each answer took.
func paced(to netip.AddrPort, every time.Duration, over func() bool, took *[]time.Duration) error {
	fd, err := rawDial(to)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, messageSize)
	for next := time.Now(); !over(); next = next.Add(every) {
		rest := unix.NsecToTimespec(max(0, time.Until(next)).Nanoseconds())
		unix.Nanosleep(&rest, nil)
		start := time.Now()
		if err := rawAsk(fd, buf); err != nil {
			return err
		}
		*took = append(*took, time.Since(start))
	}
	return nil
}

// udpBatch is how many datagrams a client keeps under way, and how many a system call takes.
const udpBatch = 16

func udpMessages() []ipv4.Message {
	ms := make([]ipv4.Message, udpBatch)
	for i := range ms {
		ms[i].Buffers = [][]byte{make([]byte, messageSize)}
	}
	return ms
}

// serveUDP sends datagrams back until the benchmark ends.
func serveUDP(b *testing.B, h *netlab.Host, port uint16) {
	b.Helper()
	var conn net.PacketConn
	err := h.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", netip.AddrPortFrom(h.IPv4, port).String())
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	conn.(*net.UDPConn).SetReadBuffer(4 << 20)
	socket, in := ipv4.NewPacketConn(conn), udpMessages()
	go func() {
		for {
			n, err := socket.ReadBatch(in, 0)
			if err != nil {
				return
			}
			for out := in[:n]; len(out) > 0; {
				n, err := socket.WriteBatch(out, 0)
				if err != nil {
					break
				}
				out = out[n:]
			}
		}
	}()
}

// udpFlow is a client's socket to a UDP port.
type udpFlow struct {
	conn   net.Conn
	socket *ipv4.PacketConn
	out    []ipv4.Message
	in     []ipv4.Message
}

func dialUDP(h *netlab.Host, to netip.AddrPort) (*udpFlow, error) {
	f := &udpFlow{out: udpMessages(), in: udpMessages()}
	err := h.Do(func() (err error) {
		f.conn, err = net.Dial("udp4", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	f.conn.(*net.UDPConn).SetReadBuffer(1 << 20)
	f.socket = ipv4.NewPacketConn(f.conn.(*net.UDPConn))
	return f, nil
}

// pingPong keeps a batch under way. What is lost is sent again after a while.
func (f *udpFlow) pingPong(over func() bool, answered, lost *atomic.Int64) {
	window := udpBatch
	for send := window; !over(); {
		if n, err := f.socket.WriteBatch(f.out[:send], 0); err == nil && n < send {
			send -= n
			continue
		}
		f.conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := f.socket.ReadBatch(f.in, 0)
		if err != nil {
			lost.Add(int64(window))
			send = window
			continue
		}
		answered.Add(int64(n))
		send = n
	}
}

// stream sends at a fixed rate, whatever comes back, and counts both.
func (f *udpFlow) stream(every time.Duration, over func() bool, sent, answered *atomic.Int64) {
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			n, err := f.socket.ReadBatch(f.in, 0)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			answered.Add(int64(max(n, 0)))
		}
	}()
	for next := time.Now(); !over(); next = next.Add(every) {
		time.Sleep(time.Until(next))
		if n, err := f.socket.WriteBatch(f.out, 0); err == nil {
			sent.Add(int64(n))
		}
	}
	f.conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond)) // what is under way may arrive
	<-received
}
