package reconcile

import (
	"net/netip"
	"strings"
	"testing"

	"weir/spec"
)

// TestExternalPolicy refuses external IPs that take what belongs to a node, a link, or all Services, unless the
// configuration allows them by name. What it does not allow, if it allows any, is refused too.
func TestExternalPolicy(t *testing.T) {
	prefixes := func(list ...string) []netip.Prefix {
		all := []netip.Prefix{}
		for _, p := range list {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	own := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	given := &spec.WeirConfiguration{ServiceCIDRs: prefixes("10.96.0.0/12"), ServiceCIDRsGiven: true}
	for _, tc := range []struct {
		name   string
		config *spec.WeirConfiguration
		addr   string
		want   string
	}{
		{"any other", given, "203.0.113.1", ""},
		{"the node's", given, "192.0.2.1", "an address of this node"},
		{"the node's, IPv6", given, "2001:db8::1", "an address of this node"},
		{"loopback", given, "127.0.0.9", "a loopback address"},
		{"loopback, IPv6", given, "::1", "a loopback address"},
		{"any address", given, "0.0.0.0", "a loopback address"},
		{"link-local", given, "169.254.169.254", "a link-local address"},
		{"link-local, IPv6", given, "fe80::1", "a link-local address"},
		{"multicast", given, "224.0.0.1", "a multicast address"},
		{"broadcast", given, "255.255.255.255", "a multicast address"},
		{"this network", given, "0.1.2.3", "in a reserved range"},
		{"class E", given, "240.1.1.1", "in a reserved range"},
		{"IPv4-compatible", given, "::2", "in a reserved range"},
		{"IPv4-compatible, in full", given, "::192.0.2.9", "in a reserved range"},
		{"IPv4-mapped", given, "::ffff:203.0.113.1", "in a reserved range"},
		{"IPv4-translated", given, "64:ff9b::203.0.113.1", ""},
		{"class E, allowed", &spec.WeirConfiguration{ExternalAddresses: prefixes("240.0.0.0/4")}, "240.1.1.1", ""},
		{"a ClusterIP's", given, "10.96.0.10", "in the range of ClusterIPs"},
		{"the default range of ClusterIPs", &spec.WeirConfiguration{ServiceCIDRs: prefixes("10.96.0.0/12")}, "10.96.0.10", ""},
		{"allowed", &spec.WeirConfiguration{ExternalAddresses: prefixes("192.0.2.0/24")}, "192.0.2.1", ""},
		{"not allowed", &spec.WeirConfiguration{ExternalAddresses: prefixes("192.0.2.0/24")}, "203.0.113.1", "in none of externalAddresses"},
		{"none is allowed", &spec.WeirConfiguration{ExternalAddresses: prefixes()}, "203.0.113.1", "in none of externalAddresses"},
	} {
		got := ExternalPolicyOf(tc.config, own).Refusal(netip.MustParseAddr(tc.addr))
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %s: %q, want %q", tc.name, tc.addr, got, tc.want)
		}
	}
}
