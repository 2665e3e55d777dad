package firewall

import (
	"os/exec"
	"strings"
	"testing"

	"weir/backends/doctor"
	"weir/backends/netlab"
	"weir/backends/xtables"
)

func TestMain(m *testing.M) { netlab.Main(m) }

func TestDropping(t *testing.T) {
	netlab.InNamespace(t)
	check := func(when string, want ...Chain) {
		t.Helper()
		found, err := Dropping(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(describe(found), describe([]Chain{w})) {
				t.Errorf("%s: found %v, want %v", when, found, w)
			}
		}
		if len(found) != len(want) {
			t.Errorf("%s: found %v", when, found)
		}
	}
	run := func(line string) {
		t.Helper()
		words := strings.Fields(line)
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
	}
	check("nothing")
	if c := Doctor(t.Context()); c.State != doctor.OK {
		t.Errorf("%+v", c)
	}
	run("iptables-nft -P FORWARD DROP")
	ours := Chain{"chain FORWARD of table ip filter", xtables.NFT}
	check("iptables-nft", ours)
	run("iptables-nft -P INPUT DROP")
	check("INPUT does not count", ours)
	run("ip6tables-legacy -P FORWARD DROP")
	legacy := Chain{"chain FORWARD of iptables-legacy, IPv6", xtables.Legacy}
	check("iptables-legacy too", ours, legacy)
	run("iptables-nft -P FORWARD ACCEPT")
	check("only iptables-legacy", legacy)
	run("nft add table inet fw")
	run("nft add chain inet fw forwarding { type filter hook forward priority 0 ; policy drop ; }")
	other := Chain{"chain forwarding of table inet fw", ""}
	check("another table", legacy, other)
	if c := Doctor(t.Context()); c.State != doctor.Advice || !strings.Contains(c.Detail, "chain forwarding of table inet fw") || c.Mend == "" {
		t.Errorf("%+v", c)
	}
	for own, want := range map[xtables.Mode]string{xtables.Legacy: "and no others", xtables.NFT: "cannot open it", "": "cannot open it"} {
		if got := legacy.Effect(own); !strings.Contains(got, want) {
			t.Errorf("with %q: %s", own, got)
		}
	}
}

func describe(chains []Chain) (text string) {
	for _, c := range chains {
		text += c.Where + " (" + string(c.Variant) + ")\n"
	}
	return text
}
