package reconcile

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/apisource/apitest"
	"weir/spec/seed"
)

type peerQuestion struct {
	Service peerService `json:"service"`
}

type peerService struct {
	Object *corev1.Service              `json:"object"`
	Slices []*discoveryv1.EndpointSlice `json:"slices"`
	Node   string                       `json:"node"`
	Zone   string                       `json:"zone"`
}

type peerAnswer struct{ Ports []peerPort }

// peerPort is what kube-proxy knows of a port of a Service in one family. Cluster and Local are what the policies that the
// port uses choose.
type peerPort struct {
	Family, Name, Protocol, ClusterIP          string
	Port, NodePort                             int
	ExternalIPs, LoadBalancerIPs, SourceRanges []string
	AffinitySeconds, HealthCheckNodePort       int
	InternalLocal, ExternalLocal, HasEndpoints bool
	Cluster, Local                             []string
}

// TestResolvePeer gives random Services to Resolve and to kube-proxy's own code, which must agree on every field.
func TestResolvePeer(t *testing.T) {
	r := seed.Rand(t)
	questions := make([]peerQuestion, seed.Steps(5000))
	for i := range questions {
		questions[i].Service = randomPeerService(r)
	}
	answers := apitest.AskKubeProxy[peerQuestion, peerAnswer](t, questions)
	served, restricted := 0, 0
	for i, q := range questions {
		s := q.Service
		servicePorts, _ := Resolve(&spec.Service{Name: dataplane.ServiceName{Namespace: s.Object.Namespace, Name: s.Object.Name}, Object: s.Object, Slices: s.Slices},
			&Node{Name: s.Node, Zone: s.Zone, Families: []dataplane.Family{dataplane.IPv4, dataplane.IPv6}})
		var got []peerPort
		for _, e := range servicePorts {
			got = append(got, asPeer(e))
		}
		want := answers[i].Ports
		for _, p := range want {
			for _, list := range [][]string{p.ExternalIPs, p.LoadBalancerIPs, p.SourceRanges, p.Cluster, p.Local} {
				slices.Sort(list)
			}
			if len(p.Cluster)+len(p.Local) > 0 {
				served++
			}
			if p.HasEndpoints && (p.Cluster == nil || p.Local == nil) {
				restricted++
			}
		}
		byKey := func(a, b peerPort) int {
			return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol))
		}
		slices.SortFunc(got, byKey)
		slices.SortFunc(want, byKey)
		if diff := gocmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("weir differs from kube-proxy (-kube-proxy +weir):\n%s\n%+v\n%+v", diff, s.Object.Spec, s.Slices)
		}
	}
	if served < len(questions)/10 || restricted == 0 {
		t.Errorf("%d ports with endpoints, %d without one of the policies: the Services are too much alike", served, restricted)
	}
}

// asPeer says what a ServicePort says, in kube-proxy's terms.
func asPeer(e *dataplane.ServicePort) peerPort {
	p := peerPort{
		Family: e.Key.Family.String(), Name: e.Key.Port, Protocol: e.Key.Protocol.String(), ClusterIP: e.ClusterIP.String(),
		Port: int(e.Port), NodePort: int(e.NodePort), ExternalIPs: texts(e.ExternalIPs), LoadBalancerIPs: texts(e.LoadBalancerIPs),
		SourceRanges: texts(e.SourceRanges), AffinitySeconds: int(e.Affinity.Seconds()), HealthCheckNodePort: int(e.HealthCheckNodePort),
		InternalLocal: e.InternalLocal, ExternalLocal: e.ExternalLocal, HasEndpoints: e.HasEndpoints,
	}
	for _, ep := range e.ClusterEndpoints() {
		p.Cluster = append(p.Cluster, ep.Addr.String())
	}
	if e.InternalLocal || e.ExternalLocal && e.External() {
		for _, ep := range e.LocalEndpoints() {
			p.Local = append(p.Local, ep.Addr.String())
		}
	}
	slices.Sort(p.Cluster)
	slices.Sort(p.Local)
	return p
}

func texts[T fmt.Stringer](values []T) []string {
	var all []string
	for _, v := range values {
		all = append(all, v.String())
	}
	slices.Sort(all)
	return all
}

// oneOf and sometimes are what random Services are made with.
func oneOf[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

func sometimes[T any](r *rand.Rand, values ...T) []T {
	var some []T
	for _, v := range values {
		if r.IntN(2) == 0 {
			some = append(some, v)
		}
	}
	return some
}

// randomPeerService returns a Service as an API server would have it, defaults included. What the server's controllers or
// kube-proxy's informers would have dealt with before is left out: publishNotReadyAddresses and service-proxy-name.
func randomPeerService(r *rand.Rand) peerService {
	o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}}
	s := &o.Spec
	s.Type = oneOf(r, corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer)
	s.ClusterIPs = oneOf(r, []string{"10.96.0.1"}, []string{"10.96.0.1", "fd00::1"}, []string{"fd00::1"}, []string{"fd00::1", "10.96.0.1"}, []string{corev1.ClusterIPNone})
	s.ClusterIP = s.ClusterIPs[0]
	for _, ip := range s.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			s.IPFamilies = append(s.IPFamilies, corev1.IPFamily(dataplane.FamilyOf(a).String()))
		}
	}
	s.ExternalIPs = sometimes(r, "192.0.2.1", "2001:db8::1", "192.0.2.2")
	s.LoadBalancerSourceRanges = sometimes(r, "198.51.100.0/24", " 203.0.113.7/24 ", "fd01::/64")
	if r.IntN(8) == 0 {
		s.LoadBalancerSourceRanges = append(s.LoadBalancerSourceRanges, oneOf(r, "0.0.0.0/0", "::/0"))
	}
	s.SessionAffinity = oneOf(r, corev1.ServiceAffinityNone, corev1.ServiceAffinityClientIP)
	if s.SessionAffinity == corev1.ServiceAffinityClientIP {
		s.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(1 + r.IntN(86400)))}}
	}
	s.InternalTrafficPolicy = oneOf(r, nil, ptr(corev1.ServiceInternalTrafficPolicyCluster), ptr(corev1.ServiceInternalTrafficPolicyLocal))
	s.ExternalTrafficPolicy = oneOf(r, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	if s.Type == corev1.ServiceTypeLoadBalancer {
		for _, ip := range sometimes(r, "192.0.2.80", "2001:db8::80", "192.0.2.81") {
			o.Status.LoadBalancer.Ingress = append(o.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip,
				IPMode: oneOf(r, nil, ptr(corev1.LoadBalancerIPModeVIP), ptr(corev1.LoadBalancerIPModeProxy))})
		}
		if s.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
			s.HealthCheckNodePort = 31999
		}
	}
	for i, name := range oneOf(r, []string{""}, []string{"http", "dns"}) {
		p := corev1.ServicePort{Name: name, Port: int32(80 + i), Protocol: oneOf(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)}
		if nodePortType(s.Type) && r.IntN(4) > 0 {
			p.NodePort = int32(30080 + i)
		}
		s.Ports = append(s.Ports, p)
	}
	return peerService{Object: o, Slices: randomSlices(r, o), Node: "node-a", Zone: oneOf(r, "", "zone-a")}
}

// randomSlices returns slices that hold no address twice for one port: what kube-proxy makes of those is not defined.
func randomSlices(r *rand.Rand, o *corev1.Service) []*discoveryv1.EndpointSlice {
	var all []*discoveryv1.EndpointSlice
	allHinted, next := r.IntN(2) == 0, byte(1)
	for i := range r.IntN(4) {
		family := oneOf(r, discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6, discoveryv1.AddressTypeFQDN)
		slice := &discoveryv1.EndpointSlice{AddressType: family, ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: fmt.Sprint("web-", i),
			Labels: map[string]string{discoveryv1.LabelServiceName: o.Name}}}
		for _, p := range o.Spec.Ports {
			if r.IntN(6) > 0 {
				slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: ptr(p.Name), Protocol: ptr(p.Protocol), Port: ptr(8000 + p.Port)})
			}
		}
		for range r.IntN(5) {
			addr := map[discoveryv1.AddressType]string{
				discoveryv1.AddressTypeIPv4: netip.AddrFrom4([4]byte{10, 244, 0, next}).String(),
				discoveryv1.AddressTypeIPv6: netip.AddrFrom16([16]byte{0xfd, 2, 15: next}).String(),
				discoveryv1.AddressTypeFQDN: fmt.Sprintf("pod%d.example.com", next),
			}[family]
			next++
			slice.Endpoints = append(slice.Endpoints, randomEndpoint(r, addr, allHinted))
		}
		all = append(all, slice)
	}
	return all
}

func randomEndpoint(r *rand.Rand, addr string, hinted bool) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: oneOf(r, nil, ptr("node-a"), ptr("node-b"))}
	switch r.IntN(4) {
	case 0:
		e.Conditions = discoveryv1.EndpointConditions{Ready: oneOf(r, nil, ptr(true), ptr(false)), Serving: oneOf(r, nil, ptr(true), ptr(false)), Terminating: oneOf(r, nil, ptr(true), ptr(false))}
	case 1:
		e.Conditions = discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)}
	}
	if !hinted && r.IntN(3) > 0 {
		return e
	}
	e.Hints = &discoveryv1.EndpointHints{}
	for _, zone := range sometimes(r, "zone-a", "zone-b") {
		e.Hints.ForZones = append(e.Hints.ForZones, discoveryv1.ForZone{Name: zone})
	}
	for _, node := range sometimes(r, "node-a", "node-b") {
		e.Hints.ForNodes = append(e.Hints.ForNodes, discoveryv1.ForNode{Name: node})
	}
	return e
}
