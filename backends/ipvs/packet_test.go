package ipvs

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/netlab"
)

const (
	// answerWait bounds how long a probe waits for an answer that must come.
	answerWait = 20 * time.Second
	// patience bounds how long a test waits for the kernel to forget a connection that was reset. The kernel takes ten
	// seconds.
	patience = 60 * time.Second
)

// node is a real kernel with IPVS, with three pods that answer on port 8080.
type node struct {
	*inside
	t   *testing.T
	lab *netlab.Lab
}

func newNode(t *testing.T, set Settings) *node {
	t.Helper()
	lab := netlab.New(t, netlab.Topology{})
	r := realRig(t, lab.Node())
	for _, pod := range []string{"pod1", "pod2", "pod3"} {
		for _, proto := range []netlab.Protocol{netlab.TCP, netlab.UDP} {
			lab.Host(pod).Serve(t, proto, 8080)
		}
	}
	return &node{r.backend(set), t, lab}
}

var webAddr = netip.MustParseAddrPort("10.96.0.80:80")

// web returns a Service with the pods of these weights as endpoints. A pod with 0 has weight 0, and a pod with a
// negative weight is no endpoint.
func web(weights ...int) *dataplane.ServicePort {
	e := &dataplane.ServicePort{
		Key:       dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: "web"}, Protocol: dataplane.TCP, Family: dataplane.IPv4},
		ClusterIP: webAddr.Addr(), Port: webAddr.Port(), HasEndpoints: true,
	}
	for i, w := range weights {
		if w >= 0 {
			at := netip.AddrPortFrom(netlab.PodIPv4(i+1), 8080)
			e.Endpoints = append(e.Endpoints, dataplane.Endpoint{Addr: at, Cluster: true, Local: true, Weight: uint16(w)})
		}
	}
	return e
}

// open connects, and returns who answered. The flow stays open.
func (n *node) open(from string, to netip.AddrPort) (*netlab.Flow, string) {
	n.t.Helper()
	f, err := n.lab.Host(from).Open(netlab.TCP, to, answerWait)
	if err != nil {
		n.t.Fatalf("%s to %s: %v", from, to, err)
	}
	n.t.Cleanup(f.Close)
	return f, n.ask(f)
}

func (n *node) ask(f *netlab.Flow) string {
	n.t.Helper()
	r := f.Ask(answerWait)
	if r.Outcome != netlab.Answered {
		n.t.Fatalf("got %v", r)
	}
	return r.Server
}

// openMany opens k connections one after the other, leaves them open, and returns who answered each.
func (n *node) openMany(from string, to netip.AddrPort, k int) []string {
	n.t.Helper()
	var who []string
	for range k {
		_, name := n.open(from, to)
		who = append(who, name)
	}
	return who
}

// destination returns the kernel's destination for a pod behind the virtual server.
func (n *node) destination(key ServerKey, pod int) (Destination, bool) {
	n.t.Helper()
	list, err := n.kernel.Destinations(key)
	if err != nil {
		n.t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(d Destination) bool { return d.Addr.Addr() == netlab.PodIPv4(pod) })
	if i < 0 {
		return Destination{}, false
	}
	return list[i], true
}

// await polls until check succeeds.
func await(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", patience, what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// reaped calls Reap until nothing is left.
func (n *node) reaped() {
	n.t.Helper()
	await(n.t, "what is leaving to be gone", func() error {
		left, err := n.Reap(n.t.Context())
		if err == nil && left > 0 {
			err = fmt.Errorf("%d left", left)
		}
		return err
	})
}

func count(names []string) map[string]int {
	m := map[string]int{}
	for _, n := range names {
		m[n]++
	}
	return m
}

var webKey = ServerKey{Family: dataplane.IPv4, Protocol: dataplane.TCP, Addr: webAddr}

// TestPain05_GracefulTermination expects that a connection is not reset when its endpoint is removed, and that no
// connection keeps the endpoint for ever.
func TestPain05_GracefulTermination(t *testing.T) {
	n := newNode(t, testSettings())
	n.converge(t, web(1, 1))
	flows := map[string]*netlab.Flow{}
	for len(flows) < 2 {
		f, name := n.open(netlab.Client, webAddr)
		flows[name] = f
	}

	n.converge(t, web(-1, 1))
	if p := n.plan(t, web(-1, 1)); !p.Empty() {
		t.Errorf("a leaving destination is part of a plan:\n%s", p)
	}
	if who := n.ask(flows["pod1"]); who != "pod1" {
		t.Errorf("the open connection is answered by %s now", who)
	}
	if who := count(n.openMany(netlab.Client, webAddr, 4)); who["pod2"] != 4 {
		t.Errorf("new connections reach %v", who)
	}

	// The endpoint is added again while its connection is open.
	n.converge(t, web(1, 1))
	if d, ok := n.destination(webKey, 1); !ok || d.Weight != 1 || d.Until != 0 {
		t.Errorf("the destination that came back is %+v", d)
	}
	if who := n.ask(flows["pod1"]); who != "pod1" {
		t.Errorf("the open connection is answered by %s now", who)
	}
	if who := count(n.openMany(netlab.Client, webAddr, 8)); who["pod1"] == 0 {
		t.Errorf("new connections reach %v", who)
	}

	// The whole Service is deleted: its connections may end by themselves, but no client gets a new one.
	n.converge(t)
	if who := n.ask(flows["pod1"]); who != "pod1" {
		t.Errorf("the open connection is answered by %s now", who)
	}
	if r := n.lab.Host(netlab.Client).Probe(netlab.TCP, webAddr, answerWait); r.Outcome != netlab.Refused {
		t.Errorf("a new connection to a Service that is gone: %v", r)
	}

	// After a restart the kernel tells which destinations are leaving. They are deleted at their limit, in use or not.
	next := n.rig.backend(testSettings())
	if p := next.plan(t); !p.Empty() {
		t.Errorf("after a restart there is still to do:\n%s", p)
	}
	if left, err := next.Reap(t.Context()); left == 0 || err != nil {
		t.Errorf("%d are leaving, %v", left, err)
	}
	next.now = func() time.Time { return time.Now().Add(DrainLimit + time.Second) }
	if left, err := next.Reap(t.Context()); left != 0 || err != nil {
		t.Errorf("past the limit %d are leaving, %v", left, err)
	}
	next.mustHoldNothingOf(t, webAddr)
}

// mustHoldNothingOf fails the test if there is a virtual server or an address of the Service.
func (b *inside) mustHoldNothingOf(t *testing.T, at netip.AddrPort) {
	t.Helper()
	state, err := b.kernel.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range state.Servers {
		if s.Addr == at {
			t.Errorf("still there: %s", s)
		}
	}
	for _, a := range state.Addresses {
		if a.Addr == at.Addr() {
			t.Errorf("still there: %s", a)
		}
	}
}

// TestDrainedGoWithTheirLastConnection also covers UDP, whose connections weir does not wait for.
func TestDrainedGoWithTheirLastConnection(t *testing.T) {
	n := newNode(t, testSettings())
	dns := web(1, -1, -1)
	dns.Key.Protocol, dns.Key.Service.Name = dataplane.UDP, "dns"
	n.converge(t, web(1, 1), dns)
	var flows []*netlab.Flow
	for range 2 {
		f, _ := n.open(netlab.Client, webAddr)
		flows = append(flows, f)
	}
	udp, err := n.lab.Host(netlab.Client).Open(netlab.UDP, webAddr, answerWait)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	n.ask(udp)
	n.converge(t, web(-1, 1))
	udpKey := webKey
	udpKey.Protocol = dataplane.UDP
	if _, ok := n.destination(udpKey, 1); ok {
		t.Error("a destination of UDP is waited for")
	}
	if d, ok := n.destination(webKey, 1); !ok || d.Until == 0 {
		t.Errorf("the destination is %+v, %v", d, ok)
	}
	for _, f := range flows {
		f.Close()
	}
	n.reaped()
	if d, ok := n.destination(webKey, 1); ok {
		t.Errorf("still there: %+v", d)
	}
	n.converge(t)
	n.reaped()
	n.mustHoldNothingOf(t, webAddr)
}

// TestPersistentClientsMove expects that a client whose endpoint leaves keeps its open connection. Its next connection
// goes to an endpoint that stays, and binds the client to that endpoint.
func TestPersistentClientsMove(t *testing.T) {
	n := newNode(t, testSettings())
	sticky := func(weights ...int) *dataplane.ServicePort {
		e := web(weights...)
		e.Affinity = time.Hour
		return e
	}
	n.converge(t, sticky(1, 1, 1))
	flow, first := n.open(netlab.Client, webAddr)
	if who := count(n.openMany(netlab.Client, webAddr, 4)); who[first] != 4 {
		t.Fatalf("the client of %s reaches %v", first, who)
	}
	weights := []int{1, 1, 1}
	pod := int(first[len(first)-1] - '0')
	weights[pod-1] = -1
	n.converge(t, sticky(weights...))
	if who := n.ask(flow); who != first {
		t.Errorf("the open connection is answered by %s now, not by %s", who, first)
	}
	if d, ok := n.destination(webKey, pod); !ok || d.Until == 0 {
		t.Errorf("the destination is not leaving: %+v, %v", d, ok)
	}
	_, next := n.open(netlab.Client, webAddr)
	if next == first {
		t.Errorf("a new connection reaches %s, which is leaving", first)
	}
	if who := count(n.openMany(netlab.Client, webAddr, 4)); who[next] != 4 {
		t.Errorf("the client of %s reaches %v", next, who)
	}
	n.converge(t, sticky(1, 1, 1))
	if who := count(n.openMany(netlab.Client, webAddr, 4)); who[next] != 4 {
		t.Errorf("after %s came back the client of %s reaches %v", first, next, who)
	}
}

// TestPain04_WeightIsRestored expects that a destination with weight 0, set by weir or by another program, serves
// again.
func TestPain04_WeightIsRestored(t *testing.T) {
	n := newNode(t, testSettings())
	n.converge(t, web(1))
	n.open(netlab.Client, webAddr)
	n.converge(t, web(-1, 1)) // pod1 is leaving, and weir dies
	next := n.rig.backend(testSettings())
	next.converge(t, web(1, -1))
	if d, _ := n.destination(webKey, 1); d.Weight != 1 || d.Until != 0 {
		t.Errorf("after the restart the destination is %+v", d)
	}
	if err := n.kernel.Put(Destination{Server: webKey, Addr: netip.AddrPortFrom(netlab.PodIPv4(1), 8080)}); err != nil {
		t.Fatal(err)
	}
	next.converge(t, web(1, -1))
	if who := n.openMany(netlab.Client, webAddr, 2); count(who)["pod1"] != 2 {
		t.Errorf("new connections reach %v", who)
	}
}

// TestPain03_StaleServersGo expects a full sync to delete virtual servers and destinations that no Service asks for.
func TestPain03_StaleServersGo(t *testing.T) {
	eachKernel(t, func(t *testing.T, r *rig) {
		b := r.backend(testSettings())
		b.converge(t, web(1, 1))
		stale := webKey
		stale.Addr = netip.MustParseAddrPort("10.96.0.81:80")
		for _, i := range []backends.Item{
			Server{ServerKey: stale, Scheduler: "rr"},
			Destination{Server: stale, Addr: netip.MustParseAddrPort("10.244.1.9:8080"), Weight: 1},
			Destination{Server: webKey, Addr: netip.MustParseAddrPort("10.244.1.9:8080"), Weight: 1},
		} {
			if err := r.kernel.Put(i); err != nil {
				t.Fatal(err)
			}
		}
		if p := b.converge(t, web(1, 1)); len(p.Changes) != 3 {
			t.Errorf("the plan should delete three objects:\n%s", p)
		}
		b.mustHoldNothingOf(t, stale.Addr)
	})
}

// TestPain07_AddressesGo expects an address to be deleted with the last Service that has it, and not before. A restart
// changes nothing.
func TestPain07_AddressesGo(t *testing.T) {
	eachKernel(t, func(t *testing.T, r *rig) {
		shared := netip.MustParseAddrPort("192.0.2.50:80")
		a, b := web(1), web(1)
		a.ExternalIPs, b.ExternalIPs = []netip.Addr{shared.Addr()}, []netip.Addr{shared.Addr()}
		b.Key.Service.Name, b.ClusterIP, b.Port = "other", netip.MustParseAddr("10.96.0.82"), 81
		backend := r.backend(testSettings())
		has := func(addr netip.Addr) bool {
			state, err := r.kernel.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return slices.Contains(state.Addresses, Address{Addr: addr})
		}
		backend.converge(t, a, b)
		backend.converge(t, b)
		if !has(shared.Addr()) || has(a.ClusterIP) {
			t.Errorf("with one of two Services gone: shared address there %v, its own there %v", has(shared.Addr()), has(a.ClusterIP))
		}
		r.backend(testSettings()).converge(t)
		if has(shared.Addr()) || has(b.ClusterIP) {
			t.Error("addresses are left on the interface")
		}
	})
}

// TestPain08_OthersServers expects that foreign virtual servers stay unchanged, also on the address of a Service, and
// on its port.
func TestPain08_OthersServers(t *testing.T) {
	n := newNode(t, testSettings())
	kernel := n.kernel.(*Linux)
	beside := webKey
	beside.Addr = netip.AddrPortFrom(webAddr.Addr(), 9999)
	for _, key := range []ServerKey{webKey, beside} {
		svc := service(Server{ServerKey: key, Scheduler: "wlc"})
		svc.Flags = 0
		if err := kernel.ipvs.NewService(svc); err != nil {
			t.Fatal(err)
		}
	}
	other := web(1)
	other.Key.Service.Name, other.ClusterIP = "other", netip.MustParseAddr("10.96.0.82")
	refused := n.Apply(t.Context(), n.plan(t, web(1), other))
	if err := refused.Refused[Server{ServerKey: webKey}.ID()]; !errors.Is(err, ErrForeign) || refused.Err != nil {
		t.Errorf("the place is taken, and weir says %v, %v", err, refused.Err)
	}
	if _, who := n.open(netlab.Client, netip.AddrPortFrom(other.ClusterIP, 80)); who != "pod1" {
		t.Errorf("the other Service is served by %s", who)
	}
	n.converge(t, other)
	n.converge(t)
	n.Apply(t.Context(), n.teardown())
	for _, key := range []ServerKey{webKey, beside} {
		n.rig.mustHold(t, Server{ServerKey: key, Scheduler: "wlc"})
	}
}

// TestPain08_EditedOrReplaced expects that a virtual server that another program edits stays weir's although it lost
// its mark, and is corrected. A virtual server that another program puts in its place is not weir's, and stays when the
// Service is deleted.
func TestPain08_EditedOrReplaced(t *testing.T) {
	eachKernel(t, func(t *testing.T, r *rig) {
		b := r.backend(testSettings())
		b.converge(t, web(1, 1))
		edited := Server{ServerKey: webKey, Scheduler: "wlc"}
		r.edit(t, edited)
		b.converge(t, web(1, 1, 1))
		if p := b.plan(t, web(1, 1, 1)); !p.Empty() {
			t.Errorf("still to do:\n%s", p)
		}

		r.edit(t, edited)
		have, err := r.kernel.Destinations(webKey)
		if err != nil || len(have) != 3 {
			t.Fatalf("destinations: %v, %v", have, err)
		}
		for _, d := range have {
			if err := r.kernel.Delete(d); err != nil {
				t.Fatal(err)
			}
		}
		id := Server{ServerKey: webKey}.ID()
		if r := b.Apply(t.Context(), b.plan(t, web(1, 1, 1))); r.Err != nil || !errors.Is(r.Refused[id], ErrForeign) {
			t.Errorf("the place is taken, and weir says %v, %v", r.Refused[id], r.Err)
		}
		gone := backends.Plan{Changes: []backends.Change{{Op: backends.Delete, ID: id, Old: Server{ServerKey: webKey, Scheduler: "rr"}}}}
		if r := b.Apply(t.Context(), gone); r.Err != nil || len(r.Refused) > 0 {
			t.Errorf("%v, refused %v", r.Err, r.Refused)
		}
		r.mustHold(t, edited)
	})
}

// teardown returns the plan of a cleanup.
func (n *node) teardown() (p backends.Plan) {
	for i, err := range n.Observe(n.t.Context()) {
		if err != nil {
			n.t.Fatal(err)
		}
		p.Changes = append(p.Changes, backends.Change{Op: backends.Delete, ID: i.ID(), Old: i})
	}
	return p
}
