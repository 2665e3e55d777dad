package userspace

import (
	"context"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/netlab"
)

func TestMain(m *testing.M) { netlab.Main(m) }

// table stands for the kernel that redirects: it has an Item with the target for each Frontend of a ServicePort.
type table struct{ held map[backends.ID]backends.Item }

type redirection struct {
	id backends.ID
	to string
}

func (r redirection) ID() backends.ID { return r.id }
func (r redirection) String() string  { return string(r.id) + " to " + r.to }

func (k *table) Base() []backends.Item { return []backends.Item{redirection{id: "redirect"}} }

func (k *table) Render(e *dataplane.ServicePort) ([]backends.Item, error) {
	to := ""
	for _, ep := range e.Endpoints {
		to += ep.Addr.String() + " "
	}
	id := fmt.Sprintf("redirect %s %s:%d", e.Key.Protocol, e.ClusterIP, e.Port)
	return []backends.Item{redirection{backends.ID(id), to}}, nil
}

func (k *table) Close() error { return nil }

func (k *table) Optional() backends.Optional { return backends.Optional{} }

func (k *table) Observe(context.Context) iter.Seq2[backends.Item, error] {
	return func(yield func(backends.Item, error) bool) {
		for _, i := range k.held {
			if !yield(i, nil) {
				return
			}
		}
	}
}

func (k *table) Apply(_ context.Context, p backends.Plan) backends.Result {
	for _, c := range p.Changes {
		if delete(k.held, c.ID); c.Op != backends.Delete {
			k.held[c.ID] = c.New
		}
	}
	return backends.Result{}
}

// harness runs the conformance suite in a network namespace in which sockets can listen on every address.
type harness struct {
	listeners *Listeners
	ports     *Ports
	redirect  *table
	foreign   net.Listener
}

func newHarness(t *testing.T, redirecting bool) *harness {
	netlab.InNamespace(t)
	for _, f := range []string{"ipv4", "ipv6"} {
		if err := os.WriteFile("/proc/sys/net/"+f+"/ip_nonlocal_bind", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	h := &harness{listeners: NewListeners(Limits{}), ports: NewPorts(20000, 20999)}
	if redirecting {
		h.redirect = &table{held: map[backends.ID]backends.Item{}}
	}
	t.Cleanup(func() { h.listeners.Drain(context.Background()) })
	return h
}

func (h *harness) Backend() backends.Backend {
	cfg := dataplane.Config{Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6}}
	o := Options{Listeners: h.listeners}
	if h.redirect != nil {
		cfg.NodeAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
		o.Redirect, o.Ports = h.redirect, h.ports
		return New(cfg, o)
	}
	for _, e := range append(append(backendtest.Sample(), backendtest.Changed()...), backendtest.Twins()...) {
		cfg.NodeAddresses = append(append(append(cfg.NodeAddresses, e.ClusterIP), e.ExternalIPs...), e.LoadBalancerIPs...)
	}
	return unwatched{New(cfg, o)}
}

// unwatched is a Backend whose listeners the harness changes, as no other process can.
type unwatched struct{ backends.Backend }

func (u unwatched) Optional() backends.Optional {
	o := u.Backend.Optional()
	o.Watcher = nil
	return o
}

func (h *harness) AddForeign(t *testing.T) {
	var err error
	if h.foreign, err = net.Listen("tcp", "192.0.2.1:9"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.foreign.Close() })
}

func (h *harness) DumpForeign(*testing.T) string {
	raw, err := h.foreign.(*net.TCPListener).SyscallConn()
	if err == nil {
		err = raw.Control(func(uintptr) {})
	}
	return fmt.Sprint(h.foreign.Addr(), err)
}

func (h *harness) Drifts() []backendtest.Drift {
	return []backendtest.Drift{
		{Name: "ListenerClosed", Inject: func(*testing.T) { h.listeners.remove(h.listeners.items()[0], false) }},
		{Name: "ListenerChanged", Inject: func(t *testing.T) {
			changed := *h.listeners.items()[0]
			changed.endpoints = nil
			if _, err := h.listeners.set(&changed); err != nil {
				t.Fatal(err)
			}
		}},
		{Name: "ForeignListener", Inject: func(t *testing.T) {
			extra := &listen{protocol: dataplane.TCP, bind: netip.MustParseAddrPort("192.0.2.2:99"), key: key("old", dataplane.TCP)}
			if _, err := h.listeners.set(extra); err != nil {
				t.Fatal(err)
			}
		}},
	}
}

// Refuse implements backendtest.Refuser. It makes another socket listen on the port.
func (h *harness) Refuse(t *testing.T, key dataplane.ServicePortName) {
	b := h.Backend()
	for _, e := range backendtest.Sample() {
		if e.Key != key {
			continue
		}
		items, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		other, err := net.Listen("tcp", items[0].(*listen).bind.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { other.Close() })
	}
}

func TestConformance(t *testing.T) {
	for name, redirecting := range map[string]bool{"redirecting": true, "rootless": false} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Harness {
				h := newHarness(t, redirecting)
				if redirecting {
					return struct{ backendtest.Harness }{h} // a refusal is answered with another port: TestPortInUse
				}
				return h
			})
		})
	}
}

// TestPortInUse expects a Service port to ask for another port if another process has its port, and nothing to be left
// open.
func TestPortInUse(t *testing.T) {
	h := newHarness(t, true)
	b := h.Backend()
	e := backendtest.Sample()[0]
	h.Refuse(t, e.Key)
	for attempt := range 2 {
		items, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		var plan backends.Plan
		for _, i := range items {
			plan.Changes = append(plan.Changes, backends.Change{Op: backends.Create, ID: i.ID(), New: i})
		}
		r := b.Apply(t.Context(), plan)
		if attempt == 0 && (len(r.Refused) != 1 || len(h.listeners.items()) != 0 || len(h.redirect.held) != 0) {
			t.Fatalf("refused %v, open %v, redirected %v", r.Refused, h.listeners.items(), h.redirect.held)
		}
		if attempt == 1 && r.Err != nil {
			t.Fatalf("the second port was refused as well: %v", r.Err)
		}
	}
}

func TestWidestGap(t *testing.T) {
	for _, c := range []struct {
		ranges   [][2]int
		min, max uint16
	}{
		{[][2]int{{30000, 32767}, {32768, 60999}}, 20000, 29999},
		{[][2]int{{30000, 32767}, {1024, 60999}}, 61000, 65535},
		{[][2]int{{1, 65535}}, firstPort, lastPort},
		{[][2]int{{20000, 22767}, {32768, 60999}}, 22768, 32767},
	} {
		if min, max := widestGap(c.ranges); min != c.min || max != c.max {
			t.Errorf("outside %v: %d-%d, want %d-%d", c.ranges, min, max, c.min, c.max)
		}
	}
}

// TestPublished expects another process to learn which listeners exist.
func TestPublished(t *testing.T) {
	h := newHarness(t, true)
	b := h.Backend()
	var plan backends.Plan
	for _, e := range backendtest.Sample() {
		items, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range items {
			plan.Changes = append(plan.Changes, backends.Change{Op: backends.Create, ID: i.ID(), New: i})
		}
	}
	if r := b.Apply(t.Context(), plan); r.Err != nil {
		t.Fatal(r.Err)
	}
	if got, err := published(); len(got) != 0 || err != nil {
		t.Fatalf("with no process running: %v, %v", got, err)
	}
	pipeA, pipeB, err := unixPair()
	if err != nil {
		t.Fatal(err)
	}
	go h.listeners.tell(pipeA)
	got, err := readPublished(pipeB)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, i := range h.listeners.items() {
		want[i.String()] = true
	}
	if len(got) != len(want) || len(got) == 0 {
		t.Errorf("%d listeners were told of, want %d", len(got), len(want))
	}
	for _, p := range got {
		if !want[p.String()] {
			t.Errorf("told of %q", p)
		}
		use, port, ok := p.use()
		if known, err := h.ports.port(use); !ok || err != nil || known != port {
			t.Errorf("%q is taken for the listener of %v", p, use)
		}
	}
}

// unixPair returns two ends of a socket.
func unixPair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			return nil, nil, err
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1], nil
}

// everything is a redirection with every capability.
type everything struct {
	*table
	backends.Watcher
	backends.Drainer
	backends.CommandLister
	backends.Unwatched
	backends.Refuser
}

func (e *everything) Optional() backends.Optional {
	return backends.Optional{Watcher: e, Unwatched: e, Drainer: e, CommandLister: e, Refuser: e}
}

// TestCapabilitiesOfTheRedirection expects that wrapping loses no capability of the redirection, except the one whose
// answer would be wrong.
func TestCapabilitiesOfTheRedirection(t *testing.T) {
	if n := reflect.TypeFor[backends.Optional]().NumField(); n != 7 {
		t.Errorf("a backend has %d capabilities: decide about the new ones here and in Optional", n)
	}
	below := &everything{table: &table{}}
	b := New(dataplane.Config{}, Options{Redirect: below})
	o := b.Optional()
	if o.Watcher != below || o.Unwatched != below || o.Drainer != below || o.Refuser != below || o.CommandLister == nil {
		t.Errorf("lost: %+v", o)
	}
	if o.ConnectionCounter != b || o.Describer != nil {
		t.Errorf("the listeners are this process's own: %+v", o)
	}
	if o := New(dataplane.Config{}, Options{Redirect: &table{}}).Optional(); o.Watcher != nil || o.Refuser != nil || o.CommandLister != nil {
		t.Errorf("claims more than the redirection can: %+v", o)
	}
}
