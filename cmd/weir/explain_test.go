package main

import (
	"strings"
	"testing"

	"weir/spec/config/schema"
)

// TestExplain explains fields, and prints schemas as they are.
func TestExplain(t *testing.T) {
	for _, test := range []struct {
		args  string
		code  int
		wants []string
	}{
		{"", exitOK, []string{"KIND:       WeirConfiguration\n", "  dns <Object>\n", "KIND:       KubeProxyConfiguration\n", "  iptables <Object>\n"}},
		{"dns.listen", exitOK, []string{"VERSION:    weir/v1alpha1\n", "FIELD: listen <[]string>\n", "DEFAULT:\n    [\"127.0.0.1:53\"]\n"}},
		{"kubeproxyconfiguration.iptables.syncPeriod", exitOK, []string{"FIELD: syncPeriod <duration>\n", "DEFAULT:\n    30s\n"}},
		{"mode", exitOK, []string{"ENUM:\n    iptables, ipvs, nftables, userspace\n"}},
		{"dns --recursive", exitOK, []string{"FIELD: dns <Object>\n", "\n  search <boolean>\n"}},
		{"--recursive", exitOK, []string{"  dns <Object>\n    allow <[]string>\n"}},
		{"dns.listn", exitUsage, []string{`there is no field "dns.listn"; did you mean dns.listen?`}},
		{"dns liveness", exitUsage, []string{"give one field, not 2"}},
		{"-o jsonschema", exitUsage, []string{"a schema is of one kind"}},
		{"iptables.syncPeriod -o jsonschema", exitUsage, []string{"a schema is of one kind: name KubeProxyConfiguration"}},
		{"dns -o json", exitUsage, []string{"must be one of text, jsonschema"}},
	} {
		out, errors, code := weirCommand(t, append([]string{"explain"}, strings.Fields(test.args)...)...)
		if code != test.code {
			t.Errorf("explain %s: exit code %d", test.args, code)
		}
		for _, want := range test.wants {
			if !strings.Contains(out+errors, want) {
				t.Errorf("explain %s does not say %q:\n%s%s", test.args, want, out, errors)
			}
		}
	}
	for _, k := range schema.Kinds() {
		if out, errors, code := weirCommand(t, "explain", strings.ToLower(k.Name), "-o", "jsonschema"); out != string(k.Text) || code != exitOK {
			t.Errorf("%s: exit code %d, %s, and another schema than the file's", k.Name, code, errors)
		}
	}
}

func TestExplainCompletion(t *testing.T) {
	for line, want := range map[string]string{
		"dns.l":                     "dns.listen :4",
		"KubeProxyConfiguration.ip": "KubeProxyConfiguration.iptables KubeProxyConfiguration.ipvs :6",
		"dns ":                      ":4",
		"-o ":                       "text jsonschema :4",
	} {
		if got := complete(t, append([]string{"explain"}, strings.Split(line, " ")...)...); got != want {
			t.Errorf("%s completes to %s; want %s", line, got, want)
		}
	}
}
