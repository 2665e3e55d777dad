package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/dataplane"
)

// testZone is a Zone of a few Services.
type testZone []*dataplane.Names

func (z testZone) Names(name dataplane.ServiceName) *dataplane.Names {
	for _, n := range z {
		if n.Service == name {
			return n
		}
	}
	return nil
}

func (z testZone) HasNamespace(namespace string) bool {
	for _, n := range z {
		if n.Service.Namespace == namespace {
			return true
		}
	}
	return false
}

func (z testZone) Pointers(addr netip.Addr) (found []dataplane.ServiceName) {
	for _, n := range z {
		for _, ip := range n.ClusterIPs {
			if ip == addr {
				found = append([]dataplane.ServiceName{n.Service}, found...)
			}
		}
		for _, e := range n.Endpoints {
			if e.Addr == addr {
				found = append(found, n.Service)
			}
		}
	}
	return found
}

func (z testZone) Serial() uint32 { return uint32(len(z)) }

func addrs(list ...string) (all []netip.Addr) {
	for _, a := range list {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func newTestZone() testZone {
	http := []dataplane.NamedPort{{Name: "http", Protocol: dataplane.TCP, Port: 80}}
	both := append([]dataplane.NamedPort{{Name: "dns", Protocol: dataplane.UDP, Port: 53}}, http...)
	name := func(n string) dataplane.ServiceName { return dataplane.ServiceName{Namespace: "default", Name: n} }
	endpoint := func(host, addr string, ports []dataplane.NamedPort) dataplane.NamedEndpoint {
		return dataplane.NamedEndpoint{Host: host, Addr: netip.MustParseAddr(addr), Ports: ports}
	}
	return testZone{
		{Service: name("web"), ClusterIPs: addrs("10.96.0.1", "fd00::1"), Ports: both,
			Endpoints: []dataplane.NamedEndpoint{endpoint("10-1-0-1", "10.1.0.1", http)}},
		{Service: name("db"), Ports: http, Endpoints: []dataplane.NamedEndpoint{
			endpoint("db-0", "10.1.0.2", http), endpoint("db-1", "10.1.0.3", http), endpoint("fd00--2-0", "fd00::2:0", http)}},
		{Service: name("empty"), Ports: http},
		{Service: name("portless"), Ports: []dataplane.NamedPort{{}}, Endpoints: []dataplane.NamedEndpoint{endpoint("a", "10.1.0.9", []dataplane.NamedPort{{}})}},
		{Service: name("elsewhere"), ExternalName: "www.example.com"},
		{Service: name("alias"), ExternalName: "web.default.svc.cluster.local"},
		{Service: name("loop"), ExternalName: "pool.default.svc.cluster.local."},
		{Service: name("pool"), ExternalName: "loop.default.svc.cluster.local."},
	}
}

// show returns an answer as people write records.
func show(a Answer) string {
	var parts []string
	if a.RCode != 0 {
		parts = append(parts, strings.TrimPrefix(a.RCode.String(), "RCode"))
	}
	for _, section := range [][]Record{a.Records, a.Extra} {
		for _, r := range section {
			text := fmt.Sprintf("%s %d %s ", r.Name, r.TTL, strings.TrimPrefix(r.Type.String(), "Type"))
			switch {
			case r.Addr.IsValid():
				text += r.Addr.String()
			case r.Type == dnsmessage.TypeSRV:
				text += fmt.Sprintf("0 %d %d %s", r.Weight, r.Port, r.Target)
			default:
				text += r.Target + r.Text
			}
			parts = append(parts, strings.TrimSpace(text))
		}
	}
	if a.SOA != nil {
		parts = append(parts, "SOA "+a.SOA.Name)
	}
	if a.Chase != "" {
		parts = append(parts, "then "+a.Chase)
	}
	return strings.Join(parts, "; ")
}

// TestResolve has a question for each row of the specification, and for what it leaves to servers.
func TestResolve(t *testing.T) {
	const nodata, unknown = "SOA cluster.local.", "NameError; SOA cluster.local."
	tests := []struct{ name, kind, want string }{
		{"dns-version.cluster.local.", "TXT", "dns-version.cluster.local. 28800 TXT 1.1.0"},
		{"dns-version.cluster.local.", "A", nodata},
		{"cluster.local.", "SOA", "cluster.local. 5 SOA"},
		{"cluster.local.", "NS", "cluster.local. 5 NS ns.dns.cluster.local.; ns.dns.cluster.local. 5 A 10.0.0.1"},
		{"cluster.local.", "A", nodata},
		{"ns.dns.cluster.local.", "A", "ns.dns.cluster.local. 5 A 10.0.0.1"},
		{"svc.cluster.local.", "A", nodata},
		{"default.svc.cluster.local.", "TXT", nodata},
		{"nowhere.svc.cluster.local.", "A", unknown},
		{"else.cluster.local.", "A", unknown},
		{"web.default.svc.cluster.local.", "A", "web.default.svc.cluster.local. 5 A 10.96.0.1"},
		{"web.default.svc.cluster.local.", "AAAA", "web.default.svc.cluster.local. 5 AAAA fd00::1"},
		{"web.default.svc.cluster.local.", "MX", nodata},
		{"WEB.default.Svc.cluster.LOCAL.", "A", "WEB.default.Svc.cluster.LOCAL. 5 A 10.96.0.1"},
		{"web.default.svc.cluster.LOCAL.", "MX", "SOA cluster.LOCAL."},
		{"_http._tcp.web.default.svc.cluster.local.", "SRV", "_http._tcp.web.default.svc.cluster.local. 5 SRV 0 50 80 web.default.svc.cluster.local.; " +
			"web.default.svc.cluster.local. 5 A 10.96.0.1; web.default.svc.cluster.local. 5 AAAA fd00::1"},
		{"_http._udp.web.default.svc.cluster.local.", "SRV", unknown},
		{"_tcp.web.default.svc.cluster.local.", "NS", nodata},
		{"_sctp.web.default.svc.cluster.local.", "NS", unknown},
		{"a.b.c.web.default.svc.cluster.local.", "A", unknown},
		{"10-1-0-1.web.default.svc.cluster.local.", "A", "10-1-0-1.web.default.svc.cluster.local. 5 A 10.1.0.1"},
		{"none.default.svc.cluster.local.", "A", unknown},
		{"db.default.svc.cluster.local.", "A", "db.default.svc.cluster.local. 5 A 10.1.0.2; db.default.svc.cluster.local. 5 A 10.1.0.3"},
		{"db.default.svc.cluster.local.", "AAAA", "db.default.svc.cluster.local. 5 AAAA fd00::2:0"},
		{"db-1.db.default.svc.cluster.local.", "A", "db-1.db.default.svc.cluster.local. 5 A 10.1.0.3"},
		{"db-2.db.default.svc.cluster.local.", "A", unknown},
		{"_http._tcp.db.default.svc.cluster.local.", "SRV", "_http._tcp.db.default.svc.cluster.local. 5 SRV 0 33 80 db-0.db.default.svc.cluster.local.; " +
			"_http._tcp.db.default.svc.cluster.local. 5 SRV 0 33 80 db-1.db.default.svc.cluster.local.; " +
			"_http._tcp.db.default.svc.cluster.local. 5 SRV 0 33 80 fd00--2-0.db.default.svc.cluster.local.; " +
			"db-0.db.default.svc.cluster.local. 5 A 10.1.0.2; db-1.db.default.svc.cluster.local. 5 A 10.1.0.3; fd00--2-0.db.default.svc.cluster.local. 5 AAAA fd00::2:0"},
		{"empty.default.svc.cluster.local.", "A", unknown},
		{"portless.default.svc.cluster.local.", "A", "portless.default.svc.cluster.local. 5 A 10.1.0.9"},
		{"portless.default.svc.cluster.local.", "SRV", nodata},
		{"elsewhere.default.svc.cluster.local.", "CNAME", "elsewhere.default.svc.cluster.local. 5 CNAME www.example.com."},
		{"elsewhere.default.svc.cluster.local.", "A", "elsewhere.default.svc.cluster.local. 5 CNAME www.example.com.; then www.example.com."},
		{"elsewhere.default.svc.cluster.local.", "SRV", nodata},
		{"x.elsewhere.default.svc.cluster.local.", "A", unknown},
		{"alias.default.svc.cluster.local.", "A", "alias.default.svc.cluster.local. 5 CNAME web.default.svc.cluster.local.; web.default.svc.cluster.local. 5 A 10.96.0.1"},
		{"loop.default.svc.cluster.local.", "A", nodata},
		{"1-2-3-4.default.pod.cluster.local.", "A", "1-2-3-4.default.pod.cluster.local. 5 A 1.2.3.4"},
		{"fd00--7.default.pod.cluster.local.", "AAAA", "fd00--7.default.pod.cluster.local. 5 AAAA fd00::7"},
		{"1-2-3-4.default.pod.cluster.local.", "AAAA", nodata},
		{"1-2-3-4.nowhere.pod.cluster.local.", "A", unknown},
		{"web.default.pod.cluster.local.", "A", unknown},
		{"default.pod.cluster.local.", "A", nodata},
		{"1.0.96.10.in-addr.arpa.", "PTR", "1.0.96.10.in-addr.arpa. 5 PTR web.default.svc.cluster.local."},
		{"2.0.1.10.in-addr.arpa.", "PTR", "2.0.1.10.in-addr.arpa. 5 PTR db-0.db.default.svc.cluster.local."},
		{"9.9.9.9.in-addr.arpa.", "PTR", "NameError; SOA in-addr.arpa."},
		{"1.0.96.10.in-addr.arpa.", "TXT", "SOA in-addr.arpa."},
		{"96.10.in-addr.arpa.", "NS", "SOA in-addr.arpa."},
		{"x.10.in-addr.arpa.", "NS", "NameError; SOA in-addr.arpa."},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", "PTR",
			"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. 5 PTR web.default.svc.cluster.local."},
	}
	types := map[string]dnsmessage.Type{"A": dnsmessage.TypeA, "AAAA": dnsmessage.TypeAAAA, "SRV": dnsmessage.TypeSRV, "PTR": dnsmessage.TypePTR,
		"TXT": dnsmessage.TypeTXT, "NS": dnsmessage.TypeNS, "SOA": dnsmessage.TypeSOA, "MX": dnsmessage.TypeMX, "CNAME": dnsmessage.TypeCNAME}
	r := &Resolver{Zone: newTestZone(), Domain: "cluster.local.", Pods: PodsInsecure, Servers: addrs("10.0.0.1")}
	for _, tt := range tests {
		a, ok := r.Resolve(Question{tt.name, types[tt.kind]})
		if got := show(a); !ok || got != tt.want {
			t.Errorf("%s %s:\n got %s\nwant %s", tt.name, tt.kind, got, tt.want)
		}
	}
	if _, ok := r.Resolve(Question{"www.example.com.", dnsmessage.TypeA}); ok {
		t.Error("a name elsewhere is answered")
	}
	r.Zone = testZone{}
	if a, _ := r.Resolve(Question{"web.default.svc.cluster.local.", dnsmessage.TypeA}); a.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("before anything is known: %s", show(a))
	}
}
