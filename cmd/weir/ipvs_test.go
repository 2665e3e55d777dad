package main_test

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"testing"

	"weir/backends/ipvs"
	"weir/backends/netlab"
)

// ipvsMode needs a kernel with IPVS: tests in it are skipped where there is none, and are run in a virtual machine there.
var ipvsMode = mode{
	name: "ipvs", plans: "ipvs", flags: []string{"--proxy-mode", "ipvs", "--no-fallback", "--iptables-variant", "nft"},
	saves: [][]string{{"iptables-nft-save"}, {"ip6tables-nft-save"}}, more: virtualServers, addMore: addVirtualServer,
	unavailable: noIPVS,
}

// foreignServer is what another program has in IPVS and in ipsets, on an address between those of Services.
const foreignServer = "10.96.250.9:9"

func addVirtualServer(d *daemon) {
	for _, cmd := range [][]string{
		{"ipvsadm", "-A", "-t", foreignServer, "-s", "wlc"},
		{"ipvsadm", "-a", "-t", foreignServer, "-r", "192.0.2.9:9", "-m", "-w", "0"},
		{"ipset", "create", "OTHER", "hash:ip"},
	} {
		if _, err := d.lab.Node().Exec(d.t.Context(), cmd[0], cmd[1:]...); err != nil {
			d.t.Fatal(err)
		}
	}
}

// virtualServers tells the virtual servers, sets and addresses of others from those of weir.
func virtualServers(d *daemon) (foreign, own string) {
	ctx := context.Background()
	for _, cmd := range [][]string{{"ipvsadm", "-S", "-n"}, {"ipset", "save"}, {"ip", "-o", "address"}} {
		out, err := d.lab.Node().Exec(ctx, cmd[0], cmd[1:]...)
		if err != nil {
			d.t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			switch {
			case strings.Contains(line, foreignServer), strings.Contains(line, "OTHER"):
				foreign += line
			case cmd[0] != "ip", strings.Contains(line, ipvs.LinkName):
				own += line
			}
		}
	}
	return foreign, own
}

// noIPVS says why IPVS cannot be tested here, or "".
func noIPVS() string {
	if !ipvs.Present() {
		return "there is no IPVS in this kernel; go test -exec vmexec runs this in one that has it"
	}
	return ""
}

const ipvsConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16,fd00:244::/48
mode: ipvs
`

// TestFallbackWithoutIPVS shows what becomes of ipvs mode in a kernel that has no IPVS.
func TestFallbackWithoutIPVS(t *testing.T) {
	if ipvs.Present() {
		t.Skip("this kernel has IPVS")
	}
	t.Parallel()
	d := newRunDaemon(t)
	d.lab.Host("pod1").Serve(t, netlab.TCP, 8080)
	d.mode.flags = []string{"--iptables-variant", "nft"}
	d.write(map[string]string{"config.yaml": ipvsConfig})
	d.start()
	d.awaitSync()
	client := d.lab.Host(netlab.Client)
	if r := client.Probe(netlab.TCP, netip.MustParseAddrPort("10.96.0.10:80"), answerWait); r.Outcome != netlab.Answered {
		t.Errorf("a client gets %v", r)
	}
	d.expectHTTP("http://127.0.0.1:10249/proxyMode", 200, "iptables")
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, `weir_proxy_mode_info{mode="iptables"} 1`)
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, `weir_proxy_mode_fallback_info{reason="ipvs was asked for, but the kernel lacks ip_vs`)

	const remedy = "modprobe -a ip_vs"
	out, err := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), "status", "-o", "json", "--state-dir", d.state)
	var status struct{ Mode, ModeReason string }
	if err == nil {
		err = json.Unmarshal([]byte(out), &status)
	}
	if err != nil || status.Mode != "iptables" || !strings.Contains(status.ModeReason, remedy) {
		t.Errorf("weir status says %+v, %v", status, err)
	}
	d.write(map[string]string{"config.yaml": ipvsConfig + "enableProfiling: true\n"}) // the mode is chosen again
	d.expectHTTP("http://127.0.0.1:10249/debug/pprof/cmdline", 200, "weir")
	if log := d.logs(); strings.Count(log, "IPVS CANNOT BE USED") != 1 || !strings.Contains(log, remedy) {
		t.Errorf("the log should say once that IPVS cannot be used, and what to do:\n%s", log)
	}
	d.terminate()

	if out, err := d.run("reconcile", "--no-fallback"); err == nil || !strings.Contains(err.Error(), remedy) {
		t.Errorf("with --no-fallback weir reconcile gets %v\n%s", err, out)
	}
}
