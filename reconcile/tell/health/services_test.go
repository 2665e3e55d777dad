package health

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

func TestServiceServers(t *testing.T) {
	p := &Proxy{}
	p.SetTimeout(time.Minute)
	s := NewServiceServers(p, hclog.NewNullLogger())
	t.Cleanup(s.Close)
	s.SetNode("n1", []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	port, other := freePort(t), freePort(t)

	web := lbService("web", port, endpoint("n1", "10.0.0.1"), endpoint("n1", "10.0.0.1"), endpoint("n1", "10.0.0.2"), endpoint("n2", "10.0.0.3"))
	s.Sync(snapshot(web), spec.Delta{All: true})
	expect(t, port, 200, 2)

	p.Queued(time.Now().Add(-time.Hour))
	code, body, header := getHeader(t, "http://127.0.0.1:"+port)
	if code != 503 {
		t.Errorf("with a data path that is behind: %d %s", code, body)
	}
	if w := header.Get("X-Load-Balancing-Endpoint-Weight"); w != "2" {
		t.Errorf("weight is %q", w)
	}
	p.Applied(time.Now(), "r1")

	// The last local endpoint goes.
	name := web.Name
	s.Sync(snapshot(lbService("web", port, endpoint("n2", "10.0.0.3"))), spec.Delta{Services: []dataplane.ServiceName{name}})
	expect(t, port, 503, 0)

	// The port changes, and another Service takes the old one.
	api := lbService("api", port, endpoint("n1", "10.0.0.9"))
	s.Sync(snapshot(lbService("web", other, endpoint("n1", "10.0.0.1")), api), spec.Delta{Services: []dataplane.ServiceName{name, api.Name}})
	expect(t, port, 200, 1)
	expect(t, other, 200, 1)

	// One Service goes, the other is no longer Local.
	api = lbService("api", port, endpoint("n1", "10.0.0.9"))
	api.Object.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	s.Sync(snapshot(api), spec.Delta{All: true})
	refused(t, "127.0.0.1:"+port)
	refused(t, "127.0.0.1:"+other)
}

func TestServiceServerPortTaken(t *testing.T) {
	s := NewServiceServers(&Proxy{}, hclog.NewNullLogger())
	t.Cleanup(s.Close)
	s.SetNode("n1", []netip.Addr{netip.MustParseAddr("127.0.0.1")})
	port := freePort(t)
	a, b := lbService("a", port, endpoint("n1", "10.0.0.1")), lbService("b", port, endpoint("n1", "10.0.0.1"))
	s.Sync(snapshot(a, b), spec.Delta{All: true})
	if len(s.servers) != 1 {
		t.Fatalf("%d servers", len(s.servers))
	}
	for name := range s.servers {
		rest := b
		if name == b.Name {
			rest = a
		}
		s.Sync(snapshot(rest), spec.Delta{Services: []dataplane.ServiceName{name}})
	}
	expect(t, port, 200, 1)
}

func TestLocalReadyEndpoints(t *testing.T) {
	no, yes := false, true
	notReady := endpoint("n1", "10.0.0.1")
	notReady.Conditions.Ready = &no
	terminating := endpoint("n1", "10.0.0.2")
	terminating.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	nowhere := endpoint("n1", "10.0.0.3")
	nowhere.NodeName = nil
	svc := lbService("web", "1", notReady, terminating, nowhere, endpoint("n1", "10.0.0.4"))
	if n := localReadyEndpoints(svc, "n1"); n.ipv4 != 1 {
		t.Errorf("got %v, want 1", n)
	}
	svc.Object.Spec.PublishNotReadyAddresses = true
	if n := localReadyEndpoints(svc, "n1"); n.ipv4 != 3 {
		t.Errorf("with publishNotReadyAddresses: got %v, want 3", n)
	}
}

// TestEndpointsOfTheFamilyAskedOver asks a dual-stack Service's port over IPv4 and IPv6, on one socket for all addresses and
// on one for each.
func TestEndpointsOfTheFamilyAskedOver(t *testing.T) {
	for name, addrs := range map[string][]netip.Addr{"all": nil, "each": {netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}} {
		t.Run(name, func(t *testing.T) {
			p := &Proxy{}
			p.SetTimeout(time.Minute)
			s := NewServiceServers(p, hclog.NewNullLogger())
			t.Cleanup(s.Close)
			s.SetNode("n1", addrs)
			port := freePort(t)
			web := lbService("web", port, endpoint("n1", "10.0.0.1"), endpoint("n1", "10.0.0.2"))
			web.Slices = append(web.Slices, &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv6, Endpoints: []discoveryv1.Endpoint{endpoint("n2", "fd00::1")}})
			s.Sync(snapshot(web), spec.Delta{All: true})
			expectAt(t, "127.0.0.1", port, 200, 2)
			expectAt(t, "[::1]", port, 503, 0)
			web.Slices[1].Endpoints = append(web.Slices[1].Endpoints, endpoint("n1", "fd00::2"))
			s.Sync(snapshot(web), spec.Delta{All: true})
			expectAt(t, "[::1]", port, 200, 1)
		})
	}
}

func expect(t *testing.T, port string, code, local int) {
	t.Helper()
	expectAt(t, "127.0.0.1", port, code, local)
}

func expectAt(t *testing.T, host, port string, code, local int) {
	t.Helper()
	got, text, _ := getHeader(t, "http://"+host+":"+port+"/")
	var body serviceBody
	if err := json.Unmarshal([]byte(text), &body); err != nil || got != code || int(body.LocalEndpoints) != local || body.Service.Namespace != "default" {
		t.Errorf("port %s: %d %s (%v), want %d with %d endpoints", port, got, text, err, code, local)
	}
}

func lbService(name, port string, endpoints ...discoveryv1.Endpoint) *spec.Service {
	n, _ := strconv.Atoi(port)
	svc := &corev1.Service{Spec: corev1.ServiceSpec{
		Type:                  corev1.ServiceTypeLoadBalancer,
		ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal,
		HealthCheckNodePort:   int32(n),
	}}
	svc.Namespace, svc.Name = "default", name
	return &spec.Service{
		Name:   dataplane.ServiceName{Namespace: "default", Name: name},
		Object: svc,
		Slices: []*discoveryv1.EndpointSlice{{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints}},
	}
}

func endpoint(node, addr string) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node}
}

func snapshot(services ...*spec.Service) *spec.Snapshot {
	return &spec.Snapshot{Services: spec.ServicesOf(services...)}
}
