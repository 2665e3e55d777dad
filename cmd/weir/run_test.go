package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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
	out, err := d.lab.Node().Exec(context.Background(), "curl", "-s", "-m", "10", "-w", "\n%{http_code}", url)
	if err != nil {
		return 0, "", err
	}
	i := strings.LastIndex(out, "\n")
	_, err = fmt.Sscan(out[i+1:], &code)
	return code, out[:i], err
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
		Changes []any
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
	if out, err := node.Exec(t.Context(), binary, "cleanup", "--dry-run"); err != nil || !strings.Contains(out, fmt.Sprintf("%d to delete", len(p.Changes))) {
		t.Errorf("cleanup --dry-run: %v: %s", err, out)
	}
	if out, err := node.Exec(t.Context(), binary, "cleanup"); err != nil {
		t.Errorf("cleanup: %v: %s", err, out)
	}
	if rules := d.ownRules(); rules != "" {
		t.Errorf("cleanup left rules:\n%s", rules)
	}
	if after := d.foreignRules(); after != foreign {
		t.Errorf("the rules of others were\n%s\nand are\n%s", foreign, after)
	}
}

// TestNotify stands in for the service manager.
func TestNotify(t *testing.T) {
	d := newRunDaemon(t)
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
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
	var seen []string
	expect := func(part string) {
		t.Helper()
		d.await(part, func() error {
			for {
				select {
				case m := <-got:
					if m != "WATCHDOG=1" {
						seen = append(seen, m)
					}
					if strings.Contains(m, part) {
						return nil
					}
				default:
					return fmt.Errorf("got %q so far", seen)
				}
			}
		})
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "300000")
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
	for {
		select {
		case m := <-got:
			seen = append(seen, m)
			continue
		default:
		}
		break
	}
	if !strings.Contains(strings.Join(seen, " "), "STOPPING=1") {
		t.Errorf("STOPPING was not sent: %q", seen)
	}
}
