package xtables

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
)

// TestPodCIDRText uses a pod CIDR that netip and ip6tables-save write differently.
func TestPodCIDRText(t *testing.T) {
	m := MatchPods(dataplane.LocalDetector{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("::1.2.3.4/120")}}, dataplane.IPv6)
	if want := (PodMatch{From: "-s ::1.2.3.0/120", NotFrom: "! -s ::1.2.3.0/120"}); m != want {
		t.Errorf("%+v, want %+v", m, want)
	}
}

// TestAddressesAsSaved demands that ip6tables-save and iptables-save print odd addresses and prefixes as this package
// writes them.
func TestAddressesAsSaved(t *testing.T) {
	var prefixes []netip.Prefix
	for _, a := range oddAddrs() {
		for _, bits := range []int{a.BitLen(), a.BitLen() - 8, a.BitLen() - 24, 20, 1} {
			p := netip.PrefixFrom(a, bits).Masked()
			if !slices.Contains(prefixes, p) {
				prefixes = append(prefixes, p)
			}
		}
	}
	for _, mode := range []Mode{NFT, Legacy} {
		t.Run(string(mode), func(t *testing.T) {
			tables := testTables(realKernel(t, mode))
			want := map[backends.ID]backends.Item{}
			for _, f := range both {
				chain := Item(At(f, "nat") + "WEIR-IP")
				want[chain.ID()] = chain
			}
			for _, p := range prefixes {
				rule := Item(At(dataplane.FamilyOf(p.Addr()), "nat") + "WEIR-IP ! -s " + PrefixText(p) + " -j RETURN")
				want[rule.ID()] = rule
				if p.IsSingleIP() {
					to := "-p tcp -j DNAT --to-destination " + string(AppendAddrPort(nil, netip.AddrPortFrom(p.Addr(), 80)))
					chain := Chain(At(dataplane.FamilyOf(p.Addr()), "nat"), fmt.Sprintf("WEIR-%d", len(want)), to)
					want[chain.ID()] = chain
				}
			}
			if r := tables.Apply(t.Context(), backendtest.Diff(observed(t, tables), want)); r.Err != nil {
				t.Fatal(r.Err)
			}
			wrong := 0
			got := observed(t, tables)
			for id, i := range want {
				if got[id] == nil || got[id].String() != i.String() {
					if wrong++; wrong < 10 {
						t.Errorf("%q is not printed so", i)
					}
				}
			}
			for id := range got {
				if want[id] == nil {
					if wrong++; wrong < 20 {
						t.Errorf("%q is printed", id)
					}
				}
			}
		})
	}
}

// oddAddrs returns the addresses that inet_ntop has special rules for: those that embed an IPv4 address, runs of zeroes
// of every length at every position, two runs of equal length, and random ones of few different words.
func oddAddrs() []netip.Addr {
	var all []netip.Addr
	for _, text := range []string{
		"::", "::1", "::2", "::ff", "::100", "::ffff", "::1:0", "::1:1", "::0.1.0.0", "::1.2.3.4", "::255.255.255.255",
		"::ffff:0:0", "::ffff:1.2.3.4", "::ffff:0.0.0.1", "::fffe:1.2.3.4", "::1:1.2.3.4", "::ffff:0:1.2.3.4", "64:ff9b::1.2.3.4",
		"1::", "1::1", "1:0:1::", "0:1::", "1:0:0:1:0:0:1:1", "0:0:1:0:0:1:0:0", "1:0:0:0:1:0:0:0", "0:0:0:1:0:0:0:1",
		"2001:db8:0:1:1:1:1:1", "fe80::1", "ff02::1:ff00:0",
		"0.0.0.0", "0.0.0.1", "1.0.0.0", "127.0.0.1", "255.255.255.255",
	} {
		all = append(all, netip.MustParseAddr(text))
	}
	for mask := range 256 { // every pattern of words that are zero
		var raw [16]byte
		for w := range 8 {
			if mask>>w&1 != 0 {
				raw[2*w+1] = byte(w + 1)
			}
		}
		all = append(all, netip.AddrFrom16(raw))
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		words := make([]string, 8)
		for w := range words {
			words[w] = []string{"0", "0", "0", "1", "ffff", "a0"}[r.IntN(6)]
		}
		all = append(all, netip.MustParseAddr(strings.Join(words, ":")))
	}
	return all
}
