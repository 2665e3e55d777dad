package conntrack

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
	"weir/backends/netlab"
)

// TestLeave has the flows of an endpoint that left one of two Services, and of others.
func TestLeave(t *testing.T) {
	for _, many := range []int{0, maxFiltered} { // more endpoints that left, so that the kernel is not asked about each
		t.Run(fmt.Sprint(1+many, " endpoints"), func(t *testing.T) {
			netlab.InNamespace(t)
			const a, b = "10.244.0.1:80", "10.244.0.2:80"
			tcp := func(eps ...string) *dataplane.ServicePort {
				p := dns(eps...)
				p.Key.Protocol, p.Port, p.NodePort = dataplane.TCP, 80, 30080
				return p
			}
			left := tcp(a)
			for i := range many {
				left.Endpoints = append(left.Endpoints, endpoints(fmt.Sprintf("10.244.9.%d:80", i+1))...)
			}
			// The clients of flows that stay end in .1, as in TestClean.
			create(t, unix.IPPROTO_TCP, "192.0.2.2:1", "10.96.0.10:80", a)
			create(t, unix.IPPROTO_TCP, "192.0.2.2:2", "198.51.100.1:80", a)
			create(t, unix.IPPROTO_TCP, "192.0.2.2:3", "192.0.2.9:30080", a)
			create(t, unix.IPPROTO_TCP, "192.0.2.1:4", "10.96.0.10:80", b)
			create(t, unix.IPPROTO_TCP, "192.0.2.1:5", "10.96.0.99:80", a) // of another Service
			create(t, unix.IPPROTO_TCP, "192.0.2.1:6", a, a)
			create(t, unix.IPPROTO_UDP, "192.0.2.1:7", "10.96.0.10:80", a)
			answered(t, "192.0.2.1:8", "10.96.0.10:80", a, tcpEstablished)
			answered(t, "192.0.2.2:9", "10.96.0.10:80", a, tcpClose)
			answered(t, "192.0.2.1:9", "10.96.0.10:80", b, tcpClose)
			six := &dataplane.ServicePort{
				Key:       dataplane.ServicePortName{Protocol: dataplane.TCP, Family: dataplane.IPv6},
				ClusterIP: netip.MustParseAddr("fd00:96::10"), Port: 80, Endpoints: endpoints("[fd00:244::1]:80"),
			}
			create(t, unix.IPPROTO_TCP, "[2001:db8::2]:9", "[fd00:96::10]:80", "[fd00:244::1]:80")
			create(t, unix.IPPROTO_TCP, "[2001:db8::1]:10", "[fd00:96::10]:80", "[fd00:244::2]:80")

			cleaner := New(dataplane.Config{NodeAddresses: addrs("192.0.2.9")})
			n, err := cleaner.Leave(t.Context(), []*dataplane.ServicePort{left, six})
			if err != nil {
				t.Fatal(err)
			}
			want := []string{"192.0.2.1:4", "192.0.2.1:5", "192.0.2.1:6", "192.0.2.1:7", "192.0.2.1:8", "192.0.2.1:9", "[2001:db8::1]:10"}
			if diff := cmp.Diff(want, clients(t)); diff != "" || n != 5 {
				t.Errorf("%d deleted, left (-want +got):\n%s", n, diff)
			}

			// Reset ends what was answered too, unless the endpoint serves on.
			left.Reset, left.Serving = true, []netip.AddrPort{netip.MustParseAddrPort(a)}
			if n, err := cleaner.Leave(t.Context(), []*dataplane.ServicePort{left}); n != 0 || err != nil {
				t.Errorf("of an endpoint that serves on: %d deleted, error %v", n, err)
			}
			left.Serving = nil
			if n, err := cleaner.Leave(t.Context(), []*dataplane.ServicePort{left}); n != 1 || err != nil {
				t.Errorf("with reset: %d deleted, error %v", n, err)
			}
		})
	}
}
