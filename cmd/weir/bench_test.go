package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// endpointsPerService is the number of endpoints that every Service of a benchmark has.
const endpointsPerService = 5

// BenchmarkNode measures the whole program on a node in a namespace, by size and by mode. One iteration takes a cold start
// with "weir reconcile", and then a "weir run" through single changes and idle time. The metrics are medians where they are
// of many events:
//
//	cold-s       from exec of "weir reconcile" until it ends
//	apply-s      the part of it that the kernel takes; bare-s is iptables-restore --noflush of the same rules, and apply/bare
//	             the ratio; flush-s is iptables-restore without --noflush, which is faster and takes everybody's rules away
//	rest-s       everything else: read, decode, resolve, plan, exit
//	change-ms    from the rename of one EndpointSlice's file until it is applied, without the settle time
//	floor-ms     iptables-restore --noflush of one chain among as many rules: what no change can be faster than
//	repair-ms    from a write behind weir's back until it is undone, the worst of several (nftables); flush-ms the same
//	             of everything in the map of endpoints, and table-ms of the table
//	sync-ms      CPU time of a full sync when nothing changed
//	idle-%       of one core
//	connect-µs   a TCP connection to the last Service; first-µs the same with ten Services, and connect/first the ratio
//	rss-MB       resident afterwards, and peak-MB the most it was
func BenchmarkNode(b *testing.B) {
	for _, m := range modes {
		if m.proxies {
			continue // "weir reconcile" is not for it; BenchmarkProxy is
		}
		sizes := []int{1000, 10000}
		if m.name == "nftables" {
			sizes = append(sizes, 50000)
		}
		for _, n := range sizes {
			b.Run(fmt.Sprintf("%s/%d", m.name, n), func(b *testing.B) {
				if m.needs != nil {
					m.needs(b)
				}
				for b.Loop() {
					benchmarkNode(b, m, n)
				}
				b.ReportMetric(0, "ns/op") // says nothing here
			})
		}
	}
}

func benchmarkNode(b *testing.B, m mode, n int) {
	few := newBenchNode(b, m, 10)
	few.reconcile()
	many := newBenchNode(b, m, n)
	cold, apply := many.reconcile()
	b.ReportMetric(cold.Seconds(), "cold-s")
	b.ReportMetric(apply.Seconds(), "apply-s")
	b.ReportMetric((cold - apply).Seconds(), "rest-s")
	if strings.HasPrefix(m.name, "iptables") {
		bare := many.bareRestore("--noflush")
		b.ReportMetric(bare.Seconds(), "bare-s")
		b.ReportMetric(apply.Seconds()/bare.Seconds(), "apply/bare")
		b.ReportMetric(many.bareRestore().Seconds(), "flush-s")
		b.ReportMetric(many.oneChainRestore().Seconds()*1e3, "floor-ms")
	}
	first, last := medianConnects(few, many)
	b.ReportMetric(float64(first.Nanoseconds())/1e3, "first-µs")
	b.ReportMetric(float64(last.Nanoseconds())/1e3, "connect-µs")
	b.ReportMetric(last.Seconds()/first.Seconds(), "connect/first")
	many.run()
}

// benchNode is a lab whose node has n Services, the last of which is real.
type benchNode struct {
	b     *testing.B
	d     *daemon
	n     int
	front netip.AddrPort
}

func newBenchNode(b *testing.B, m mode, n int) *benchNode {
	b.Helper()
	lab := netlab.New(b, netlab.Topology{Pods: endpointsPerService})
	for i := 1; i <= endpointsPerService; i++ {
		lab.Host(fmt.Sprintf("pod%d", i)).Serve(b, netlab.TCP, 80)
	}
	d := &daemon{lab: lab, mode: m, dir: b.TempDir(), state: b.TempDir()}
	bn := &benchNode{b: b, d: d, n: n, front: netip.AddrPortFrom(benchIP(n-1), 80)}
	bn.write("config.yaml", `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
iptables: {minSyncPeriod: 1ms, syncPeriod: 30s}
nftables: {minSyncPeriod: 1ms, syncPeriod: 30s}
`)
	for i := range n {
		bn.write(fmt.Sprintf("%02d/svc-%05d.yaml", i%100, i), bn.service(i)+bn.slice(i, 0))
	}
	return bn
}

// benchIP gives ClusterIPs one after the other, from 10.96.1.0 on.
func benchIP(i int) netip.Addr {
	i += 256
	return netip.AddrFrom4([4]byte{10, byte(96 + i>>16), byte(i >> 8), byte(i)})
}

func (bn *benchNode) service(i int) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Service
metadata: {name: svc-%05d, namespace: bench, labels: {app: svc-%05d}}
spec:
  clusterIP: %s
  selector: {app: svc-%05d}
  ports: [{name: http, port: 80, targetPort: 80}]
`, i, i, benchIP(i), i)
}

// slice writes the endpoints on other nodes, spread over fifty, or those of the lab for the last Service. Another version
// has one other endpoint.
func (bn *benchNode) slice(i, version int) string {
	var s strings.Builder
	fmt.Fprintf(&s, `---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: svc-%05d-x, namespace: bench, labels: {kubernetes.io/service-name: svc-%05d}}
addressType: IPv4
ports: [{name: http, port: 80}]
endpoints:
`, i, i)
	for e := range endpointsPerService {
		addr, node := netlab.PodIPv4(e+1), "node"
		if i != bn.n-1 {
			k := i*endpointsPerService + e
			if e == 0 {
				k += version << 16
			}
			addr, node = netip.AddrFrom4([4]byte{10, byte(160 + k>>16), byte(k >> 8), byte(k)}), fmt.Sprintf("node-%d", k%50)
		}
		fmt.Fprintf(&s, "- {addresses: [%s], nodeName: %s, conditions: {ready: true, serving: true}}\n", addr, node)
	}
	return s.String()
}

// write puts a file in place and returns when that was.
func (bn *benchNode) write(name, text string) time.Time {
	bn.b.Helper()
	file := filepath.Join(bn.d.dir, name)
	tmp := file + ".tmp"
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(tmp, []byte(text), 0o644)
	}
	at := time.Now()
	if err == nil {
		err = os.Rename(tmp, file)
	}
	if err != nil {
		bn.b.Fatal(err)
	}
	return at
}

// reconcile takes a cold start and returns how long it took in all, and how long the kernel took.
func (bn *benchNode) reconcile() (total, apply time.Duration) {
	bn.b.Helper()
	start := time.Now()
	out, err := bn.exec("reconcile", "-o", "json")
	total = time.Since(start)
	if err != nil {
		bn.b.Fatal(err)
	}
	var done struct {
		Seconds map[string]float64 `json:"seconds"`
	}
	if err := json.Unmarshal([]byte(out), &done); err != nil {
		bn.b.Fatalf("%v in %s", err, out)
	}
	return total, time.Duration(done.Seconds["apply"] * float64(time.Second))
}

func (bn *benchNode) exec(sub string, more ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	return bn.d.lab.Node().Exec(ctx, os.Getenv(binaryEnv), bn.d.args(sub, more...)...)
}

// bareRestore has iptables-restore load the rules that the node has into a node that has none.
func (bn *benchNode) bareRestore(args ...string) time.Duration {
	bn.b.Helper()
	empty := netlab.New(bn.b, netlab.Topology{Pods: 1})
	var took time.Duration
	for _, save := range bn.d.mode.saves {
		rules, err := bn.d.lab.Node().Exec(context.Background(), save[0])
		if err != nil {
			bn.b.Fatal(err)
		}
		start := time.Now()
		_, err = empty.Node().ExecInput(context.Background(), rules, strings.TrimSuffix(save[0], "-save")+"-restore", args...)
		took += time.Since(start)
		if err != nil {
			bn.b.Fatal(err)
		}
	}
	return took
}

// oneChainRestore replaces one small chain, which is nobody's, among the rules that the node has.
func (bn *benchNode) oneChainRestore() time.Duration {
	bn.b.Helper()
	restore := strings.TrimSuffix(bn.d.mode.saves[0][0], "-save") + "-restore"
	input := "*nat\n:BENCH - [0:0]\n" + strings.Repeat("-A BENCH -p tcp -j DNAT --to-destination 10.244.1.1:80\n", endpointsPerService) + "COMMIT\n"
	var took []time.Duration
	for range 9 {
		start := time.Now()
		if _, err := bn.d.lab.Node().ExecInput(context.Background(), input, restore, "--noflush"); err != nil {
			bn.b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	return median(took)
}

// medianConnects times connections to the last Service of both, by turns, so that noise falls on both alike.
func medianConnects(few, many *benchNode) (first, last time.Duration) {
	var took [2][]time.Duration
	for range 5000 {
		for i, bn := range []*benchNode{few, many} {
			start := time.Now()
			conn, err := bn.d.lab.Host(netlab.Client).DialContext(context.Background(), "tcp", bn.front.String())
			took[i] = append(took[i], time.Since(start))
			if err != nil {
				bn.b.Fatal(err)
			}
			conn.Close()
		}
	}
	return median(took[0]), median(took[1])
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// run measures a daemon: single changes, full syncs, idle time, memory.
func (bn *benchNode) run() {
	b := bn.b
	b.Helper()
	const settle = time.Millisecond
	pid, log, stop := bn.start("--log-format", "json", "--settle-time", settle.String())
	defer stop()
	bn.awaitServing()
	const changes = 11
	var took []time.Duration
	for version := range changes {
		// After each of the others comes a pause, so that neither minSyncPeriod nor the sync before is waited for.
		time.Sleep(200 * time.Millisecond)
		lines := syncLines(b, log)
		start := bn.write("00/svc-00000.yaml", bn.service(0)+bn.slice(0, version+1))
		awaitSyncLine(b, log, lines)
		took = append(took, time.Since(start)-settle)
	}
	b.ReportMetric(float64(median(took).Microseconds())/1e3, "change-ms")
	if bn.d.mode.name == "nftables" {
		bn.repairs(log)
	}
	bn.syncs(pid)
	bn.write("config.yaml", `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
`)
	atRest(b, pid)
}

// repairs measures how long weir takes to undo what others write.
func (bn *benchNode) repairs(log string) {
	var worst time.Duration
	for _, script := range []string{
		"delete element ip weir endpoints { 10.96.1.1 . tcp . 80 . 0x0 }",
		"delete element ip weir services { 10.96.1.1 . tcp . 80 }; add element ip weir services { 10.96.1.1 . tcp . 80 : drop }",
		"add element ip weir cluster-ips { 10.9.9.9 }",
		"insert rule ip weir services accept",
		"flush chain ip weir nat-postrouting; delete set ip weir hairpin",
	} {
		worst = max(worst, bn.repair(log, script))
	}
	bn.b.ReportMetric(float64(worst.Milliseconds()), "repair-ms")
	for metric, script := range map[string]string{"flush-ms": "flush map ip weir endpoints", "table-ms": "delete table ip weir"} {
		time.Sleep(5 * time.Second) // so that no earlier read keeps this one waiting
		bn.b.ReportMetric(float64(bn.repair(log, script).Milliseconds()), metric)
	}
}

// syncs measures full syncs when nothing changed.
func (bn *benchNode) syncs(pid int) {
	b := bn.b
	// So often that what a daemon does besides hardly counts.
	period := time.Second
	if bn.d.mode.name == "nftables" {
		period = 50 * time.Millisecond
	}
	bn.write("config.yaml", fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
iptables: {minSyncPeriod: 1ms, syncPeriod: %[1]s}
nftables: {minSyncPeriod: 1ms, syncPeriod: %[1]s}
`, period))
	time.Sleep(3 * time.Second)
	before, syncs := cpuTime(b, pid), 10*time.Second/period
	time.Sleep(10 * time.Second)
	b.ReportMetric((cpuTime(b, pid)-before).Seconds()*1e3/float64(syncs), "sync-ms")
}

// start runs "weir run" until stop is called.
func (bn *benchNode) start(flags ...string) (pid int, log string, stop func()) {
	bn.b.Helper()
	file, err := os.Create(filepath.Join(bn.b.TempDir(), "weir.log"))
	if err != nil {
		bn.b.Fatal(err)
	}
	defer file.Close()
	cmd := bn.d.lab.Node().Command(context.Background(), os.Getenv(binaryEnv), bn.d.args("run", flags...)...)
	cmd.Stdout, cmd.Stderr = file, file
	if err := bn.d.lab.Node().Start(cmd); err != nil {
		bn.b.Fatal(err)
	}
	return cmd.Process.Pid, file.Name(), func() {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// atRest reports what a process costs that has nothing to do.
func atRest(b *testing.B, pid int) {
	b.Helper()
	time.Sleep(5 * time.Second)
	const idle = 10
	before := cpuTime(b, pid)
	time.Sleep(idle * time.Second)
	b.ReportMetric((cpuTime(b, pid)-before).Seconds()*100/idle, "idle-%")
	b.ReportMetric(memory(b, pid, "VmRSS:"), "rss-MB")
	b.ReportMetric(memory(b, pid, "VmHWM:"), "peak-MB")
}

// repair runs a script of nft behind weir's back and returns how long it took until that was undone.
func (bn *benchNode) repair(log, script string) time.Duration {
	bn.b.Helper()
	lines := syncLines(bn.b, log)
	if _, err := bn.d.lab.Node().Exec(context.Background(), "nft", script); err != nil {
		bn.b.Fatal(err)
	}
	start := time.Now()
	awaitSyncLine(bn.b, log, lines)
	return time.Since(start)
}

// awaitSyncLine waits until more rounds were logged than so many.
func awaitSyncLine(b *testing.B, log string, lines int) {
	b.Helper()
	size := func() int64 {
		info, err := os.Stat(log)
		if err != nil {
			b.Fatal(err)
		}
		return info.Size()
	}
	start, seen := time.Now(), size()
	for syncLines(b, log) == lines {
		for size() == seen {
			if time.Since(start) > patience {
				text, _ := os.ReadFile(log)
				b.Fatalf("a change was not applied within %s; the log:\n%s", patience, text[max(0, len(text)-4096):])
			}
			// time.Sleep takes a millisecond at least where nothing else goes on.
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 20_000}, nil)
		}
		seen = size()
	}
}

// awaitServing waits until the daemon says that the kernel is as the files say.
func (bn *benchNode) awaitServing() {
	deadline := time.Now().Add(10 * patience)
	for {
		out, err := bn.d.lab.Node().Exec(context.Background(), "curl", "-sf", "http://127.0.0.1:10249/metrics")
		if err == nil && strings.Contains(out, `state="applied"`) {
			return
		}
		if time.Now().After(deadline) {
			bn.b.Fatalf("weir run is not in sync: %v", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// syncLines counts the rounds that were logged.
func syncLines(b *testing.B, log string) int {
	text, err := os.ReadFile(log)
	if err != nil {
		b.Fatal(err)
	}
	return strings.Count(string(text), `"@message":"synced"`)
}

// cpuTime is what the threads of the process have used. The commands it ran do not count.
func cpuTime(b *testing.B, pid int) time.Duration {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		b.Fatalf("no threads of process %d: %v", pid, err)
	}
	var sum time.Duration
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		onCPU, _, _ := strings.Cut(string(text), " ") // in nanoseconds (proc(5))
		n, _ := strconv.ParseInt(onCPU, 10, 64)
		sum += time.Duration(n)
	}
	return sum
}

// memory returns a line of /proc/pid/status in MB.
func memory(b *testing.B, pid int, name string) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			kb, _ := strconv.Atoi(strings.Fields(rest)[0])
			return float64(kb) / 1024
		}
	}
	b.Fatalf("no %s in /proc/%d/status", name, pid)
	return 0
}
