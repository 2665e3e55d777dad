package hostnet

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestNetworks(t *testing.T) {
	inNamespace(t)
	addAddr(t, "eth0", "192.168.7.1/24")
	addAddr(t, "eth0", "fd00:7::1/64")
	addAddr(t, "lo", "10.1.0.1/32")
	addDefault(t, "192.168.7.2")
	ipvs := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "weir-ipvs0"}, PeerName: "p1"}
	if err := netlink.LinkAdd(ipvs); err != nil {
		t.Fatal(err)
	}
	addAddr(t, "weir-ipvs0", "10.96.0.1/32")
	for prefix, iface := range map[string]string{"10.8.0.0/16": "eth0", "fd00:8::/48": "eth0", "10.9.0.0/16": "lo"} {
		dst, err := netlink.ParseIPNet(prefix)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link(t, iface).Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}); err != nil {
			t.Fatal(prefix, err)
		}
	}
	got, err := Networks()
	if err != nil {
		t.Fatal(err)
	}
	want := []Network{
		{netip.MustParsePrefix("10.1.0.1/32"), "lo", false},
		{netip.MustParsePrefix("10.8.0.0/16"), "eth0", true},
		{netip.MustParsePrefix("192.168.7.0/24"), "eth0", false},
		{netip.MustParsePrefix("fd00:7::/64"), "eth0", false},
		{netip.MustParsePrefix("fd00:8::/48"), "eth0", true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	for address, want := range map[string]bool{"192.0.2.1": true, "10.9.1.1": true, "fd00:8::1": true, "fd00:9::1": false} {
		if got := Reaches(netip.MustParseAddr(address)); got != want {
			t.Errorf("reaches %s: %v, want %v", address, got, want)
		}
	}
}
