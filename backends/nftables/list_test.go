package nftables

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weir/backends/dataplane"
	"weir/backends/netlab"

	"github.com/google/go-cmp/cmp"
)

func variety() []*dataplane.ServicePort {
	var entries []*dataplane.ServicePort
	for _, f := range both {
		pod, other, ext := netlab.PodIPv4, netlab.RemotePodIPv4, "203.0.113."
		ranges := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("198.51.100.7/32")}
		if f == dataplane.IPv6 {
			pod, other, ext = netlab.PodIPv6, netlab.RemotePodIPv6, "2001:db8::"
			ranges = []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")}
		}
		plain := entry(f, 1, dataplane.TCP, endpoint(pod(1), 8080), endpoint(pod(2), 8080), remote(other, 8080))
		weighted := entry(f, 2, dataplane.UDP, endpoint(pod(1), 53), endpoint(pod(2), 53))
		weighted.Endpoints[0].Weight = 3
		external := entry(f, 3, dataplane.TCP, endpoint(pod(1), 80), remote(other, 80))
		external.ExternalIPs = []netip.Addr{netip.MustParseAddr(ext + "3")}
		external.LoadBalancerIPs = []netip.Addr{netip.MustParseAddr(ext + "4")}
		external.SourceRanges = ranges
		external.NodePort = 30003
		local := entry(f, 4, dataplane.TCP, endpoint(pod(1), 80), endpoint(pod(2), 80), remote(other, 80))
		local.NodePort, local.ExternalLocal = 30004, true
		sticky := entry(f, 5, dataplane.TCP, endpoint(pod(1), 80), endpoint(pod(2), 80))
		sticky.Affinity, sticky.NodePort, sticky.ExternalLocal = 3*time.Hour, 30005, true
		none := entry(f, 6, dataplane.TCP)
		none.NodePort = 30006
		localNone := entry(f, 7, dataplane.SCTP, remote(other, 80))
		localNone.NodePort, localNone.ExternalLocal, localNone.InternalLocal = 30007, true, true
		entries = append(entries, plain, weighted, external, local, sticky, none, localNone)
	}
	return entries
}

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// nftVersion is the version whose output the golden files hold, because each version prints a little differently.
const nftVersion = "nftables v1.0.6 "

// TestList expects nft to print the tables as the golden files show them.
func TestList(t *testing.T) {
	needNFT(t)
	t.Parallel()
	r := newRig(t, testConfig(), netlab.Topology{Pods: 1})
	r.sync(variety()...)
	exact := strings.HasPrefix(r.nft("--version"), nftVersion)
	for _, f := range []string{"ip", "ip6"} {
		got := r.nft("list", "table", f, "weir")
		file := filepath.Join("testdata", "list-"+f+".nft")
		if *update && exact {
			if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if exact && got != string(want) {
			t.Errorf("nft list table %s weir (-want +got), write it anew with -update:\n%s", f, cmp.Diff(string(want), got))
		}
	}
}

// TestItems expects a plan to print the Items of every kind of Service port as the golden files show them.
func TestItems(t *testing.T) {
	b := New(testConfig())
	var got strings.Builder
	for _, i := range b.Base() {
		fmt.Fprintln(&got, i)
	}
	for _, e := range variety() {
		items, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&got, "\n# %s\n", e.Key)
		for _, i := range items {
			fmt.Fprintln(&got, i)
		}
	}
	file := filepath.Join("testdata", "items.txt")
	if *update {
		if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("items (-want +got), write them anew with -update:\n%s", cmp.Diff(string(want), got.String()))
	}
}
