package reconcile

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"weir/backends/dataplane"
	"weir/spec/seed"
)

// TestFrontendsAgainstNaiveModel changes Services at random and compares who owns what with an answer that is worked out
// from nothing but the present ServicePorts. So the owner cannot depend on history.
func TestFrontendsAgainstNaiveModel(t *testing.T) {
	r := seed.Rand(t)
	node := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	f := newFrontends()
	f.node = node
	asked := map[dataplane.ServiceName][]*dataplane.ServicePort{}
	held := map[dataplane.ServiceName][]*dataplane.ServicePort{} // what an Engine holds: asked for again only where told
	for step := range seed.Steps(20000) {
		name := dataplane.ServiceName{Namespace: "ns", Name: fmt.Sprint("svc-", r.IntN(6))}
		ports := randomPorts(r, name)
		affected := map[dataplane.ServiceName]struct{}{name: {}}
		f.set(asked[name], ports, affected)
		asked[name] = ports
		for n := range affected {
			held[n], _ = f.owned(asked[n])
		}
		for n := range asked {
			want := naiveOwned(asked, n, node)
			if len(want)+len(held[n]) > 0 && !reflect.DeepEqual(held[n], want) {
				t.Fatalf("step %d: %v has\n%s\nwant\n%s", step, n, portsText(held[n]), portsText(want))
			}
		}
	}
	for n := range asked {
		f.set(asked[n], nil, map[dataplane.ServiceName]struct{}{})
	}
	if len(f.claims)+len(f.contested) > 0 {
		t.Errorf("left behind after everything went: %v %v", f.claims, f.contested)
	}
}

func randomPorts(r *rand.Rand, name dataplane.ServiceName) []*dataplane.ServicePort {
	addr := func() netip.Addr { // ClusterIPs, external addresses and those of the node come from one small range
		return netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + r.IntN(5))})
	}
	some := func() []netip.Addr {
		var all []netip.Addr
		for range r.IntN(3) {
			all = append(all, addr())
		}
		slices.SortFunc(all, netip.Addr.Compare)
		return slices.Compact(all)
	}
	var ports []*dataplane.ServicePort
	for i := range r.IntN(3) {
		p := &dataplane.ServicePort{
			Key:       dataplane.ServicePortName{Service: name, Port: fmt.Sprint(i), Protocol: dataplane.TCP, Family: dataplane.IPv4},
			ClusterIP: addr(), Port: uint16(80 + r.IntN(2)), LoadBalancerIPs: some(), ExternalIPs: some(),
		}
		if r.IntN(2) == 0 {
			p.NodePort = uint16(80 + r.IntN(2))
		}
		ports = append(ports, p)
	}
	return ports
}

// naiveOwned asks of each address of each port whether any other ServicePort has a better claim.
func naiveOwned(all map[dataplane.ServiceName][]*dataplane.ServicePort, name dataplane.ServiceName, node []netip.Addr) []*dataplane.ServicePort {
	best := func(addr netip.Addr, port uint16) *dataplane.ServicePort { // "" is a node port
		var owner *dataplane.ServicePort
		rank := func(p *dataplane.ServicePort) int {
			switch {
			case !addr.IsValid() && p.NodePort == port:
				return 3
			case !addr.IsValid() || p.Port != port:
			case p.ClusterIP == addr:
				return 0
			case slices.Contains(p.LoadBalancerIPs, addr):
				return 1
			case slices.Contains(p.ExternalIPs, addr):
				return 2
			}
			return 4
		}
		for _, ports := range all {
			for _, p := range ports {
				if rank(p) < 4 && (owner == nil || rank(p) < rank(owner) || rank(p) == rank(owner) && p.Key.Compare(owner.Key) < 0) {
					owner = p
				}
			}
		}
		return owner
	}
	var out []*dataplane.ServicePort
	for _, p := range all[name] {
		if best(p.ClusterIP, p.Port) != p {
			continue
		}
		kept := *p
		lost := func(a netip.Addr) bool { return a == p.ClusterIP || best(a, p.Port) != p }
		kept.LoadBalancerIPs = slices.DeleteFunc(slices.Clone(p.LoadBalancerIPs), lost)
		kept.ExternalIPs = slices.DeleteFunc(slices.Clone(p.ExternalIPs), func(a netip.Addr) bool { return lost(a) || slices.Contains(p.LoadBalancerIPs, a) })
		if p.NodePort != 0 && best(netip.Addr{}, p.NodePort) != p {
			kept.NodePort = 0
		}
		for _, a := range node {
			if kept.NodePort != 0 && best(a, p.NodePort) != nil {
				kept.NodePortExcept = append(kept.NodePortExcept, a)
			}
		}
		out = append(out, &kept)
	}
	return out
}

func portsText(ports []*dataplane.ServicePort) string {
	s := ""
	for _, p := range ports {
		s += fmt.Sprintf("  %+v\n", *p)
	}
	return s
}
