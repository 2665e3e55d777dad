package backendtest

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
)

// Describe checks that a Backend describes the Items that it renders as the Frontends that were asked for. Every Item
// that is not in Base must belong to a Frontend.
func Describe(t *testing.T, b backends.Backend) {
	t.Helper()
	d := b.Optional().Describer
	if d == nil {
		t.Fatal("is no Describer")
	}
	for name, e := range describedEntries() {
		t.Run(name, func(t *testing.T) {
			rendered, err := b.Render(e)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[backends.ID]bool{}
			items := slices.Clone(b.Base())
			for _, i := range items {
				seen[i.ID()] = true
			}
			for _, i := range rendered {
				if !seen[i.ID()] {
					seen[i.ID()] = true
					items = append(items, i)
				}
			}
			fronts := d.Describe(items)
			checkFronts(t, e, fronts)
			accounted := map[backends.ID]bool{}
			for _, i := range b.Base() {
				accounted[i.ID()] = true
			}
			for _, f := range fronts {
				for _, id := range slices.Concat(f.Own, f.Shared) {
					accounted[id] = true
				}
			}
			for _, i := range rendered {
				if !accounted[i.ID()] && e.HealthCheckNodePort == 0 {
					t.Errorf("no front has the Item %s", i)
				}
			}
		})
	}
}

// describedEntries returns a Service port for each way in which one can be served.
func describedEntries() map[string]*dataplane.ServicePort {
	addr, port := netip.MustParseAddr, netip.MustParseAddrPort
	base := func() *dataplane.ServicePort {
		return &dataplane.ServicePort{
			Key:       dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: "web"}, Port: "http", Protocol: dataplane.TCP, Family: dataplane.IPv4},
			ClusterIP: addr("10.96.7.8"), Port: 80, HasEndpoints: true,
			Endpoints: []dataplane.Endpoint{
				{Addr: port("10.0.0.1:8080"), Cluster: true, Local: true, Weight: 1},
				{Addr: port("10.0.0.2:8080"), Cluster: true, Remote: true, Weight: 1},
				{Addr: port("10.0.9.3:8080"), Cluster: true, Weight: 1},
			},
		}
	}
	external := func() *dataplane.ServicePort {
		e := base()
		e.NodePort, e.ExternalIPs, e.LoadBalancerIPs = 30080, []netip.Addr{addr("192.0.2.1")}, []netip.Addr{addr("192.0.2.9")}
		return e
	}
	all := map[string]*dataplane.ServicePort{"ClusterIP": base(), "external": external()}
	e := base()
	e.Endpoints = e.Endpoints[:1]
	all["one endpoint"] = e
	e = base()
	e.Endpoints[0].Weight, e.Endpoints[1].Weight = 3, 0
	all["weights"] = e
	e = external()
	e.Affinity = time.Hour
	all["affinity"] = e
	e = external()
	e.ExternalLocal = true
	all["Local"] = e
	e = external()
	e.ExternalLocal, e.Endpoints = true, e.Endpoints[:1]
	all["Local, one endpoint"] = e
	e = external()
	e.SourceRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12")}
	all["source ranges"] = e
	e = external()
	e.Endpoints, e.HasEndpoints = nil, false
	all["no endpoints"] = e
	return all
}

func checkFronts(t *testing.T, e *dataplane.ServicePort, fronts []backends.ProgrammedFrontend) {
	t.Helper()
	got := map[string]backends.ProgrammedFrontend{}
	for _, f := range fronts {
		got[fmt.Sprintf("%s:%d", f.Addr, f.Port)] = f
	}
	check := func(a netip.Addr, port uint16, want []dataplane.Endpoint, sources bool) {
		key := fmt.Sprintf("%s:%d", a, port)
		f, ok := got[key]
		if !ok {
			t.Errorf("no front %s", key)
			return
		}
		delete(got, key)
		checkFront(t, e, f, want, sources)
	}
	check(e.ClusterIP, e.Port, e.InternalEndpoints(), false)
	for _, a := range e.ExternalIPs {
		check(a, e.Port, e.ExternalEndpoints(), false)
	}
	for _, a := range e.LoadBalancerIPs {
		check(a, e.Port, e.ExternalEndpoints(), len(e.SourceRanges) > 0)
	}
	if e.NodePort != 0 {
		check(netip.Addr{}, e.NodePort, e.ExternalEndpoints(), false)
	}
	for key := range got {
		t.Errorf("front %s was not asked for", key)
	}
}

func checkFront(t *testing.T, e *dataplane.ServicePort, f backends.ProgrammedFrontend, want []dataplane.Endpoint, sources bool) {
	t.Helper()
	if f.Service != "default/web:http" {
		t.Errorf("front %s:%d: Service %q", f.Addr, f.Port, f.Service)
	}
	sum := 0
	for _, ep := range want {
		sum += int(ep.Weight)
	}
	shares := map[netip.AddrPort]float64{}
	for _, ep := range want {
		if ep.Weight > 0 {
			shares[ep.Addr] = float64(ep.Weight) / float64(sum)
		}
	}
	for _, s := range f.Endpoints {
		if math.Abs(shares[s.Addr]-s.Fraction) > 1e-3 {
			t.Errorf("front %s:%d: %s has %v of connections, want %v", f.Addr, f.Port, s.Addr, s.Fraction, shares[s.Addr])
		}
		delete(shares, s.Addr)
	}
	for a := range shares {
		t.Errorf("front %s:%d: no endpoint %s", f.Addr, f.Port, a)
	}
	if len(f.Endpoints) > 0 && f.Affinity != e.Affinity {
		t.Errorf("front %s:%d: affinity %v, want %v", f.Addr, f.Port, f.Affinity, e.Affinity)
	}
	if sources != (len(f.Sources) > 0) {
		t.Errorf("front %s:%d: sources %v", f.Addr, f.Port, f.Sources)
	}
	if refusal := map[bool]string{true: "drop", false: "reject"}[e.HasEndpoints]; len(want) == 0 && f.Refusal != refusal {
		t.Errorf("front %s:%d: refusal %q, want %q", f.Addr, f.Port, f.Refusal, refusal)
	}
}
