package userspace

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"weir/backends/dataplane"
)

// TestRedirectedListenerLingers expects that connections that were redirected before the redirection was deleted are
// served, while plans no longer contain the listener.
func TestRedirectedListenerLingers(t *testing.T) {
	serves := func(t *testing.T, item *listen, want string) {
		t.Helper()
		if name, err := ask(t, item.bind); name != want || err != nil {
			t.Errorf("got %q, %v; want %q", name, err, want)
		}
	}
	refusesSoon := func(t *testing.T, item *listen) {
		t.Helper()
		poll(t, func() error {
			if name, err := ask(t, item.bind); !errors.Is(err, syscall.ECONNREFUSED) {
				return fmt.Errorf("it is still served: %q, %v", name, err)
			}
			return nil
		})
	}
	t.Run("and closes", func(t *testing.T) {
		item := web(t, echo(t, "a"))
		ls := started(t, Limits{linger: time.Millisecond}, item)
		ls.remove(item, true)
		if open := ls.items(); len(open) != 0 {
			t.Errorf("a listener that lingers is listed: %v", open)
		}
		refusesSoon(t, item)
	})
	t.Run("and stays if it is wanted again", func(t *testing.T) {
		item := web(t, echo(t, "a"))
		ls := started(t, Limits{linger: time.Hour}, item)
		ls.remove(item, true)
		serves(t, item, "a")
		changed := *item
		changed.endpoints = endpoints(echo(t, "b"))
		if before, err := ls.set(&changed); before != nil || err != nil {
			t.Errorf("set again: it did %v before, %v", before, err)
		}
		if timer := ls.open[item.bind][dataplane.TCP].leaving; timer != nil || len(ls.items()) != 1 {
			t.Errorf("it is still about to close, and %v is listed", ls.items())
		}
		serves(t, item, "b")
	})
	t.Run("and makes room for another Service", func(t *testing.T) {
		item := web(t, echo(t, "a"))
		ls := started(t, Limits{linger: time.Hour}, item)
		ls.remove(item, true)
		other := *item
		other.key, other.endpoints = key("other", dataplane.TCP), endpoints(echo(t, "b"))
		if before, err := ls.set(&other); before != nil || err != nil {
			t.Fatalf("another Service on its port: %v, %v", before, err)
		}
		serves(t, item, "b")
		if count := ls.admitted(); count[item.key] != 0 || count[other.key] != 1 {
			t.Errorf("the connection was counted for %v", count)
		}
	})
	t.Run("but not beyond the process", func(t *testing.T) {
		item := web(t, echo(t, "a"))
		ls := started(t, Limits{linger: time.Hour}, item)
		ls.remove(item, true)
		if left := ls.Drain(t.Context()); left != 0 {
			t.Errorf("%d connections are left", left)
		}
		refusesSoon(t, item)
	})
	t.Run("with UDP", func(t *testing.T) {
		item := dns(t, time.Minute, echoUDP(t, "a"))
		ls := started(t, Limits{linger: time.Hour}, item)
		c, err := net.Dial("udp", item.bind.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		for _, when := range []string{"before", "after"} {
			fmt.Fprint(c, when)
			buf := make([]byte, 100)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != "a "+when {
				t.Errorf("%s: %q, %v", when, buf[:n], err)
			}
			ls.remove(item, true)
		}
	})
}

// TestCloseServesWhoWaits expects that connections that the kernel has accepted and the proxy has not are served when
// the listener closes.
func TestCloseServesWhoWaits(t *testing.T) {
	item := web(t, echo(t, "a"))
	ls := started(t, Limits{}, item)
	busy := make(chan struct{})
	for _, l := range ls.loops {
		entered := make(chan struct{})
		l.post(func() {
			close(entered)
			<-busy
		})
		<-entered
	}
	var waiting []net.Conn
	for range 50 {
		c, err := net.Dial("tcp", item.bind.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		waiting = append(waiting, c)
	}
	ls.remove(item, false)
	close(busy)
	for i, c := range waiting {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 2)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "a\n" {
			t.Fatalf("connection %d: %q, %v", i, buf[:n], err)
		}
	}
	if _, err := ask(t, item.bind); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the close: %v", err)
	}
}
