package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"weir/backends/netlab"
)

// kubeProxyConfig is a configuration whose servers are on loopback.
const kubeProxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
iptables: {minSyncPeriod: 10ms}
`

// httpGet asks a server on the node.
func httpGet(d *daemon, url string) (code int, body string, err error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: d.lab.Node().DialContext}}
	res, err := client.Get(url)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

// expectHTTP waits until the server answers so.
func (d *daemon) expectHTTP(url string, code int, part string) {
	d.t.Helper()
	d.await(url, func() error {
		c, body, err := httpGet(d, url)
		if err == nil && (c != code || !strings.Contains(body, part)) {
			err = fmt.Errorf("got %d %s, want %d %q", c, body, code, part)
		}
		return err
	})
}

func newRunDaemon(t *testing.T) *daemon {
	t.Helper()
	d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), mode{name: "as configured"})
	d.write(map[string]string{"config.yaml": kubeProxyConfig, "web.yaml": webService})
	d.mode.saves = [][]string{{"iptables-save"}}
	return d
}

func TestRunServesHealthAndMetrics(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	d.start()
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, `"nodeEligible":true`)
	d.expectHTTP("http://127.0.0.1:10256/livez", 200, `"lastUpdated"`)
	d.expectHTTP("http://127.0.0.1:10249/proxyMode", 200, "iptables")
	d.expectHTTP("http://127.0.0.1:10249/healthz", 200, "ok")
	d.expectHTTP("http://127.0.0.1:10249/configz", 200, `{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration"`)
	d.expectHTTP("http://127.0.0.1:10249/configz", 200, `"masqueradeBit":14`) // a default
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "kubeproxy_sync_full_proxy_rules_duration_seconds_count 1")
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_services 1")
	d.expectHTTP("http://127.0.0.1:10249/debug/pprof/cmdline", 404, "")

	// Everything in the configuration is live, addresses included.
	config := strings.ReplaceAll(kubeProxyConfig, ":10249", ":11249") + "enableProfiling: true\n"
	d.write(map[string]string{"config.yaml": config})
	d.expectHTTP("http://127.0.0.1:11249/debug/pprof/cmdline", 200, "weir")
	if _, _, err := httpGet(d, "http://127.0.0.1:10249/healthz"); err == nil {
		t.Error("the old metrics address still answers")
	}

	d.write(map[string]string{"config.yaml": config + "logging: {format: json, verbosity: 4}\n"})
	d.awaitLog(`(?m)^\{"@level":"debug"`)
	d.write(map[string]string{"config.yaml": config})

	// A broken configuration changes nothing, is told, and heals.
	d.write(map[string]string{"config.yaml": config + "frobnicate: 1\n"})
	d.expectHTTP("http://127.0.0.1:11249/metrics", 200, "weir_config_last_reload_successful 0")
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, "frobnicate")
	if !strings.Contains(d.logs(), "config.yaml:8") {
		t.Error("the log does not say where the configuration is wrong")
	}
	d.write(map[string]string{"config.yaml": strings.ReplaceAll(config, "mode: iptables", "mode: ipvz")})
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, "is not one of iptables, ipvs, nftables, userspace")
	d.write(map[string]string{"config.yaml": config})
	d.expectHTTP("http://127.0.0.1:11249/metrics", 200, "weir_config_last_reload_successful 1")
	d.expectHTTP("http://127.0.0.1:11249/metrics", 200, "weir_invalid_documents 0")
}

// TestRefusedConfigurationChangesNothing has weir read a configuration that is valid, and that this node cannot follow. No
// socket, kernel parameter or log line follows it before one that the node can follow says the same.
func TestRefusedConfigurationChangesNothing(t *testing.T) {
	t.Parallel()
	netlab.RequireProgram(t, "nft")
	d := newRunDaemon(t)
	d.alone = true // without iptables
	before := strings.Replace(kubeProxyConfig, "mode: iptables", "mode: nftables", 1)
	d.write(map[string]string{"config.yaml": before})
	d.start()
	d.expectHTTP("http://127.0.0.1:10249/proxyMode", 200, "nftables")
	timeout := func() string { return d.nodeExec("cat", "/proc/sys/net/netfilter/nf_conntrack_udp_timeout") }
	timeoutBefore := timeout()
	after := strings.NewReplacer(":10249", ":11249", ":10256", ":11256").Replace(before) +
		"conntrack: {udpTimeout: 77s}\nlogging: {format: json, verbosity: 4}\n"

	d.write(map[string]string{"config.yaml": strings.Replace(after, "mode: nftables", "mode: iptables", 1)})
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, "iptables cannot be used")
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, "weir_config_last_reload_successful 0")
	for _, port := range []string{"11249", "11256"} {
		if _, _, err := httpGet(d, "http://127.0.0.1:"+port+"/healthz"); err == nil {
			t.Errorf("port %s of a refused configuration answers", port)
		}
	}
	if got := timeout(); got != timeoutBefore {
		t.Errorf("a refused configuration changed a kernel parameter from %s to %s", timeoutBefore, got)
	}
	if strings.Contains(d.logs(), `{"@`) {
		t.Error("the log follows a refused configuration")
	}

	d.write(map[string]string{"config.yaml": after})
	d.expectHTTP("http://127.0.0.1:11256/healthz", 200, `"revision"`)
	d.expectHTTP("http://127.0.0.1:11249/proxyMode", 200, "nftables")
	d.awaitLog(`(?m)^\{"@level":"debug"`)
	d.await("the kernel parameter", func() error {
		if got := timeout(); got != "77\n" {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
}

func TestRunServesHealthCheckNodePorts(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	lb := strings.Replace(webService, "  clusterIP: 10.96.0.10\n", "  clusterIP: 10.96.0.10\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 32000\n", 1)
	d.write(map[string]string{"web.yaml": lb})
	d.start()
	url := "http://" + netlab.NodeIPv4.String() + ":32000/"
	d.expectHTTP(url, 200, `"localEndpoints":1,"serviceProxyHealthy":true`)
	d.write(map[string]string{"web.yaml": strings.Replace(lb, "nodeName: node", "nodeName: other", 1)})
	d.expectHTTP(url, 503, `"localEndpoints":0`)
	d.write(map[string]string{"web.yaml": webService})
	d.await("the health check port to close", func() error {
		if _, _, err := httpGet(d, url); err == nil {
			return errors.New("it still answers")
		}
		return nil
	})
}

func TestRunEndsAndLeavesTheKernelForwarding(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	d.start()
	d.awaitSync()
	rules := d.ownRules()
	d.terminate()
	if rules == "" || d.ownRules() != rules {
		t.Errorf("rules before and after SIGTERM differ:\n%s\n---\n%s", rules, d.ownRules())
	}
	if plan, err := d.pendingPlan(); plan != "" || err != nil {
		t.Errorf("a plan after the end is not empty: %v\n%s", err, plan)
	}
	d.flags = []string{"--cleanup-on-exit"}
	d.start()
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, `"revision"`)
	d.terminate()
	if rules := d.ownRules(); rules != "" {
		t.Errorf("--cleanup-on-exit left rules:\n%s", rules)
	}
}

func TestTwoDaemonsDoNotFight(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	d.start()
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, `"revision"`)
	for _, sub := range []string{"run", "reconcile"} {
		if _, err := d.run(sub); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another weir (process %d) is running", d.cmd.Process.Pid)) {
			t.Errorf("weir %s besides weir run: %v", sub, err)
		}
	}
	// Looking is allowed.
	if _, err := d.run("reconcile", "--dry-run"); err != nil {
		t.Error(err)
	}
	d.kill()
	if _, err := d.run("reconcile"); err != nil {
		t.Errorf("after a crash: %v", err)
	}
}

func TestReconcileOnce(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	d.addForeign()
	foreign := d.foreignRules()
	plan, err := d.run("reconcile", "--dry-run", "--detail", "kernel", "-o", "json")
	var p struct {
		Backend string
		Changes []struct{ ID string }
	}
	if err != nil || json.Unmarshal([]byte(plan), &p) != nil || p.Backend != "iptables" || len(p.Changes) == 0 {
		t.Fatalf("%v: %s", err, plan)
	}
	if rules := d.ownRules(); rules != "" {
		t.Fatalf("a dry run changed the kernel:\n%s", rules)
	}
	out, err := d.run("reconcile")
	if err != nil || !strings.Contains(out, fmt.Sprintf("iptables: %d created, 0 updated, 0 deleted; 1 Service", len(p.Changes))) {
		t.Errorf("%v: %s", err, out)
	}
	if plan, err := d.pendingPlan(); plan != "" || err != nil {
		t.Errorf("the plan after it is not empty: %v\n%s", err, plan)
	}
	node := d.lab.Node()
	binary := os.Getenv(binaryEnv)
	parameters := 0
	for _, c := range p.Changes {
		if strings.HasPrefix(c.ID, "sysctl ") || strings.HasPrefix(c.ID, "local routes ") {
			parameters++
		}
	}
	out, err = node.Exec(t.Context(), binary, "cleanup", "--dry-run", "--state-dir", d.state)
	for _, n := range []int{parameters, len(p.Changes) - parameters} {
		if want := fmt.Sprintf(": 0 to create, 0 to update, %d to delete", n); err != nil || n == 0 || !strings.Contains(out, want) {
			t.Errorf("cleanup --dry-run: %v: want %s in %s", err, want, out)
		}
	}
	if out, err := node.Exec(t.Context(), binary, "cleanup", "--state-dir", d.state); err != nil {
		t.Errorf("cleanup: %v: %s", err, out)
	}
	if rules := d.ownRules(); rules != "" {
		t.Errorf("cleanup left rules:\n%s", rules)
	}
	if after := d.foreignRules(); after != foreign {
		t.Errorf("the rules of others were\n%s\nand are\n%s", foreign, after)
	}
}

// managed has the daemon notify a socket as a service manager's. expect waits for a message with a part, and seen returns
// what came so far, without what serves the watchdog.
func (d *daemon) managed() (expect func(part string), seen func() []string) {
	t := d.t
	t.Helper()
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	got := make(chan string, 1000)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			got <- string(buf[:n])
		}
	}()
	var all []string
	next := func() (m string, ok bool) {
		select {
		case m = <-got:
			if m != "WATCHDOG=1" {
				all = append(all, m)
			}
			return m, true
		default:
			return "", false
		}
	}
	expect = func(part string) {
		t.Helper()
		d.await(part, func() error {
			for {
				m, ok := next()
				if !ok {
					return fmt.Errorf("got %q so far", all)
				}
				if strings.Contains(m, part) {
					return nil
				}
			}
		})
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "300000")
	return expect, func() []string {
		for _, ok := next(); ok; _, ok = next() {
		}
		return all
	}
}

// TestNotify stands in for the service manager.
func TestNotify(t *testing.T) {
	d := newRunDaemon(t)
	expect, seen := d.managed()
	d.start()
	expect("READY=1")
	expect("WATCHDOG=1")
	d.write(map[string]string{"config.yaml": kubeProxyConfig + "enableProfiling: true\n"})
	expect("RELOADING=1")
	expect("READY=1")
	d.write(map[string]string{"config.yaml": "kind: [\n"})
	expect("cannot be used")
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-d.done
	d.cmd = nil
	if all := seen(); !strings.Contains(strings.Join(all, " "), "STOPPING=1") {
		t.Errorf("STOPPING was not sent: %q", all)
	}
}

// TestNotReadyBeforeAnythingIsInForce starts weir as a service whose input cannot be used: standard input that does not end,
// beside a directory with a mistake. It is not ready, says what is wrong with both, asks for more time, and is ready when
// something is in force.
func TestNotReadyBeforeAnythingIsInForce(t *testing.T) {
	d := newRunDaemon(t)
	expect, seen := d.managed()
	d.write(map[string]string{"broken.yaml": brokenService})
	d.flags = append(d.flags, "-f", "-")
	line := d.line(d.args("run")...)
	cmd := d.lab.Node().Command(context.Background(), line[0], line[1:]...)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	cmd.Stdin = in
	d.launch(cmd)
	expect("EXTEND_TIMEOUT_USEC=")
	expect("STATUS=Nothing is in force, because the input cannot be used: ")
	d.awaitLog(`\[ERROR\].* -: standard input has not ended`)
	d.awaitLog(`\[ERROR\].*broken\.yaml:4: `)
	d.awaitStatus("in force  nothing\n", "broken.yaml:4: Service default/broken")
	d.write(map[string]string{"broken.yaml": ""})
	d.await("the log to tell of standard input alone", func() error {
		if s, err := d.weir("status"); strings.Contains(s, "broken.yaml") || err != nil && !strings.Contains(s, "standard input") {
			return fmt.Errorf("%v: %s", err, s)
		}
		return nil
	})
	if all := seen(); strings.Contains(strings.Join(all, " "), "READY=1") {
		t.Errorf("it is ready while nothing is in force: %q", all)
	}
	if _, err := out.WriteString(strings.NewReplacer("web", "more", "10.96.0.10", "10.96.0.11").Replace(webService)); err != nil {
		t.Fatal(err)
	}
	out.Close()
	expect("READY=1")
	if out := d.ownRules(); !strings.Contains(out, "10.96.0.10") {
		t.Errorf("ready, and the rules are %s", out)
	}
}

// TestRunHalfRequests: more half requests than weir may have descriptors keep neither a manifest from being applied nor a
// probe from its answer.
func TestRunHalfRequests(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	line := d.line(d.args("run")...)
	d.launch(d.lab.Node().Command(context.Background(), "sh", append([]string{"-c", `ulimit -n 1024; exec "$@"`, "sh"}, line...)...))
	d.awaitSync()
	for range 1200 {
		c, err := d.lab.Node().DialContext(t.Context(), "tcp", "127.0.0.1:10256")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// One that weir has closed already says so.
		if _, err := c.Write([]byte("GET /healthz HTTP/1.1\r\n")); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
	if err != nil || len(fds) > 512 {
		t.Errorf("weir has %d descriptors open: %v", len(fds), err)
	}
	d.write(map[string]string{"web.yaml": strings.ReplaceAll(webService, "10.96.0.10", "10.96.0.77")})
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, "")
	d.awaitSync()
}

// TestRunTableOwned has another process own a table that weir needs, from before weir starts and later, when weir's rules
// are in it. Then /healthz says that not all is in force, the log and doctor name the owner, and weir heals when it ends.
func TestRunTableOwned(t *testing.T) {
	netlab.RequireProgram(t, "nft")
	for _, tc := range []struct {
		name, table string
		flags       []string
		alone       bool // without programs of iptables, so that nftables redirects
		doctor      string
	}{
		{"nftables", "ip weir", []string{"--proxy-mode", "nftables"}, false, "nftables"},
		{"iptables-nft", "ip nat", []string{"--proxy-mode", "iptables", "--iptables-variant", "nft"}, false, "iptables"},
		{"userspace over nftables", "ip weir-userspace", []string{"--proxy-mode", "userspace"}, true, "nftables"},
		{"userspace over iptables", "ip filter", []string{"--proxy-mode", "userspace", "--iptables-variant", "nft"}, false, "iptables"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := newRunDaemon(t)
			d.mode.flags, d.alone = tc.flags, tc.alone
			d.write(map[string]string{"config.yaml": strings.Replace(kubeProxyConfig, "{minSyncPeriod: 10ms}", "&often {syncPeriod: 1s, minSyncPeriod: 10ms}\nnftables: *often", 1)})
			for _, when := range []string{"before", "later"} {
				named, end := d.ownTable(tc.table)
				if when == "before" {
					d.start()
				}
				d.expectHTTP("http://127.0.0.1:10256/healthz", 503, "")
				d.await("the log to name the owner", func() error {
					if !strings.Contains(d.logs(), named) {
						return fmt.Errorf("nothing of %q", named)
					}
					return nil
				})
				out, err := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), "doctor", "--mode", tc.doctor, "--iptables-variant", "nft", "--state-dir", d.state)
				if text := fmt.Sprint(out, err); !strings.Contains(text, named) {
					t.Errorf("doctor does not print %q: %s", named, text)
				}
				dryRun := d.line(d.args("reconcile", "--dry-run")...)
				if out, err := d.lab.Node().Exec(t.Context(), dryRun[0], dryRun[1:]...); !strings.Contains(out, named) {
					t.Errorf("the plan does not print %q: %v %s", named, err, out)
				}
				end()
				d.expectHTTP("http://127.0.0.1:10256/healthz", 200, "")
				d.awaitSync()
			}
		})
	}
}

// TestRunTableDormant makes a table dormant in which weir has rules. Then /healthz says that not all is in force, the log and
// doctor say what to do, and weir heals when that is done. Its own table weir wakes by itself.
func TestRunTableDormant(t *testing.T) {
	netlab.RequireProgram(t, "nft")
	for _, tc := range []struct{ name, mode, table string }{
		{"iptables-nft", "iptables", "ip nat"},
		{"iptables-nft, IPv6", "iptables", "ip6 filter"},
		{"userspace", "userspace", "ip nat"},
		{"nftables", "nftables", "ip weir"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			d := newRunDaemon(t)
			d.mode.flags = []string{"--proxy-mode", tc.mode, "--iptables-variant", "nft"}
			d.write(map[string]string{"config.yaml": strings.Replace(kubeProxyConfig, "{minSyncPeriod: 10ms}", "&often {syncPeriod: 1s, minSyncPeriod: 10ms}\nnftables: *often", 1)})
			d.start()
			nft := func(command string) string {
				out, err := d.lab.Node().Exec(t.Context(), "nft", strings.Fields(command)...)
				if err != nil {
					t.Fatal(command, err, out)
				}
				return out
			}
			nft("add table " + tc.table + " { flags dormant; }")
			if tc.mode == "nftables" {
				d.await("that the table is awake", func() error {
					if strings.Contains(nft("list table "+tc.table), "dormant") {
						return errors.New("it is dormant")
					}
					return nil
				})
				return
			}
			d.expectHTTP("http://127.0.0.1:10256/healthz", 503, "")
			remedy := "nft add table " + tc.table
			d.await("the log to name the remedy", func() error {
				if !strings.Contains(d.logs(), remedy) {
					return fmt.Errorf("nothing of %q", remedy)
				}
				return nil
			})
			out, err := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), "doctor", "--mode", "iptables", "--iptables-variant", "nft", "--state-dir", d.state)
			if text := fmt.Sprint(out, err); !strings.Contains(text, remedy) {
				t.Errorf("doctor does not print %q: %s", remedy, text)
			}
			nft(strings.TrimPrefix(remedy, "nft "))
			d.expectHTTP("http://127.0.0.1:10256/healthz", 200, "")
		})
	}
}

// TestRunNothingInForce: where the first sync fails and nothing is in force, /healthz does not wait for twice the
// syncPeriod, and /livez says that a restart would not help.
func TestRunNothingInForce(t *testing.T) {
	t.Parallel()
	netlab.RequireProgram(t, "nft")
	d := newRunDaemon(t)
	d.mode.flags = []string{"--proxy-mode", "nftables"}
	d.write(map[string]string{"config.yaml": strings.Replace(kubeProxyConfig, "{minSyncPeriod: 10ms}", "&rarely {syncPeriod: 10m, minSyncPeriod: 10ms}\nnftables: *rarely", 1)})
	_, end := d.ownTable("ip weir")
	d.start()
	d.expectHTTP("http://127.0.0.1:10256/healthz", 503, `"inForce":"nothing"`)
	d.expectHTTP("http://127.0.0.1:10256/livez", 200, `"inForce":"nothing"`)
	end()
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, `"inForce":"revision`)
}

// ownTable makes another process replace a table by one of its own. It returns how that is told, and what ends the process,
// by which the table goes.
func (d *daemon) ownTable(table string) (named string, end func()) {
	d.t.Helper()
	owner := d.lab.Node().Command(context.Background(), "nft", "-i")
	in, err := owner.StdinPipe()
	if err == nil {
		err = d.lab.Node().Start(owner)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	end = sync.OnceFunc(func() {
		in.Close()
		_ = owner.Wait()
	})
	d.t.Cleanup(end)
	d.await("the table of the other process", func() error {
		// One line is one transaction. weir may make its table again before the line is executed.
		if _, err := fmt.Fprintf(in, "add table %[1]s; delete table %[1]s; add table %[1]s { flags owner; }\n", table); err != nil {
			return err
		}
		out, err := d.lab.Node().Exec(d.t.Context(), "nft", append([]string{"list", "table"}, strings.Fields(table)...)...)
		if err == nil && !strings.Contains(out, "flags owner") {
			err = fmt.Errorf("nobody owns it")
		}
		return err
	})
	return fmt.Sprintf("table %s belongs to process %d (nft)", table, owner.Process.Pid), end
}

// TestRunLogReaderGone: weir goes on when nobody reads its log any more, and when its terminal hangs up.
func TestRunLogReaderGone(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	line := d.line(d.args("run", "--log-level", "trace")...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	log := d.log
	d.log = w
	d.launch(d.lab.Node().Command(context.Background(), line[0], line[1:]...))
	d.log = log
	w.Close()
	r.Close()
	d.awaitSync()
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	d.write(map[string]string{"web.yaml": strings.ReplaceAll(webService, "10.96.0.10", "10.96.0.77")})
	d.awaitSync()
	d.terminate()
}
