package userspace

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestJoinable(t *testing.T) {
	for _, c := range []struct {
		sizes []int
		want  int
	}{
		{[]int{100}, 1},
		{[]int{100, 100, 100}, 3},
		{[]int{100, 100, 40, 100}, 3},
		{[]int{100, 101}, 1},
		{[]int{0, 0}, 1},
		{[]int{100, 0}, 1},
		{[]int{40000, 40000}, 1},
		{slices.Repeat([]int{10}, 100), maxSegments},
	} {
		var all []datagram
		for _, n := range c.sizes {
			all = append(all, datagram{bytes: make([]byte, n)})
		}
		if got := joinable(all); got != c.want {
			t.Errorf("of sizes %v, %d are joined, want %d", c.sizes, got, c.want)
		}
	}
}

// TestDatagramsStayWhole sends runs of datagrams of all sizes. It expects the boundaries of the sender, whichever
// datagrams the kernel joined and cut on the way.
func TestDatagramsStayWhole(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	item := dns(t, time.Minute, netip.MustParseAddrPort(server.LocalAddr().String()))
	started(t, Limits{}, item)
	client, err := net.Dial("udp", item.bind.String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server.SetDeadline(time.Now().Add(20 * time.Second))
	client.SetDeadline(time.Now().Add(20 * time.Second))
	buf := make([]byte, maxDatagram)
	var back net.Addr
	for run, sizes := range [][]int{{5}, slices.Repeat([]int{100}, 20), {1200, 1200, 300, 1200, 1}, {9000, 9000, 9000}, {65507, 65507}, {0, 0, 7}, {40000, 40000, 40000}} {
		var want [][]byte
		for i, n := range sizes {
			want = append(want, bytes.Repeat([]byte{byte(run<<5 + i)}, n))
		}
		for _, b := range want {
			client.Write(b)
		}
		for i, b := range want {
			n, from, err := server.ReadFrom(buf)
			if err != nil || !bytes.Equal(buf[:n], b) {
				t.Fatalf("run %v: the server got %d bytes (%v) as datagram %d", sizes, n, err, i)
			}
			back = from
		}
		for _, b := range want {
			server.WriteTo(b, back)
		}
		for i, b := range want {
			n, err := client.Read(buf)
			if err != nil || !bytes.Equal(buf[:n], b) {
				t.Fatalf("run %v: the client got %d bytes (%v) as datagram %d", sizes, n, err, i)
			}
		}
	}
}
