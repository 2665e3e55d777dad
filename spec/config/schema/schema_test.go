package schema

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// TestExplain compares explanations with the golden files in testdata, which are named for what is looked up.
func TestExplain(t *testing.T) {
	for _, path := range []string{"WeirConfiguration", "dns", "dns.nodeResolver", "silence", "KubeProxyConfiguration.iptables.syncPeriod", "logging.vmodule"} {
		f, err := Lookup(path)
		if err != nil {
			t.Error(err)
			continue
		}
		compare(t, path, func(w *strings.Builder) error { return f.Explain(w) })
	}
}

// compare compares what is written with a golden file, no line of which is too wide.
func compare(t *testing.T, name string, write func(w *strings.Builder) error) {
	t.Helper()
	var b strings.Builder
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(file, []byte(b.String()), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestTree(t *testing.T) {
	f, err := Lookup("KubeProxyConfiguration")
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "tree", func(w *strings.Builder) error { return f.Tree(w, -1) })
}

// TestEveryFieldIsFound looks each field up by its shortest path and by its whole one, and explains it in lines that are not too
// wide.
func TestEveryFieldIsFound(t *testing.T) {
	found := 0
	for _, k := range Kinds() {
		for f := range k.Field().all {
			found++
			for _, path := range []string{f.shortest(), strings.ToLower(k.Name) + "." + strings.Join(f.Path, ".")} {
				got, err := Lookup(path)
				if err != nil || got.Kind != k || !slices.Equal(got.Path, f.Path) {
					t.Errorf("%s leads to %s %v, %v", path, got.Kind.Name, got.Path, err)
				}
			}
			var b strings.Builder
			if err := f.Explain(&b); err != nil {
				t.Error(err)
			}
			for line := range strings.SplitSeq(b.String(), "\n") {
				if len(line) > width && strings.Contains(strings.TrimSpace(line), " ") {
					t.Errorf("%s: %d columns: %s", f.shortest(), len(line), line)
				}
			}
		}
	}
	if found < 100 {
		t.Errorf("there are %d fields, fewer than there were", found)
	}
}

func TestLookup(t *testing.T) {
	for _, test := range []struct{ path, want string }{
		{"dns", "WeirConfiguration dns <Object>"},
		{"weirconfiguration.dns.listen", "WeirConfiguration listen <[]string>"},
		{"dns.listen[0]", "WeirConfiguration listen <[]string>"},
		{"dns.forward.corp.example[0]", "WeirConfiguration forward <map[string][]string>"},
		{"apiVersion", "WeirConfiguration apiVersion <string>"},
		{"KUBEPROXYCONFIGURATION.apiVersion", "KubeProxyConfiguration apiVersion <string>"},
		{"iptables.syncPeriod", "KubeProxyConfiguration syncPeriod <duration>"},
		{"logging.options.json.infoBufferSize", "KubeProxyConfiguration infoBufferSize <quantity>"},
		{"logging.vmodule[3].filePattern", "KubeProxyConfiguration filePattern <string>"},
		{"ipvs.scheduler", "KubeProxyConfiguration scheduler <string>"},
		{"silence", "WeirConfiguration silence <[]string>"},

		{"dns.listn", `there is no field "dns.listn"; did you mean dns.listen?`},
		{"dns.Listen", `there is no field "dns.Listen"; did you mean dns.listen?`},
		{"WeirConfiguration.dsn", `there is no field "WeirConfiguration.dsn"; did you mean WeirConfiguration.dns?`},
		{"weirconfiguratoin", `there is no field "weirconfiguratoin"; did you mean WeirConfiguration?`},
		{"KubeProxyConfiguration.apiversion", `there is no field "KubeProxyConfiguration.apiversion"; did you mean KubeProxyConfiguration.apiVersion?`},
		{"strictarp", `there is no field "strictarp"; did you mean ipvs.strictARP?`},
		{"minSyncPeriod", `there is no field "minSyncPeriod"; did you mean iptables.minSyncPeriod, or ipvs.minSyncPeriod, or nftables.minSyncPeriod?`},
		{"iptables.syncPeriods.x", `there is no field "iptables.syncPeriods.x"; did you mean iptables.syncPeriod?`},
		{"mode.x", `there is no field "mode.x"`},
		{"frobnicate", `there is no field "frobnicate"`},
		{"", `there is no field ""`},
		{".", `there is no field "."`},
		{"dns.", `there is no field "dns."`},
	} {
		f, err := Lookup(test.path)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = f.Kind.Name + " " + f.Name() + " <" + f.Type() + ">"
		}
		if got != test.want {
			t.Errorf("%q: got %s; want %s", test.path, got, test.want)
		}
	}
}

func TestComplete(t *testing.T) {
	for _, test := range []struct {
		begun, want string
		on          bool
	}{
		{"dn", "dns", true},
		{"dns.p", "dns.pods", false},
		{"WeirConfiguration.dns.l", "WeirConfiguration.dns.listen", false},
		{"Kube", "KubeProxyConfiguration", true},
		{"KubeProxyConfiguration.ip", "KubeProxyConfiguration.iptables KubeProxyConfiguration.ipvs", true},
		{"nf", "nftables", true},
		{"detect", "detectLocal detectLocalMode", true},
		{"apiV", "apiVersion", false},
		{"nonesuch", "", false},
	} {
		paths, on := Complete(test.begun)
		if got := strings.Join(paths, " "); got != test.want || on != test.on {
			t.Errorf("%q becomes %q, %v; want %q, %v", test.begun, got, on, test.want, test.on)
		}
	}
}
