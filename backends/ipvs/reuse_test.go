package ipvs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// once answers each connection on port 8080 with the host's name and closes it first. The client may then take its
// source port again at once, while the kernel still remembers the connection.
func once(t *testing.T, h *netlab.Host) {
	t.Helper()
	var ln net.Listener
	err := h.Do(func() (err error) {
		ln, err = net.Listen("tcp", ":8080")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, h.Name)
			conn.Close()
		}
	}()
}

// connectFrom connects from a source port. It returns who answered, and how many segments were sent again.
func connectFrom(h *netlab.Host, port uint16, to netip.AddrPort) (who string, retransmits uint32, err error) {
	var conn net.Conn
	reuse := func(_, _ string, c syscall.RawConn) (err error) {
		_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return err
	}
	err = h.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.IPv4, port)), Control: reuse}
		ctx, cancel := context.WithTimeout(context.Background(), answerWait)
		defer cancel()
		conn, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return "", 0, err
	}
	defer conn.Close()
	answer, err := io.ReadAll(conn) // to the end, so that the server is the first to close
	if err != nil {
		return "", 0, err
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			var info *unix.TCPInfo
			if info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO); err == nil {
				retransmits = info.Total_retrans
			}
		})
	}
	return string(answer), retransmits, err
}

// TestPain06_PortReuse expects that consecutive connections from one source port are not delayed, and not sent to a
// deleted endpoint. A delay is caused by a dropped first packet, and shows as a segment that was sent again.
func TestPain06_PortReuse(t *testing.T) {
	lab := netlab.New(t, netlab.Topology{Pods: 2})
	n := &node{realRig(t, lab.Node()).backend(testSettings()), t, lab}
	for _, pod := range []string{"pod1", "pod2"} {
		once(t, lab.Host(pod))
	}
	const port, connections = 33333, 40
	from := lab.Host(netlab.Outside)
	met := map[string]int{}
	connect := func(want string) {
		t.Helper()
		who, again, err := connectFrom(from, port, webAddr)
		for errors.Is(err, unix.EADDRNOTAVAIL) { // the client's own last acknowledgement is still in flight
			who, again, err = connectFrom(from, port, webAddr)
		}
		if err != nil || again > 0 || want != "" && who != want {
			t.Fatalf("met %q, %d segments sent again, %v, after %v", who, again, err, met)
		}
		met[who]++
	}
	n.converge(t, web(1, 1))
	for range connections {
		connect("")
	}
	if len(met) != 2 {
		t.Errorf("all connections met the same endpoint: %v", met)
	}
	// The endpoint of the last connection may be either, so both are removed in turn.
	n.converge(t, web(-1, 1))
	for range connections / 4 {
		connect("pod2")
	}
	n.converge(t, web(1, -1))
	for range connections / 4 {
		connect("pod1")
	}
}

// TestPain06_ReuseModeByKernel expects the setting that avoids the delay. It depends on the kernel, and is wrong in the
// others.
func TestPain06_ReuseModeByKernel(t *testing.T) {
	for kernel, want := range map[[2]int]string{{4, 19}: "0", {5, 8}: "0", {5, 9}: "1", {5, 15}: "1", {6, 1}: "1"} {
		set := testSettings()
		set.Kernel = kernel
		for _, s := range set.Parameters() {
			if s.Name == "net.ipv4.vs.conn_reuse_mode" && s.Value != want {
				t.Errorf("on a kernel %v it is set to %s, want %s", kernel, s.Value, want)
			}
		}
	}
}
