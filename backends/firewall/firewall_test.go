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
	examine := func() doctor.Check {
		found, err := Dropping(t.Context())
		return Doctor(found, err, Opening{})
	}
	if c := examine(); c.State != doctor.OK {
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
	if c := examine(); c.State != doctor.Advice || !strings.Contains(c.Detail, "chain forwarding of table inet fw") || c.Mend == "" {
		t.Errorf("%+v", c)
	}
	for own, want := range map[xtables.Mode]string{xtables.Legacy: "and no others", xtables.NFT: "cannot open it", "": "cannot open it"} {
		if got := legacy.Effect(Opening{own, "masqueraded connections, and no others"}); !strings.Contains(got, want) {
			t.Errorf("with %q: %s", own, got)
		}
	}
}

// TestDroppingRule: a rule without a condition drops as much as a policy does, and a rule that accepts all before it nothing.
func TestDroppingRule(t *testing.T) {
	for _, tc := range []struct {
		name, rules string // the rules of FORWARD, "; " between them, "CHAIN:" before those of another chain
		policy      string
		drops       bool
	}{
		{"policy", "", "DROP", true},
		{"nothing", "-i lo -j ACCEPT", "ACCEPT", false},
		{"drop at the end", "-i lo -j ACCEPT; -j DROP", "ACCEPT", true},
		{"reject at the end", "-i lo -j ACCEPT; -j REJECT --reject-with icmp-host-prohibited", "ACCEPT", true},
		{"with a comment", `-m comment --comment "all the rest" -j DROP`, "ACCEPT", true},
		{"logged before", "-j LOG --log-prefix x; -j DROP", "ACCEPT", true},
		{"some are dropped", "-i eth7 -j DROP; -m conntrack --ctstate INVALID -j REJECT", "ACCEPT", false},
		{"all are accepted before", "-j ACCEPT; -j DROP", "DROP", false},
		{"in another chain", "OTHER:-j DROP; -j OTHER", "ACCEPT", true},
		{"in another chain, by goto", "OTHER:-j REJECT; -g OTHER", "ACCEPT", true},
		{"in another chain, for some", "OTHER:-j DROP; -i eth7 -j OTHER", "ACCEPT", false},
		{"in another chain, which returns", "OTHER:-j RETURN; OTHER:-j DROP; -j OTHER", "ACCEPT", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			netlab.InNamespace(t)
			for _, program := range []string{"iptables-nft", "iptables-legacy"} {
				var script strings.Builder
				script.WriteString("*filter\n:FORWARD " + tc.policy + " [0:0]\n:OTHER - [0:0]\n")
				for rule := range strings.SplitSeq(tc.rules, "; ") {
					chain, of, found := strings.Cut(rule, ":")
					if !found || strings.HasPrefix(rule, "-") {
						chain, of = "FORWARD", rule
					}
					if of != "" {
						script.WriteString("-A " + chain + " " + of + "\n")
					}
				}
				restore := func(text string) {
					t.Helper()
					cmd := exec.Command(program + "-restore")
					cmd.Stdin = strings.NewReader(text)
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Fatalf("%s: %v\n%s\n%s", program, err, out, text)
					}
				}
				restore(script.String() + "COMMIT\n")
				found, err := Dropping(t.Context())
				if err != nil || (len(found) > 0) != tc.drops {
					t.Errorf("%s: found %v, %v", program, found, err)
				}
				restore("*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n")
			}
		})
	}
}

func describe(chains []Chain) (text string) {
	for _, c := range chains {
		text += c.Where + " (" + string(c.Variant) + ")\n"
	}
	return text
}
