package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"weir/backends/ipvs"
	"weir/backends/netlab"
	"weir/spec/seed"
)

// ipvsMode needs a kernel with IPVS.
var ipvsMode = mode{
	name: "ipvs", plans: "ipvs", flags: []string{"--proxy-mode", "ipvs", "--no-fallback", "--iptables-variant", "nft"},
	saves: [][]string{{"iptables-nft-save"}, {"ip6tables-nft-save"}}, inTurn: true, more: virtualServers, addMore: addVirtualServer,
	needs: needIPVS,
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
			case cmd[0] != "ip":
				own += line
			case strings.Contains(line, ipvs.LinkName):
				_, line, _ = strings.Cut(line, ": ") // without the number of the interface
				own += line
			}
		}
	}
	return foreign, own
}

func needIPVS(t testing.TB) { netlab.RequireIPVS(t, ipvs.Probe(t.Context())) }

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
	d.write(map[string]string{"config.yaml": ipvsConfig + "ipvs: {minSyncPeriod: 3s, syncPeriod: 77s}\niptables: {minSyncPeriod: 20ms, syncPeriod: 66s}\n"})
	d.start()
	d.awaitSync()
	d.awaitLog("sync_period=1m6s min_sync_period=20ms")
	client := d.lab.Host(netlab.Client)
	if r := client.Probe(netlab.TCP, netip.MustParseAddrPort("10.96.0.10:80"), answerWait); r.Outcome != netlab.Answered {
		t.Errorf("a client gets %v", r)
	}
	d.expectHTTP("http://127.0.0.1:10249/proxyMode", 200, "iptables")
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, `weir_proxy_mode_info{mode="iptables"} 1`)
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, `weir_proxy_mode_fallback_info{reason="ipvs was asked for, but the kernel lacks ip_vs`)

	const remedy = "modprobe -a ip_vs"
	if mode, reason, err := d.modeInForce(); err != nil || mode != "iptables" || !strings.Contains(reason, remedy) {
		t.Errorf("weir status says %s (%s), %v", mode, reason, err)
	}
	d.write(map[string]string{"config.yaml": ipvsConfig + "enableProfiling: true\n"}) // the mode is chosen again
	d.expectHTTP("http://127.0.0.1:10249/debug/pprof/cmdline", 200, "weir")
	if log := d.logs(); strings.Count(log, "ipvs mode cannot be used") != 1 || !strings.Contains(log, remedy) {
		t.Errorf("the log should say once that IPVS cannot be used, and what to do:\n%s", log)
	}
	d.terminate()

	if out, err := d.run("reconcile", "--no-fallback"); err == nil || !strings.Contains(err.Error(), remedy) {
		t.Errorf("with --no-fallback weir reconcile gets %v\n%s", err, out)
	}
}

// TestPain09_SwitchesAroundIPVS goes through the modes under load: no new connection fails at any time, those of
// iptables mode go on in ipvs mode, and a mode that was left leaves nothing.
func TestPain09_SwitchesAroundIPVS(t *testing.T) {
	needIPVS(t)
	m := ipvsMode
	m.flags = []string{"--iptables-variant", "nft"}
	d := painDaemon(t, m)
	d.addForeign()
	before := d.foreignRules()
	config := func(mode string) {
		d.write(map[string]string{"config.yaml": painConfig + "mode: " + mode + "\n"})
	}
	config("iptables")
	d.write(map[string]string{"slice.yaml": painSlice(1, 2, 3)})
	d.start()
	d.awaitSync()
	kept, err := d.lab.Host(netlab.Client).Open(netlab.TCP, webFront, answerWait)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	first := kept.Ask(answerWait)

	l := startNewConnections(d.lab, webFront)
	for _, mode := range []string{"ipvs", "iptables", "userspace", "ipvs"} {
		l.more(d, 20)
		config(mode)
		d.awaitLog("proxy mode changed: .*to=" + mode)
		d.awaitSync()
		l.more(d, 20)
		own := d.ownRules()
		for trace, of := range map[string]string{"WEIR-IPVS-": "ipvs", ipvs.LinkName: "ipvs", "10.96.0.10:80": "ipvs", "WEIR-SERVICES": "iptables", "WEIR-U-": "userspace"} {
			if has, want := strings.Contains(own, trace), mode == of; has != want {
				t.Errorf("in mode %s the kernel holds %q: %v\n%s", mode, trace, has, own)
			}
		}
		if mode == "ipvs" || mode == "iptables" {
			if r := kept.Ask(answerWait); r.Outcome != netlab.Answered || r.Server != first.Server {
				t.Errorf("a connection of iptables mode met %v, and %v in mode %s", first, r, mode)
			}
		}
	}
	l.end(t)
	d.checkLeavesNothing(before)
}

// modeInForce is what weir status says.
func (d *daemon) modeInForce() (mode, reason string, err error) {
	out, err := d.lab.Node().Exec(context.Background(), os.Getenv(binaryEnv), "status", "-o", "json", "--state-dir", d.state)
	var status struct{ Mode, ModeReason string }
	if err == nil {
		err = json.Unmarshal([]byte(out), &status)
	}
	return status.Mode, status.ModeReason, err
}

// startNewConnections keeps asking, with a connection for each question.
func startNewConnections(lab *netlab.Lab, to netip.AddrPort) *load {
	l := &load{}
	l.wg.Go(func() {
		for !l.stopping.Load() {
			l.note("new connection", lab.Host(netlab.Client).Probe(netlab.TCP, to, answerWait))
		}
	})
	return l
}

// TestIPVSComesWhereItWasMissing: ipvs mode takes the place of its stand-in when its modules appear.
// It unloads the modules, which other tests need, and a process that used them before does not find them again: so it is
// run by its name, and alone.
func TestIPVSComesWhereItWasMissing(t *testing.T) {
	if !strings.Contains(flag.Lookup("test.run").Value.String(), t.Name()) {
		t.Skip("it is run by its name: make vm-test")
	}
	needIPVS(t)
	if os.Getenv(netlab.VMEnv) == "" {
		t.Skip("it unloads modules, which is for a virtual machine: make vm-test")
	}
	d := painDaemon(t, ipvsMode)
	d.mode.flags = []string{"--iptables-variant", "nft"}
	d.write(map[string]string{"config.yaml": painConfig + "mode: ipvs\n"})
	restore := hideIPVS(t)
	d.start()
	d.awaitLog("ipvs mode cannot be used")
	d.awaitAnswer("pod1")
	inForce := func(want string) {
		t.Helper()
		if mode, reason, err := d.modeInForce(); mode != want {
			t.Errorf("weir status says %s (%s), %v; want %s", mode, reason, err, want)
		}
	}
	inForce("iptables")
	restore()
	d.awaitLog("ipvs mode can be used now")
	d.awaitSync()
	d.awaitAnswer("pod1")
	inForce("ipvs")
	if own := d.ownRules(); !strings.Contains(own, "10.96.0.10:80") || strings.Contains(own, "WEIR-SERVICES") {
		t.Errorf("the kernel holds:\n%s", own)
	}
}

// ipvsLegacyMode is ipvsMode with the other variant of iptables below it.
func ipvsLegacyMode() mode {
	m := ipvsMode
	m.flags = []string{"--proxy-mode", "ipvs", "--no-fallback", "--iptables-variant", "legacy"}
	m.saves = [][]string{{"iptables-legacy-save"}, {"ip6tables-legacy-save"}}
	return m
}

// TestIPVSOverLegacy runs the scenarios that need every chain and set of ipvs mode with iptables-legacy.
func TestIPVSOverLegacy(t *testing.T) {
	needIPVS(t)
	t.Parallel()
	chosen := map[string]bool{
		"cluster-ip": true, "dual-stack": true, "external-traffic-policy-local": true, "hairpin": true, "health-check-node-port": true,
		"internal-traffic-policy-local": true, "no-endpoints-reject": true, "node-port": true, "source-ranges": true, "udp": true,
	}
	for _, s := range readScenarios(t) {
		if chosen[s.name] {
			delete(chosen, s.name)
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				runScenario(t, s, ipvsLegacyMode())
			})
		}
	}
	if len(chosen) > 0 {
		t.Errorf("there are no scenarios %v", chosen)
	}
}

// TestIPVSCleanupOfBothVariants: rules of both variants of iptables match the same sets, and one cleanup removes it all, but
// for what another program uses: that it names.
func TestIPVSCleanupOfBothVariants(t *testing.T) {
	needIPVS(t)
	d := painDaemon(t, ipvsMode)
	d.mode.saves = append(ipvsLegacyMode().saves, d.mode.saves...)
	d.addForeign()
	before := d.foreignRules()
	d.write(map[string]string{"slice.yaml": painSlice(1, 2)})
	for _, m := range []mode{ipvsMode, ipvsLegacyMode()} {
		d.mode.flags = m.flags
		if out, err := d.run("reconcile"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	own := d.ownRules()
	if n := strings.Count(own, ":WEIR-IPVS-FILTER"); n != 4 {
		t.Fatalf("the chain is there %d times, not once for each family and variant:\n%s", n, own)
	}
	use := []string{"-t", "raw", "-A", "PREROUTING", "-m", "set", "--match-set", "WEIR-IPVS-CLUSTER-4", "dst,dst"}
	d.nodeExec("iptables-nft", use...)
	if out, err := d.cleanup(); err == nil || !strings.Contains(err.Error(), "set WEIR-IPVS-CLUSTER-4") {
		t.Errorf("with a set that somebody else uses, cleanup says %v\n%s", err, out)
	}
	if left := strings.TrimSpace(d.ownRules()); strings.Count(left, "\n") > 0 {
		t.Errorf("besides the set that somebody else uses, cleanup left:\n%s", left)
	}
	use[2] = "-D"
	d.nodeExec("iptables-nft", use...)
	if out, err := d.cleanup(); err != nil {
		t.Errorf("cleanup: %v\n%s", err, out)
	}
	if diff := cmp.Diff(before, d.foreignRules()); diff != "" {
		t.Errorf("cleanup changed what others own (-before +after):\n%s", diff)
	}
	if left := d.ownRules(); left != "" {
		t.Errorf("cleanup left:\n%s", left)
	}
}

// TestIPVSSurvivesKills kills weir at random moments of one change after the other. What the kernel then holds serves, what
// belongs to other programs is untouched, and the next start finds its own and leaves nothing behind.
func TestIPVSSurvivesKills(t *testing.T) {
	needIPVS(t)
	d := painDaemon(t, ipvsMode)
	d.addForeign()
	before := d.foreignRules()
	d.write(map[string]string{"slice.yaml": painSlice(1, 2, 3)})
	d.start()
	d.awaitSync()
	random := seed.Rand(t)
	l := startNewConnections(d.lab, webFront)
	for i := range 8 {
		more := map[string]string{}
		for j := range 40 {
			name := fmt.Sprintf("extra-%d", j)
			more[name+".yaml"] = ""
			if i%2 == 0 {
				more[name+".yaml"] = strings.NewReplacer("name: web", "name: "+name, "10.96.0.10", fmt.Sprintf("10.96.1.%d", j+1)).Replace(painService)
			}
		}
		d.write(more)
		d.write(map[string]string{"slice.yaml": painSlice(1+i%3, 1+(i+1)%3)})
		time.Sleep(time.Duration(random.IntN(1000)) * time.Millisecond) // the moment is what is tried, not waited for
		d.kill()
		d.start()
	}
	d.awaitSync()
	l.end(t)
	d.awaitRunning()
	d.checkLeavesNothing(before)
}

// TestIPVSIsRepaired breaks what a running weir has programmed, as an administrator with the tools of IPVS can, and all of it is
// repaired. What another program has in the place of a Service stays, and the Service is served when it is gone.
func TestIPVSIsRepaired(t *testing.T) {
	needIPVS(t)
	d := painDaemon(t, ipvsMode)
	d.addForeign()
	before := d.foreignRules()
	d.write(map[string]string{"config.yaml": painConfig + "ipvs: {minSyncPeriod: 10ms, syncPeriod: 1s}\n"})
	d.start()
	d.awaitSync()
	const web, taken = "10.96.0.10:80", "10.96.0.20:80"
	own := d.ownRules()
	for _, harm := range [][]string{
		{"ipset", "flush", "WEIR-IPVS-CLUSTER-4"},
		{"ip", "link", "del", ipvs.LinkName},
		{"ip", "address", "flush", "dev", ipvs.LinkName},
		{"ipvsadm", "-D", "-t", web},
		{"ipvsadm", "-E", "-t", web, "-s", "wlc", "-p", "100"},
		{"ipvsadm", "-e", "-t", web, "-r", "10.244.1.1:80", "-m", "-w", "0"},
		{"ipvsadm", "-e", "-t", web, "-r", "10.244.1.1:80", "-g", "-w", "1"},
		{"iptables-nft", "-t", "nat", "-F", "WEIR-IPVS-SERVICES"},
		{"iptables-nft", "-D", "INPUT", "-j", "WEIR-IPVS-INPUT"},
	} {
		d.nodeExec(harm[0], harm[1:]...)
		d.await(strings.Join(harm, " ")+" to be repaired", func() error {
			if diff := cmp.Diff(own, d.ownRules()); diff != "" {
				return fmt.Errorf("(-before +after):\n%s", diff)
			}
			return d.answers("pod1")
		})
	}

	d.nodeExec("ipvsadm", "-A", "-t", taken, "-s", "sed")
	second := strings.NewReplacer("name: web", "name: second", "web-1", "second-1", "10.96.0.10", "10.96.0.20")
	d.write(map[string]string{"second.yaml": second.Replace(painService), "second-slice.yaml": second.Replace(painSlice(2))})
	d.awaitLog("vs tcp " + taken + ".*another program made this virtual server")
	if out := d.nodeExec("ipvsadm", "-S", "-n"); !strings.Contains(out, "-A -t "+taken+" -s sed") || strings.Contains(out, taken+" -r") {
		t.Errorf("what somebody else made is not as it was:\n%s", out)
	}
	d.nodeExec("ipvsadm", "-D", "-t", taken)
	d.await("the second Service", func() error {
		if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, netip.MustParseAddrPort(taken), time.Second); r.Server != "pod2" {
			return fmt.Errorf("got %v", r)
		}
		return nil
	})
	d.checkLeavesNothing(before)
}

// TestIPVSConfigIsLive changes every field of the ipvs section, and the node's addresses, and looks at what the kernel has.
func TestIPVSConfigIsLive(t *testing.T) {
	needIPVS(t)
	d := painDaemon(t, ipvsMode)
	nodePort := strings.Replace(painService, "ports: [{port: 80}]", "type: NodePort\n  ports: [{port: 80, nodePort: 30080}]", 1)
	config := func(section string) {
		d.write(map[string]string{"config.yaml": painConfig + "ipvs: " + section + "\n"})
	}
	d.write(map[string]string{"web.yaml": nodePort})
	config("{syncPeriod: 5s, minSyncPeriod: 10ms}")
	d.start()
	d.awaitSync()
	d.awaitLog("sync_period=5s min_sync_period=10ms")
	sysctl := func(name string) string {
		return strings.TrimSpace(d.nodeExec("cat", "/proc/sys/net/ipv4/"+name))
	}
	for name, want := range map[string]string{"vs/conntrack": "1", "vs/conn_reuse_mode": "1", "vs/expire_nodest_conn": "1",
		"vs/expire_quiescent_template": "1", "ip_forward": "1", "conf/all/arp_ignore": "0", "conf/all/arp_announce": "0"} {
		if got := sysctl(name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	config("{scheduler: wlc, strictARP: true, tcpTimeout: 800s, tcpFinTimeout: 90s, udpTimeout: 200s, excludeCIDRs: [10.96.250.0/24]}")
	d.awaitSync()
	if got := sysctl("conf/all/arp_ignore") + sysctl("conf/all/arp_announce"); got != "12" {
		t.Errorf("with strictARP arp_ignore and arp_announce are %s", got)
	}
	if out := d.nodeExec("ipvsadm", "-L", "--timeout"); !strings.Contains(out, "800 90 200") {
		t.Errorf("the timeouts are:\n%s", out)
	}
	if out := d.nodeExec("ipvsadm", "-S", "-n"); !strings.Contains(out, "-A -t 10.96.0.10:80 -s wlc") {
		t.Errorf("the scheduler is not wlc:\n%s", out)
	}
	d.write(map[string]string{"web.yaml": strings.Replace(nodePort, "  name: web\n", "  name: web\n  annotations: {weir/ipvs-scheduler: sh}\n", 1)})
	d.awaitSync()
	if out := d.nodeExec("ipvsadm", "-S", "-n"); !strings.Contains(out, "-A -t 10.96.0.10:80 -s sh") {
		t.Errorf("the scheduler is not sh:\n%s", out)
	}

	const added = "192.168.77.7:30080"
	served := func() bool { return strings.Contains(d.nodeExec("ipvsadm", "-S", "-n"), "-t "+added) }
	for _, there := range []bool{true, false} {
		d.nodeExec("ip", "address", map[bool]string{true: "add", false: "del"}[there], "192.168.77.7/24", "dev", "eth0")
		d.await(fmt.Sprintf("node ports on the address that was added: %v", there), func() error {
			if served() != there {
				return errors.New("not so")
			}
			return nil
		})
	}
}

// hideIPVS unloads IPVS, and keeps modprobe from finding it until restore is called.
func hideIPVS(t *testing.T) (restore func()) {
	t.Helper()
	lines, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(lines)) {
		if name, _, _ := strings.Cut(line, " "); strings.HasPrefix(name, "ip_vs_") {
			unload(t, name)
		}
	}
	unload(t, "xt_ipvs")
	unload(t, "ip_vs")
	release, err := exec.Command("uname", "-r").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := "/lib/modules/" + strings.TrimSpace(string(release)) + "/kernel/net/netfilter/ipvs"
	if err := os.Rename(dir, dir+".hidden"); err != nil {
		t.Fatal(err)
	}
	restored := false
	restore = func() {
		if !restored {
			restored = true
			if err := os.Rename(dir+".hidden", dir); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(restore)
	return restore
}

// unload removes a module from the kernel, where a network namespace that goes may still use it for a moment.
func unload(t *testing.T, module string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := unix.DeleteModule(module, unix.O_NONBLOCK)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return
		}
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(deadline) {
			loaded, _ := os.ReadFile("/proc/modules")
			t.Fatalf("unload %s: %v\n%s", module, err, loaded)
		}
	}
}

// TestIPVSKeepsKubeDNS changes the mode to and from ipvs while weir answers at the ClusterIP of kube-dns: it is answered after each
// change, untracked, and nothing of it is left at the end.
func TestIPVSKeepsKubeDNS(t *testing.T) {
	needIPVS(t)
	t.Parallel()
	m := ipvsMode
	m.flags = []string{"--iptables-variant", "nft"}
	d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), m)
	d.addForeign()
	before := d.foreignRules()
	const name, kubeDNS = "web.default.svc.cluster.local.", "10.96.0.10:53"
	at := netip.AddrPortFrom(netlab.NodeIPv4, 53).String()
	d.write(map[string]string{
		"web.yaml":  strings.Replace(webService, serviceIP(t), "10.96.0.80", 1),
		"weir.yaml": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\ndns: {listen: [\"" + at + "\"], upstreams: [\"127.0.0.1:9\"], nodeResolver: none}\n",
	})
	set := func(mode string) {
		d.write(map[string]string{"config.yaml": strings.Replace(kubeProxyConfig, "mode: iptables", "mode: "+mode, 1) + "clusterCIDR: 10.244.0.0/16,fd00:244:1::/64\n"})
	}
	set("ipvs")
	d.start()
	for _, mode := range []string{"ipvs", "nftables", "ipvs", "iptables", "ipvs"} {
		set(mode)
		d.expectHTTP("http://127.0.0.1:10249/proxyMode", 200, mode)
		d.awaitNameAt(kubeDNS, name, "10.96.0.80")
		d.forgetFlows()
		d.awaitNameAt(kubeDNS, name, "10.96.0.80")
		if _, addrs, err := d.lookupFrom(netlab.Client, kubeDNS, "udp", name); err != nil || len(addrs) != 1 {
			t.Errorf("a pod in mode %s: %v %v", mode, addrs, err)
		}
		if tracked := d.questionsTracked(); len(tracked) > 0 {
			t.Errorf("in mode %s %d questions are tracked, such as %v", mode, len(tracked), tracked[0])
		}
	}
	d.checkLeavesNothing(before)
}
