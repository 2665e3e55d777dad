package xtables

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"weir/backends"
	"weir/backends/dataplane"
)

// TestParseSave parses texts that must not be taken for complete tables.
func TestParseSave(t *testing.T) {
	for name, test := range map[string]struct{ text, err string }{
		"empty":        {"", ""},
		"no rules":     {"*nat\nCOMMIT\n", ""},
		"cut off":      {"*nat\n:WEIR-A - [0:0]\n", "stopped in the middle"},
		"other table":  {"*security\nwhat\nCOMMIT\n", ""},
		"no table":     {":WEIR-A - [0:0]\n", "where a table was expected"},
		"incompatible": {"# Table `nat' is incompatible, use 'nft' tool.\n", "cannot show"},
		"not ours":     {"# Table `raw' is incompatible, use 'nft' tool.\n", ""},
		"undeclared":   {"*nat\n-A WEIR-A -j RETURN\nCOMMIT\n", "not declared"},
		"scattered":    {"*nat\n:WEIR-A - [0:0]\n:WEIR-B - [0:0]\n-A WEIR-A -j A\n-A WEIR-B -j A\n-A WEIR-A -j A\nCOMMIT\n", "not together"},
		"no rule":      {"*nat\n-A WEIR-A\nCOMMIT\n", "without content"},
		"garbage":      {"*nat\nwhat\nCOMMIT\n", "unknown kind"},
		"long line":    {"*nat\n-A X " + strings.Repeat("x", maxLine) + "\nCOMMIT\n", "too long"},
	} {
		err := parseSave(strings.NewReader(test.text), dataplane.IPv4, testLayout, map[backends.ID]struct{}{}, func(Item) bool { return true })
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

// TestRestoreError parses messages of the programs of iptables 1.8.9.
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
		} else if want := fmt.Sprintf("%q (exit code %d)", test.said, test.code); e.Message != want {
			t.Errorf("the message is %s, want %s", e.Message, want)
		}
	}
}

// TestHookPlacement parses hooks that packets reach, and hooks that they may not reach.
func TestHookPlacement(t *testing.T) {
	for before, reached := range map[string]bool{
		"":                       true,
		"-j OTHER":               true, // other programs want to be first too
		"-p tcp -j LOG":          true,
		"-p tcp -j ACCEPT":       false,
		"-s 10.0.0.0/8 -g OTHER": false,
		"-j MASQUERADE":          false,
		`-m comment --comment "x -g y -j DROP" -j LOG`: true,
		"-j WEIR-B": true,
	} {
		text := "*nat\n:PREROUTING ACCEPT [0:0]\n:OTHER - [0:0]\n-A OTHER -j DROP\n"
		if before != "" {
			text += "-A PREROUTING " + before + "\n"
		}
		text += "-A PREROUTING -j WEIR-A\n-A PREROUTING -j WEIR-A\nCOMMIT\n"
		var got []string
		err := parseSave(strings.NewReader(text), dataplane.IPv4, testLayout, map[backends.ID]struct{}{}, func(i Item) bool {
			if !strings.Contains(i.String(), "WEIR-B") {
				got = append(got, i.String())
			}
			return true
		})
		first := "ip4 nat PREROUTING -j WEIR-A"
		if !reached {
			first += unreachable
		}
		if want := []string{first, "ip4 nat PREROUTING -j WEIR-A (2)"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("behind %q: %q, %v", before, got, err)
		}
	}
}

// FuzzParseSave demands that all Items have different IDs that can be parsed, whatever the text.
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
		_ = parseSave(strings.NewReader(text), dataplane.IPv4, testLayout, map[backends.ID]struct{}{}, func(i Item) bool {
			p, ok := Parse(i.ID())
			if !ok || p.Table != "nat" && p.Table != "filter" || p.Family != dataplane.IPv4 {
				t.Errorf("an Item that cannot be taken apart: %q", i)
			}
			if strings.Contains(p.Rule, "\n") || strings.Contains(string(i.ID()), "\n") {
				t.Errorf("an ID of two lines: %q", i)
			}
			return true
		})
	})
}
