package main_test

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weir/backends/netlab"
)

// userspaceMode is the mode of this name in modes.
func userspaceMode(t *testing.T) mode {
	for _, m := range modes {
		if m.name == "userspace" {
			return m
		}
	}
	t.Fatal("there is no such mode")
	return mode{}
}

var webFront = netip.MustParseAddrPort("10.96.0.10:80")

// TestUserspaceTriesTheNextEndpoint has one endpoint that answers, one that refuses and one that is silent: no connection
// fails, and once the faults are known few even wait.
func TestUserspaceTriesTheNextEndpoint(t *testing.T) {
	t.Parallel()
	lab := netlab.New(t, netlab.Topology{})
	lab.Host("pod1").Serve(t, netlab.TCP, 80)
	if _, err := lab.Host("pod3").Exec(t.Context(), "iptables-nft", "-I", "INPUT", "-p", "tcp", "-j", "DROP"); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, lab, userspaceMode(t))
	d.write(map[string]string{"config.yaml": painConfig, "web.yaml": painService, "slice.yaml": painSlice(1, 2, 3)})
	d.start()
	d.awaitSync()
	const connections, firstFew = 1000, 5
	const firstDialTimeout = 250 * time.Millisecond
	slow := 0
	for i := range connections {
		start := time.Now()
		if r := lab.Host(netlab.Client).Probe(netlab.TCP, webFront, answerWait); r.Server != "pod1" {
			t.Fatalf("connection %d: %v", i+1, r)
		}
		if time.Since(start) >= firstDialTimeout && i >= firstFew {
			slow++
		}
	}
	// Those that find out whether the silent one is back wait for it, ever less often; a busy machine adds a few.
	if slow > connections/20 {
		t.Errorf("%d of %d connections waited for an endpoint that is known to be silent", slow, connections)
	}
}

// load keeps asking until stop, with a connection for each question and with one that stays open.
type load struct {
	wg       sync.WaitGroup
	stopping atomic.Bool
	asked    atomic.Int64
	mu       sync.Mutex
	failures []string
}

func startLoad(lab *netlab.Lab, to netip.AddrPort) *load {
	l := &load{}
	client := lab.Host(netlab.Client)
	for range 4 {
		l.wg.Go(func() {
			for !l.stopping.Load() {
				l.note("short", client.Probe(netlab.TCP, to, answerWait))
			}
		})
	}
	for range 2 {
		l.wg.Go(func() {
			for !l.stopping.Load() {
				flow, err := client.Open(netlab.TCP, to, answerWait)
				if err != nil {
					l.fail("open: " + err.Error())
					continue
				}
				for range 200 {
					if l.stopping.Load() {
						break
					}
					l.note("kept", flow.Ask(answerWait))
				}
				flow.Close()
			}
		})
	}
	return l
}

func (l *load) note(what string, r netlab.Reply) {
	l.asked.Add(1)
	if r.Outcome != netlab.Answered {
		l.fail(what + ": " + r.String())
	}
}

func (l *load) fail(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failures = append(l.failures, text)
}

// more waits until so many further questions were asked.
func (l *load) more(d *daemon, n int64) {
	d.t.Helper()
	until := l.asked.Load() + n
	d.await("traffic", func() error {
		if got := l.asked.Load(); got < until {
			return fmt.Errorf("%d of %d", got, until)
		}
		return nil
	})
}

func (l *load) end(t *testing.T) {
	t.Helper()
	l.stopping.Store(true)
	l.wg.Wait()
	if len(l.failures) > 0 {
		t.Errorf("%d of %d questions failed, the first: %s", len(l.failures), l.asked.Load(), l.failures[0])
	}
}

// TestUserspaceWithoutIPv6 has a Service of both families, and the kube-dns that weir answers for, on a node without an address of
// one family, from the start or later: the other is served, and its flows are cleaned.
func TestUserspaceWithoutIPv6(t *testing.T) {
	for name, later := range map[string]bool{"from the start": false, "later": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			withoutIPv6(t, later)
		})
	}
}

func withoutIPv6(t *testing.T, later bool) {
	lab := netlab.New(t, netlab.Topology{})
	for _, name := range []string{"pod1", "pod2"} {
		lab.Host(name).Serve(t, netlab.UDP, 53)
	}
	disable := func() {
		if _, err := lab.Node().Exec(t.Context(), "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"); err != nil {
			t.Fatal(err)
		}
	}
	if !later {
		disable()
	}
	const service = `apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:10:96::10"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: dns}
spec:
  clusterIP: 10.96.0.11
  clusterIPs: [10.96.0.11, "fd00:10:96::11"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  ports: [{port: 53, protocol: UDP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-6, labels: {kubernetes.io/service-name: dns}}
addressType: IPv6
ports: [{port: 53, protocol: UDP}]
endpoints: [{addresses: ["fd00:10:244:1::1"]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: dns-4, labels: {kubernetes.io/service-name: dns}}
addressType: IPv4
ports: [{port: 53, protocol: UDP}]
endpoints: [{addresses: [10.244.1.1]}]
`
	d := newDaemon(t, lab, userspaceMode(t))
	d.flags = append(d.flags, "--dns", "--dns-upstream", "127.0.0.1:9")
	d.write(map[string]string{"config.yaml": painConfig, "dns.yaml": service})
	d.start()
	flow, err := lab.Host(netlab.Client).Open(netlab.UDP, netip.MustParseAddrPort("10.96.0.11:53"), answerWait)
	if err != nil {
		t.Fatal(err)
	}
	defer flow.Close()
	for _, pod := range []string{"pod1", "pod2"} {
		d.await(pod, func() error {
			if r := flow.Ask(time.Second); r.Server != pod {
				return fmt.Errorf("got %v", r)
			}
			return nil
		})
		if later {
			disable()
		}
		d.write(map[string]string{"dns.yaml": strings.Replace(service, "10.244.1.1", "10.244.1.2", 1)})
	}
	if log := d.logs(); strings.Contains(log, "stale") {
		t.Errorf("the log has:\n%s", log)
	}
}

// TestUserspaceRollingReplacement replaces every endpoint, one after the other, under load.
func TestUserspaceRollingReplacement(t *testing.T) {
	d := painDaemon(t, userspaceMode(t))
	d.start()
	d.awaitSync()
	l := startLoad(d.lab, webFront)
	for _, pods := range [][]int{{1, 2}, {2}, {2, 3}, {3}, {3, 1}, {1}} {
		d.write(map[string]string{"slice.yaml": painSlice(pods...)})
		d.awaitSync()
		l.more(d, 200)
	}
	l.end(t)
}

// TestUserspaceModeSwitch goes from iptables to userspace mode and back under load: nothing fails, old connections go on
// in both directions, and nothing is left.
func TestUserspaceModeSwitch(t *testing.T) {
	m := iptablesMode("nft")
	m.flags = []string{"--iptables-variant", "nft"}
	d := painDaemon(t, m)
	for i := range 3 {
		d.lab.Host(fmt.Sprintf("pod%d", i+1)).Serve(t, netlab.UDP, 80)
	}
	config := func(mode string) {
		d.write(map[string]string{"config.yaml": painConfig + "mode: " + mode + "\nudpIdleTimeout: 10s\n"})
	}
	config("iptables")
	d.write(map[string]string{"slice.yaml": painSlice(1, 2, 3) + "", "dns.yaml": strings.NewReplacer(
		"name: web", "name: dns", "10.96.0.10", "10.96.0.11", "{port: 80}", "{port: 80, protocol: UDP}").Replace(painService),
		"dns-slice.yaml": strings.NewReplacer("web", "dns", "{port: 80}", "{port: 80, protocol: UDP}").Replace(painSlice(1))})
	d.start()
	d.awaitSync()
	client := d.lab.Host(netlab.Client)
	udp, err := client.Open(netlab.UDP, netip.MustParseAddrPort("10.96.0.11:80"), answerWait)
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	askUDP := func(when string) {
		d.await("an answer by UDP "+when, func() error {
			if r := udp.Ask(dropWait); r.Outcome != netlab.Answered {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
	}
	askUDP("before")
	l := startLoad(d.lab, webFront)
	for _, mode := range []string{"userspace", "iptables"} {
		flow, err := client.Open(netlab.TCP, webFront, answerWait)
		if err != nil {
			t.Fatal(err)
		}
		defer flow.Close()
		before := flow.Ask(answerWait)
		l.more(d, 200)
		config(mode)
		d.awaitLog("proxy mode changed: .*to=" + mode)
		d.awaitLog("Using " + mode + " Proxier")
		d.awaitSync()
		l.more(d, 200)
		if after := flow.Ask(answerWait); after.Outcome != netlab.Answered || after.Server != before.Server {
			t.Errorf("a connection from before mode %s met %v, now %v", mode, before, after)
		}
		askUDP("in mode " + mode)
		_, own := d.rules()
		if has, want := strings.Contains(own, "WEIR-U-"), mode == "userspace"; has != want {
			t.Errorf("in mode %s the kernel holds a redirection: %v\n%s", mode, has, own)
		}
		if has, want := strings.Contains(own, "WEIR-SERVICES"), mode == "iptables"; has != want {
			t.Errorf("in mode %s the kernel holds iptables mode: %v\n%s", mode, has, own)
		}
	}
	l.end(t)
}

// TestUserspaceAnswersWhoWasRedirectedBefore: a client that is about to connect when userspace mode is left, and when its
// Service is deleted, is served all the same.
func TestUserspaceAnswersWhoWasRedirectedBefore(t *testing.T) {
	for name, leave := range map[string]func(d *daemon){
		"the mode is left": func(d *daemon) {
			d.write(map[string]string{"config.yaml": painConfig + "mode: iptables\n"})
			d.awaitLog("proxy mode changed: .*to=iptables")
		},
		"the Service is deleted": func(d *daemon) {
			d.write(map[string]string{"web.yaml": strings.NewReplacer("name: web", "name: other", "10.96.0.10", "10.96.0.11").Replace(painService)})
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := iptablesMode("nft")
			m.flags = []string{"--iptables-variant", "nft"}
			d := painDaemon(t, m)
			d.write(map[string]string{"config.yaml": painConfig + "mode: userspace\n"})
			d.start()
			d.awaitSync()
			client := d.lab.Host(netlab.Client)
			iptables := func(args ...string) string {
				t.Helper()
				out, err := client.Exec(t.Context(), "iptables-nft", args...)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			deaf := []string{"INPUT", "-p", "tcp", "--tcp-flags", "SYN,ACK", "SYN,ACK", "-j", "DROP"}
			iptables(append([]string{"-I"}, deaf...)...)
			answer := make(chan netlab.Reply, 1)
			go func() { answer <- client.Probe(netlab.TCP, webFront, patience) }()
			d.await("a half-open connection", func() error {
				if rules := iptables("-nvxL", "INPUT"); !regexp.MustCompile(`(?m)^ +[1-9]\d* .*DROP`).MatchString(rules) {
					return fmt.Errorf("nothing was dropped:\n%s", rules)
				}
				return nil
			})
			leave(d)
			d.awaitSync()
			iptables(append([]string{"-D"}, deaf...)...)
			if r := <-answer; r.Server != "pod1" {
				t.Errorf("whoever was redirected before met %v", r)
			}
		})
	}
}

// TestUserspaceOverNFTablesRepairsAtOnce: what another process takes away from the redirection is put back as soon as the
// kernel tells of it, as in nftables mode. A node that is only asked every 500 ms would take about that long each time,
// since every attempt begins right after the last repair; one that is told needs it for none but by accident.
func TestUserspaceOverNFTablesRepairsAtOnce(t *testing.T) {
	netlab.RequireProgram(t, "nft")
	d := painDaemon(t, userspaceMode(t))
	d.write(map[string]string{"config.yaml": painNoFullSync})
	d.mode.flags, d.alone = []string{"--proxy-mode", "userspace"}, true
	d.start()
	d.awaitSync()
	d.awaitAnswer("pod1")
	const attempts, soon = 20, 300 * time.Millisecond
	client, best := d.lab.Host(netlab.Client), time.Hour
	for range attempts {
		start := time.Now()
		d.nodeExec("nft", "delete element ip weir-userspace endpoints { 10.96.0.10 . tcp . 80 . 0x0 }")
		d.await("an answer", func() error {
			if r := client.Probe(netlab.TCP, webFront, 50*time.Millisecond); r.Server != "pod1" {
				return fmt.Errorf("%v", r)
			}
			return nil
		})
		best = min(best, time.Since(start))
	}
	if best > soon {
		t.Errorf("the best of %d repairs took %v", attempts, best)
	}
	t.Logf("the best of %d repairs took %v", attempts, best)
}

// TestUserspaceIsNotForOnce: a process that ends cannot serve.
func TestUserspaceIsNotForOnce(t *testing.T) {
	d := painDaemon(t, userspaceMode(t))
	if out, err := d.run("reconcile"); err == nil || !strings.Contains(err.Error(), "use weir run") {
		t.Errorf("weir reconcile in userspace mode: %s%v", out, err)
	}
	if own := d.ownRules(); own != "" {
		t.Errorf("it left:\n%s", own)
	}
}

// TestUserspaceDrainsOnSIGTERM: no new connections, and the open ones may end.
func TestUserspaceDrainsOnSIGTERM(t *testing.T) {
	d := painDaemon(t, userspaceMode(t))
	d.start()
	d.awaitSync()
	client := d.lab.Host(netlab.Client)
	flow, err := client.Open(netlab.TCP, webFront, answerWait)
	if err != nil {
		t.Fatal(err)
	}
	if r := flow.Ask(answerWait); r.Server != "pod1" {
		t.Fatal(r)
	}
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	d.awaitLog("waiting for open connections")
	d.await("a refusal", func() error {
		if r := client.Probe(netlab.TCP, webFront, answerWait); r.Outcome != netlab.Refused {
			return fmt.Errorf("%v", r)
		}
		return nil
	})
	if r := flow.Ask(answerWait); r.Server != "pod1" {
		t.Errorf("while it drains: %v", r)
	}
	flow.Close()
	select {
	case err := <-d.done:
		d.cmd = nil
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("it does not end although the last connection has")
	}
	if own := d.ownRules(); own != "" {
		t.Errorf("it leaves redirections to ports on which any user may listen:\n%s", own)
	}
}

// TestUserspaceKilledServesNoImpostor kills weir, and lets another process listen on its ports before the next weir runs.
// Clients get no answer from that process, whether the redirection was there before or their flow was.
func TestUserspaceKilledServesNoImpostor(t *testing.T) {
	netlab.RequireProgram(t, "nft")
	legacy := userspaceMode(t)
	legacy.flags = []string{"--proxy-mode", "userspace", "--iptables-variant", "legacy"}
	nftables := userspaceMode(t)
	nftables.flags = []string{"--proxy-mode", "userspace"}
	for name, m := range map[string]mode{"iptables-nft": userspaceMode(t), "iptables-legacy": legacy, "nftables": nftables} {
		t.Run(name, func(t *testing.T) {
			d := painDaemon(t, m)
			d.alone = name == "nftables"
			d.lab.Host("pod1").Serve(t, netlab.UDP, 80)
			onePort := painConfig + "portRange: 20000-20000\n"
			d.write(map[string]string{
				"config.yaml": onePort,
				"web.yaml":    strings.Replace(painService, "{port: 80}", "{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}", 1),
				"slice.yaml":  strings.Replace(painSlice(1), "{port: 80}", "{name: tcp, port: 80}, {name: udp, port: 80, protocol: UDP}", 1),
			})
			d.start()
			d.awaitSync()
			client := d.lab.Host(netlab.Client)
			old, err := client.Open(netlab.UDP, webFront, answerWait)
			if err != nil {
				t.Fatal(err)
			}
			defer old.Close()
			d.await("an answer by UDP", func() error {
				if r := old.Ask(answerWait); r.Server != "pod1" {
					return fmt.Errorf("%v", r)
				}
				return nil
			})
			d.kill()
			node := d.lab.Node()
			node.Serve(t, netlab.TCP, 20000)
			node.Serve(t, netlab.UDP, 20000)
			const attempts = 7
			for range attempts {
				for _, proto := range []netlab.Protocol{netlab.TCP, netlab.UDP} {
					if r := client.Probe(proto, webFront, dropWait); r.Outcome == netlab.Answered {
						t.Fatalf("%s to the Service met %v", proto, r)
					}
				}
			}
			if r := old.Ask(dropWait); r.Outcome == netlab.Answered {
				t.Errorf("a flow from before met %v", r)
			}
			if r := client.Probe(netlab.TCP, netip.MustParseAddrPort("192.168.77.1:20000"), answerWait); r.Server != "node" {
				t.Errorf("a client that asks the other process itself met %v", r)
			}
			d.write(map[string]string{"config.yaml": painConfig + "portRange: 20000-20001\n"})
			d.start()
			d.awaitAnswer("pod1")
		})
	}
}

// TestUserspaceRootless runs without any capability: what can be served is, what cannot is named, and the kernel is not
// programmed.
func TestUserspaceRootless(t *testing.T) {
	netlab.RequireProgram(t, "setpriv")
	m := userspaceMode(t)
	m.flags = []string{"--rootless"}
	d := painDaemon(t, m)
	d.write(map[string]string{"web.yaml": `apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  externalIPs: [192.168.78.1, 203.0.113.9]
  ports: [{port: 8080, targetPort: 80, nodePort: 30080}]
`, "slice.yaml": painSlice(1, 2)})
	cmd := d.lab.Node().Command(context.Background(), "setpriv", append([]string{"--bounding-set=-all", "--inh-caps=-all", os.Getenv(binaryEnv)}, d.args("run")...)...)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	if err := d.lab.Node().Start(cmd); err != nil {
		t.Fatal(err)
	}
	d.cmd, d.done = cmd, make(chan error, 1)
	go func(done chan error) { done <- cmd.Wait() }(d.done)
	d.awaitSync()
	for _, to := range []string{"192.168.77.1:30080", "192.168.78.1:30080", "192.168.78.1:8080"} {
		for _, from := range []string{netlab.Client, netlab.Outside, netlab.Node} {
			for _, want := range []string{"pod1", "pod2"} {
				d.await(want+" from "+from+" on "+to, func() error {
					if r := d.lab.Host(from).Probe(netlab.TCP, netip.MustParseAddrPort(to), answerWait); r.Server != want {
						return fmt.Errorf("%v", r)
					}
					return nil
				})
			}
		}
	}
	for _, address := range []string{"ClusterIP 10.96.0.10", "external IP 203.0.113.9"} {
		if n := strings.Count(d.logs(), address+" is not an address of this node"); n != 1 {
			t.Errorf("%s was warned of %d times", address, n)
		}
	}
	d.terminate()
	if own := d.ownRules(); own != "" {
		t.Errorf("the kernel was programmed:\n%s", own)
	}
}
