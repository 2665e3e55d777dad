package main_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"weir/backends/netlab"
)

// serverEnv has the test binary become a server for its value, the name of a host.
const serverEnv = "WEIR_TEST_SERVER"

// becomeServer is for TestMain. It does not return if the process is to be a server. On port 80 it answers lines as netlab does,
// and on port 8080 it is ready, over HTTP, until SIGUSR1, and again from SIGUSR2.
func becomeServer() {
	name := os.Getenv(serverEnv)
	if name == "" {
		return
	}
	var broken atomic.Bool
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGUSR2)
	go func() {
		for s := range signals {
			broken.Store(s == syscall.SIGUSR1)
		}
	}()
	go func() {
		fmt.Fprintln(os.Stderr, http.ListenAndServe(":8080", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if broken.Load() {
				http.Error(w, "the database is gone", http.StatusInternalServerError)
			}
		})))
		os.Exit(1)
	}()
	ln, err := net.Listen("tcp", ":80")
	for err == nil {
		var conn net.Conn
		if conn, err = ln.Accept(); err == nil {
			go func() {
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					fmt.Fprintf(conn, "%s:80 %s\n", name, conn.RemoteAddr())
				}
				conn.Close()
			}()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// serve starts such a server on a host.
func serve(t *testing.T, h *netlab.Host) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Command(context.Background(), exe)
	cmd.Env = append(cmd.Env, serverEnv+"="+h.Name)
	cmd.Stderr = os.Stderr
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		for _, port := range []string{"80", "8080"} {
			var conn net.Conn
			if conn, err = h.DialContext(t.Context(), "tcp", "127.0.0.1:"+port); err != nil {
				break
			}
			conn.Close()
		}
		if err == nil {
			return cmd
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server on %s does not start: %v", h.Name, err)
		}
	}
}

func kill(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// probedWeb is a Service that is asked as often as a readinessProbe can.
const probedWeb = `apiVersion: v1
kind: Service
metadata:
  name: web
  annotations:
    weir/probe: |
      httpGet: {path: /ready, port: 8080}
      periodSeconds: 1
      timeoutSeconds: 1
      failureThreshold: 1
spec:
  clusterIP: 10.96.0.10
  ports: [{name: web, port: 80}, {name: dns, port: 53, protocol: UDP}]
`

func probedSlice(pods ...int) string {
	text := `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: web, port: 80}, {name: dns, port: 53, protocol: UDP}]
endpoints:
`
	for _, i := range pods {
		text += fmt.Sprintf("- addresses: [%s]\n", netlab.PodIPv4(i))
	}
	return text
}

var probedIP = netip.MustParseAddrPort("10.96.0.10:80")

// metBy returns how often each pod answers so many connections from the client, and how many fail.
func metBy(lab *netlab.Lab, connections int) (met map[string]int, failed int) {
	met = map[string]int{}
	for range connections {
		if r := lab.Host(netlab.Client).Probe(netlab.TCP, probedIP, 3*time.Second); r.Outcome == netlab.Answered {
			met[r.Server]++
		} else {
			failed++
		}
	}
	return met, failed
}

// servedBy returns an error unless the kernel, as weir status has it, sends connections to exactly these pods, and they answer.
func (d *daemon) servedBy(pods ...int) error {
	status := d.status()
	list, _, _ := strings.Cut(status[max(0, strings.Index(status, "default/web")):], "probes:")
	var want, got []string
	for _, i := range pods {
		want = append(want, netlab.PodIPv4(i).String()+":80")
	}
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) > 0 && strings.HasPrefix(f[0], "10.244.1.") && strings.HasSuffix(f[0], ":80") {
			got = append(got, f[0])
		}
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("status has endpoints %v, want %v:\n%s", got, want, status)
	}
	return nil
}

// TestLiveness has endpoints die in every way that only probes can tell, heal, and die all at once.
func TestLiveness(t *testing.T) {
	eachMode(t, modes[:5], func(t *testing.T, m mode) {
		t.Parallel()
		lab := netlab.New(t, netlab.Topology{Pods: 5})
		servers := map[int]*exec.Cmd{}
		for i := 1; i <= 5; i++ {
			servers[i] = serve(t, lab.Host(fmt.Sprint("pod", i)))
			lab.Host(fmt.Sprint("pod", i)).Serve(t, netlab.UDP, 53)
		}
		d := newDaemon(t, lab, m)
		all := []int{1, 2, 3, 4, 5}
		d.write(map[string]string{"config.yaml": painConfig, "web.yaml": probedWeb, "slice.yaml": probedSlice(all...)})
		d.start()
		d.awaitRunning()
		d.giveStart()
		everybody := func(when string) {
			t.Helper()
			d.await("all endpoints "+when, func() error {
				met, failed := metBy(lab, 30)
				if len(met) < 5 || failed > 0 {
					return fmt.Errorf("answered by %v, %d failed", met, failed)
				}
				return nil
			})
		}
		everybody("at the start")
		d.awaitStatus("probes: 5 healthy, 0 unhealthy")

		// Open connections, of which none is to be cut. Only those to the pod that is killed cannot live.
		open := map[string][]*netlab.Flow{}
		for range 50 {
			f, err := lab.Host(netlab.Client).Open(netlab.TCP, probedIP, 3*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			r := f.Ask(3 * time.Second)
			open[r.Server] = append(open[r.Server], f)
		}
		live := func(pods ...string) {
			t.Helper()
			for _, pod := range pods {
				for _, f := range open[pod] {
					if r := f.Ask(3 * time.Second); r.Server != pod {
						t.Errorf("one of %d open connections to %s: %v", len(open[pod]), pod, r)
					}
				}
			}
		}

		lab.Vanish(t, "pod3")
		_ = servers[1].Process.Signal(syscall.SIGSTOP)
		kill(servers[2])
		_ = servers[4].Process.Signal(syscall.SIGUSR1)
		broke := time.Now()
		d.await("the one that works alone", func() error { return d.servedBy(5) })
		t.Logf("out after %v", time.Since(broke).Round(time.Millisecond))
		if met, failed := metBy(lab, 1000); failed > 0 || met["pod5"] != 1000 {
			t.Errorf("answered by %v, %d failed", met, failed)
		}
		live("pod4", "pod5")
		if out, err := d.weir("probe", "web"); err == nil || strings.Count(out, "failure") < 4 || !strings.Contains(out, "status 500") || !strings.Contains(out, "connection refused") {
			t.Errorf("weir probe: %v\n%s", err, out)
		}

		// Neither the end of weir nor its start takes in what is dead, or out what is not.
		rules := d.ownRules()
		d.kill()
		d.start()
		d.awaitRunning()
		d.giveStart()
		if err := d.servedBy(5); err != nil {
			t.Errorf("after a start: %v", err)
		}
		if got := d.ownRules(); !m.proxies && got != rules {
			t.Errorf("a start changed the rules:\n%s\nwere:\n%s", got, rules)
		}
		if !m.proxies {
			if met, failed := metBy(lab, 30); failed > 0 || met["pod5"] != 30 {
				t.Errorf("after a start: answered by %v, %d failed", met, failed)
			}
		}

		lab.Appear(t, "pod3")
		_ = servers[1].Process.Signal(syscall.SIGCONT)
		servers[2] = serve(t, lab.Host("pod2"))
		_ = servers[4].Process.Signal(syscall.SIGUSR2)
		d.awaitStatus("probes: 5 healthy, 0 unhealthy")
		everybody("healed")
		if !m.proxies {
			live("pod1", "pod3", "pod4", "pod5")
		}

		// A UDP flow moves with the verdict.
		flow, err := lab.Host(netlab.Client).Open(netlab.UDP, netip.MustParseAddrPort("10.96.0.10:53"), 3*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer flow.Close()
		before := flow.Ask(3 * time.Second).Server
		for i, s := range servers {
			if before == fmt.Sprint("pod", i) {
				_ = s.Process.Signal(syscall.SIGUSR1)
			}
		}
		d.await("the UDP flow to move", func() error {
			if r := flow.Ask(time.Second); r.Outcome != netlab.Answered || r.Server == before {
				return fmt.Errorf("answered by %v, before by %s", r, before)
			}
			return nil
		})

		// A broken probe takes no working Service down.
		for _, s := range servers {
			_ = s.Process.Signal(syscall.SIGUSR1)
		}
		d.awaitStatus("probes: 0 healthy, 5 unhealthy; panic")
		everybody("in panic")
		if _, body, err := httpGet(d, "http://127.0.0.1:10249/metrics"); err != nil || !strings.Contains(body, `weir_probes_panic{namespace="default",service="web"} 1`) {
			t.Errorf("metrics do not tell of the panic: %v", err)
		}
		if out, err := d.weir("probe", "web"); err == nil {
			t.Errorf("weir probe succeeds:\n%s", out)
		}
		for _, s := range servers {
			_ = s.Process.Signal(syscall.SIGUSR2)
		}
		d.awaitStatus("probes: 5 healthy, 0 unhealthy")
		if out, err := d.weir("probe", "web"); err != nil || strings.Count(out, "success") < 5 {
			t.Errorf("weir probe: %v\n%s", err, out)
		}
	})
}

// TestPortsAreUsedAgain has a host vanish while clients connect. A client that uses the port of a connection again that was never
// answered meets an endpoint that works.
func TestPortsAreUsedAgain(t *testing.T) {
	for _, m := range ruleModes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			lab := netlab.New(t, netlab.Topology{Pods: 2})
			serve(t, lab.Host("pod1"))
			serve(t, lab.Host("pod2"))
			d := newDaemon(t, lab, m)
			web := strings.Replace(probedWeb, "annotations:\n", "annotations:\n    weir/on-unhealthy: reset\n", 1)
			d.write(map[string]string{"config.yaml": painConfig, "web.yaml": web, "slice.yaml": probedSlice(1, 2)})
			d.start()
			d.awaitRunning()
			d.awaitStatus("probes: 2 healthy, 0 unhealthy")
			client := lab.Host(netlab.Client)
			open := map[string]*netlab.Flow{}
			for len(open) < 2 {
				f, err := client.Open(netlab.TCP, probedIP, 3*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				open[f.Ask(3*time.Second).Server] = f
			}
			lab.Vanish(t, "pod2")
			var unanswered []netip.AddrPort
			for port := uint16(20000); port < 20020; port++ {
				from := netip.AddrPortFrom(client.IPv4, port)
				f, err := client.OpenFrom(netlab.TCP, from, probedIP, 20*time.Millisecond)
				if err != nil {
					unanswered = append(unanswered, from)
					continue
				}
				f.Close()
			}
			if len(unanswered) == 0 {
				t.Fatal("every connection was answered")
			}
			d.await("the one that works alone", func() error { return d.servedBy(1) })
			for _, from := range unanswered {
				f, err := client.OpenFrom(netlab.TCP, from, probedIP, 3*time.Second)
				if err != nil {
					t.Fatalf("from %s, whose last connection was never answered: %v", from, err)
				}
				f.Close()
			}
			// With weir/on-unhealthy: reset, open connections to it end.
			if r := open["pod2"].Ask(10 * time.Second); r.Outcome != netlab.Refused {
				t.Errorf("an open connection to the host that vanished: %v", r)
			}
			if r := open["pod1"].Ask(3 * time.Second); r.Server != "pod1" {
				t.Errorf("an open connection to the host that works: %v", r)
			}
		})
	}
}

// TestProbesAreNotRedirected has endpoints at which no server listens and whose addresses are those of another Service, which works:
// a node port on an address of the node, and an external IP. A probe does not meet the endpoints of the other Service.
func TestProbesAreNotRedirected(t *testing.T) {
	const web = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  externalIPs: [203.0.113.7]
  ports: [{port: 80, nodePort: 30080}]
`
	const host = `apiVersion: v1
kind: Service
metadata:
  name: host
  annotations:
    weir/probe: |
      tcpSocket: {}
      periodSeconds: 1
      failureThreshold: 1
    weir/min-healthy: "0"
spec:
  clusterIP: 10.96.0.11
  ports: [{port: 80}]
`
	slice := func(service string, port int, address string) string {
		return fmt.Sprintf(`---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s-%d, labels: {kubernetes.io/service-name: %[1]s}}
addressType: IPv4
ports: [{port: %[2]d}]
endpoints: [{addresses: [%s]}]
`, service, port, address)
	}
	for _, m := range []mode{modes[0], modes[1], modes[2], modes[4]} {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			lab := netlab.New(t, netlab.Topology{Pods: 1})
			lab.Host("pod1").Serve(t, netlab.TCP, 80)
			lab.Host(netlab.Remote).AddAddress(t, netip.MustParseAddr("203.0.113.7"))
			d := newDaemon(t, lab, m)
			d.addForeign()
			before := d.foreignRules()
			d.write(map[string]string{
				"config.yaml": painConfig,
				"web.yaml":    web + slice("web", 80, netlab.PodIPv4(1).String()),
				"host.yaml":   host + slice("host", 30080, "192.168.77.1") + slice("host", 80, "203.0.113.7"),
			})
			d.start()
			d.awaitRunning()
			for _, to := range []string{"192.168.77.1:30080", "203.0.113.7:80"} {
				d.await("the Service at "+to, func() error {
					if r := lab.Node().Probe(netlab.TCP, netip.MustParseAddrPort(to), 3*time.Second); r.Server != "pod1" {
						return fmt.Errorf("got %v", r)
					}
					return nil
				})
			}
			d.awaitStatus("probes: 0 healthy, 2 unhealthy")
			if out, err := d.weir("probe", "host"); err == nil || strings.Count(out, "connection refused") != 2 {
				t.Errorf("weir probe: %v\n%s", err, out)
			}
			lab.Node().Serve(t, netlab.TCP, 30080)
			lab.Host(netlab.Remote).Serve(t, netlab.TCP, 80)
			d.awaitStatus("probes: 2 healthy, 0 unhealthy")
			d.checkLeavesNothing(before)
		})
	}
}

// TestPortsOfResetConnectionsAreUsedAgain has a server die with requests that it has not read, so that their connections are
// reset. A client that uses the port of such a connection again meets an endpoint that works.
func TestPortsOfResetConnectionsAreUsedAgain(t *testing.T) {
	for _, m := range ruleModes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			lab := netlab.New(t, netlab.Topology{Pods: 2})
			serve(t, lab.Host("pod1"))
			dying := serve(t, lab.Host("pod2"))
			d := newDaemon(t, lab, m)
			d.write(map[string]string{"config.yaml": painConfig, "web.yaml": probedWeb, "slice.yaml": probedSlice(1, 2)})
			d.start()
			d.awaitRunning()
			d.awaitStatus("probes: 2 healthy, 0 unhealthy")
			// The kernel knows such a connection for ten seconds, which may be less than this test takes.
			if _, err := lab.Node().Exec(t.Context(), "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=300"); err != nil {
				t.Fatal(err)
			}
			client := lab.Host(netlab.Client)
			open := map[netip.AddrPort]*netlab.Flow{}
			var live *netlab.Flow
			for port := uint16(20000); len(open) < 8 || live == nil; port++ {
				from := netip.AddrPortFrom(client.IPv4, port)
				f, err := client.OpenFrom(netlab.TCP, from, probedIP, 3*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if r := f.Ask(3 * time.Second); r.Server == "pod2" {
					open[from] = f
				} else {
					live = f
				}
			}
			_ = dying.Process.Signal(syscall.SIGSTOP)
			if _, err := syscall.Wait4(dying.Process.Pid, nil, syscall.WUNTRACED, nil); err != nil {
				t.Fatal(err)
			}
			for _, f := range open {
				_ = f.Ask(50 * time.Millisecond)
			}
			kill(dying)
			for from, f := range open {
				if r := f.Ask(3 * time.Second); !errors.Is(r.Err, syscall.ECONNRESET) {
					delete(open, from) // on a slow machine the request was not sent in time
				}
				f.Close()
			}
			if len(open) == 0 {
				t.Fatal("no connection was reset")
			}
			d.await("the one that works alone", func() error { return d.servedBy(1) })
			for from := range open {
				f, err := client.OpenFrom(netlab.TCP, from, probedIP, 3*time.Second)
				if err != nil {
					t.Fatalf("from %s, whose last connection was reset: %v", from, err)
				}
				f.Close()
			}
			if r := live.Ask(3 * time.Second); r.Server != "pod1" {
				t.Errorf("an open connection to the endpoint that works: %v", r)
			}
		})
	}
}

// TestPlansShowProbes has a probe come, change and go.
func TestPlansShowProbes(t *testing.T) {
	write := func(probe string) string {
		dir := t.TempDir()
		text := strings.Replace(probedWeb, "path: /ready", "path: "+probe, 1)
		if probe == "" {
			from, to := strings.Index(text, "  annotations:"), strings.Index(text, "spec:")
			text = text[:from] + text[to:]
		}
		if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(text+"---\n"+probedSlice(1)), 0o644); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	none, ready, live := write(""), write("/ready"), write("/live")
	const what = "every 1s, timeout 1s, 1 failure, 1 success"
	for _, tc := range []struct{ before, after, want string }{
		{none, ready, "probe none → httpGet :8080/ready " + what},
		{ready, live, "probe httpGet :8080/ready " + what + " → httpGet :8080/live " + what},
		{live, none, "probe httpGet :8080/live " + what + " → none"},
		{live, live, ""},
	} {
		got := weir(t, "", "plan", "-f", tc.after, "--against", tc.before)
		if got.code != 0 || tc.want != "" && !strings.Contains(strings.Join(strings.Fields(got.stdout), " "), tc.want) || tc.want == "" && strings.Contains(got.stdout, "probe") {
			t.Errorf("want %q, got code %d:\n%s%s", tc.want, got.code, got.stdout, got.stderr)
		}
	}
}

// TestPlansAgainstTheKernelShowProbes has probes, and what they lead to, change where the kernel has no object for them: the plan
// tells what weir applied last, until the change is applied.
func TestPlansAgainstTheKernelShowProbes(t *testing.T) {
	t.Parallel()
	for _, m := range ruleModes[1:] {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), m)
			ready := probedWeb + "---\n" + probedSlice(1)
			d.write(map[string]string{"config.yaml": painConfig, "web.yaml": ready})
			plan := func(want string) {
				t.Helper()
				out, _ := d.run("reconcile", "--dry-run")
				if text := strings.Join(strings.Fields(out), " "); want != "" && !strings.Contains(text, want) || want == "" && !strings.Contains(text, "Nothing to do") {
					t.Errorf("want %q, got\n%s", want, out)
				}
			}
			apply := func() {
				t.Helper()
				if out, err := d.run("reconcile"); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				plan("")
			}
			apply()
			const what = "every 1s, timeout 1s, 1 failure, 1 success"
			for _, tc := range []struct{ text, want string }{
				{strings.Replace(ready, "/ready", "/live", 1), "probe httpGet :8080/ready " + what + " → httpGet :8080/live " + what},
				{strings.Replace(ready, "  annotations:\n", "  annotations:\n    weir/on-unhealthy: reset\n", 1), "onUnhealthy keep connections → reset connections"},
				{ready[:strings.Index(ready, "  annotations:")] + ready[strings.Index(ready, "spec:"):], "probe httpGet :8080/ready " + what + " → none"},
				{ready, "probe none → httpGet :8080/ready " + what},
			} {
				d.write(map[string]string{"web.yaml": tc.text})
				plan(tc.want)
				apply()
			}
		})
	}
}

// TestReadinessProbesOfEndpointsByHand has a Deployment with a readinessProbe, and endpoints that were written by hand: those are
// asked. Those that a control plane wrote are not, because its kubelets have asked.
func TestReadinessProbesOfEndpointsByHand(t *testing.T) {
	t.Parallel()
	const input = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: web
        ports: [{name: ready, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /ready, port: ready}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: slice}
spec: {clusterIP: 10.96.0.10, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: endpoints}
spec: {clusterIP: 10.96.0.11, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: made}
spec: {clusterIP: 10.96.0.12, selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: slice, labels: {kubernetes.io/service-name: slice}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.244.1.1]}, {addresses: [10.244.1.2]}]
---
apiVersion: v1
kind: Endpoints
metadata: {name: endpoints}
subsets: [{addresses: [{ip: 10.244.1.1}, {ip: 10.244.1.2}], ports: [{port: 80}]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: made, labels: {kubernetes.io/service-name: made, endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.244.1.1]}, {addresses: [10.244.1.2]}]
`
	lab := netlab.New(t, netlab.Topology{Pods: 2})
	serve(t, lab.Host("pod1"))
	second := serve(t, lab.Host("pod2"))
	d := newDaemon(t, lab, modes[2])
	d.write(map[string]string{"config.yaml": painConfig, "web.yaml": input})
	d.start()
	d.awaitRunning()
	met := func(what string, want map[string]string) {
		t.Helper()
		d.await(what, func() error {
			for ip, servers := range want {
				var got []string
				for range 40 {
					r := lab.Host(netlab.Client).Probe(netlab.TCP, netip.MustParseAddrPort(ip+":80"), 3*time.Second)
					if r.Outcome != netlab.Answered {
						return fmt.Errorf("%s: %v", ip, r)
					}
					if !slices.Contains(got, r.Server) {
						got = append(got, r.Server)
					}
				}
				slices.Sort(got)
				if text := strings.Join(got, " "); text != servers {
					return fmt.Errorf("%s is answered by %s, want %s", ip, text, servers)
				}
			}
			return nil
		})
	}
	both := map[string]string{"10.96.0.10": "pod1 pod2", "10.96.0.11": "pod1 pod2", "10.96.0.12": "pod1 pod2"}
	met("both", both)
	_ = second.Process.Signal(syscall.SIGUSR1)
	met("the one that works", map[string]string{"10.96.0.10": "pod1", "10.96.0.11": "pod1", "10.96.0.12": "pod1 pod2"})
	if out, err := d.weir("probe"); err == nil || strings.Count(out, "   failure   ") != 2 || !strings.Contains(out, `status 500, "the database is gone"`) || strings.Contains(out, "default/made") {
		t.Errorf("weir probe: %v\n%s", err, out)
	}
	_ = second.Process.Signal(syscall.SIGUSR2)
	met("both again", both)
}
