package reconcile

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/probe"
)

func ptr[T any](v T) *T { return &v }

// ep writes an endpoint in few words: an address followed by flags. "!" is not ready, "t" terminating, "x" not serving,
// "@name" the node, "z:zone" and "n:node" hints.
func ep(words string) discoveryv1.Endpoint {
	f := strings.Fields(words)
	e := discoveryv1.Endpoint{Addresses: f[:1]}
	for _, w := range f[1:] {
		switch {
		case w == "!":
			e.Conditions.Ready = ptr(false)
		case w == "t":
			e.Conditions.Terminating = ptr(true)
		case w == "x":
			e.Conditions.Serving = ptr(false)
		case w[0] == '@':
			e.NodeName = ptr(w[1:])
		case strings.HasPrefix(w, "z:"):
			e.Hints = cmpHints(e.Hints)
			e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: w[2:]})
		case strings.HasPrefix(w, "n:"):
			e.Hints = cmpHints(e.Hints)
			e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: w[2:]})
		default:
			panic(w)
		}
	}
	return e
}

func cmpHints(h *discoveryv1.EndpointHints) *discoveryv1.EndpointHints {
	if h == nil {
		return &discoveryv1.EndpointHints{}
	}
	return h
}

// service returns a Service of one port with these endpoints.
func withEndpoints(eps ...string) *spec.Service {
	s := makeService("svc", 0, "TCP", 0)
	for _, e := range eps {
		s.Slices[0].Endpoints = append(s.Slices[0].Endpoints, ep(e))
	}
	return s
}

// list writes endpoints as "1C 2L 3CL": the last octet, and which policies may choose.
func list(eps []dataplane.Endpoint) string {
	var out []string
	for _, e := range eps {
		a := e.Addr.Addr().AsSlice()
		text := fmt.Sprint(a[len(a)-1])
		if e.Cluster {
			text += "C"
		}
		if e.Local {
			text += "L"
		}
		if e.Remote {
			text += "R"
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func TestResolveEndpoints(t *testing.T) {
	const cluster, internal, external, both = "cluster", "internal", "external", "both"
	tests := []struct {
		name, policy string
		eps          []string
		want         string
		any          bool
	}{
		{"none", cluster, nil, "", false},
		{"nil ready means ready", cluster, []string{"10.0.0.1", "10.0.0.2"}, "1C 2C", true},
		{"sorted", cluster, []string{"10.0.0.10", "10.0.0.9"}, "9C 10C", true},
		{"not ready", cluster, []string{"10.0.0.1", "10.0.0.2 !"}, "1C", true},
		{"none ready", cluster, []string{"10.0.0.1 !"}, "", false},
		{"terminating not used beside a ready one", cluster, []string{"10.0.0.1", "10.0.0.2 ! t"}, "1C", true},
		{"terminating used when nothing else is left", cluster, []string{"10.0.0.1 !", "10.0.0.2 ! t"}, "2C", true},
		{"terminating and not serving", cluster, []string{"10.0.0.1 ! t x"}, "", false},
		{"local and remote", cluster, []string{"10.0.0.1 @node-a", "10.0.0.2 @node-b", "10.0.0.3"}, "1CL 2CR 3C", true},

		{"internal local", internal, []string{"10.0.0.1 @node-a", "10.0.0.2 @node-b"}, "1L", true},
		{"internal local, none here", internal, []string{"10.0.0.2 @node-b"}, "", true},
		{"internal local, none anywhere", internal, []string{"10.0.0.2 ! @node-b"}, "", false},
		{"internal local, terminating here", internal, []string{"10.0.0.1 ! t @node-a", "10.0.0.2 @node-b"}, "1L", true},

		{"external local", external, []string{"10.0.0.1 @node-a", "10.0.0.2 @node-b"}, "1CL 2CR", true},
		{"external local, terminating here", external, []string{"10.0.0.1 ! t @node-a", "10.0.0.2 @node-b"}, "1L 2CR", true},
		{"external local, ready and terminating here", external, []string{"10.0.0.1 ! t @node-a", "10.0.0.2 @node-a"}, "2CL", true},
		{"external local, all terminating", external, []string{"10.0.0.1 ! t @node-a", "10.0.0.2 ! t @node-b"}, "1CL 2CR", true},
		{"external local, none here", external, []string{"10.0.0.2 @node-b"}, "2CR", true},
		{"both local", both, []string{"10.0.0.1 @node-a", "10.0.0.2 @node-b"}, "1CL 2CR", true},

		{"zone hints", cluster, []string{"10.0.0.1 z:zone-a", "10.0.0.2 z:zone-b", "10.0.0.3 z:zone-b z:zone-a"}, "1C 3C", true},
		{"zone hints, one without", cluster, []string{"10.0.0.1 z:zone-a", "10.0.0.2"}, "1C 2C", true},
		{"zone hints, one without that is not ready", cluster, []string{"10.0.0.1 z:zone-a", "10.0.0.2 !", "10.0.0.3 z:zone-b"}, "1C", true},
		{"zone hints, none for here", cluster, []string{"10.0.0.1 z:zone-b", "10.0.0.2 z:zone-c"}, "1C 2C", true},
		{"zone hints, the one for here not ready", cluster, []string{"10.0.0.1 ! z:zone-a", "10.0.0.2 z:zone-c"}, "2C", true},
		{"node hints come first", cluster, []string{"10.0.0.1 n:node-a z:zone-a", "10.0.0.2 n:node-b z:zone-a"}, "1C", true},
		{"node hints for others, zone hints for here", cluster, []string{"10.0.0.1 n:node-c z:zone-a", "10.0.0.2 n:node-b z:zone-b"}, "1C", true},
		{"node hints, one without", cluster, []string{"10.0.0.1 n:node-a", "10.0.0.2"}, "1C 2C", true},
		{"hints do not bind policy Local", external, []string{"10.0.0.1 @node-a z:zone-b", "10.0.0.2 @node-b z:zone-a"}, "1L 2CR", true},
		{"hints of terminating ones do not count", cluster, []string{"10.0.0.1 ! t z:zone-b", "10.0.0.2 ! t z:zone-a"}, "1C 2C", true},
		{"not an address", cluster, []string{"nonsense", "fd00::1", "10.0.0.1"}, "1C", true},
		{"twice, the ready one wins", cluster, []string{"10.0.0.1 !", "10.0.0.1"}, "1C", true},
		{"twice, the local one wins", cluster, []string{"10.0.0.1", "10.0.0.1 @node-a"}, "1CL", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := withEndpoints(test.eps...)
			if test.policy == internal || test.policy == both {
				s.Object.Spec.InternalTrafficPolicy = ptr(corev1.ServiceInternalTrafficPolicyLocal)
			}
			if test.policy == external || test.policy == both {
				s.Object.Spec.Type = corev1.ServiceTypeNodePort
				s.Object.Spec.Ports[0].NodePort = 30080
				s.Object.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			}
			servicePorts, _ := Resolve(s, &testNode)
			if len(servicePorts) != 1 {
				t.Fatalf("%d Service ports", len(servicePorts))
			}
			if got := list(servicePorts[0].Endpoints); got != test.want || servicePorts[0].HasEndpoints != test.any {
				t.Errorf("endpoints %q, any %v; want %q, %v", got, servicePorts[0].HasEndpoints, test.want, test.any)
			}
			slices.Reverse(s.Slices[0].Endpoints)
			again, _ := Resolve(s, &testNode)
			if !reflect.DeepEqual(servicePorts, again) {
				t.Error("the order of the endpoints made a difference")
			}
		})
	}
}

func TestResolvePublishNotReadyAddresses(t *testing.T) {
	s := withEndpoints("10.0.0.1 !", "10.0.0.2 ! t x")
	s.Object.Spec.PublishNotReadyAddresses = true
	if servicePorts, _ := Resolve(s, &testNode); list(servicePorts[0].Endpoints) != "1C 2C" {
		t.Errorf("%s", list(servicePorts[0].Endpoints))
	}
}

func TestPain10_ServingEndpointsKeepTheirFlows(t *testing.T) {
	s := withEndpoints("10.0.0.1 z:zone-b", "10.0.0.2 ! t", "10.0.0.3 ! t x", "10.0.0.4 !", "10.0.0.5 z:zone-a")
	s.Object.Spec.Ports[0].Protocol = "UDP"
	s.Slices[0].Ports[0].Protocol = ptr(corev1.ProtocolUDP)
	servicePorts, _ := Resolve(s, &testNode)
	e := servicePorts[0]
	if got := fmt.Sprint(e.Serving); list(e.Endpoints) != "5C" || got != "[10.0.0.1:8080 10.0.0.2:8080 10.0.0.5:8080]" {
		t.Errorf("endpoints %s, serving %s", list(e.Endpoints), got)
	}
}

func TestResolveIgnores(t *testing.T) {
	tests := map[string]func(o *corev1.Service){
		"headless":           func(o *corev1.Service) { o.Spec.ClusterIP, o.Spec.ClusterIPs = "None", []string{"None"} },
		"ExternalName":       func(o *corev1.Service) { o.Spec.Type = corev1.ServiceTypeExternalName },
		"another proxy":      func(o *corev1.Service) { o.Labels = map[string]string{LabelServiceProxyName: ""} },
		"no ClusterIP":       func(o *corev1.Service) { o.Spec.ClusterIP, o.Spec.ClusterIPs = "", nil },
		"no ports":           func(o *corev1.Service) { o.Spec.Ports = nil },
		"unknown protocol":   func(o *corev1.Service) { o.Spec.Ports[0].Protocol = "ICMP" },
		"impossible port":    func(o *corev1.Service) { o.Spec.Ports[0].Port = 1 << 20 },
		"unreadable address": func(o *corev1.Service) { o.Spec.ClusterIPs = []string{"10.96.0.300"} },
	}
	for name, edit := range tests {
		t.Run(name, func(t *testing.T) {
			s := withEndpoints("10.0.0.1")
			edit(s.Object)
			if servicePorts, _ := Resolve(s, &testNode); len(servicePorts) != 0 {
				t.Errorf("%+v", servicePorts[0])
			}
		})
	}
}

// TestResolveLeavesOutHeadlessSlices gives a Service a slice that is labelled as a headless Service's, as a controller labels
// it: kube-proxy does not see it.
func TestResolveLeavesOutHeadlessSlices(t *testing.T) {
	s := withEndpoints("10.0.0.1")
	s.Slices[0].Labels = map[string]string{corev1.IsHeadlessService: ""}
	ports, _ := Resolve(s, &testNode)
	if len(ports) != 1 || ports[0].HasEndpoints || len(ports[0].Endpoints) > 0 {
		t.Errorf("endpoints of a slice that is not for proxies are used: %+v", ports)
	}
	if n := s.AllNotices(); len(n) == 0 || !strings.Contains(n[0].Error(), "is not used, since its label") {
		t.Errorf("notices: %v", n)
	}
}

func TestResolvePortsPerSlice(t *testing.T) {
	s := makeService("svc", 0, "TCP", 0)
	s.Object.Spec.Ports = []corev1.ServicePort{
		{Name: "http", Port: 80, Protocol: "TCP"},
		{Name: "dns", Port: 53, Protocol: "UDP"},
		{Name: "dns-tcp", Port: 53, Protocol: "TCP"},
	}
	slice := func(name, address string, ports ...discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
		sl := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: ports, Endpoints: []discoveryv1.Endpoint{ep(address)}}
		sl.Name = name
		return sl
	}
	port := func(name string, n int32, p corev1.Protocol) discoveryv1.EndpointPort {
		return discoveryv1.EndpointPort{Name: &name, Port: &n, Protocol: &p}
	}
	s.Slices = []*discoveryv1.EndpointSlice{
		slice("one", "10.0.0.1", port("http", 8080, "TCP"), port("dns", 5353, "UDP")),
		slice("two", "10.0.0.2", port("http", 9090, "TCP"), port("dns", 5353, "TCP"), discoveryv1.EndpointPort{Name: ptr("dns-tcp")}),
	}
	servicePorts, notices := Resolve(s, &testNode)
	got := map[string]string{}
	for _, e := range servicePorts {
		var eps []string
		for _, ep := range e.Endpoints {
			eps = append(eps, ep.Addr.String())
		}
		got[e.Key.Port] = strings.Join(eps, " ")
	}
	want := map[string]string{"http": "10.0.0.1:8080 10.0.0.2:9090", "dns": "10.0.0.1:5353", "dns-tcp": ""}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if len(notices) != 1 || !strings.Contains(notices[0].Error(), "svc.yaml:1: Service default/svc: EndpointSlice two: ports[2].port is missing") {
		t.Errorf("notices: %v", notices)
	}
}

func TestResolveFronts(t *testing.T) {
	s := withEndpoints("10.0.0.1")
	o := s.Object
	o.Spec.Type = corev1.ServiceTypeLoadBalancer
	o.Spec.ClusterIPs = []string{"10.96.0.1", "fd00::1"}
	o.Spec.Ports[0].NodePort = 30080
	o.Spec.ExternalIPs = []string{"192.0.2.9", "fd01::1", "192.0.2.1", "192.0.2.9"}
	o.Spec.LoadBalancerSourceRanges = []string{" 203.0.113.9/24 ", "198.51.100.0/24", "fd02::/64", "bad"}
	o.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	o.Spec.HealthCheckNodePort = 32000
	o.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	o.Annotations = map[string]string{AnnotationScheduler: "wrr", AnnotationProxyProtocol: "v2"}
	o.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
		{IP: "192.0.2.200", IPMode: ptr(corev1.LoadBalancerIPModeVIP)}, {IP: "192.0.2.100"},
		{IP: "192.0.2.150", IPMode: ptr(corev1.LoadBalancerIPModeProxy)}, {Hostname: "lb.example"},
	}
	servicePorts, notices := Resolve(s, &testNode)
	if len(servicePorts) != 2 || servicePorts[0].Key.Family != dataplane.IPv4 || servicePorts[1].ClusterIP != netip.MustParseAddr("fd00::1") {
		t.Fatalf("Service ports %v, notices %v", servicePorts, notices)
	}
	want := &dataplane.ServicePort{
		Key:                 dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: "svc"}, Port: "p", Protocol: dataplane.TCP, Family: dataplane.IPv4},
		Origin:              "svc.yaml:1",
		ClusterIP:           netip.MustParseAddr("10.96.0.1"),
		Port:                80,
		NodePort:            30080,
		ExternalIPs:         []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.9")},
		LoadBalancerIPs:     []netip.Addr{netip.MustParseAddr("192.0.2.100"), netip.MustParseAddr("192.0.2.200")},
		SourceRanges:        []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24")},
		ExternalLocal:       true,
		Affinity:            3 * time.Hour,
		Endpoints:           []dataplane.Endpoint{{Addr: netip.MustParseAddrPort("10.0.0.1:8080"), Cluster: true, Weight: 1}},
		HasEndpoints:        true,
		HealthCheckNodePort: 32000,
		Scheduler:           "wrr",
		ProxyProtocol:       true,
	}
	if !reflect.DeepEqual(servicePorts[0], want) {
		t.Errorf("got\n%+v\nwant\n%+v", servicePorts[0], want)
	}
	if v6 := servicePorts[1]; !slices.Equal(v6.ExternalIPs, []netip.Addr{netip.MustParseAddr("fd01::1")}) || len(v6.LoadBalancerIPs) != 0 || v6.HasEndpoints {
		t.Errorf("IPv6: %+v", v6)
	}

	node := testNode
	node.Families = []dataplane.Family{dataplane.IPv6}
	if servicePorts, _ := Resolve(s, &node); len(servicePorts) != 1 || servicePorts[0].Key.Family != dataplane.IPv6 {
		t.Errorf("a node with IPv6 only: %v", servicePorts)
	}

	o.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(60))}}
	o.Spec.LoadBalancerSourceRanges = []string{"10.0.0.0/8", "0.0.0.0/0"}
	servicePorts, _ = Resolve(s, &testNode)
	if e := servicePorts[0]; e.Affinity != time.Minute || e.SourceRanges != nil {
		t.Errorf("affinity %v, ranges %v", e.Affinity, e.SourceRanges)
	}

	o.Spec.Type = corev1.ServiceTypeClusterIP // what is left over from another type does not count
	o.Spec.ExternalIPs = nil
	servicePorts, _ = Resolve(s, &testNode)
	if e := servicePorts[0]; e.External() || e.ExternalLocal || e.HealthCheckNodePort != 0 {
		t.Errorf("ClusterIP: %+v", e)
	}
}

func TestPain22_Weights(t *testing.T) {
	tests := map[string]struct {
		weights string
		want    string
		notices int
	}{
		"two":        {"10.0.0.1=3, 10.0.0.2=0", "3 0 1", 0},
		"the most":   {"10.0.0.3=65535,", "1 1 65535", 0},
		"too much":   {"10.0.0.1=65536,10.0.0.2=2", "1 2 1", 1},
		"negative":   {"10.0.0.1=-1", "1 1 1", 1},
		"no weight":  {"10.0.0.1", "1 1 1", 1},
		"no address": {"web=3", "1 1 1", 1},
		"twice":      {"10.0.0.1=3,10.0.0.1=4", "3 1 1", 1},
		"empty":      {"", "1 1 1", 0},
		"not there":  {"10.9.9.9=7", "1 1 1", 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := withEndpoints("10.0.0.1", "10.0.0.2", "10.0.0.3")
			s.Object.Annotations = map[string]string{AnnotationWeights: test.weights}
			servicePorts, notices := Resolve(s, &testNode)
			var got []string
			for _, e := range servicePorts[0].Endpoints {
				got = append(got, fmt.Sprint(e.Weight))
			}
			if strings.Join(got, " ") != test.want || len(notices) != test.notices {
				t.Errorf("weights %v, notices %v", got, notices)
			}
		})
	}
}

func TestResolveNotices(t *testing.T) {
	tests := map[string]struct {
		edit func(s *spec.Service)
		want string
	}{
		"port name":      {func(s *spec.Service) { s.Object.Spec.Ports[0].Name = "web" }, `no EndpointSlice has a port named "web"`},
		"scheduler":      {func(s *spec.Service) { s.Object.Annotations = map[string]string{AnnotationScheduler: "rr; rm"} }, "is ignored"},
		"PROXY protocol": {func(s *spec.Service) { s.Object.Annotations = map[string]string{AnnotationProxyProtocol: "v1"} }, "must be v2"},
		"addresses": {func(s *spec.Service) {
			s.Slices[0].Endpoints[0].Addresses = []string{"10.0.0.1", "10.0.0.2"}
		}, "only the first of its 2 addresses"},
		"distribution": {func(s *spec.Service) {
			s.Object.Spec.TrafficDistribution = ptr(corev1.ServiceTrafficDistributionPreferClose)
		}, "PreferClose has no effect"},
		"external IPs of a headless Service": {func(s *spec.Service) {
			s.Object.Spec.ClusterIP, s.Object.Spec.ClusterIPs, s.Object.Spec.ExternalIPs = "None", []string{"None"}, []string{"203.0.113.1"}
		}, "spec.externalIPs: has no effect"},
		"external IPs of an ExternalName": {func(s *spec.Service) {
			s.Object.Spec.Type, s.Object.Spec.ExternalIPs = corev1.ServiceTypeExternalName, []string{"203.0.113.1"}
		}, "spec.externalIPs: has no effect"},
		"an external IP that is loopback": {func(s *spec.Service) { s.Object.Spec.ExternalIPs = []string{"127.0.0.1"} }, "127.0.0.1 is not served"},
		"a reserved address of a load balancer": {func(s *spec.Service) {
			s.Object.Spec.Type, s.Object.Status.LoadBalancer.Ingress = corev1.ServiceTypeLoadBalancer, []corev1.LoadBalancerIngress{{IP: "240.0.0.1"}}
		}, "240.0.0.1 is not served: it is in a reserved range"},
		"the author's": {func(s *spec.Service) { s.Notices = []spec.Problem{{Detail: "as read"}} }, "as read"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := withEndpoints("10.0.0.1")
			test.edit(s)
			_, notices := Resolve(s, &testNode)
			if len(notices) != 1 || !strings.Contains(notices[0].Error(), test.want) {
				t.Errorf("notices %v, want one with %q", notices, test.want)
			}
		})
	}
}

// TestResolveTellsShadowedAddresses gives a Service an address of the node in each of its roles. It is served and told, but as
// an external IP, which is refused.
func TestResolveTellsShadowedAddresses(t *testing.T) {
	const own = "192.0.2.7"
	balanced := func(s *spec.Service, mode *corev1.LoadBalancerIPMode) {
		s.Object.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Object.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: own, IPMode: mode}}
	}
	tests := map[string]struct {
		edit   func(s *spec.Service)
		want   string
		served bool
	}{
		"a ClusterIP": {func(s *spec.Service) { s.Object.Spec.ClusterIP, s.Object.Spec.ClusterIPs = own, []string{own} },
			"spec.clusterIP: 192.0.2.7:80/TCP is an address of this node too: the Service is reached there, and the node's own server on that port is not", true},
		"a load balancer's": {func(s *spec.Service) { balanced(s, nil) },
			"status.loadBalancer.ingress: 192.0.2.7:80/TCP is an address of this node too: the Service is reached there, and the node's own server on that port is not", true},
		"one that the load balancer serves itself": {func(s *spec.Service) { balanced(s, ptr(corev1.LoadBalancerIPModeProxy)) }, "", false},
		"an external IP": {func(s *spec.Service) { s.Object.Spec.ExternalIPs = []string{own} }, "is not served", false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := withEndpoints("10.0.0.1")
			test.edit(s)
			with := testNode
			if ports, notices := Resolve(s, &with); len(ports) != 1 || len(notices) != 0 {
				t.Errorf("on another node: %v, %v", ports, notices)
			}
			with.External.Own = []netip.Addr{netip.MustParseAddr(own)}
			if with.Equal(testNode) {
				t.Error("the Services would not be resolved again for a node that got the address")
			}
			ports, notices := Resolve(s, &with)
			served := len(ports) == 1 && (ports[0].ClusterIP.String() == own || len(ports[0].LoadBalancerIPs) == 1)
			if served != test.served || len(notices) != min(1, len(test.want)) || len(notices) == 1 && !strings.Contains(notices[0].Error(), test.want) {
				t.Errorf("served %v, notices %v", served, notices)
			}
		})
	}
}

func BenchmarkResolve(b *testing.B) {
	s := makeService("svc", 0, "TCP", 5)
	b.ReportAllocs()
	for b.Loop() {
		Resolve(s, &testNode)
	}
}

// TestResolveProbes has what probes and weir/on-unhealthy mean for a Service port.
func TestResolveProbes(t *testing.T) {
	svc := makeService("a", 1, "TCP", 2)
	p := &probe.Probe{Kind: probe.TCP, Period: time.Second, Timeout: time.Second, SuccessThreshold: 1, FailureThreshold: 3}
	other := *p
	other.Kind = probe.GRPC
	svc.Probes = &spec.Probes{
		Ports: []spec.PortProbe{{Port: "p", Probe: p}},
		Pods:  []spec.PodProbes{{Pod: "a-0", Probes: []*probe.Probe{&other}}, {Pod: "a-1", Probes: []*probe.Probe{&other}}},
	}
	svc.Object.Annotations = map[string]string{AnnotationOnUnhealthy: "reset"}
	ports, notices := Resolve(svc, &testNode)
	if want := other.String() + "; " + p.String(); len(ports) != 1 || ports[0].Probe != want || !ports[0].Reset || len(ports[0].Serving) != 2 || len(notices) != 0 {
		t.Errorf("%+v, notices %v", ports, notices)
	}
	half, err := probe.ParseMinHealthy("50%")
	if err != nil {
		t.Fatal(err)
	}
	svc.Probes = &spec.Probes{Template: []*probe.Probe{&other}, MinHealthy: half}
	if ports, _ := Resolve(svc, &testNode); ports[0].Probe != other.String()+"; min-healthy 50%" {
		t.Errorf("the probe is %q", ports[0].Probe)
	}
	svc.Probes, svc.Object.Annotations[AnnotationOnUnhealthy] = nil, "restart"
	ports, notices = Resolve(svc, &testNode)
	if len(ports) != 1 || ports[0].Probe != "" || ports[0].Reset || ports[0].Serving != nil || len(notices) != 1 || notices[0].ID() != spec.AnnotationIgnored {
		t.Errorf("%+v, notices %v", ports, notices)
	}
}
