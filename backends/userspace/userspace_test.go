package userspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	proxyproto "github.com/pires/go-proxyproto"

	"weir/backends/dataplane"
	"weir/spec/seed"
)

// echo answers every TCP connection with its name and then with the bytes that it receives, until the client ends its
// side.
func echo(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, name+"\n")
				io.Copy(c, c)
			}()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// closedPort returns an address that refuses connections.
func closedPort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return netip.MustParseAddrPort(l.Addr().String())
}

// freePort returns an address to listen on.
func freePort(t *testing.T, network string) netip.AddrPort {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return netip.MustParseAddrPort(c.LocalAddr().String())
	}
	return closedPort(t)
}

func key(name string, p dataplane.Protocol) dataplane.ServicePortName {
	return dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: name}, Protocol: p, Family: dataplane.IPv4}
}

func endpoints(addrs ...netip.AddrPort) []dataplane.Endpoint {
	eps := make([]dataplane.Endpoint, len(addrs))
	for i, a := range addrs {
		eps[i] = dataplane.Endpoint{Addr: a, Cluster: true, Weight: 1}
	}
	return eps
}

// web returns a TCP listener to the endpoints.
func web(t *testing.T, to ...netip.AddrPort) *listen {
	t.Helper()
	return &listen{protocol: dataplane.TCP, bind: closedPort(t), key: key("web", dataplane.TCP), endpoints: endpoints(to...)}
}

// dns returns a UDP listener to the endpoints.
func dns(t *testing.T, idle time.Duration, to ...netip.AddrPort) *listen {
	t.Helper()
	return &listen{protocol: dataplane.UDP, bind: freePort(t, "udp"), key: key("dns", dataplane.UDP), idle: idle, endpoints: endpoints(to...)}
}

func started(t *testing.T, limits Limits, item *listen) *Listeners {
	t.Helper()
	ls := NewListeners(limits)
	if _, err := ls.set(item); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		ls.Drain(ctx)
	})
	return ls
}

// poll waits until f returns no error.
func poll(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-deadline:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
}

func ask(t *testing.T, addr netip.AddrPort) (string, error) {
	t.Helper()
	return askFrom(t, "127.0.0.1", addr)
}

func askFrom(t *testing.T, from string, addr netip.AddrPort) (string, error) {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", addr.String())
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	c.(*net.TCPConn).CloseWrite()
	all, err := io.ReadAll(c)
	return strings.TrimSpace(string(all)), err
}

func TestTCPTakesTurnsAndPassesOverTheDead(t *testing.T) {
	a, b, dead := echo(t, "a"), echo(t, "b"), closedPort(t)
	item := web(t, a, dead, b)
	started(t, Limits{}, item)
	count := map[string]int{}
	for range 100 {
		name, err := ask(t, item.bind)
		if err != nil {
			t.Fatalf("a connection failed although two endpoints answer: %v", err)
		}
		count[name]++
	}
	if count["a"] < 40 || count["b"] < 40 {
		t.Errorf("answers were spread %v, want about 50 each", count)
	}
}

func TestTCPRefusesOnlyWhenEveryEndpointFailed(t *testing.T) {
	item := web(t, closedPort(t), closedPort(t))
	ls := started(t, Limits{}, item)
	if _, err := ask(t, item.bind); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("with no endpoint answering: got %v, want a reset", err)
	}
	a := echo(t, "a")
	changed := *item
	changed.endpoints = endpoints(a)
	if _, err := ls.set(&changed); err != nil {
		t.Fatal(err)
	}
	if name, err := ask(t, item.bind); name != "a" || err != nil {
		t.Fatalf("after the endpoints changed: got %q, %v", name, err)
	}
}

// TestTCPResetIsCarriedAcross expects that bytes sent before a reset arrive before it.
func TestTCPResetIsCarriedAcross(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			io.WriteString(c, "partial")
			io.ReadFull(c, make([]byte, 1))
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}()
	item := web(t, netip.MustParseAddrPort(l.Addr().String()))
	started(t, Limits{}, item)
	c, err := net.Dial("tcp", item.bind.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.ReadFull(c, make([]byte, len("partial")))
	c.Write([]byte("x"))
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the endpoint reset its connection; the client saw %v", err)
	}
}

// greeted returns a connection through a listener to an echo, which has said its name.
func greeted(t *testing.T, at netip.AddrPort) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRemovedEndpointDrains(t *testing.T) {
	a, b := echo(t, "a"), echo(t, "b")
	item := web(t, a)
	ls := started(t, Limits{Grace: 300 * time.Millisecond}, item)
	c := greeted(t, item.bind)
	changed := *item
	changed.endpoints = endpoints(b)
	if _, err := ls.set(&changed); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatalf("the connection ended at once: %v", err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("the connection did not drain: %v", err)
	}
	if name, _ := ask(t, item.bind); name != "b" {
		t.Fatalf("a new connection went to %q", name)
	}
	if _, err := io.ReadAll(c); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the connection to the removed endpoint outlived its grace: %v", err)
	}
}

// TestResetEndsAtOnce has an endpoint leave that is still serving, and then one that is not, of a Service whose connections do not
// outlive that.
func TestResetEndsAtOnce(t *testing.T) {
	a, b := echo(t, "a"), echo(t, "b")
	item := web(t, a)
	item.reset = true
	ls := started(t, Limits{Grace: time.Hour}, item)
	c := greeted(t, item.bind)
	terminating := *item
	terminating.endpoints, terminating.draining = endpoints(b), []netip.AddrPort{a}
	if _, err := ls.set(&terminating); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatalf("the connection to an endpoint that terminates ended: %v", err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatalf("the connection to an endpoint that terminates ended: %v", err)
	}
	gone := terminating
	gone.draining = nil
	if _, err := ls.set(&gone); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the client saw %v, want a reset", err)
	}
}

func TestAffinityAndWeights(t *testing.T) {
	clock := time.Unix(1000, 0)
	p := newPool(func() time.Time { return clock })
	a, b := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:1")
	p.set(endpoints(a, b), nil, time.Minute)
	client := netip.MustParseAddr("192.0.2.1")
	first, _ := p.pick(client, nil)
	p.succeeded(client, first)
	for range 10 {
		if got, _ := p.pick(client, nil); got != first {
			t.Fatalf("the client moved from %s to %s", first, got)
		}
	}
	clock = clock.Add(2 * time.Minute)
	seen := map[netip.AddrPort]bool{}
	for range 4 {
		got, _ := p.pick(client, nil)
		seen[got] = true
	}
	if len(seen) != 2 {
		t.Errorf("affinity outlived its timeout: %v", seen)
	}

	weighted := []dataplane.Endpoint{{Addr: a, Weight: 300}, {Addr: b, Weight: 100}}
	if got := turns(weighted); len(got) != 4 || countOf(got, a) != 3 {
		t.Errorf("weights 300 and 100 take the turns %v", got)
	}
	if got := turns([]dataplane.Endpoint{{Addr: a, Weight: 65535}, {Addr: b, Weight: 1}, {Addr: a, Weight: 0}}); len(got) > 1100 || countOf(got, b) != 1 {
		t.Errorf("extreme weights take %d turns", len(got))
	}
}

func countOf(addrs []netip.AddrPort, a netip.AddrPort) int {
	n := 0
	for _, x := range addrs {
		if x == a {
			n++
		}
	}
	return n
}

func TestOneProbeAtATime(t *testing.T) {
	clock := time.Unix(1000, 0)
	p := newPool(func() time.Time { return clock })
	a, b := netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:1")
	p.set(endpoints(a, b), nil, 0)
	client := netip.MustParseAddr("192.0.2.1")
	p.failed(a)
	for range 10 {
		if got, _ := p.pick(client, nil); got != b {
			t.Fatal("an endpoint under penalty was chosen")
		}
	}
	clock = clock.Add(firstPenalty)
	var picks []netip.AddrPort
	for range 10 {
		got, _ := p.pick(client, nil)
		picks = append(picks, got)
	}
	if n := countOf(picks, a); n != 1 {
		t.Fatalf("%d connections tested the endpoint at the same time, want 1", n)
	}
	p.failed(a)
	clock = clock.Add(firstPenalty)
	if got, _ := p.pick(client, nil); got == a {
		t.Fatal("the penalty did not grow")
	}
}

func TestAdmissionLimits(t *testing.T) {
	a := echo(t, "a")
	item := web(t, a)
	ls := started(t, Limits{Connections: 2, PerListener: 2}, item)
	var open []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", item.bind.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		io.ReadFull(c, make([]byte, 2))
		open = append(open, c)
	}
	if _, err := ask(t, item.bind); err == nil {
		t.Fatal("a third connection was served with a limit of two")
	}
	const want = `
# HELP weir_userspace_connections Open connections and UDP flows of the userspace proxy.
# TYPE weir_userspace_connections gauge
weir_userspace_connections 2
# HELP weir_userspace_refused_total Connections and UDP flows refused because of a limit.
# TYPE weir_userspace_refused_total counter
weir_userspace_refused_total{service="default/web"} 1
`
	if err := testutil.CollectAndCompare(ls, strings.NewReader(want), "weir_userspace_connections", "weir_userspace_refused_total"); err != nil {
		t.Error(err)
	}
	open[0].Close()
	poll(t, func() error {
		if name, err := ask(t, item.bind); err != nil || name != "a" {
			return fmt.Errorf("a place that was given back was not taken again: %q, %v", name, err)
		}
		return nil
	})
}

func TestProxyProtocolTellsTheClientsAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	aware := &proxyproto.Listener{Listener: l}
	defer aware.Close()
	go func() {
		if c, err := aware.Accept(); err == nil {
			fmt.Fprint(c, c.RemoteAddr(), " ", c.LocalAddr())
			c.Close()
		}
	}()
	item := web(t, netip.MustParseAddrPort(l.Addr().String()))
	item.proxyProtocol = true
	started(t, Limits{}, item)
	c, err := net.Dial("tcp", item.bind.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	got, _ := io.ReadAll(c)
	if want := c.LocalAddr().String() + " " + item.bind.String(); string(got) != want {
		t.Errorf("the endpoint was told %q, want %q", got, want)
	}
}

// echoUDP answers every datagram with its name and the datagram.
func echoUDP(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, maxDatagram)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(append([]byte(name+" "), buf[:n]...), from)
		}
	}()
	return netip.MustParseAddrPort(c.LocalAddr().String())
}

func TestUDPFlows(t *testing.T) {
	a, b, dead := echoUDP(t, "a"), echoUDP(t, "b"), freePort(t, "udp")
	item := dns(t, 200*time.Millisecond, dead, a, b)
	ls := started(t, Limits{}, item)
	seen := map[string]int{}
	for i := range 20 {
		c, err := net.Dial("udp", item.bind.String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		var answers []string
		for j := range 3 {
			fmt.Fprintf(c, "%d-%d", i, j)
			buf := make([]byte, 100)
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("flow %d datagram %d: %v", i, j, err)
			}
			answers = append(answers, strings.Fields(string(buf[:n]))[0])
		}
		if len(slices.Compact(answers)) != 1 {
			t.Errorf("one flow was answered by %v", answers)
		}
		seen[answers[0]]++
		c.Close()
	}
	if seen["a"] == 0 || seen["b"] == 0 {
		t.Errorf("flows were spread %v", seen)
	}
	l := ls.open[item.bind][dataplane.UDP]
	poll(t, func() error {
		if n := l.proxy.open(); n > 0 {
			return fmt.Errorf("%d idle flows are still open", n)
		}
		return nil
	})
}

// TestAnEndpointThatIsTheListenerItself opens one connection to a listener whose endpoint is another listener that leads
// back to the first. The connection must not open others.
func TestAnEndpointThatIsTheListenerItself(t *testing.T) {
	for _, protocol := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP} {
		make := map[dataplane.Protocol]func() *listen{
			dataplane.TCP: func() *listen { return web(t) },
			dataplane.UDP: func() *listen { return dns(t, 100*time.Millisecond) },
		}[protocol]
		network := strings.ToLower(protocol.String())
		t.Run(network, func(t *testing.T) {
			a, b := make(), make()
			a.endpoints, b.endpoints = endpoints(b.bind), endpoints(a.bind)
			ls := started(t, Limits{}, a)
			if _, err := ls.set(b); err != nil {
				t.Fatal(err)
			}
			if c, err := net.Dial(network, a.bind.String()); err == nil { // it may be reset before it is dialled
				defer c.Close()
				fmt.Fprint(c, "hello")
				c.SetDeadline(time.Now().Add(time.Second))
				n, err := c.Read([]byte{0})
				if n > 0 || protocol == dataplane.TCP && errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("the client read %d bytes, %v; want the connection to end", n, err)
				}
			}
			var admitted int64
			for _, item := range []*listen{a, b} {
				admitted += ls.open[item.bind][protocol].admit.admitted.Load()
			}
			if admitted > 2 {
				t.Errorf("one connection became %d", admitted)
			}
		})
	}
}

// TestAClientWithAnEndpointsPort expects that a client is served although this process has a connection from the same
// address and port to an endpoint. Masquerading gives a client such an address.
func TestAClientWithAnEndpointsPort(t *testing.T) {
	address := netip.MustParseAddrPort
	local, pod, front := address("192.0.2.1:40000"), address("10.244.1.1:80"), address("10.96.0.10:80")
	var d dialed
	d.add(connection{local, pod})
	if d.own(connection{local, front}) || !d.own(connection{local, pod}) {
		t.Errorf("dialed holds %v", d.count)
	}
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 100)
		for n, from, err := server.ReadFrom(buf); err == nil; n, from, err = server.ReadFrom(buf) {
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	item := dns(t, time.Minute)
	item.endpoints = endpoints(address(server.LocalAddr().String()))
	ls := started(t, Limits{}, item)
	c, err := net.Dial("udp", item.bind.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "hello")
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	ls.dialed.mu.Lock()
	defer ls.dialed.mu.Unlock()
	if ls.Open() != 1 || len(ls.dialed.count) != 0 {
		t.Errorf("%d flows, and dialed holds %v of an endpoint that has answered", ls.Open(), ls.dialed.count)
	}
}

// slowUDP is an endpoint that sends each question back after a while.
func slowUDP(t *testing.T, after func(question string) time.Duration) netip.AddrPort {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Close() })
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			text := string(buf[:n])
			time.AfterFunc(after(text), func() { server.WriteTo([]byte(text), from) })
		}
	}()
	return netip.MustParseAddrPort(server.LocalAddr().String())
}

// allAnswered waits until a listener whose questions were all answered has no flow.
func allAnswered(t *testing.T, l *listener) {
	t.Helper()
	poll(t, func() error {
		if n := l.proxy.open(); n > 0 {
			return fmt.Errorf("%d flows are open, though all questions were answered", n)
		}
		return nil
	})
}

// TestUDPWaitsForASlowAnswer asks an endpoint that answers each question after several idle times, as a resolver does
// that has to ask others. It asks the first question of a flow and a later one.
func TestUDPWaitsForASlowAnswer(t *testing.T) {
	const idle = 50 * time.Millisecond
	server := slowUDP(t, func(string) time.Duration { return 5 * idle })
	item := dns(t, idle, server)
	ls := started(t, Limits{}, item)
	c, err := net.Dial("udp", item.bind.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(8 * time.Second))
	for question := range 2 {
		fmt.Fprintf(c, "question %d", question)
		buf := make([]byte, 100)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != fmt.Sprintf("question %d", question) {
			t.Fatalf("question %d: %q, %v", question, buf[:n], err)
		}
	}
	allAnswered(t, ls.open[item.bind][dataplane.UDP])
}

// TestUDPWaitsForEveryAnswer asks two questions from one socket, as resolvers of libc do for A and AAAA. The endpoint answers
// one at once, and the other after several idle times. A flow of which a question stays without an answer ends all the same.
func TestUDPWaitsForEveryAnswer(t *testing.T) {
	const idle = 50 * time.Millisecond
	server := slowUDP(t, func(question string) time.Duration {
		if question == "slow" {
			return 5 * idle
		}
		return 0
	})
	item := dns(t, idle, server)
	ls := started(t, Limits{}, item)
	c, err := net.Dial("udp", item.bind.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(8 * time.Second))
	for _, questions := range [][]string{{"slow", "fast"}, {"fast", "slow"}} {
		for _, q := range questions {
			fmt.Fprint(c, q)
		}
		for _, want := range []string{"fast", "slow"} {
			buf := make([]byte, 100)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != want {
				t.Fatalf("%v: %q, %v; want %s", questions, buf[:n], err, want)
			}
		}
	}
	allAnswered(t, ls.open[item.bind][dataplane.UDP])
}

// TestUDPAtTheIdleTime has clients ask again at about the time at which their flows end. Each question is answered, by the flow or
// by a new one.
func TestUDPAtTheIdleTime(t *testing.T) {
	const idle = time.Millisecond
	item := dns(t, idle, echoUDP(t, "a"))
	started(t, Limits{}, item)
	r := seed.Rand(t)
	var clients sync.WaitGroup
	for range 16 {
		pause := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
		clients.Go(func() {
			c, err := net.Dial("udp", item.bind.String())
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for i := range 400 {
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				_, err := c.Write([]byte("who?"))
				if err == nil {
					_, err = c.Read(make([]byte, 10))
				}
				if err != nil {
					t.Errorf("question %d: %v", i, err)
					return
				}
				time.Sleep(idle*9/10 + time.Duration(pause.Int64N(int64(idle)/5)))
			}
		})
	}
	clients.Wait()
}

// TestUDPSourcesChange excludes a client that has a flow. Its next datagram gets no answer.
func TestUDPSourcesChange(t *testing.T) {
	item := dns(t, time.Minute, echoUDP(t, "a"))
	ls := started(t, Limits{}, item)
	c, err := net.Dial("udp", item.bind.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(8 * time.Second))
	buf := make([]byte, 100)
	fmt.Fprint(c, "x")
	if _, err := c.Read(buf); err != nil {
		t.Fatal(err)
	}
	l := ls.open[item.bind][dataplane.UDP]
	shut := *item
	shut.sources = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	l.change(&shut)
	if n := l.proxy.open(); n != 0 {
		t.Errorf("%d flows are open", n)
	}
	open := *item
	open.sources = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	l.change(&open)
	fmt.Fprint(c, "x")
	if _, err := c.Read(buf); err != nil || l.proxy.open() != 1 {
		t.Errorf("%v, %d flows", err, l.proxy.open())
	}
	l.change(item)
	if n := l.proxy.open(); n != 1 {
		t.Errorf("a client that is not excluded lost its flow: %d are open", n)
	}
}

func TestUDPFloodIsBounded(t *testing.T) {
	a := echoUDP(t, "a")
	item := dns(t, time.Minute, a)
	ls := started(t, Limits{Connections: 16, PerListener: 16}, item)
	for range 200 {
		c, err := net.Dial("udp", item.bind.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte("x"))
	}
	l := ls.open[item.bind][dataplane.UDP]
	poll(t, func() error {
		if n := l.admit.refused.Load(); n < 184 {
			return fmt.Errorf("only %d of 184 flows over the limit were refused, %d are open", n, l.proxy.open())
		}
		return nil
	})
	if n := l.proxy.open(); n > 16 {
		t.Errorf("%d flows are open with a limit of 16", n)
	}
}
