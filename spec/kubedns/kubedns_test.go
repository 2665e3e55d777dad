package kubedns

import (
	"bytes"
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
	loaded, err := New(fixed{snapshot(node)}, hclog.NewNullLogger(), nil).Load(t.Context())
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

// TestTaken has a kubelet point its pods to addresses that others have. weir does not answer there, and says why, and answers where it
// would without that kubelet. In a range of ClusterIPs and on link-local addresses there is nobody else.
func TestTaken(t *testing.T) {
	taken := func(a netip.Addr) string {
		if a == netip.MustParseAddr("192.168.1.53") || a == netip.MustParseAddr("10.96.0.53") || a == netip.MustParseAddr("169.254.20.10") {
			return "another host has it"
		}
		return ""
	}
	for _, tt := range []struct{ asked, want, says string }{
		{"192.168.1.53", "10.96.0.10 fd00:10:96::a", "192.168.1.53, which is clusterDNS of a KubeletConfiguration, because another host has it"},
		{"192.168.1.53 10.43.0.10", "10.43.0.10", "192.168.1.53"},
		{"10.96.0.53", "10.96.0.53", ""},
		{"169.254.20.10", "169.254.20.10", ""},
		{"8.8.8.8", "10.96.0.10 fd00:10:96::a", "because it is no private address"},
		{"240.0.0.1", "10.96.0.10 fd00:10:96::a", "because it is no private address"},
		{"100.100.100.200", "10.96.0.10 fd00:10:96::a", "because it is no private address"},
		{"2001:db8::a", "10.96.0.10 fd00:10:96::a", "because it is no private address"},
		{"169.254.20.54", "10.96.0.10 fd00:10:96::a", "because weir itself asks a resolver there"},
		{"192.0.2.53", "10.96.0.10 fd00:10:96::a", "because weir itself asks a resolver there"},
		{"192.0.2.54", "10.96.0.10 fd00:10:96::a", "because weir itself asks a resolver there"},
	} {
		var log bytes.Buffer
		a := adder{log: hclog.New(&hclog.LoggerOptions{Output: &log}), taken: taken}
		snap := pointed(snapshot("127.0.0.1:53"), strings.Fields(tt.asked)...)
		snap.Weir.DNS.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
		snap.Weir.DNS.Forward = map[string][]netip.AddrPort{"corp.example": {netip.MustParseAddrPort("192.0.2.54:53"), netip.MustParseAddrPort("169.254.20.54:53")}}
		for range 2 {
			if got, _ := a.add(snap, spec.Delta{All: true}); show(got) != tt.want {
				t.Errorf("%s: %q, not %q", tt.asked, show(got), tt.want)
			}
		}
		if lines := strings.Count(log.String(), "\n"); !strings.Contains(log.String(), tt.says) || lines > 1 || tt.says == "" && lines > 0 {
			t.Errorf("%s: the log has\n%s", tt.asked, &log)
		}
	}
}

// TestHolderIsTold has another Service hold the address at which pods ask: its author is told, until it is given back.
func TestHolderIsTold(t *testing.T) {
	holder := service(dataplane.ServiceName{Namespace: "default", Name: "other"}, "10.96.0.10")
	holder.Origin = spec.Origin{File: "other.yaml", Line: 3}
	held := snapshot("127.0.0.1:53", holder)
	notices := Notices(held)
	if len(notices) != 1 || notices[0].ID() != spec.SharedAddress || notices[0].Origin != holder.Origin {
		t.Errorf("notices %v", notices)
	}
	a := adder{log: hclog.NewNullLogger()}
	if got, _ := a.add(held, spec.Delta{All: true}); len(got.Notices) != 1 || len(held.Notices) != 0 {
		t.Errorf("%d notices, and %d in what was given", len(got.Notices), len(held.Notices))
	}
	if got, _ := a.add(snapshot("127.0.0.1:53"), spec.Delta{Services: []dataplane.ServiceName{holder.Name}}); len(got.Notices) != 0 || show(got) == "" {
		t.Errorf("%d notices, %q", len(got.Notices), show(got))
	}
	if len(Notices(snapshot("", holder))) != 0 {
		t.Error("a notice where weir answers for no names")
	}
}

// TestListeningEverywhereIsTold has weir listen at all addresses, so that pods have no address to ask at.
func TestListeningEverywhereIsTold(t *testing.T) {
	var log bytes.Buffer
	a := adder{log: hclog.New(&hclog.LoggerOptions{Output: &log})}
	if got, _ := a.add(snapshot("0.0.0.0:53"), spec.Delta{All: true}); show(got) != "" || !strings.Contains(log.String(), "pods have no kube-dns to ask") {
		t.Errorf("%q, and the log has %s", show(got), &log)
	}
}
