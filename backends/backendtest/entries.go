package backendtest

import (
	"fmt"
	"net/netip"
	"time"

	"weir/backends/dataplane"
)

// Sample returns ServicePorts that use every feature that every backend supports: both families, TCP and UDP, all kinds
// of Frontends, both policies, affinity, source ranges, Service ports that weir answers itself, and one without endpoints.
func Sample() []*dataplane.ServicePort {
	web := entry("web", dataplane.TCP, dataplane.IPv4, 1, 3)
	full := entry("full", dataplane.TCP, dataplane.IPv4, 2, 2)
	full.NodePort = 30080
	full.ExternalIPs = addrs("192.0.2.10")
	full.LoadBalancerIPs = addrs("192.0.2.20", "192.0.2.21")
	full.SourceRanges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.7/32")}
	local := entry("local", dataplane.TCP, dataplane.IPv4, 3, 2)
	local.NodePort = 30081
	local.ExternalLocal = true
	local.Endpoints[1].Local, local.Endpoints[1].Remote = false, true
	local.HealthCheckNodePort = 30082
	sticky := entry("sticky", dataplane.TCP, dataplane.IPv4, 4, 3)
	sticky.Affinity = 3 * time.Hour
	empty := entry("empty", dataplane.TCP, dataplane.IPv4, 5, 0)
	dns := entry("dns", dataplane.UDP, dataplane.IPv4, 6, 2)
	web6 := entry("web", dataplane.TCP, dataplane.IPv6, 1, 3)
	web6.NodePort = 30083
	names, namesTCP := entry("names", dataplane.UDP, dataplane.IPv4, 10, 1), entry("names", dataplane.TCP, dataplane.IPv4, 10, 1)
	names6 := entry("names", dataplane.UDP, dataplane.IPv6, 10, 1)
	for _, e := range []*dataplane.ServicePort{names, namesTCP, names6} {
		e.Port, e.Answered = 53, true
	}
	return []*dataplane.ServicePort{web, full, local, sticky, empty, dns, web6, names, namesTCP, names6}
}

// Changed returns the ServicePorts of Sample with the same keys and a change in each.
func Changed() []*dataplane.ServicePort {
	s := Sample()
	s[0].Endpoints = s[0].Endpoints[:2]
	s[1].NodePort, s[1].SourceRanges = 30090, nil
	s[2].ExternalLocal, s[2].HealthCheckNodePort = false, 0
	s[3].Affinity = time.Minute
	s[4].Endpoints, s[4].HasEndpoints = entry("empty", dataplane.TCP, dataplane.IPv4, 5, 1).Endpoints, true
	s[5].Port = 54
	s[6].ClusterIP = netip.MustParseAddr("fd00:10:96::77")
	s[7].Answered = false
	s[8].ClusterIP = netip.MustParseAddr("10.96.0.11")
	s[9].Answered = false
	return s
}

// Twins returns two ServicePorts that differ only in names and addresses, so that they share every Item that can be
// shared.
func Twins() []*dataplane.ServicePort {
	return []*dataplane.ServicePort{entry("twin-a", dataplane.TCP, dataplane.IPv4, 8, 4), entry("twin-b", dataplane.TCP, dataplane.IPv4, 9, 4)}
}

// entry returns the n-th Service port, with the given number of endpoints on this node.
func entry(name string, p dataplane.Protocol, f dataplane.Family, n, endpoints int) *dataplane.ServicePort {
	cluster, pod := "10.96.0.%d", "10.244.%d.%d"
	if f == dataplane.IPv6 {
		cluster, pod = "fd00:10:96::%x", "fd00:10:244:%x::%x"
	}
	e := &dataplane.ServicePort{
		Key:          dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: name}, Port: "p", Protocol: p, Family: f},
		Origin:       "sample.yaml:1",
		ClusterIP:    netip.MustParseAddr(fmt.Sprintf(cluster, n)),
		Port:         80,
		HasEndpoints: endpoints > 0,
	}
	for i := range endpoints {
		addr := netip.MustParseAddr(fmt.Sprintf(pod, n, i+1))
		e.Endpoints = append(e.Endpoints, dataplane.Endpoint{Addr: netip.AddrPortFrom(addr, 8080), Cluster: true, Local: true, Weight: 1})
	}
	return e
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}
