package kubedns

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

func service(name dataplane.ServiceName, ip string, endpoints ...string) *spec.Service {
	svc := &spec.Service{Name: name, Object: &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip},
		Ports: []corev1.ServicePort{{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "metrics", Port: 9153, Protocol: corev1.ProtocolTCP}}}}}
	for _, e := range endpoints {
		svc.Slices = append(svc.Slices, &discoveryv1.EndpointSlice{Endpoints: []discoveryv1.Endpoint{{Addresses: []string{e}}}})
	}
	return svc
}

func snapshot(listen string, all ...*spec.Service) *spec.Snapshot {
	weir := spec.DefaultWeirConfiguration()
	weir.DNS.Serve = listen != ""
	for _, at := range strings.Fields(listen) {
		weir.DNS.Listen = append(weir.DNS.Listen, netip.MustParseAddrPort(at))
	}
	return &spec.Snapshot{Weir: weir, Services: spec.ServicesOf(all...)}
}

// pointed returns the Snapshot with the addresses at which kubelets have pods ask.
func pointed(snap *spec.Snapshot, addrs ...string) *spec.Snapshot {
	for _, a := range addrs {
		snap.Weir.DNS.ClusterIPs = append(snap.Weir.DNS.ClusterIPs, netip.MustParseAddr(a))
	}
	return snap
}

// show returns the ClusterIPs and endpoints of the Service in a Snapshot.
func show(snap *spec.Snapshot) string {
	svc := snap.Services.Get(Name)
	if svc == nil {
		return ""
	}
	parts := slices.Clone(svc.Object.Spec.ClusterIPs)
	for _, s := range svc.Slices {
		for _, e := range s.Endpoints {
			parts = append(parts, e.Addresses[0])
		}
	}
	return strings.Join(parts, " ")
}

// TestSource sends one Snapshot after the other, and looks at the Service and at the Delta.
func TestSource(t *testing.T) {
	other := dataplane.ServiceName{Namespace: "default", Name: "other"}
	const node = "192.168.1.1:53"
	steps := []struct {
		what string
		snap *spec.Snapshot
		all  bool
		name dataplane.ServiceName
		want string
		told bool // the Delta names the Service
	}{
		{"nothing is answered", snapshot(""), true, other, "", false},
		{"on all addresses", snapshot("127.0.0.1:53 [::]:53"), false, other, "", false},
		{"on loopback only", snapshot("127.0.0.1:53"), false, other, "10.96.0.10 fd00:10:96::a", true},
		{"where kubelets point", pointed(snapshot("127.0.0.1:53"), "10.96.0.53", "10.96.0.54"), true, other, "10.96.0.53", false},
		{"where kubelets point and weir listens", pointed(snapshot("127.0.0.1:53 "+node), "192.168.1.1"), true, other, "10.96.0.10 fd00:10:96::a 192.168.1.1", false},
		{"where one of two kubelets points and weir listens", pointed(snapshot("127.0.0.1:53 "+node), "192.168.1.1", "169.254.20.10"), true, other, "169.254.20.10 192.168.1.1", false},
		{"on an address of the node", snapshot(node), false, other, "10.96.0.10 fd00:10:96::a 192.168.1.1", true},
		{"another Service", snapshot(node, service(other, "10.96.0.9")), false, other, "10.96.0.10 fd00:10:96::a 192.168.1.1", false},
		{"which takes the address", snapshot(node, service(other, "10.96.0.10")), false, other, "", true},
		{"and gives it back", snapshot(node), false, other, "10.96.0.10 fd00:10:96::a 192.168.1.1", true},
		{"dual stack", snapshot(node + " [fd00::1]:5353"), false, other, "10.96.0.10 fd00:10:96::a 192.168.1.1 fd00::1", true},
		{"declared without endpoints", snapshot(node, service(Name, "10.96.0.53")), false, Name, "10.96.0.53 192.168.1.1", true},
		{"declared with endpoints", snapshot(node, service(Name, "10.96.0.53", "10.244.0.1")), false, Name, "10.96.0.53 10.244.0.1", true},
		{"no more", snapshot(""), false, Name, "", true},
	}
	a := adder{log: hclog.NewNullLogger()}
	for _, s := range steps {
		delta := spec.Delta{All: s.all}
		if !s.all {
			delta.Services = []dataplane.ServiceName{s.name}
		}
		got, delta := a.add(s.snap, delta)
		if show(got) != s.want {
			t.Errorf("%s: %q, not %q", s.what, show(got), s.want)
		}
		if told := slices.Contains(delta.Services, Name); told != s.told {
			t.Errorf("%s: the change of the Service is told: %v", s.what, told)
		}
	}
	loaded, err := New(fixed{snapshot(node)}, hclog.NewNullLogger()).Load(t.Context())
	if err != nil || show(loaded) != "10.96.0.10 fd00:10:96::a 192.168.1.1" {
		t.Errorf("Load: %q %v", show(loaded), err)
	}
	if len(endpointSlices(service(Name, "").Object.Spec.Ports, []netip.AddrPort{netip.MustParseAddrPort(node)})[0].Ports) != 1 {
		t.Error("a port that weir does not answer at has an endpoint")
	}
}

type fixed struct{ snap *spec.Snapshot }

func (f fixed) Load(context.Context) (*spec.Snapshot, error)   { return f.snap, nil }
func (f fixed) Watch(context.Context, func(spec.Update)) error { return nil }
