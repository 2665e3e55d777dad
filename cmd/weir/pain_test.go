package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// What users of other proxies suffer from, shown not to happen here. The numbers are those of the scenarios named pain-NN
// as well, which show the rest.

const (
	painService = `apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  clusterIP: 10.96.0.10
  ports: [{port: 80}]
`
	painConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
iptables: {minSyncPeriod: 50ms}
nftables: {minSyncPeriod: 50ms}
`
	// painNoFullSync leaves no full sync to repair what a notification of the kernel's should have.
	painNoFullSync = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
iptables: {minSyncPeriod: 50ms, syncPeriod: 1h}
nftables: {minSyncPeriod: 50ms, syncPeriod: 1h}
`
)

// painSlice returns the slice of the Service with the given pods.
func painSlice(pods ...int) string {
	s := `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports: [{port: 80}]
endpoints:
`
	for _, p := range pods {
		s += fmt.Sprintf("- addresses: [%s]\n", netlab.PodIPv4(p))
	}
	return s
}

// painDaemon prepares weir with one Service on pod1, not yet running.
func painDaemon(t *testing.T, m mode, flags ...string) *daemon {
	t.Helper()
	t.Parallel()
	lab := netlab.New(t, netlab.Topology{})
	for _, pod := range []string{"pod1", "pod2", "pod3"} {
		lab.Host(pod).Serve(t, netlab.TCP, 80)
	}
	d := newDaemon(t, lab, m, flags...)
	d.write(map[string]string{"config.yaml": painConfig, "web.yaml": painService, "slice.yaml": painSlice(1)})
	return d
}

// answers returns an error unless exactly this pod answers on the ClusterIP.
func (d *daemon) answers(pod string) error {
	to := netip.MustParseAddrPort("10.96.0.10:80")
	if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, to, time.Second); r.Server != pod {
		return fmt.Errorf("got %v, want %s", r, pod)
	}
	return nil
}

func (d *daemon) awaitAnswer(pod string) {
	d.t.Helper()
	d.await("an answer from "+pod, func() error { return d.answers(pod) })
}

// awaitLog waits for a line of the log that matches.
func (d *daemon) awaitLog(pattern string) {
	d.t.Helper()
	re := regexp.MustCompile(pattern)
	d.await("a log line like "+pattern, func() error {
		if !re.MatchString(d.logs()) {
			return fmt.Errorf("no such line")
		}
		return nil
	})
}

func (d *daemon) nodeExec(name string, args ...string) string {
	d.t.Helper()
	out, err := d.lab.Node().Exec(context.Background(), name, args...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

func TestPain01_FlushedNatTableIsRepaired(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	d.write(map[string]string{"config.yaml": painNoFullSync})
	d.start()
	d.awaitSync()
	d.nodeExec("iptables-nft", "-t", "nat", "-F")
	d.awaitSync()
	d.awaitAnswer("pod1")
}

func TestPain02_FirewallReloadIsRepaired(t *testing.T) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			d := painDaemon(t, iptablesMode(variant))
			config := painNoFullSync
			if variant == "legacy" { // which does not notify
				config = strings.Replace(config, "syncPeriod: 1h", "syncPeriod: 2s", 1)
			}
			d.write(map[string]string{"config.yaml": config})
			d.start()
			d.awaitSync()
			for _, family := range []string{"iptables-", "ip6tables-"} {
				for _, table := range []string{"nat", "filter", "mangle", "raw"} {
					d.nodeExec(family+variant, "-t", table, "-F")
					d.nodeExec(family+variant, "-t", table, "-X")
				}
			}
			d.awaitSync()
			d.awaitAnswer("pod1")
		})
	}
}

func TestPain09_ModeSwitchLeavesNothing(t *testing.T) {
	d := painDaemon(t, mode{name: "from config", saves: iptablesMode("nft").saves})
	d.write(map[string]string{"config.yaml": painConfig + "mode: iptables\n"})
	d.start()
	d.awaitSync()
	d.awaitAnswer("pod1")
	d.write(map[string]string{"config.yaml": painConfig + "mode: nftables\n"})
	d.await("no rules of the iptables mode", func() error {
		if left := d.ownRules(); left != "" {
			return fmt.Errorf("left:\n%s", left)
		}
		return nil
	})
	d.awaitAnswer("pod1")
	d.awaitSync()
	if out := d.nodeExec("nft", "list", "tables"); !strings.Contains(out, "weir") {
		t.Errorf("no table of weir's after the switch:\n%s", out)
	}
	d.terminate()
	if out, err := d.cleanup(); err != nil {
		t.Errorf("cleanup: %v\n%s", err, out)
	}
	if out := d.nodeExec("nft", "list", "tables"); strings.Contains(out, "weir") {
		t.Errorf("cleanup left a table:\n%s", out)
	}
}

func TestPain13_LockHeldByOthersLosesNoChange(t *testing.T) {
	d := painDaemon(t, iptablesMode("legacy"))
	d.start()
	d.awaitSync()
	lock, err := os.OpenFile(d.lab.XtablesLock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	d.write(map[string]string{"slice.yaml": painSlice(2)})
	// As long as the lock is held nothing can change; some seconds outlast every single attempt to take it.
	for until := time.Now().Add(7 * time.Second); time.Now().Before(until); time.Sleep(200 * time.Millisecond) {
		if err := d.answers("pod1"); err != nil {
			t.Fatalf("while another program holds the lock: %v", err)
		}
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	d.awaitAnswer("pod2")
	d.awaitSync()
}

func TestPain15_RulesInBothVariantsAreReported(t *testing.T) {
	d := painDaemon(t, mode{flags: []string{"--proxy-mode", "iptables"}})
	d.nodeExec("iptables-legacy", "-t", "nat", "-N", "KUBE-SERVICES")
	d.nodeExec("iptables-legacy", "-t", "nat", "-A", "PREROUTING", "-j", "KUBE-SERVICES")
	d.nodeExec("iptables-nft", "-t", "nat", "-N", "OTHER")
	d.nodeExec("iptables-nft", "-t", "nat", "-A", "PREROUTING", "-j", "OTHER")
	d.start()
	d.awaitLog(`(?i)warn.*legacy`)
	d.awaitAnswer("pod1")
}

func TestPain19_BadInputLeavesTheLastGoodState(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	d.start()
	d.awaitSync()
	want := d.nodeExec("iptables-nft-save", "-t", "nat")
	bad := strings.Replace(painService, "port: 80", "port: 80000", 1)
	d.write(map[string]string{"web.yaml": bad, "slice.yaml": painSlice(2)})
	d.awaitLog(`web\.yaml:\d+: Service default/web: spec\.ports\[0\]\.port: `)
	if err := d.answers("pod1"); err != nil {
		t.Error(err)
	}
	if got := d.nodeExec("iptables-nft-save", "-t", "nat"); ruleLines(got) != ruleLines(want) {
		t.Errorf("the rules changed:\n%s\nwere:\n%s", got, want)
	}
	d.write(map[string]string{"web.yaml": painService})
	d.awaitAnswer("pod2")
}

func TestPain19_EmptyDirectoryDeletesNothing(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	d.start()
	d.awaitSync()
	d.write(map[string]string{"config.yaml": "", "web.yaml": "", "slice.yaml": ""})
	d.awaitLog(`(?i)(error|warn).*(empty|no Service|nothing)`)
	if err := d.answers("pod1"); err != nil {
		t.Error(err)
	}
	d.write(map[string]string{"config.yaml": painConfig, "web.yaml": painService, "slice.yaml": painSlice(3)})
	d.awaitAnswer("pod3")
}

func TestPain20_RebootWithoutNetwork(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	d.start()
	d.awaitSync()
	d.kill()
	d.nodeExec("iptables-nft", "-t", "nat", "-F") // what a reboot leaves
	d.nodeExec("iptables-nft", "-t", "filter", "-F")
	d.start()
	d.awaitAnswer("pod1")
}

// TestPain24_WhatIsProgrammedAndWhy asks each of the places that tell what is in the kernel and why.
func TestPain24_WhatIsProgrammedAndWhy(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	out, err := d.run("reconcile", "--dry-run", "--detail", "kernel", "-o", "json")
	var plan struct {
		Changes []struct {
			ID     string
			Owners []json.RawMessage
		}
	}
	if err == nil {
		err = json.Unmarshal([]byte(out), &plan)
	}
	if err != nil {
		t.Fatal(err)
	}
	owned := 0
	for _, c := range plan.Changes {
		if strings.Contains(c.ID, "WEIR-SVC-") && len(c.Owners) == 0 {
			t.Errorf("%s does not say whose it is", c.ID)
		}
		owned += len(c.Owners)
	}
	if owned == 0 {
		t.Errorf("no change says which Service it is for:\n%s", out)
	}
	d.start()
	d.awaitSync()
	d.awaitLog(`synced: reason=start .*created=\d+ .*total=`)
	expectStatus := func(lines ...string) {
		t.Helper()
		d.await("the status", func() error {
			out, err := d.lab.Node().Exec(context.Background(), os.Getenv(binaryEnv), "status", "--state-dir", d.state)
			for _, line := range lines {
				if err == nil && !regexp.MustCompile(line).MatchString(out) {
					err = fmt.Errorf("no line matches %s:\n%s", line, out)
				}
			}
			return err
		})
	}
	expectStatus(`mode +iptables`, `default/web +\S+web\.yaml:1`, `TCP 10\.96\.0\.10:80`, `10\.244\.1\.1:80`, `drift +0 repaired`)
	d.nodeExec("iptables-nft", "-t", "nat", "-D", "PREROUTING", "-j", "WEIR-SERVICES")
	expectStatus(`drift +1 repaired`, `last sync .*another process changed`)
	d.write(map[string]string{"slice.yaml": painSlice(2)})
	expectStatus(`last sync .*Service default/web changed.* 1 updated`, `10\.244\.1\.2:80`)
	// The rules themselves name the Service.
	if rules := d.nodeExec("iptables-nft-save", "-t", "nat"); !strings.Contains(rules, "default/web") {
		t.Errorf("no rule names the Service:\n%s", rules)
	}
}

// TestPain25_ReloadsDropNoRequest changes everything that can be changed while a client asks without pause, and then starts
// on a kernel that another program has changed in the meantime.
func TestPain25_ReloadsDropNoRequest(t *testing.T) {
	d := painDaemon(t, mode{name: "from config", saves: iptablesMode("nft").saves})
	d.write(map[string]string{"config.yaml": painConfig + "mode: iptables\n"})
	d.start()
	d.awaitSync()
	asking := d.keepAsking()
	for _, pods := range [][]int{{2, 3}, {1, 2, 3}, {3}, {1}} {
		d.write(map[string]string{"slice.yaml": painSlice(pods...)})
		d.awaitSync()
	}
	for _, config := range []string{
		"mode: iptables\niptables: {masqueradeAll: true, masqueradeBit: 5}\n",
		"mode: nftables\nnftables: {minSyncPeriod: 50ms}\n",
		"mode: nftables\nnftables: {masqueradeAll: true, masqueradeBit: 7}\n",
		"mode: iptables\niptables: {minSyncPeriod: 50ms}\n",
	} {
		head, _, _ := strings.Cut(painConfig, "iptables:")
		d.write(map[string]string{"config.yaml": head + config})
		d.awaitSync()
	}
	d.kill()
	d.write(map[string]string{"slice.yaml": painSlice(2)})
	d.start()
	d.awaitAnswer("pod2")
	asking.stop(t)

	d.kill()
	rules := d.nodeExec("iptables-nft-save", "-t", "nat")
	if _, err := d.lab.Node().ExecInput(t.Context(), strings.ReplaceAll(rules, "10.244.1.2:80", "10.244.1.3:80"), "iptables-nft-restore"); err != nil {
		t.Fatal(err)
	}
	d.awaitAnswer("pod3")
	d.start()
	d.awaitAnswer("pod2")
}

func TestPain26_TypoInConfigIsReported(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	d.write(map[string]string{"config.yaml": strings.Replace(painConfig, "clusterCIDR", "clusterCidr", 1)})
	out, err := d.run("reconcile", "--dry-run")
	if err == nil {
		t.Fatalf("a typo is accepted:\n%s", out)
	}
	if want := regexp.MustCompile(`config\.yaml:3: .*clusterCidr`); !want.MatchString(err.Error()) {
		t.Errorf("got %v, want a match of %s", err, want)
	}
}

// TestPain27_SymlinkSwap updates the input as a mounted ConfigMap and git-sync do: the files never change, the link does.
func TestPain27_SymlinkSwap(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	root := t.TempDir()
	revision := func(n int) string {
		dir := filepath.Join(root, fmt.Sprintf("..rev%d", n))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		d.dir = dir
		d.write(map[string]string{"config.yaml": painConfig, "web.yaml": painService, "slice.yaml": painSlice(n)})
		return filepath.Base(dir)
	}
	point := func(at string) {
		tmp := filepath.Join(root, "..tmp")
		err := os.Symlink(at, tmp)
		if err == nil {
			err = os.Rename(tmp, filepath.Join(root, "..data"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	point(revision(1))
	for _, f := range []string{"config.yaml", "web.yaml", "slice.yaml"} {
		if err := os.Symlink(filepath.Join("..data", f), filepath.Join(root, f)); err != nil {
			t.Fatal(err)
		}
	}
	d.dir = root
	d.start()
	d.awaitAnswer("pod1")
	for n := 2; n <= 3; n++ {
		next := revision(n)
		d.dir = root
		point(next)
		d.awaitAnswer(fmt.Sprintf("pod%d", n))
		if err := os.RemoveAll(filepath.Join(root, fmt.Sprintf("..rev%d", n-1))); err != nil {
			t.Fatal(err)
		}
	}
}

// ruleLines returns a save without comments and counters.
func ruleLines(save string) string {
	var b strings.Builder
	for line := range strings.Lines(save) {
		if line[0] != '#' {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " [")
			b.WriteString(line + "\n")
		}
	}
	return b.String()
}
