package main_test

import (
	"strings"
	"testing"

	"weir/backends/netlab"
)

// TestSingleBinary runs weir where no other program is: the kernel and one file are enough for every mode that does not
// ask for iptables by name.
func TestSingleBinary(t *testing.T) {
	for _, m := range []mode{
		{name: "default"},
		{name: "nftables", flags: []string{"--proxy-mode", "nftables"}},
		{name: "userspace", flags: []string{"--proxy-mode", "userspace"}, proxies: true},
	} {
		t.Run(m.name, func(t *testing.T) {
			d := painDaemon(t, m)
			d.alone = true
			d.start()
			d.awaitSync()
			if m.name != "nftables" {
				d.awaitLog("using nftables, since iptables cannot be used")
			}
			d.awaitAnswer("pod1")
			d.write(map[string]string{"slice.yaml": painSlice(2)})
			d.awaitSync()
			d.awaitAnswer("pod2")
			table := "weir"
			if m.proxies {
				table = "weir-userspace"
			}
			d.nft("flush table ip " + table)
			d.awaitAnswer("pod2")
			d.terminate()
			if out, err := d.cleanup(); err != nil {
				t.Errorf("cleanup: %v\n%s", err, out)
			}
			if left := d.nft("list ruleset"); strings.Contains(left, "weir") {
				t.Errorf("cleanup left:\n%s", left)
			}
		})
	}
}

// nft runs a command of the nft program.
func (d *daemon) nft(command string) string {
	d.t.Helper()
	netlab.RequireProgram(d.t, "nft")
	out, err := d.lab.Node().Exec(d.t.Context(), "nft", command)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}
