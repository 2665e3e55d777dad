package main_test

import (
	"strings"
	"testing"
)

// TestRecordCountsOnlyWithTheKernel plans a change of mode: it is told while the kernel holds what the record says, and not
// any more once that is gone, as after a reboot, after a cleanup, or in another network namespace.
func TestRecordCountsOnlyWithTheKernel(t *testing.T) {
	d := painDaemon(t, mode{name: "by flag"})
	if out, err := d.run("reconcile", "--proxy-mode", "nftables"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	plan := func() string {
		t.Helper()
		out, err := d.run("reconcile", "--dry-run", "--proxy-mode", "iptables", "--iptables-variant", "nft")
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return out
	}
	if out := plan(); !strings.Contains(out, "W008") {
		t.Errorf("the change of mode is not told:\n%s", out)
	}
	if out, err := d.cleanup(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out := plan(); strings.Contains(out, "W008") || strings.Contains(out, "nftables") {
		t.Errorf("a mode that is not in force any more is told:\n%s", out)
	}
}
