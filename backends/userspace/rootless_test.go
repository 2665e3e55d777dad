package userspace

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"weir/backends"
	"weir/backends/dataplane"
)

// TestBackendRootless uses the rootless form as the reconciler does.
func TestBackendRootless(t *testing.T) {
	a := echo(t, "a")
	ls := NewListeners(Limits{})
	var warned []string
	b := New(dataplane.Config{LocalhostNodePorts: true}, Options{Listeners: ls, Warn: func(_ dataplane.ServicePortName, p string) { warned = append(warned, p) }})
	e := &dataplane.ServicePort{Key: key("web", dataplane.TCP), ClusterIP: netip.MustParseAddr("127.0.0.77"), Port: closedPort(t).Port(),
		ExternalIPs: []netip.Addr{netip.MustParseAddr("203.0.113.1")}, Endpoints: endpoints(a), HasEndpoints: true}
	items, err := b.Render(e)
	if err != nil || len(items) != 1 || len(warned) != 1 {
		t.Fatalf("rendered %v, warned %q, %v", items, warned, err)
	}
	create := backends.Plan{Changes: []backends.Change{{Op: backends.Create, ID: items[0].ID(), New: items[0]}}}
	for range 2 {
		if r := b.Apply(t.Context(), create); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	for item, err := range b.Observe(t.Context()) {
		if err != nil || item.String() != items[0].String() {
			t.Errorf("observed %v, %v; want %v", item, err, items[0])
		}
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if name, err := ask(t, netip.AddrPortFrom(e.ClusterIP, e.Port)); name != "a" || err != nil {
				t.Errorf("got %q, %v", name, err)
			}
		})
	}
	wg.Wait()
	if r := b.Apply(t.Context(), backends.Plan{Changes: []backends.Change{{Op: backends.Delete, ID: items[0].ID(), Old: items[0]}}}); r.Err != nil {
		t.Fatal(r.Err)
	}
	if _, err := ask(t, netip.AddrPortFrom(e.ClusterIP, e.Port)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after the delete: %v", err)
	}
	sctp := *e
	sctp.Key.Protocol = dataplane.SCTP
	if _, err := b.Render(&sctp); err == nil {
		t.Error("SCTP was accepted")
	}
}

// TestRootlessAddresses expects the addresses on which the rootless form listens, and its warnings.
func TestRootlessAddresses(t *testing.T) {
	addr, pod := netip.MustParseAddr, netip.MustParseAddrPort
	node := []netip.Addr{addr("192.0.2.1"), addr("192.0.2.2")}
	entry := func(change func(e *dataplane.ServicePort)) *dataplane.ServicePort {
		e := &dataplane.ServicePort{Key: key("web", dataplane.TCP), ClusterIP: addr("10.96.0.1"), Port: 80, NodePort: 30080,
			Endpoints: []dataplane.Endpoint{{Addr: pod("10.0.0.1:80"), Cluster: true, Local: true, Weight: 1}, {Addr: pod("10.0.0.2:80"), Cluster: true, Weight: 1}}}
		if change != nil {
			change(e)
		}
		return e
	}
	for name, c := range map[string]struct {
		cfg    dataplane.Config
		bind   string
		entry  *dataplane.ServicePort
		want   []string // addresses, and the settings of their listeners
		warned string
	}{
		"node ports on the node's addresses": {
			cfg: dataplane.Config{NodeAddresses: node}, entry: entry(nil),
			want: []string{"192.0.2.1:30080", "192.0.2.2:30080"}, warned: "ClusterIP 10.96.0.1 is not an address of this node",
		},
		"node ports where the configuration has them": {
			cfg: dataplane.Config{NodeAddresses: node, NodePortAddresses: node[:1]}, entry: entry(nil),
			want: []string{"192.0.2.1:30080"}, warned: "ClusterIP",
		},
		"any loopback address of IPv4": {
			entry: entry(func(e *dataplane.ServicePort) { e.ClusterIP, e.NodePort = addr("127.1.2.3"), 0 }),
			want:  []string{"127.1.2.3:80"},
		},
		"a bind address takes every Service": {
			bind: "127.0.0.5", entry: entry(nil), want: []string{"127.0.0.5:30080", "127.0.0.5:80"},
		},
		"an unspecified bind address is all that the node has": {
			cfg: dataplane.Config{NodeAddresses: node}, bind: "0.0.0.0", entry: entry(nil),
			want: []string{"127.0.0.1:30080", "127.0.0.1:80", "192.0.2.1:30080", "192.0.2.1:80", "192.0.2.2:30080", "192.0.2.2:80"},
		},
		"a bind address of the other family": {
			bind: "2001:db8::1", entry: entry(nil), warned: "is not of family IPv4",
		},
		"policy Local for whoever is not near": {
			cfg:   dataplane.Config{NodeAddresses: node[:1], LocalDetector: dataplane.LocalDetector{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}}},
			entry: entry(func(e *dataplane.ServicePort) { e.ClusterIP, e.ExternalLocal = node[0], true }),
			want: []string{
				"192.0.2.1:30080 for default/web/TCP/IPv4 to 10.0.0.1:80 from 127.0.0.0/8,192.0.2.1/32,10.0.0.0/16 to 10.0.0.1:80 10.0.0.2:80",
				"192.0.2.1:80 for default/web/TCP/IPv4 to 10.0.0.1:80 10.0.0.2:80",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var warned []string
			o := Options{Listeners: NewListeners(Limits{}), Warn: func(_ dataplane.ServicePortName, p string) { warned = append(warned, p) }}
			if c.bind != "" {
				o.BindAddress = addr(c.bind)
			}
			items, err := New(c.cfg, o).Render(c.entry)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, i := range items {
				got = append(got, strings.TrimPrefix(i.String(), "listen TCP "))
			}
			slices.Sort(got)
			if !slices.EqualFunc(got, c.want, strings.HasPrefix) {
				t.Errorf("it listens on\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			if all := strings.Join(warned, "; "); (c.warned == "") != (all == "") || !strings.Contains(all, c.warned) {
				t.Errorf("it warns %q, want %q", all, c.warned)
			}
		})
	}
}

// TestNearClientsHaveEndpointsOfTheirOwn connects from two loopback addresses, one of which is near.
func TestNearClientsHaveEndpointsOfTheirOwn(t *testing.T) {
	item := web(t, echo(t, "far"))
	item.localClients, item.localClientEndpoints = []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}, endpoints(echo(t, "near"))
	started(t, Limits{}, item)
	for from, want := range map[string]string{"127.0.0.1": "far", "127.0.0.9": "near"} {
		if got, err := askFrom(t, from, item.bind); got != want || err != nil {
			t.Errorf("from %s: %q, %v", from, got, err)
		}
	}
}

// TestPortsOfARange expects a Service port to get a port in portRange, and an error if none is left.
func TestPortsOfARange(t *testing.T) {
	p := NewPorts(20000, 20001)
	seen := map[uint16]bool{}
	for _, name := range []string{"a", "b"} {
		port, err := p.port(portUse{key: key(name, dataplane.TCP)})
		if err != nil || port < 20000 || port > 20001 || seen[port] {
			t.Fatalf("%s is given port %d, %v", name, port, err)
		}
		seen[port] = true
	}
	if _, err := p.port(portUse{key: key("c", dataplane.TCP)}); err == nil || !strings.Contains(err.Error(), "portRange 20000-20001") {
		t.Errorf("a third of two ports: %v", err)
	}
	if _, err := p.port(portUse{key: key("c", dataplane.UDP)}); err != nil {
		t.Errorf("UDP has ports of its own: %v", err)
	}
}
