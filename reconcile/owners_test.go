package reconcile

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weir/spec"
	"weir/spec/seed"
)

// contender is a UDP Service that asks for an external IP and a number of endpoints.
func contender(name string, n, endpoints int, externalIPs ...string) *spec.Service {
	s := makeService(name, n, corev1.ProtocolUDP, endpoints)
	s.Object.Spec.ExternalIPs = externalIPs
	return s
}

// TestTheOwnerOfAnAddressDoesNotDependOnHistory moves Services between a few addresses at random and compares the kernel with
// that of an Engine which starts with the same input.
func TestTheOwnerOfAnAddressDoesNotDependOnHistory(t *testing.T) {
	r := seed.Rand(t)
	w := newWorld(t)
	addresses := []string{"192.0.2.1", "192.0.2.2", "10.96.0.2", "10.96.0.3"} // the last two are ClusterIPs of contenders
	var names []string
	for i := range 6 {
		names = append(names, fmt.Sprint("svc-", i))
	}
	for step := range 300 {
		i := r.IntN(len(names))
		if r.IntN(4) == 0 {
			w.remove(names[i])
		} else {
			s := contender(names[i], i, 1+r.IntN(3), addresses[r.IntN(len(addresses))])
			if r.IntN(3) == 0 {
				s.Slices[0].Endpoints[0].Addresses = []string{addresses[r.IntN(len(addresses))]}
				s.Slices[0].Ports[0].Port = new(int32(80 + r.IntN(2)))
			}
			w.set(s)
		}
		w.ok(r.IntN(10) == 0)
		fresh := newWorld(t)
		fresh.all = w.all
		fresh.engine.SetSnapshot(fresh.snapshot(), spec.Delta{All: true})
		fresh.ok(true)
		if got, want := w.kernel.Objects(), fresh.kernel.Objects(); !slices.Equal(got, want) {
			t.Fatalf("step %d: the kernel holds\n%s\nand after a fresh start\n%s", step, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if got, want := fmt.Sprint(w.engine.Notices()), fmt.Sprint(fresh.engine.Notices()); got != want {
			t.Fatalf("step %d: notices\n%s\nand after a fresh start\n%s", step, got, want)
		}
	}
}

// TestTheLoserLeavesTheWinnersFlowsAlone changes the endpoints of a Service that another one took an address from.
func TestTheLoserLeavesTheWinnersFlowsAlone(t *testing.T) {
	w := newWorld(t, contender("aaa", 1, 2, "192.0.2.1"), contender("bbb", 2, 1, "192.0.2.1"))
	first := w.ok(true)
	var told []string
	for _, of := range first.Notices {
		for _, n := range of.Notices {
			told = append(told, n.Error())
		}
	}
	if again := w.ok(true); len(again.Notices) > 0 {
		t.Errorf("told again: %v", again.Notices)
	}
	if len(told) != 1 || !strings.Contains(told[0], "bbb.yaml:1: Service default/bbb") || !strings.Contains(told[0], "Service default/aaa") {
		t.Errorf("notices: %q, want one for bbb that names aaa", told)
	}
	w.flows.current, w.flows.gone = nil, nil
	w.set(contender("bbb", 2, 3, "192.0.2.1"))
	w.ok(false)
	if slices.Contains(w.flows.current, "aaa") || slices.Contains(w.flows.gone, "aaa") {
		t.Errorf("flows of aaa were looked at for a change of bbb: %v %v", w.flows.current, w.flows.gone)
	}
	w.remove("aaa")
	w.ok(false)
	if n := w.engine.Notices(); len(n) > 0 {
		t.Errorf("notices after the winner went: %v", n)
	}
	if text := strings.Join(w.kernel.Objects(), "\n"); !strings.Contains(text, "192.0.2.1") {
		t.Errorf("the address is not served after the winner went:\n%s", text)
	}
}

// TestAnEndpointOnAFrontAddress tells the author of an endpoint that is an address of a Service, its own included, whatever
// its port and protocol on a ClusterIP, and tells nothing once the Service is gone.
func TestAnEndpointOnAFrontAddress(t *testing.T) {
	endpointAt := func(name string, n int, addr string, port int32) *spec.Service {
		s := makeService(name, n, corev1.ProtocolTCP, 1)
		s.Slices[0].Endpoints[0].Addresses = []string{addr}
		s.Slices[0].Ports[0].Port = &port
		return s
	}
	good := makeService("good", 1, corev1.ProtocolUDP, 1) // 10.96.0.2:80/UDP
	good.Object.Spec.ExternalIPs = []string{"192.0.2.7"}
	w := newWorld(t, good)
	w.ok(true)
	for i, tc := range []struct {
		addr string
		port int32
		want string
	}{
		{"10.96.0.2", 80, "is on the ClusterIP of a Service"}, // another protocol
		{"10.96.0.2", 8443, "is on the ClusterIP of a Service"},
		{"192.0.2.7", 8443, ""}, // an external IP may be a host's address
		{"10.96.0.4", 80, "is an address of Service default/bad"},
		{"10.96.0.4", 8080, "is on the ClusterIP of a Service"},
		{"10.1.1.1", 80, ""},
	} {
		w.set(endpointAt("bad", 3, tc.addr, tc.port))
		w.ok(false)
		var told []string
		for _, n := range w.engine.Notices() {
			told = append(told, n.Error())
		}
		all := strings.Join(told, "\n")
		if len(told) > 1 || (tc.want == "") != (all == "") || !strings.Contains(all, tc.want) {
			t.Errorf("%d: %s:%d: notices %q, want %q", i, tc.addr, tc.port, all, tc.want)
		}
	}
	w.set(endpointAt("bad", 3, "10.96.0.2", 8443))
	w.ok(false)
	w.remove("good")
	w.set(endpointAt("bad", 3, "10.96.0.2", 8443))
	w.ok(false)
	if n := w.engine.Notices(); len(n) != 0 {
		t.Errorf("notices after the Service went: %v", n)
	}
}

// TestANodePortCoveredByItsOwnAddress: a load balancer's address may be the node's, and its port the node port.
func TestANodePortCoveredByItsOwnAddress(t *testing.T) {
	s := makeService("web", 1, corev1.ProtocolTCP, 1)
	s.Object.Spec.Type = corev1.ServiceTypeLoadBalancer
	s.Object.Spec.Ports[0].NodePort = s.Object.Spec.Ports[0].Port
	s.Object.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.1"}}
	node := testNode
	node.NodePortAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	ports, notices := ResolveAll(slices.Values([]*spec.Service{s}), &node)
	if len(ports) != 1 || len(notices) != 0 {
		t.Fatalf("%d ports, notices %v", len(ports), notices)
	}
	if p := ports[0]; p.ServesNodePortAt(node.NodePortAddresses[0]) || !p.ServesNodePortAt(node.NodePortAddresses[1]) {
		t.Errorf("the node port is not served at %v", p.NodePortExcept)
	}
}
