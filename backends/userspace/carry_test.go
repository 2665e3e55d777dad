package userspace

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
)

// joinedThrough returns both ends of a connection through a proxy: the client's, and the endpoint's.
func joinedThrough(t *testing.T, limits Limits) (client, server *net.TCPConn, ls *Listeners) {
	t.Helper()
	endpoint, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { endpoint.Close() })
	item := web(t, netip.MustParseAddrPort(endpoint.Addr().String()))
	ls = started(t, limits, item)
	c, err := net.Dial("tcp", item.bind.String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := endpoint.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{c, s} {
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(30 * time.Second))
	}
	return c.(*net.TCPConn), s.(*net.TCPConn), ls
}

// pairOf waits for a pair and returns it. There must be only one.
func pairOf(t *testing.T, ls *Listeners) (only *pair) {
	t.Helper()
	poll(t, func() error {
		for _, protocols := range ls.open {
			proxy := protocols[dataplane.TCP].proxy.(*tcpProxy)
			proxy.mu.Lock()
			defer proxy.mu.Unlock()
			for only = range proxy.conns {
				return nil
			}
		}
		return errors.New("there is no pair")
	})
	return only
}

// onLoop runs f on the loop of the pair, where the pair may be read.
func onLoop(p *pair, f func()) {
	done := make(chan struct{})
	p.loop.post(func() {
		defer close(done)
		f()
	})
	<-done
}

// TestEitherSideMayEndFirst expects that each side can end its sending and still receives everything that the other
// sends.
func TestEitherSideMayEndFirst(t *testing.T) {
	for _, first := range []string{"client", "server"} {
		t.Run(first, func(t *testing.T) {
			one, other, ls := joinedThrough(t, Limits{})
			if first == "server" {
				one, other = other, one
			}
			io.WriteString(one, "question")
			one.CloseWrite()
			if got, err := io.ReadAll(other); string(got) != "question" || err != nil {
				t.Fatalf("got %q, %v", got, err)
			}
			for range 3 {
				io.WriteString(other, "answer ")
			}
			other.Close()
			if got, err := io.ReadAll(one); string(got) != "answer answer answer " || err != nil {
				t.Fatalf("after the half-close: %q, %v", got, err)
			}
			awaitOpen(t, ls, 0)
		})
	}
}

func awaitOpen(t *testing.T, ls *Listeners, want int) {
	t.Helper()
	poll(t, func() error {
		if n := ls.Open(); n != want {
			return fmt.Errorf("%d connections are open, want %d", n, want)
		}
		return nil
	})
}

// TestResetReachesTheOtherSide resets from either side, also after the other or the same side has ended its sending.
func TestResetReachesTheOtherSide(t *testing.T) {
	for _, who := range []string{"client", "server"} {
		for _, before := range []string{"nothing", "the other side has ended", "the same side has ended"} {
			t.Run(who+" after "+before, func(t *testing.T) {
				one, other, ls := joinedThrough(t, Limits{})
				if who == "server" {
					one, other = other, one
				}
				switch before {
				case "the other side has ended":
					other.CloseWrite()
					io.ReadAll(one)
				case "the same side has ended":
					one.CloseWrite()
					io.ReadAll(other)
				}
				one.SetLinger(0)
				one.Close()
				// If a stream has ended already, only a write can tell.
				poll(t, func() error {
					var err error
					if before != "the same side has ended" {
						_, err = other.Read(make([]byte, 1))
					} else {
						_, err = other.Write([]byte("x"))
					}
					if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
						return fmt.Errorf("the other side saw %v", err)
					}
					return nil
				})
				awaitOpen(t, ls, 0)
			})
		}
	}
}

// TestBytesArriveWholeBothWays sends much in both directions at once, through pipes and, if there are none, through
// buffers.
func TestBytesArriveWholeBothWays(t *testing.T) {
	for name, pipes := range map[string]int64{"pipes": 0, "no pipes": -1} {
		t.Run(name, func(t *testing.T) {
			client, server, _ := joinedThrough(t, Limits{pipes: pipes})
			const size = 8 << 20
			results := make(chan error, 2)
			for _, ends := range [][2]*net.TCPConn{{client, server}, {server, client}} {
				sent := make([]byte, size)
				rand.NewChaCha8([32]byte{}).Read(sent)
				go func() {
					for rest := sent; len(rest) > 0; {
						n := min(1+rand.IntN(200_000), len(rest))
						ends[0].Write(rest[:n])
						rest = rest[n:]
					}
					ends[0].CloseWrite()
				}()
				go func() {
					got, err := io.ReadAll(ends[1])
					if err == nil && !bytes.Equal(got, sent) {
						err = errors.New("other bytes arrived")
					}
					results <- err
				}()
			}
			for range 2 {
				if err := <-results; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestASlowReceiverCostsOneBuffer expects that bytes that a slow receiver does not take stay with the sender, and that
// an idle connection holds nothing.
func TestASlowReceiverCostsOneBuffer(t *testing.T) {
	client, server, ls := joinedThrough(t, Limits{})
	p := pairOf(t, ls)
	onLoop(p, func() {
		if p.answers.inPipe > 0 || p.request.inPipe > 0 || p.answers.rest != nil || p.request.rest != nil {
			t.Error("an idle connection holds a buffer")
		}
	})
	sent := 0
	for chunk := make([]byte, 1<<20); ; {
		server.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		n, err := server.Write(chunk)
		if sent += n; err != nil {
			break
		}
		if sent > 256<<20 {
			t.Fatal("the proxy takes without end what nobody reads")
		}
	}
	onLoop(p, func() {
		if held := p.answers.inPipe + len(p.answers.rest); held > pipeSize {
			t.Errorf("%d bytes are held for a receiver that does not read", held)
		}
	})
	server.CloseWrite()
	if got, err := io.Copy(io.Discard, client); got != int64(sent) || err != nil {
		t.Errorf("%d bytes of %d arrived later: %v", got, sent, err)
	}
}

// TestKeepAlive expects that both sides of the proxy notice a peer that disappeared without closing its connection.
func TestKeepAlive(t *testing.T) {
	_, _, ls := joinedThrough(t, Limits{})
	p := pairOf(t, ls)
	onLoop(p, func() {
		for side, fd := range map[string]int{"client": p.client.fd, "server": p.server.fd} {
			on, errOn := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE)
			idle, errIdle := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPIDLE)
			if on == 0 || idle != keepAliveSeconds || errOn != nil || errIdle != nil {
				t.Errorf("%s: keepalive %d, after %d s (%v, %v)", side, on, idle, errOn, errIdle)
			}
		}
	})
}

// TestAClientThatGoesWhileItWaits expects that a client that leaves early does not prevent another attempt at an
// endpoint.
func TestAClientThatGoesWhileItWaits(t *testing.T) {
	p := newPool(time.Now)
	a := netip.MustParseAddrPort("10.0.0.1:1")
	p.set(endpoints(a), nil, 0)
	p.failed(a)
	p.known[a].retryAt = time.Now()
	client := netip.MustParseAddr("192.0.2.1")
	p.pick(client, nil)
	if !p.known[a].probing {
		t.Fatal("the connection is no probe")
	}
	p.leave(a)
	if p.known[a].probing {
		t.Error("an endpoint is never probed again after its probe's client has gone")
	}
}
