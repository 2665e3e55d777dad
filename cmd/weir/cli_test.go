package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var updateHelp = flag.Bool("update-help", false, "rewrite the golden help texts")

// result is what a process left behind.
type result struct {
	stdout, stderr string
	code           int
}

// weir runs the program where the test runs.
func weir(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Getenv(binaryEnv), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// TestHelp keeps the help texts as they were reviewed.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, sub := range []string{"", "run", "reconcile", "plan", "validate", "allocate", "status", "handover", "snapshot", "cleanup", "doctor", "discover", "probe", "dns zone", "dns lookup", "explain", "version"} {
		t.Run("weir "+sub, func(t *testing.T) {
			args := append(strings.Fields(sub), "-h")
			got := weir(t, "", args...)
			if got.code != 0 || got.stderr != "" {
				t.Errorf("exit %d, stderr %q", got.code, got.stderr)
			}
			file := filepath.Join("testdata", "help", strings.TrimSuffix("weir-"+strings.ReplaceAll(sub, " ", "-"), "-")+".txt")
			if *updateHelp {
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(got.stdout), 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.stdout); diff != "" {
				t.Errorf("the help differs from %s (-want +got); -update-help accepts it:\n%s", file, diff)
			}
			if !strings.Contains(got.stdout, "Examples:") {
				t.Error("there are no examples")
			}
		})
	}
}

func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		args string
		want string
	}{
		{"unknown command", "frobnicate", `unknown command "frobnicate"`},
		{"misspelt flag", "reconcile -f . --dryrun", "unknown flag: --dryrun; did you mean --dry-run?"},
		{"misspelt flag with a value", "plan -f . --agianst=empty", "unknown flag: --agianst; did you mean --against?"},
		{"a flag with one dash", "plan -f . -against empty", `unknown shorthand flag: 'a' in -against; did you mean --against?`},
		{"half a flag", "run -f . --mode ipvs", "unknown flag: --mode; did you mean --proxy-mode?"},
		{"another case", "run -f . --Proxy_Mode ipvs", "unknown flag: --Proxy_Mode; did you mean --proxy-mode?"},
		{"misspelt flag of no command", "--verison", "unknown flag: --verison; did you mean --version?"},
		{"misspelt flag that is near to none", "plan -f . --frobnicate", "unknown flag: --frobnicate\n"},
		{"misspelt command", "plna -f .", `unknown command "plna"; did you mean weir plan?`},
		{"another program's command", "diff -f .", `unknown command "diff"; did you mean weir plan?`},
		{"another program's command", "apply -f .", `unknown command "apply"; did you mean weir reconcile?`},
		{"unknown flag", "run --frobnicate", "unknown flag: --frobnicate"},
		{"nothing to read", "run", "nothing to read: give -f"},
		{"a variable that is not set", "validate --filename=", "-f is empty, as a variable that is not set; write . for the current directory"},
		{"a variable that is not set, with -k", "run --kustomize=", "-k is empty"},
		{"a directory as the lock", "plan -f . --lock .", "--lock . is a directory; name a file, such as weir.lock.yaml"},
		{"a path without -f", "validate dir", "paths are given with -f"},
		{"bad CIDR", "validate -f . --service-cidrs 10.0.0.1/8", "--service-cidrs: 10.0.0.1/8 has bits set after its prefix; write 10.0.0.0/8"},
		{"bad range", "validate -f . --node-port-range 5-x", "--node-port-range: "},
		{"bad settle time", "validate -f . --settle-time 1h", "--settle-time: "},
		{"relative state directory", "run -f . --state-dir x", "--state-dir: "},
		{"unknown mode", "reconcile -f . --proxy-mode x", `mode "x" is not known; use iptables, ipvs, nftables or userspace`},
		{"unknown variant", "cleanup --iptables-variant x", "must be one of auto, nft, legacy"},
		{"unknown log format", "run -f . --log-format xml", "must be one of text, json"},
		{"unknown log level", "run -f . --log-level loud", "must be one of error, warn"},
		{"unknown output", "version -o yaml", "must be one of text, json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := weir(t, "", strings.Fields(tc.args)...)
			if got.code != 2 || !strings.Contains(got.stderr, tc.want) || got.stdout != "" {
				t.Errorf("exit %d, stdout %q, stderr %q; want exit 2 and %q", got.code, got.stdout, got.stderr, tc.want)
			}
			if strings.Contains(got.stderr, "\x1b") {
				t.Error("colours are used though stderr is not a terminal")
			}
		})
	}
}

// TestWaitsForStandardInput gives commands a pipe in which nothing comes, until they say that they wait for it.
func TestWaitsForStandardInput(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"validate -f -", "plan --against empty -f -", "allocate -f -"} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Getenv(binaryEnv), strings.Fields(args)...)
			in, errIn := cmd.StdinPipe()
			out, errOut := cmd.StderrPipe()
			if err := errors.Join(errIn, errOut, cmd.Start()); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			if !strings.Contains(line, "waits for standard input") {
				t.Errorf("got %q, %v", line, err)
			}
			in.Close()
			_ = cmd.Wait() // there is no Service
		})
	}
}

const webService = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: node}]
`

const deployment = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n"

func TestValidate(t *testing.T) {
	t.Parallel()
	port := func(s string) string { return strings.Replace(webService, "port: 80,", "port: "+s+",", 1) }
	for _, tc := range []struct {
		name, input    string
		flags          string
		code           int
		stdout, stderr string
	}{
		{"good", webService, "", 0, "ok: 1 Service (1 ClusterIP), 1 EndpointSlice; default configuration; mode chosen by each node\n", ""},
		{"other kinds", webService + deployment, "", 0, "; skipped: 1 document of other kinds (Deployment)\n", ""},
		{"bad port", port("70000"), "", 1, "", ":6: Service default/web: spec.ports[0].port"},
		{"typo", strings.Replace(webService, "clusterIP", "clusterIp", 1), "", 1, "", "clusterIp"},
		{"all at once", port("70000") + "---\n" + strings.ReplaceAll(port("0"), "name: web", "name: api"), "", 1, "", "Service default/api"},
		{"not YAML", "a: [", "", 1, "", "invalid: 1 problem"},
		{"empty", "", "", 1, "", "--allow-empty"},
		{"empty is meant", "", "--allow-empty", 0, "ok: 0 Services, 0 EndpointSlices; default configuration; mode chosen by each node\n", ""},
		{"mode that is not known", webService + "---\napiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: ipvz\n", "", 1, "",
			`mode: "ipvz" is not one of iptables, ipvs, nftables, userspace`},
	} {
		for _, from := range []string{"stdin", "file", "directory"} {
			t.Run(tc.name+"/"+from, func(t *testing.T) {
				path, stdin := "-", tc.input
				if from != "stdin" {
					stdin, path = "", filepath.Join(t.TempDir(), "in.yaml")
					if err := os.WriteFile(path, []byte(tc.input), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if from == "directory" {
					path = filepath.Dir(path)
				}
				got := weir(t, stdin, append([]string{"validate", "-f", path}, strings.Fields(tc.flags)...)...)
				if got.code != tc.code || !strings.HasSuffix(got.stdout, tc.stdout) || !strings.Contains(got.stderr, tc.stderr) {
					t.Errorf("exit %d\nstdout: %s\nstderr: %s\nwant exit %d, %q, %q", got.code, got.stdout, got.stderr, tc.code, tc.stdout, tc.stderr)
				}
				if tc.code != 0 && got.stdout != "" {
					t.Errorf("errors belong to stderr; stdout is %q", got.stdout)
				}
			})
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	if got := weir(t, "", "version"); got.code != 0 || !strings.HasPrefix(got.stdout, "weir ") {
		t.Errorf("%+v", got)
	}
	if flag, command := weir(t, "", "--version"), weir(t, "", "version"); flag != command {
		t.Errorf("weir --version: %+v; weir version: %+v", flag, command)
	}
	got := weir(t, "", "version", "-o", "json")
	var v map[string]any
	if err := json.Unmarshal([]byte(got.stdout), &v); err != nil || v["goVersion"] == "" {
		t.Errorf("%+v: %v", got, err)
	}
}
