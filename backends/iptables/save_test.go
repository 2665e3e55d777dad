package iptables

import (
	"strings"
	"testing"

	"weir/backends"
)

// TestParseSave gives the parser what must not be taken for a table that was read.
func TestParseSave(t *testing.T) {
	for name, test := range map[string]struct{ text, err string }{
		"empty":        {"", ""},
		"no rules":     {"*nat\nCOMMIT\n", ""},
		"cut off":      {"*nat\n:WEIR-A - [0:0]\n", "stopped in the middle"},
		"other table":  {"*filter\nCOMMIT\n", "where *nat was expected"},
		"incompatible": {"# Table `nat' is incompatible, use 'nft' tool.\n", "cannot show"},
		"undeclared":   {"*nat\n-A WEIR-A -j RETURN\nCOMMIT\n", "not declared"},
		"scattered":    {"*nat\n:WEIR-A - [0:0]\n:WEIR-B - [0:0]\n-A WEIR-A -j A\n-A WEIR-B -j A\n-A WEIR-A -j A\nCOMMIT\n", "not together"},
		"no rule":      {"*nat\n-A WEIR-A\nCOMMIT\n", "without content"},
		"garbage":      {"*nat\nwhat\nCOMMIT\n", "unknown kind"},
		"long line":    {"*nat\n-A X " + strings.Repeat("x", maxLine) + "\nCOMMIT\n", "too long"},
	} {
		err := parseSave(strings.NewReader(test.text), backends.IPv4, "nat", func(item) bool { return true })
		if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
			t.Errorf("%s: %v, want %q", name, err, test.err)
		}
	}
}

func TestTarget(t *testing.T) {
	for rule, want := range map[string]string{
		"-j ACCEPT": "ACCEPT",
		`-m comment --comment "x -j DROP" -j LOG`: "LOG",
		`-m comment --comment "x \" -j DROP"`:     "",
		"-p tcp -g CHAIN":                         "CHAIN",
		"-p tcp":                                  "",
		"":                                        "",
		`"\`:                                      "",
	} {
		if got, _ := target(rule); got != want {
			t.Errorf("target(%q) = %q, want %q", rule, got, want)
		}
	}
}

// TestRestoreError holds what the programs of iptables 1.8.9 say.
func TestRestoreError(t *testing.T) {
	for _, test := range []struct {
		code  int
		said  string
		line  int
		retry bool
	}{
		{1, "iptables-restore: line 14 failed", 14, false},
		{2, "iptables-restore v1.8.9 (legacy): Couldn't load match `bogus':No such file or directory; Error occurred at line: 3", 3, false},
		{1, "iptables-nft-restore: line 2 failed: No chain/target/match by that name.", 2, false},
		{4, "iptables-nft-restore v1.8.9 (nf_tables):; line 6: RULE_APPEND failed (Too many links): rule in chain PREROUTING", 6, false},
		{4, "Another app is currently holding the xtables lock; still 9s 0us time ahead to have a chance to grab the lock...", 0, true},
		{4, "Another app is currently holding the xtables lock. Stopped waiting after 1s.", 0, true},
		{4, "iptables-restore: unable to initialize table 'nat'", 0, true},
		{3, "", 0, false},
	} {
		if e := restoreError(test.code, test.said); e.Line != test.line || e.Retry != test.retry {
			t.Errorf("%q: line %d, retry %v", test.said, e.Line, e.Retry)
		}
	}
}

// FuzzParseSave demands that whatever is read comes out as Items whose IDs can be taken apart again, each once.
func FuzzParseSave(f *testing.F) {
	for _, text := range []string{
		"*nat\n:PREROUTING ACCEPT [0:0]\n:WEIR-IP - [0:0]\n:WEIR-SVC-A - [0:0]\n-A PREROUTING -j WEIR-SERVICES\n-A WEIR-IP -d 10.0.0.1/32 -j WEIR-SVC-A\n-A WEIR-SVC-A -j RETURN\nCOMMIT\n",
		"*nat\n:WEIR-IP - [0:0]\n-A WEIR-IP -j RETURN\n-A WEIR-IP -j RETURN\n-A WEIR-IP -m comment --comment \"a (2)\" -j RETURN\nCOMMIT\n",
		"*nat\n-A OUTPUT -j ACCEPT\n-A OUTPUT -j WEIR-SERVICES\n-A OUTPUT -j WEIR-SERVICES\nCOMMIT\n",
		"# Table `nat' is incompatible, use 'nft' tool.\n",
		"*nat\n: \n-A  \n:WEIR-\nCOMMIT",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_ = parseSave(strings.NewReader(text), backends.IPv4, "nat", func(i item) bool {
			p, ok := parse(i.ID())
			if !ok || p.table != "nat" || p.family != backends.IPv4 {
				t.Errorf("an Item that cannot be taken apart: %q", i)
			}
			if strings.Contains(p.rule, "\n") || strings.Contains(string(i.ID()), "\n") {
				t.Errorf("an ID of two lines: %q", i)
			}
			return true
		})
	})
}
