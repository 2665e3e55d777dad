package userspace

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/fake"
)

// besides makes Loopbacks beside Backends of one kernel.
type besides struct {
	*testing.T
	all    *Loopbacks
	kernel *fake.Kernel
	web    *dataplane.ServicePort // has a node port at ::1, and an endpoint that answers "a"
}

func newBesides(t *testing.T) *besides {
	listeners := NewListeners(Limits{})
	t.Cleanup(func() { listeners.Drain(context.Background()) })
	return &besides{t, NewLoopbacks(listeners, hclog.NewNullLogger()), fake.NewKernel(), &dataplane.ServicePort{
		Key:       dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: "web"}, Protocol: dataplane.TCP, Family: dataplane.IPv6},
		ClusterIP: netip.MustParseAddr("fd00:10:96::1"), Port: 80, NodePort: freePort(t, "tcp6").Port(), HasEndpoints: true,
		Endpoints: []dataplane.Endpoint{{Addr: echo(t, "a"), Cluster: true, Weight: 1}},
	}}
}

// next returns another Backend, with listeners at ::1 if they are wanted or there.
func (l *besides) next(wanted bool) backends.Backend {
	l.Helper()
	cfg := dataplane.Config{Families: []dataplane.Family{dataplane.IPv6}, ProxiesLoopbackIPv6: wanted}
	b, err := l.all.Beside(fake.New(l.kernel, cfg), cfg)
	if err != nil {
		l.Fatal(err)
	}
	return b
}

func isProxied(b backends.Backend) bool { _, is := b.(*Loopback); return is }

// rendered returns the listeners of a ServicePort and, apart, the other Items.
func (l *besides) rendered(b backends.Backend, sp *dataplane.ServicePort) (listeners, others []backends.Item) {
	l.Helper()
	items, err := b.Render(sp)
	if err != nil {
		l.Fatal(err)
	}
	for _, i := range items {
		if _, is := boundTo(i); is {
			listeners = append(listeners, i)
		} else {
			others = append(others, i)
		}
	}
	return listeners, others
}

func (l *besides) observed(b backends.Backend) (found []backends.Item) {
	l.Helper()
	for i, err := range b.Observe(l.Context()) {
		if err != nil {
			l.Fatal(err)
		}
		if _, is := boundTo(i); is {
			found = append(found, i)
		}
	}
	return found
}

// change returns the Change from one Item to another, either of which may be nil.
func change(old, now backends.Item) backends.Change {
	switch {
	case old == nil:
		return backends.Change{Op: backends.Create, ID: now.ID(), New: now}
	case now == nil:
		return backends.Change{Op: backends.Delete, ID: old.ID(), Old: old}
	}
	return backends.Change{Op: backends.Update, ID: now.ID(), Old: old, New: now}
}

func (l *besides) apply(b backends.Backend, changes ...backends.Change) {
	l.Helper()
	if r := b.Apply(l.Context(), backends.Plan{Changes: changes}); r.Err != nil || len(r.Refused) > 0 {
		l.Fatalf("%+v", r)
	}
}

// serves asks at ::1.
func (l *besides) serves(when string, want bool) {
	l.Helper()
	at := netip.AddrPortFrom(netip.IPv6Loopback(), l.web.NodePort)
	if name, err := askFrom(l.T, "::1", at); (name == "a" && err == nil) != want {
		l.Errorf("%s: %q, %v; want it served: %v", when, name, err, want)
	}
}

// TestLoopbacks has one Backend take over from another, which observes once more while it leaves, as it does whenever another wrote
// to the kernel. Its end must not close the listener that both want. The last one has a Config that wants none.
func TestLoopbacks(t *testing.T) {
	l := newBesides(t)
	for what, b := range map[string]backends.Backend{"none is wanted": l.next(false), "no process can open one": (&besides{t, NewLoopbacks(nil, nil), l.kernel, nil}).next(true)} {
		if isProxied(b) {
			t.Errorf("there are listeners, although %s", what)
		}
	}
	first := l.next(true)
	if got := l.observed(first); len(got) != 0 {
		t.Fatalf("there are listeners before one was opened: %v", got)
	}
	wanted, _ := l.rendered(first, l.web)
	four := *l.web
	four.Key.Family, four.ClusterIP = dataplane.IPv4, netip.MustParseAddr("10.96.0.1")
	if of4, _ := l.rendered(first, &four); len(wanted) != 1 || of4 != nil {
		t.Fatalf("IPv6: %v, IPv4: %v", wanted, of4)
	}
	l.apply(first, change(nil, wanted[0]))
	l.serves("opened", true)

	second := l.next(true)
	if got := l.observed(second); len(got) != 1 || got[0].String() != wanted[0].String() {
		t.Fatalf("the successor finds %v", got)
	}
	l.next(true) // one that is never used
	l.observed(first)
	l.apply(first, change(wanted[0], nil))
	l.serves("the predecessor left", true)

	abandoned := l.next(true)
	l.observed(abandoned)
	if err := abandoned.Close(); err != nil {
		t.Fatal(err)
	}
	l.apply(second, change(wanted[0], nil))
	l.serves("closed by one whose successor was given up", false)
	l.apply(second, change(nil, wanted[0]))

	third := l.next(false)
	if none, _ := l.rendered(third, l.web); !isProxied(third) || none != nil {
		t.Fatal("nothing closes the listener that is not wanted any more")
	}
	left := l.observed(third)
	if len(left) != 1 {
		t.Fatalf("the last one finds %v", left)
	}
	l.apply(third, change(left[0], nil))
	l.serves("closed", false)
	if isProxied(l.next(false)) {
		t.Error("there are listeners after the last one was closed")
	}
}

// TestLoopbackPortTaken has another process hold the port at ::1. The rest of the Service is in force all the same, the listener
// counts as open, and opens at a later read, however the kernel is read.
func TestLoopbackPortTaken(t *testing.T) {
	for _, how := range []string{"Observe", "ReadUnwatched", "another change"} {
		t.Run(how, func(t *testing.T) {
			l := newBesides(t)
			other, err := net.Listen("tcp", net.JoinHostPort("::", strconv.Itoa(int(l.web.NodePort))))
			if err != nil {
				t.Fatal(err)
			}
			b := l.next(true)
			l.observed(b)
			listeners, others := l.rendered(b, l.web)
			if len(others) == 0 {
				t.Fatal("there is nothing but the listener")
			}
			var plan []backends.Change
			for _, i := range slices.Concat(b.Base(), listeners, others) {
				plan = append(plan, change(nil, i))
			}
			l.apply(b, plan...)
			for _, i := range others {
				if !l.kernel.Has(i.ID()) {
					t.Errorf("the kernel does not have %s", i)
				}
			}
			for range 2 {
				if got := l.observed(b); len(got) != 1 || got[0].String() != listeners[0].String() {
					t.Errorf("while the port is taken, %v is found", got)
				}
			}
			inUse := listeners[0].(*listen).bind.String() + " is in use by another process"
			if got := l.all.NotServed(); len(got) != 1 || got[0].Service != l.web.Key.Service || !strings.Contains(got[0].Reason, inUse) {
				t.Errorf("%+v are not served, want one of %s: %s", got, l.web.Key.Service, inUse)
			}
			other.Close()
			switch how {
			case "Observe":
				l.observed(b)
			case "ReadUnwatched":
				if _, err := b.Optional().Unwatched.ReadUnwatched(t.Context()); err != nil {
					t.Fatal(err)
				}
			default:
				l.apply(b, change(listeners[0], listeners[0]))
			}
			l.serves("the port is free", true)
			if got := l.all.NotServed(); got != nil {
				t.Errorf("it tells that %+v are not served", got)
			}
			l.apply(b, change(listeners[0], nil))
			l.serves("removed", false)
			if got := l.observed(b); len(got) != 0 {
				t.Errorf("after the removal, %v is found", got)
			}
		})
	}
}

// TestLoopbackGoesBack has the kernel refuse the rest of a Plan. A Result with an error and refusals promises that nothing is in
// force, which counts for listeners too: new, changed and removed ones.
func TestLoopbackGoesBack(t *testing.T) {
	l := newBesides(t)
	b := l.next(true)
	l.observed(b)
	listeners, others := l.rendered(b, l.web)
	refused := func(c backends.Change) {
		t.Helper()
		l.kernel.Faults.Refuse = func(backends.Change) error { return errors.New("no") }
		r := b.Apply(t.Context(), backends.Plan{Changes: []backends.Change{c, change(nil, others[0])}})
		if r.Err == nil || len(r.Refused) == 0 {
			t.Fatalf("%+v", r)
		}
		l.kernel.Faults.Refuse = nil
	}
	refused(change(nil, listeners[0]))
	l.serves("refused at once", false)
	l.apply(b, change(nil, listeners[0]))
	elsewhere := *l.web
	elsewhere.Endpoints = []dataplane.Endpoint{{Addr: echo(t, "b"), Cluster: true, Weight: 1}}
	changed, _ := l.rendered(b, &elsewhere)
	refused(change(listeners[0], changed[0]))
	l.serves("a change was refused", true)
	refused(change(listeners[0], nil))
	l.serves("a removal was refused", true)
}
