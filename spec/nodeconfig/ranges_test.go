package nodeconfig

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

// service returns a Service with ClusterIPs, of which the allocated ones are written "+10.96.0.1".
func service(name string, ips ...string) *spec.Service {
	s := &spec.Service{Name: dataplane.ServiceName{Namespace: "default", Name: name}, Object: &corev1.Service{}}
	for i, ip := range ips {
		ip, allocated := strings.CutPrefix(ip, "+")
		if allocated {
			s.Allocated = append(s.Allocated, spec.Allocation{What: spec.AllocatedClusterIP, Index: i})
		}
		s.Object.Spec.ClusterIPs = append(s.Object.Spec.ClusterIPs, ip)
	}
	return s
}

func TestRangeNotices(t *testing.T) {
	address := func(p, name string) Network { return Network{netip.MustParsePrefix(p), name, false} }
	route := func(p, name string) Network { return Network{netip.MustParsePrefix(p), name, true} }
	lan := []Network{address("192.168.7.0/24", "eth0"), address("fd00:7::/64", "eth0")}
	for _, tc := range []struct {
		name     string
		given    string // serviceCIDRs
		services []*spec.Service
		networks []Network
		reached  string // the ranges that the node has a route to
		want     []string
	}{
		{"all is well", "", []*spec.Service{service("a", "+10.96.0.1", "+fd00:10:96::1")}, lan, "0.0.0.0/0 ::/0", nil},
		{"no Service", "", nil, []Network{address("10.96.0.0/16", "eth0")}, "", nil},
		{"a headless Service", "", []*spec.Service{service("a", "None")}, lan, "", nil},
		{"no route", "", []*spec.Service{service("a", "+10.96.0.1", "+fd00:10:96::1")}, lan, "", []string{
			"W032 serviceCIDRs: 10.96.0.0/12: the node has no route there, so connections of its own processes fail before any rule sees them; ip route add 10.96.0.0/12 dev lo src 192.168.7.1",
			"W032 serviceCIDRs: fd00:10:96::/112: the node has no route there, so connections of its own processes fail before any rule sees them; ip -6 route add fd00:10:96::/112 dev eth0 src fd00:7::1",
		}},
		{"no route for one family", "", []*spec.Service{service("a", "+10.96.0.1", "+fd00:10:96::1")}, lan, "::/0", []string{
			"W032 serviceCIDRs: 10.96.0.0/12: the node has no route there, so connections of its own processes fail before any rule sees them; ip route add 10.96.0.0/12 dev lo src 192.168.7.1",
		}},
		{"no IPv6 address to send from", "", []*spec.Service{service("a", "+fd00:10:96::1")}, lan[:1], "", []string{
			"W032 serviceCIDRs: fd00:10:96::/112: the node has no route there, so connections of its own processes fail before any rule sees them; ip -6 route add fd00:10:96::/112 dev IFACE src NODE-ADDRESS",
		}},
		{"no known range", "", []*spec.Service{service("a", "10.3.0.1"), service("b", "10.3.0.2"), service("c", "10.3.0.9"), service("d", "10.3.0.4")}, lan, "", []string{
			"W032 spec.clusterIP: 10.3.0.1, 10.3.0.2, 10.3.0.9 and 1 more: the node has no route there, so connections of its own processes fail before any rule sees them; ip route add 10.3.0.0/28 dev lo src 192.168.7.1",
		}},
		{"given, and not all is routed", "10.3.0.0/16", []*spec.Service{service("a", "10.3.0.1"), service("b", "10.3.1.1")}, lan, "10.3.0.0/24", []string{
			"W032 serviceCIDRs: 10.3.0.0/16: the node has no route there, so connections of its own processes fail before any rule sees them; ip route add 10.3.0.0/16 dev lo src 192.168.7.1",
		}},
		{"an address in the range", "", []*spec.Service{service("a", "+10.96.0.1")}, []Network{address("10.96.3.0/24", "eth0")}, "0.0.0.0/0", []string{
			"W031 serviceCIDRs: 10.96.0.0/12 overlaps 10.96.3.0/24, the network of eth0: where a Service has the address of a host, the node cannot reach the host; choose a range that nothing else uses",
		}},
		{"a route around the range", "fd00:10::/112", nil, []Network{route("fd00::/16", "tun0")}, "::/0", []string{
			"W031 serviceCIDRs: fd00:10::/112 overlaps fd00::/16, to which a route by tun0 leads: where a Service has the address of a host, the node cannot reach the host; choose a range that nothing else uses",
		}},
		{"a route that was made for the range", "", []*spec.Service{service("a", "+10.96.0.1")}, []Network{route("10.96.0.0/12", "eth0")}, "0.0.0.0/0", nil},
		{"an address in the default range, from which nothing is allocated", "", []*spec.Service{service("a", "10.97.0.1")}, []Network{address("10.96.3.0/24", "eth0")}, "0.0.0.0/0", nil},
		{"a network around ClusterIPs of no known range", "", []*spec.Service{service("a", "10.3.0.1"), service("b", "10.4.0.1"), service("c", "10.3.0.2")}, []Network{address("10.3.0.0/16", "eth0")}, "0.0.0.0/0", []string{
			"W031 spec.clusterIP: 10.3.0.1, 10.3.0.2 in 10.3.0.0/16, the network of eth0: where a Service has the address of a host, the node cannot reach the host; choose ClusterIPs that nothing else uses",
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			snap := &spec.Snapshot{Weir: spec.DefaultWeirConfiguration(), Services: spec.ServicesOf(tc.services...)}
			if tc.given != "" {
				snap.Weir.ServiceCIDRs, snap.Weir.ServiceCIDRsGiven = prefixes(tc.given), true
			}
			reaches := func(a netip.Addr) bool {
				return slices.ContainsFunc(prefixes(tc.reached), func(p netip.Prefix) bool { return p.Contains(a) })
			}
			var sources []netip.Addr
			for _, n := range tc.networks {
				sources = append(sources, n.Prefix.Addr().Next())
			}
			c := ClusterIPsOf(snap)
			var got []string
			for _, n := range slices.Concat(c.OverlapNotices(tc.networks), c.RouteNotices(tc.networks, sources, reaches)) {
				got = append(got, n.ID().Short()+" "+n.Error())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
		})
	}
}

func prefixes(list string) (all []netip.Prefix) {
	for _, s := range strings.Fields(list) {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}
