package nftables

import (
	"net/netip"
	"testing"
	"time"

	"weir/backends"
	"weir/backends/netlab"
)

func variety() []*backends.Entry {
	var entries []*backends.Entry
	for _, f := range both {
		pod, other, ext := netlab.PodIPv4, netlab.RemotePodIPv4, "203.0.113."
		ranges := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.7/32")}
		if f == backends.IPv6 {
			pod, other, ext = netlab.PodIPv6, netlab.RemotePodIPv6, "2001:db8::"
			ranges = []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")}
		}
		plain := entry(f, 1, backends.TCP, endpoint(pod(1), 8080), endpoint(pod(2), 8080), remote(other, 8080))
		weighted := entry(f, 2, backends.UDP, endpoint(pod(1), 53), endpoint(pod(2), 53))
		weighted.Endpoints[0].Weight = 3
		external := entry(f, 3, backends.TCP, endpoint(pod(1), 80), remote(other, 80))
		external.ExternalIPs = []netip.Addr{netip.MustParseAddr(ext + "3")}
		external.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr(ext + "4")}
		external.SourceRanges = ranges
		external.NodePort = 30003
		local := entry(f, 4, backends.TCP, endpoint(pod(1), 80), endpoint(pod(2), 80), remote(other, 80))
		local.NodePort, local.ExternalLocal = 30004, true
		sticky := entry(f, 5, backends.TCP, endpoint(pod(1), 80), endpoint(pod(2), 80))
		sticky.Affinity, sticky.NodePort, sticky.ExternalLocal = 3*time.Hour, 30005, true
		none := entry(f, 6, backends.TCP)
		none.NodePort = 30006
		localNone := entry(f, 7, backends.SCTP, remote(other, 80))
		localNone.NodePort, localNone.ExternalLocal, localNone.InternalLocal = 30007, true, true
		entries = append(entries, plain, weighted, external, local, sticky, none, localNone)
	}
	return entries
}

func TestSecondPlanIsEmpty(t *testing.T) {
	r := newRig(t, testConfig(), netlab.Topology{})
	r.sync(variety()...)
	for _, f := range []string{"ip", "ip6"} {
		t.Log(r.nft("list", "table", f, "weir"))
	}
}
