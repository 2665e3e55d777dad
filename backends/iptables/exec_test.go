package iptables

import (
	"os"
	"strings"
	"testing"
	"time"

	"weir/backends/dataplane"
	"weir/backends/netlab"
	"weir/backends/xtables"
)

// TestAffinityOutlivesRewrite expects the list of an endpoint's clients to stay when other endpoints are added and
// removed.
func TestAffinityOutlivesRewrite(t *testing.T) {
	for _, mode := range []xtables.Mode{xtables.NFT, xtables.Legacy} {
		t.Run(string(mode), func(t *testing.T) {
			netlab.RequireRoot(t, "put a client on the list")
			b := New(testConfig(), realKernel(t, mode))
			e := service("a", dataplane.IPv4, dataplane.TCP, 1, 3)
			e.Affinity = time.Hour
			converge(t, b, desired(t, b, []*dataplane.ServicePort{e}))

			list := "/proc/thread-self/net/xt_recent/WEIR-" + hash("recent", e.Key.String(), e.Endpoints[0].Addr.String())
			if err := os.WriteFile(list, []byte("+192.0.2.1\n"), 0); err != nil {
				t.Fatal(err)
			}
			fewer := *e
			fewer.Endpoints = e.Endpoints[:2]
			converge(t, b, desired(t, b, []*dataplane.ServicePort{&fewer}))
			if got, err := os.ReadFile(list); err != nil || !strings.Contains(string(got), "192.0.2.1") {
				t.Errorf("the list is now %q, %v", got, err)
			}
		})
	}
}

// TestConflicts finds a kube-proxy.
func TestConflicts(t *testing.T) {
	eachKernel(t, func(t *testing.T, k xtables.Kernel) {
		b := New(testConfig(), k)
		if found, err := b.Conflicts(t.Context()); err != nil || len(found) > 0 {
			t.Errorf("%v, %v", found, err)
		}
		restore(t, k, "nat", ":KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n")
		if found, err := b.Conflicts(t.Context()); err != nil || len(found) != 1 || found[0] != "KUBE-SERVICES" {
			t.Errorf("%v, %v", found, err)
		}
	})
}
