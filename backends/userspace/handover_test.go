package userspace

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
)

// duplicate returns another descriptor of a socket.
func duplicate(t *testing.T, fd int) int {
	t.Helper()
	again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// handedOver returns Listeners that have the sockets of others, as another process would.
func handedOver(t *testing.T, from *Listeners) *Listeners {
	t.Helper()
	to := NewListeners(Limits{})
	err := from.WithSockets(func(sockets []Socket, _ []string) error {
		for _, s := range sockets {
			if err := to.Inherit(s.Name, duplicate(t, s.FD)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { to.Drain(t.Context()) })
	return to
}

// TestInheritRefusesWhatIsAnother gives descriptors that are not what their names say.
func TestInheritRefusesWhatIsAnother(t *testing.T) {
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	raw, err := tcp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	raw.Control(func(n uintptr) { fd = int(n) })
	at := tcp.Addr().String()
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	for name, fd := range map[string]int{
		"": fd, "listen": fd, "listen TCP " + at: fd, "listen TCP " + at + " for web": fd,
		"listen TCP 127.0.0.1:1 for default/web/TCP/IPv4": fd, "listen UDP " + at + " for default/web/UDP/IPv4": fd,
		"listen TCP " + at + " for default/web/TCP/IPv4": pipe[0], "listen TCP x for default/web/TCP/IPv4": fd,
	} {
		ls, given := NewListeners(Limits{}), duplicate(t, fd)
		if err := ls.Inherit(name, given); err == nil {
			t.Errorf("%q was believed", name)
		}
		if _, err := unix.FcntlInt(uintptr(given), unix.F_GETFD, 0); err == nil {
			t.Errorf("%q: the descriptor stays open", name)
		}
		if len(ls.items()) > 0 {
			t.Errorf("%q is listened at", name)
		}
	}
	ls := NewListeners(Limits{})
	name := "listen TCP " + at + " for default/web/TCP/IPv4"
	if err := ls.Inherit(name, duplicate(t, fd)); err != nil {
		t.Fatal(err)
	}
	if err := ls.Inherit(name, duplicate(t, fd)); err == nil {
		t.Error("a socket was taken twice")
	}
	ls.Serve() // nobody has used it
	if len(ls.items()) > 0 {
		t.Error("an inherited socket that no Service has stays open")
	}
}

// TestHandoverKeepsTheQueue has clients connect while neither process accepts, then goes back, and then hands over.
func TestHandoverKeepsTheQueue(t *testing.T) {
	upstream, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer upstream.Close()
	go func() {
		for {
			conn, err := upstream.Accept()
			if err != nil {
				return
			}
			go func() { conn.Write([]byte("x")); time.Sleep(time.Second); conn.Close() }()
		}
	}()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free.Close()
	item := &listen{
		protocol: dataplane.TCP, bind: free.Addr().(*net.TCPAddr).AddrPort(),
		key:       dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: "web"}, Port: "http", Protocol: dataplane.TCP, Family: dataplane.IPv4},
		endpoints: []dataplane.Endpoint{{Addr: netip.MustParseAddrPort(upstream.Addr().String()), Weight: 1}},
	}
	old := NewListeners(Limits{})
	if _, err := old.set(item); err != nil {
		t.Fatal(err)
	}
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.DialTimeout("tcp", item.bind.String(), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	answers := func(conn net.Conn, within time.Duration) bool {
		conn.SetReadDeadline(time.Now().Add(within))
		n, _ := conn.Read(make([]byte, 1))
		return n == 1
	}
	next := handedOver(t, old)
	if got := next.items(); len(got) != 1 || got[0].use() != item.use() || got[0].String() == item.String() {
		t.Fatalf("inherited: %v", got)
	}
	if before, err := next.set(item); before == nil || err != nil {
		t.Fatalf("a new listener in place of the inherited one: %v", err)
	}
	old.Pause()
	waiting := dial()
	if answers(waiting, 50*time.Millisecond) {
		t.Error("a client is served while nobody accepts")
	}
	old.Resume()
	if !answers(waiting, time.Minute) || old.Open() != 1 {
		t.Error("the client that waited is not served by the process that goes on")
	}
	old.Pause()
	waiting = dial()
	next.Serve()
	old.Leave(100 * time.Millisecond) // the clients keep their connections open
	if !answers(waiting, time.Minute) || next.Open() != 1 {
		t.Error("the client that waited is not served by the successor")
	}
	if conn := dial(); !answers(conn, time.Minute) || next.Open() != 2 {
		t.Error("a client is not served by the successor")
	}
	if left := old.Linger(t.Context()); left != 0 {
		t.Errorf("%d connections are left", left)
	}
}
