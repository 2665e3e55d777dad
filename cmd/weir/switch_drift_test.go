package main_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"weir/backends/netlab"
)

// TestSwitchIsNoDrift changes the mode of a running weir from each to each other. What weir itself takes down and sets up
// counts as nobody else's write.
func TestSwitchIsNoDrift(t *testing.T) {
	t.Parallel()
	netlab.RequireProgram(t, "nft")
	d := newRunDaemon(t)
	config := strings.Replace(kubeProxyConfig, "{minSyncPeriod: 10ms}", "&often {syncPeriod: 1s, minSyncPeriod: 10ms}\nnftables: *often", 1)
	set := func(mode string) {
		d.write(map[string]string{"config.yaml": strings.Replace(config, "mode: iptables", "mode: "+mode, 1)})
	}
	set("nftables")
	d.start()
	d.awaitSync()
	for _, mode := range []string{"userspace", "nftables", "iptables", "userspace", "iptables", "nftables", "userspace"} {
		set(mode)
		d.expectHTTP("http://127.0.0.1:10249/proxyMode", 200, mode)
		metric := func(name string) (v float64) {
			t.Helper()
			_, text, err := httpGet(d, "http://127.0.0.1:10249/metrics")
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(text) {
				if rest, ok := strings.CutPrefix(line, name+" "); ok {
					if _, err := fmt.Sscan(rest, &v); err != nil {
						t.Fatal(err)
					}
				}
			}
			return v
		}
		at := time.Now()
		d.await("a full sync after the change", func() error {
			if last := metric("kubeproxy_sync_proxy_rules_last_timestamp_seconds"); last < float64(at.Add(time.Second).Unix()) {
				return fmt.Errorf("the last sync is of %f", last)
			}
			return nil
		})
		if got, want := d.nodeExec("cat", "/proc/sys/net/ipv4/conf/all/route_localnet"), map[bool]string{true: "0\n", false: "1\n"}[mode == "nftables"]; got != want {
			t.Errorf("route_localnet is %q in mode %s, want %q", got, mode, want)
		}
		if n := metric("weir_drift_repaired_total"); n != 0 {
			t.Fatalf("%g objects count as drift after the change to %s", n, mode)
		}
	}
}
