package main_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"weir/backends/netlab"
)

// oldBinaryEnv names the version to upgrade from, where it cannot be built: in a virtual machine, or without a network.
const oldBinaryEnv = "WEIR_TEST_OLD_BINARY"

var errNoHistory = errors.New("there is no version to upgrade from: the history of this checkout is missing or shallow (git fetch --unshallow)")

// oldWeir returns the version to upgrade from, and builds it once. It costs the compilation of weir's own packages.
// errNoHistory says that there is no such version here.
var oldWeir = sync.OnceValues(func() (binary string, err error) {
	if binary := os.Getenv(oldBinaryEnv); binary != "" {
		return binary, nil
	}
	binary = filepath.Join(filepath.Dir(os.Getenv(binaryEnv)), "old", "weir") // goes with the binary that is tested
	out, err := exec.Command(filepath.Join("..", "..", ".ci", "previous"), binary).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the version before: %w\n%s", err, out)
	}
	if _, err := os.Stat(binary); err != nil {
		return "", errNoHistory
	}
	return binary, nil
})

// TestUpgradeLosesNothing has this version take over a node that the version before programmed. In the modes whose data path
// is the kernel no connection is lost, neither an open one nor a new one; in all of them nothing is left over.
func TestUpgradeLosesNothing(t *testing.T) {
	eachMode(t, modes, func(t *testing.T, m mode) {
		if m.rootless {
			t.Skip("nothing of it outlives its process, so that there is nothing to take over")
		}
		d := painDaemon(t, m)
		old, err := oldWeir()
		if errors.Is(err, errNoHistory) {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		clean, tables := d.ownRules(), d.weirTables()
		if clean != "" || tables != "" {
			t.Fatalf("the node is not empty:\n%s%s", clean, tables)
		}
		d.launch(d.lab.Node().Command(context.Background(), old, d.args("run")...))
		d.awaitAnswer("pod1")
		if d.mode.proxies {
			d.terminate()
			d.start()
		} else {
			d.upgradeUnderLoad()
		}
		d.awaitSync()
		d.awaitAnswer("pod1")
		d.write(map[string]string{"slice.yaml": painSlice(2)})
		d.awaitAnswer("pod2")
		taken := d.heldNow()

		d.terminate()
		if out, err := d.cleanup(); err != nil {
			t.Fatalf("cleanup: %v\n%s", err, out)
		}
		if left := d.ownRules() + d.weirTables(); left != "" {
			t.Errorf("cleanup left of the version before:\n%s", left)
		}
		d.start()
		d.awaitSync()
		if fresh := d.heldNow(); fresh != taken {
			t.Errorf("after the upgrade:\n%s\non an empty node:\n%s", taken, fresh)
		}
	})
}

// heldNow returns what the kernel holds of weir, without the destinations of IPVS that only wait for their last connection.
func (d *daemon) heldNow() string {
	d.t.Helper()
	var held strings.Builder
	for line := range strings.Lines(d.ownRules() + d.weirTables()) {
		if !strings.HasSuffix(line, " -w 0\n") {
			held.WriteString(line)
		}
	}
	return held.String()
}

// upgradeUnderLoad replaces the version before while a connection is open and others come.
func (d *daemon) upgradeUnderLoad() {
	d.t.Helper()
	flow, err := d.lab.Host(netlab.Client).Open(netlab.TCP, netip.MustParseAddrPort("10.96.0.10:80"), patience)
	if err != nil {
		d.t.Fatal(err)
	}
	defer flow.Close()
	if r := flow.Ask(patience); r.Server != "pod1" {
		d.t.Fatalf("before the upgrade: %v", r)
	}
	asking := d.keepAsking()
	d.terminate()
	d.start()
	d.awaitSync()
	asking.stop(d.t)
	if r := flow.Ask(patience); r.Server != "pod1" {
		d.t.Errorf("the connection that was open before the upgrade: %v", r)
	}
}

// weirTables returns the names of nftables tables that are weir's.
func (d *daemon) weirTables() string {
	d.t.Helper()
	var ours strings.Builder
	for line := range strings.Lines(d.nodeExec("nft", "list", "tables")) {
		if strings.Contains(line, "weir") {
			ours.WriteString(line)
		}
	}
	return ours.String()
}
