package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"

	"weir/backends/netlab"
	"weir/spec/apisource/apitest"
)

// BenchmarkAPI measures weir and kube-proxy, each on a node that follows a real API server on the same machine, by Services
// with five endpoints each and by mode. Both have the same KubeProxyConfiguration, and all is seen from outside: a commit is
// a step of the kernel's generation of nf_tables in the node's namespace. First everything is at its default:
//
//	start-s          from exec until the last commit, with which the kernel holds everything
//	start-cpu-s      CPU time of that, as all CPU time with the programs that were run (iptables-restore)
//	connect-µs       a TCP connection from the node to the last Service
//	default-p50-ms   from before the write of one EndpointSlice until the last commit for it, each written restAfterChange after the
//	                 one before was done; and its 99th percentile
//	change-cpu-ms    CPU time for one change
//	rss-MB           resident afterwards, and peak-MB the most it was, both without the programs that were run
//
// Then the program is started again, on the same node, with a minSyncPeriod of 1 ms, the smallest that kube-proxy takes for
// one (0 is its default):
//
//	change-p50-ms    as default-p50-ms, and its 99th percentile
//	write-ms         the API write alone, which all of these include
//	watch-p50-ms     from before the write until a bare watch has it, and its 99th percentile: a floor
//
// At last all of them, with their defaults again, do nothing at the same time:
//
//	idle-%           of one core
func BenchmarkAPI(b *testing.B) {
	for _, n := range []int{1000, 10000, 50000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			api := newAPIBench(b, n)
			for m, mode := range []string{"iptables", "nftables"} {
				for p, program := range followers {
					b.Run(mode+"/"+program.name, func(b *testing.B) {
						for b.Loop() {
							api.measure(b, mode, program, endpointsPerService+1+m*len(followers)+p)
						}
						b.ReportMetric(0, "ns/op") // says nothing here
					})
				}
			}
			b.Run("idle", func(b *testing.B) {
				for b.Loop() {
					api.idle(b)
				}
				b.ReportMetric(0, "ns/op")
			})
			fmt.Println(api.table()) // a log of a benchmark that has others is not printed
		})
	}
}

// table returns what was found as testdata/BENCHMARKS.md has it.
func (a *apiBench) table() string {
	columns := slices.Sorted(maps.Keys(a.found))
	text := fmt.Sprintf("\n| %d Services | %s |\n|---|%s\n", a.n, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)))
	for _, row := range []struct{ what, format, first, second string }{
		{"start, until the last commit", "%.1f s", "start-s", ""},
		{"CPU time of it", "%.1f s", "start-cpu-s", ""},
		{"one endpoint changed, API write to last commit, median / one in a hundred", "%.1f / %.0f ms", "change-p50-ms", "change-p99-ms"},
		{"the same, until a bare watch has it: a floor", "%.1f / %.0f ms", "watch-p50-ms", "watch-p99-ms"},
		{"one changed soon after another, with default periods, median / one in a hundred", "%.0f / %.0f ms", "default-p50-ms", "default-p99-ms"},
		{"CPU time of it", "%.1f ms", "change-cpu-ms", ""},
		{"idle, of one core", "%.2f %%", "idle-%", ""},
		{"resident / peak", "%.0f / %.0f MB", "rss-MB", "peak-MB"},
		{"new connection to the last Service", "%.0f µs", "connect-µs", ""},
	} {
		text += "| " + row.what + " |"
		for _, column := range columns {
			args := []any{a.found[column][row.first]}
			if row.second != "" {
				args = append(args, a.found[column][row.second])
			}
			if _, measured := a.found[column][row.first]; measured {
				text += " " + fmt.Sprintf(row.format, args...)
			}
			text += " |"
		}
		text += "\n"
	}
	return text
}

const (
	// maxChanges is how many changes are measured, one after the other, or as many as there is time for in changesLimit, but at
	// least minChanges.
	maxChanges, minChanges = 110, 20
	changesLimit           = 4 * time.Minute
	// restAfterChange is how long no commit has come, and the program did nothing, when the next change is written.
	restAfterChange = 100 * time.Millisecond
	// settles is how long what follows from a start may take, such as the first full sync.
	settles = 35 * time.Second
	// startLimit is how long a program may take to program all Services.
	startLimit = 10 * time.Minute
)

// follower is a program that has a node follow an API server.
type follower struct {
	name string
	// command returns the path of the program and its arguments.
	command func(b *testing.B, config, hostname string) []string
	// services is the map of the nft table in which it has all ClusterIPs.
	services string
}

var followers = []follower{
	{"weir", func(b *testing.B, config, hostname string) []string {
		return []string{os.Getenv(binaryEnv), "run", "--config", config, "--hostname-override", hostname, "--state-dir", b.TempDir(), "--iptables-variant", "nft"}
	}, "weir services"},
	{"kube-proxy", func(b *testing.B, config, hostname string) []string {
		return []string{apitest.Binary(b, "kube-proxy"), "--config", config, "--hostname-override", hostname}
	}, "kube-proxy service-ips"},
}

// apiBench is an API server with Services. It listens on the node of a lab. The first pods of the lab are the endpoints of
// the last Service, and each of the others is a node on which a program runs.
type apiBench struct {
	*nodeAPI
	n       int
	version int
	// nodes are those that were measured, and found has the metrics of each by mode and program.
	nodes []*apiNode
	found map[string]map[string]float64
}

func newAPIBench(b *testing.B, n int) *apiBench {
	b.Helper()
	lab := netlab.New(b, netlab.Topology{Pods: endpointsPerService + 2*len(followers)})
	a := &apiBench{nodeAPI: newNodeAPI(b, lab, "--bind-address", "0.0.0.0"), n: n, found: map[string]map[string]float64{}}
	for i := 1; i <= endpointsPerService; i++ {
		lab.Host(fmt.Sprintf("pod%d", i)).Serve(b, netlab.TCP, 80)
	}
	var g errgroup.Group
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error { return a.store(i) })
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return a
}

// store has the API server have a Service, its address and its EndpointSlice.
func (a *apiBench) store(i int) error {
	name, ip := benchName(i), benchIP(i).String()
	policy, internal := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &policy,
			InternalTrafficPolicy: &internal, SessionAffinity: corev1.ServiceAffinityNone, Selector: map[string]string{"app": name},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromInt32(80)}},
		},
	}
	address := &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: ip, Labels: map[string]string{networkingv1.LabelIPAddressFamily: "IPv4", networkingv1.LabelManagedBy: "ipallocator.k8s.io"}},
		Spec:       networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: "default", Name: name}},
	}
	slice := a.slice(i)
	slice.Namespace = "default"
	return errors.Join(a.Store("ipaddresses/"+ip, address), a.Store("services/specs/default/"+name, svc), a.Store("endpointslices/default/"+slice.Name, slice))
}

func benchName(i int) string { return fmt.Sprintf("svc-%05d", i) }

// slice is what the controller of EndpointSlices writes, all of it: what weir has no use for has to be read too.
func (a *apiBench) slice(i int) *discoveryv1.EndpointSlice {
	port, name, yes := int32(80), "http", true
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}}}
	s.Name, s.GenerateName = benchName(i)+"-x", benchName(i)+"-"
	s.Labels = map[string]string{discoveryv1.LabelServiceName: benchName(i), discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io", "app": benchName(i)}
	s.Annotations = map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().UTC().Format(time.RFC3339)}
	for e := range endpointsPerService {
		k := i*endpointsPerService + e
		node := fmt.Sprintf("node-%d", k%50)
		address := netip.AddrFrom4([4]byte{10, byte(160 + k>>16), byte(k >> 8), byte(k)})
		switch {
		case i == a.n-1:
			address = netlab.PodIPv4(e + 1)
		case e == 0:
			address = a.changing(i)
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{address.String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes},
			TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: fmt.Sprintf("%s-%x", benchName(i), k), UID: "0b0f1e0a-4a6e-4c55-8f0e-2f3b6e1f0c11"},
		})
	}
	return s
}

// changing is the address of the first endpoint of a Service, another one in each version.
func (a *apiBench) changing(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(180 + a.version>>8), byte(a.version), byte(i)})
}

func (a *apiBench) measure(b *testing.B, mode string, f follower, pod int) {
	b.Helper()
	node := &apiNode{b: b, api: a, host: a.lab.Host(fmt.Sprintf("pod%d", pod)), follower: f, mode: mode}
	node.generation = generations(b, node.host)
	a.found[node.name()] = map[string]float64{}
	node.register()
	defer node.stop()

	start := time.Now()
	node.start("")
	ended := node.awaitAll(start)
	node.report(ended.Sub(start).Seconds(), "start-s")
	node.report(cpuTimeOfAll(b, node.pid()).Seconds(), "start-cpu-s")
	node.report(float64(node.connect().Nanoseconds())/1e3, "connect-µs")
	time.Sleep(settles)
	before := cpuTimeOfAll(b, node.pid())
	changes := node.changes("default")
	node.report((cpuTimeOfAll(b, node.pid())-before).Seconds()*1e3/float64(changes), "change-cpu-ms")
	node.report(memory(b, node.pid(), "VmRSS:"), "rss-MB")
	node.report(memory(b, node.pid(), "VmHWM:"), "peak-MB")
	node.stop()

	node.start("1ms")
	node.awaitAll(time.Now())
	node.changes("change")
	a.nodes = append(a.nodes, node)
}

// idle measures all at rest, for as long as a program in Go needs to collect its garbage at least once.
func (a *apiBench) idle(b *testing.B) {
	b.Helper()
	const idle = 2 * time.Minute
	for _, n := range a.nodes {
		n.b, n.generation = b, generations(b, n.host)
		defer n.stop()
		n.start("")
		n.awaitAll(time.Now())
	}
	time.Sleep(settles)
	before := make([]time.Duration, len(a.nodes))
	for i, n := range a.nodes {
		before[i] = cpuTimeOfAll(b, n.pid())
	}
	time.Sleep(idle)
	for i, n := range a.nodes {
		share := (cpuTimeOfAll(b, n.pid()) - before[i]).Seconds() * 100 / idle.Seconds()
		b.ReportMetric(share, n.mode+"-"+n.follower.name+"-%")
		a.found[n.name()]["idle-%"] = share
	}
}

// apiNode is a node on which a program follows the API server.
type apiNode struct {
	b          *testing.B
	api        *apiBench
	host       *netlab.Host
	follower   follower
	mode       string
	generation func() string

	cmd   *exec.Cmd
	log   string
	ended chan struct{}
}

// register creates the Node object, without which kube-proxy does not begin.
func (n *apiNode) register() {
	n.b.Helper()
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.host.Name}, Status: corev1.NodeStatus{
		Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.host.IPv4.String()}, {Type: corev1.NodeInternalIP, Address: n.host.IPv6.String()}}}}
	if _, err := n.api.Client.CoreV1().Nodes().Create(n.b.Context(), node, metav1.CreateOptions{}); err != nil {
		n.b.Fatal(err)
	}
}

// start runs the program, with that minSyncPeriod or with its default.
func (n *apiNode) start(minSyncPeriod string) {
	b := n.b
	b.Helper()
	dir := b.TempDir()
	// Without these values of conntrack, kube-proxy sets parameters that only the machine has.
	config := fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: %s
clientConnection: {kubeconfig: %s}
clusterCIDR: 10.244.0.0/16
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, n.mode, n.api.kubeconfig(netlab.NodeIPv4.String()+":16443"))
	if minSyncPeriod != "" {
		config += fmt.Sprintf("%s: {minSyncPeriod: %s}\n", n.mode, minSyncPeriod)
	}
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		b.Fatal(err)
	}
	line := n.follower.command(b, file, n.host.Name)
	n.cmd = n.host.Command(context.Background(), line[0], line[1:]...)
	n.cmd.SysProcAttr.Setpgid = true // a group with the programs that it runs, which end with it
	n.cmd.Env = append(n.cmd.Env, "PATH="+nftVariant(b)+":"+os.Getenv("PATH"))
	n.log = filepath.Join(b.TempDir(), "log") // whoever watches the directory of the configuration does not see it
	log, err := os.Create(n.log)
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.host.Start(n.cmd); err != nil {
		b.Fatal(err)
	}
	cmd, ended := n.cmd, make(chan struct{})
	n.ended = ended
	go func() { _ = cmd.Wait(); close(ended) }()
}

// nftVariant returns a directory in which the programs iptables and ip6tables are those of nf_tables.
func nftVariant(b *testing.B) string {
	b.Helper()
	dir := b.TempDir()
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		path, err := exec.LookPath("iptables-nft")
		if err == nil {
			err = os.Symlink(path, filepath.Join(dir, name))
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	return dir
}

func (n *apiNode) pid() int { return n.cmd.Process.Pid }

func (n *apiNode) stop() {
	if n.cmd == nil {
		return
	}
	_ = unix.Kill(-n.pid(), unix.SIGKILL)
	<-n.ended
	n.cmd = nil
}

// name is that of the column of the node.
func (n *apiNode) name() string { return n.mode + ", " + n.follower.name }

func (n *apiNode) report(value float64, metric string) {
	n.b.ReportMetric(value, metric)
	n.api.found[n.name()][metric] = value
}

// must ends the benchmark, with the last of the program's log, if something did not come true.
func (n *apiNode) must(ok bool, format string, args ...any) {
	n.b.Helper()
	if ok {
		return
	}
	text, _ := os.ReadFile(n.log)
	n.b.Fatalf("%s; the log of %s:\n%s", fmt.Sprintf(format, args...), n.follower.name, text[max(0, len(text)-4096):])
}

// awaitAll waits until the kernel holds all Services and the program is at rest. It returns when the last commit was.
func (n *apiNode) awaitAll(start time.Time) time.Time {
	n.b.Helper()
	const rest, little = 5 * time.Second, 100 * time.Millisecond
	last, seen := start, ""
	looked, used := start, time.Duration(0)
	for {
		select {
		case <-n.ended:
			n.must(false, "the program has ended")
		case <-time.After(500 * time.Microsecond):
		}
		if now := n.generation(); now != seen {
			last, seen = time.Now(), now
		}
		if time.Since(looked) > rest {
			before := used
			looked, used = time.Now(), cpuTimeOfAll(n.b, n.pid())
			// To list what the kernel holds takes time from a program that works.
			if used-before < little && !n.works() && time.Since(last) > rest && n.answers() && n.listed() == n.api.n {
				return last
			}
		}
		if time.Since(start) > startLimit && n.follower.name == "kube-proxy" {
			n.b.Skipf("%v were not enough for %s to program %d Services in %s mode", startLimit, n.follower.name, n.api.n, n.mode)
		}
		n.must(time.Since(start) < startLimit, "%v were not enough to program %d Services", startLimit, n.api.n)
	}
}

// answers reports whether the last Service takes a connection.
func (n *apiNode) answers() bool {
	conn, err := n.dial()
	if err == nil {
		conn.Close()
	}
	return err == nil
}

func (n *apiNode) dial() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return n.host.DialContext(ctx, "tcp", netip.AddrPortFrom(benchIP(n.api.n-1), 80).String())
}

// listed counts the Services whose ClusterIPs the kernel lists.
func (n *apiNode) listed() int {
	n.b.Helper()
	list := append([]string{"nft", "list", "map", "ip"}, strings.Fields(n.follower.services)...)
	if n.mode == "iptables" {
		list = []string{"iptables-nft-save", "-t", "nat"}
	}
	text, err := n.host.Exec(context.Background(), list[0], list[1:]...)
	n.must(err == nil, "%v", err)
	found := map[string]bool{}
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool { return r != '.' && (r < '0' || r > '9') }) {
		found[word] = true
	}
	count := 0
	for i := range n.api.n {
		if found[benchIP(i).String()] {
			count++
		}
	}
	return count
}

// connect returns the median time of a connection to the last Service.
func (n *apiNode) connect() time.Duration {
	n.b.Helper()
	const connections = 2000
	var took []time.Duration
	var failed error
	for range connections {
		start := time.Now()
		conn, err := n.dial()
		if err != nil {
			failed = err
			continue
		}
		took = append(took, time.Since(start))
		conn.Close()
	}
	if failed != nil {
		n.b.Logf("%s: %d of %d connections to the last Service failed: %v", n.name(), connections-len(took), connections, failed)
	}
	n.must(len(took) > connections/2, "the last Service does not answer: %v", failed)
	return median(took)
}

// changes takes single changes, each of which waits for the one before, and returns how many.
func (n *apiNode) changes(setting string) int {
	b := n.b
	b.Helper()
	arrived := n.api.watch(b)
	const first = 5 // which find other conditions
	for range first {
		n.change()
		<-arrived
	}
	var writes, watched, kernel []time.Duration
	start := time.Now()
	for len(kernel) < minChanges || len(kernel) < maxChanges && time.Since(start) < changesLimit {
		c := n.change()
		writes, kernel = append(writes, c.written.Sub(c.start)), append(kernel, c.last.Sub(c.start))
		watched = append(watched, (<-arrived).Sub(c.start))
	}
	percentiles := func(name string, took []time.Duration) {
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
		n.report(ms(median(took)), name+"-p50-ms")
		n.report(ms(took[len(took)*99/100]), name+"-p99-ms") // median has sorted them
	}
	percentiles(setting, kernel)
	if setting == "change" {
		percentiles("watch", watched)
		n.report(float64(median(writes).Microseconds())/1e3, "write-ms")
	}
	n.must(n.holdsChange(), "the last change is not in the kernel")
	return first + len(kernel)
}

// apiChange says when a change was begun and written, and when the kernel had it.
type apiChange struct{ start, written, last time.Time }

// change writes another endpoint and waits until the program has made of it what it makes. One change can take several
// commits, so the program is done when none has come for a while in which it did nothing.
func (n *apiNode) change() (c apiChange) {
	b := n.b
	b.Helper()
	n.api.version++
	slice, seen := n.api.slice(0), n.generation()
	c.start = time.Now()
	if _, err := n.api.Client.DiscoveryV1().EndpointSlices("default").Update(b.Context(), slice, metav1.UpdateOptions{}); err != nil {
		b.Fatal(err)
	}
	c.written = time.Now()
	const look = 5 * time.Millisecond // to look at the program takes longer than to ask for the generation
	var quiet, looked time.Time       // since when nothing was seen
	for c.last.IsZero() || time.Since(quiet) < restAfterChange {
		time.Sleep(200 * time.Microsecond)
		if now := n.generation(); now != seen {
			c.last, seen = time.Now(), now
			quiet = c.last
		} else if !c.last.IsZero() && time.Since(looked) > look {
			if looked = time.Now(); n.works() {
				quiet = looked
			}
		}
		n.must(time.Since(c.start) < patience, "a change did not reach the kernel within %v", patience)
	}
	return c
}

// works reports whether a thread of the program runs or wants to, or a program that it has run does.
func (n *apiNode) works() bool {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", n.pid()))
	for _, task := range tasks {
		children, _ := os.ReadFile(task + "/children")
		stat, _ := os.ReadFile(task + "/stat")
		_, state, _ := strings.Cut(string(stat), ") ")
		if len(children) > 0 || strings.HasPrefix(state, "R") {
			return true
		}
	}
	return false
}

// holdsChange reports whether the kernel has the endpoint that was written last.
func (n *apiNode) holdsChange() bool {
	n.b.Helper()
	list := []string{"nft", "list", "table", "ip", strings.Fields(n.follower.services)[0]}
	if n.mode == "iptables" {
		list = []string{"iptables-nft-save", "-t", "nat"}
	}
	text, err := n.host.Exec(context.Background(), list[0], list[1:]...)
	n.must(err == nil, "%v", err)
	return strings.Contains(text, n.api.changing(0).String())
}

// watch returns when each change of the first slice arrives at a client that does nothing else.
func (a *apiBench) watch(b *testing.B) <-chan time.Time {
	b.Helper()
	w, err := a.Client.DiscoveryV1().EndpointSlices("default").Watch(b.Context(), metav1.ListOptions{FieldSelector: "metadata.name=" + a.slice(0).Name})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(w.Stop)
	arrived := make(chan time.Time, 1)
	go func() {
		for e := range w.ResultChan() {
			if e.Type == watch.Modified {
				arrived <- time.Now()
			}
		}
	}()
	return arrived
}

// generations opens a socket on a host and returns what asks the kernel for its count of what anybody has committed to
// nf_tables there. To enter the namespace for each question would take milliseconds, and to listen to the kernel's
// notifications would make each commit take longer.
func generations(b *testing.B, host *netlab.Host) func() string {
	b.Helper()
	socket := &nl.SocketHandle{}
	err := host.Do(func() (err error) {
		socket.Socket, err = nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(socket.Close)
	return func() string {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
		req.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: socket}
		req.AddRawData([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
		messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		if err != nil {
			b.Fatal(err)
		}
		return string(messages[0][:12]) // a header, and then the attribute
	}
}

// cpuTimeOfAll is what a process has used, and what the commands that it ran had used when they ended.
func cpuTimeOfAll(b *testing.B, pid int) time.Duration {
	b.Helper()
	var own unix.Timespec
	clock := int32(^pid<<3 | 2) // the scheduler's clock of a process: clock_getcpuclockid(3)
	err := unix.ClockGettime(clock, &own)
	stat, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err := errors.Join(err, err2); err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // from the third on
	sum := time.Duration(own.Nano())
	for _, ticks := range fields[16-3 : 18-3] { // of children in user mode and in the kernel, in hundredths of a second (proc(5))
		n, _ := strconv.Atoi(ticks)
		sum += time.Duration(n) * 10 * time.Millisecond
	}
	return sum
}
