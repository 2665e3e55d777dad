package main_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends/netlab"
	"weir/backends/netlab/podmantest"
)

// selectingWeb is a Service that selects app=web. It allows what comes in at any address of the node.
const selectingWeb = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
`

// played returns a manifest for podman kube play, with pods that answer with their host name.
func played(name string) string {
	return `apiVersion: v1
kind: Pod
metadata:
  name: ` + name + `
  labels: {app: web}
spec:
  hostname: ` + name + `
  containers:
  - {name: server, image: "` + podmantest.Image + `"}
`
}

// fetch returns what the pod says that answers at a URL, asked from a host.
func fetch(h *netlab.Host, t *testing.T, url string) (string, error) {
	out, err := h.Exec(t.Context(), "curl", "-sS", "--max-time", "2", url)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return strings.TrimSpace(out), nil
}

// answeredBy returns nil if exactly these pods answer at the URL.
func answeredBy(h *netlab.Host, t *testing.T, url string, want ...string) error {
	met := map[string]bool{}
	for range 12 * max(1, len(want)) {
		pod, err := fetch(h, t, url)
		switch {
		case err != nil && len(want) > 0:
			return err
		case err == nil:
			met[pod] = true
		}
		if len(want) == 0 && err == nil {
			return fmt.Errorf("%s answers", pod)
		}
		if len(want) == 0 {
			return nil
		}
	}
	if got := slices.Sorted(maps.Keys(met)); !slices.Equal(got, want) {
		return fmt.Errorf("answered by %v, not by %v", got, want)
	}
	return nil
}

// TestPodsOfPodman runs pods with podman and a Service that selects them, and nothing else.
func TestPodsOfPodman(t *testing.T) {
	for _, m := range append(slices.Clone(ruleModes), modes[4]) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			lab := netlab.New(t, netlab.Topology{Pods: 1})
			node, outside := lab.Node(), lab.Host(netlab.Outside)
			p := podmantest.New(t, node.Start)
			stop := p.Serve(t)
			d := newDaemon(t, lab, m, "--pod-source", "podman=unix://"+p.Socket)
			d.write(map[string]string{"web.yaml": selectingWeb})
			d.start()
			d.awaitRunning()
			clusterIP, nodePort := "http://10.96.0.10/", "http://192.168.77.1:30080/"
			everywhere := func(what string, want ...string) {
				t.Helper()
				d.await(what, func() error {
					return errors.Join(answeredBy(node, t, clusterIP, want...), answeredBy(outside, t, nodePort, want...))
				})
			}
			everywhere("no pod")

			p.Play(t, played("pod-a"))
			// Without an address of its own, a bridge has the lowest one of its ports. When the pod with that port goes, the others
			// answer to the old address for a while, whatever weir does.
			d.nodeExec("ip", "link", "set", "podman1", "address", "02:00:00:00:aa:01")
			everywhere("the first pod", "pod-a")
			p.Play(t, played("pod-b"))
			everywhere("the second pod", "pod-a", "pod-b")

			if m.name == "nftables" {
				checkDiscovery(d, p)
			}

			p.Run(t, "kill", "pod-a-server")
			everywhere("the pod that is left", "pod-b")
			p.Run(t, "pod", "rm", "-f", "-t", "0", "pod-a")
			p.Play(t, played("pod-c"))
			everywhere("the pod that came in its place", "pod-b", "pod-c")

			// Neither the runtime's end nor weir's, nor both, takes a pod away.
			stop()
			d.await("word that the runtime is away", func() error {
				if out := d.status(); !strings.Contains(out, "podman") {
					return fmt.Errorf("weir status says\n%s", out)
				}
				return nil
			})
			everywhere("the runtime away", "pod-b", "pod-c")
			d.await("what runs to be kept", func() error {
				kept, err := filepath.Glob(filepath.Join(d.state, "pods-*"))
				if err != nil || len(kept) != 1 {
					return fmt.Errorf("%v %w", kept, err)
				}
				text, err := os.ReadFile(kept[0])
				if err != nil {
					return err
				}
				status := weir(t, "", "status", "web", "--state-dir", d.state).stdout
				served := regexp.MustCompile(`10\.89\.0\.\d+`).FindAllString(status, -1)
				if len(served) != 2 || slices.ContainsFunc(served, func(a string) bool { return !strings.Contains(string(text), a) }) {
					return fmt.Errorf("the file does not have both of %v", served)
				}
				return nil
			})
			d.kill()
			d.start()
			d.awaitRunning()
			d.giveStart()
			everywhere("weir started without the runtime", "pod-b", "pod-c")
			p.Run(t, "pod", "rm", "-f", "-t", "0", "pod-b")
			p.Serve(t)
			everywhere("the runtime back", "pod-c")
			p.Run(t, "pod", "rm", "-f", "-t", "0", "pod-c")
			everywhere("no pod any more")
		})
	}
}

// checkDiscovery compares what weir discover prints of two pods with what it should, but for the addresses.
func checkDiscovery(d *daemon, p *podmantest.Podman) {
	d.t.Helper()
	other := strings.NewReplacer("name: web", "name: other", "10.96.0.10", "10.96.0.11", "30080", "30081", "app: web", "app: other").Replace(selectingWeb)
	d.write(map[string]string{"other.yaml": other})
	defer d.write(map[string]string{"other.yaml": ""})
	discover := func(args ...string) string {
		out, err := d.weir(append([]string{"discover", "-f", d.dir, "--pod-source", "podman=unix://" + p.Socket}, args...)...)
		if err != nil {
			d.t.Fatalf("weir discover: %v\n%s", err, out)
		}
		return regexp.MustCompile(`10\.89\.0\.\d+`).ReplaceAllString(out, "ADDR")
	}
	const want = `POD             STATE   ADDRESSES   RUNTIME   SERVICES
default/pod-a   ready   ADDR   podman    web
default/pod-b   ready   ADDR   podman    web

SERVICE         SELECTS     ENDPOINTS
default/other   app=other   none: pod default/pod-a has app=web, wanted app=other
default/web     app=web     ADDR, ADDR
`
	if got := discover(); got != want {
		d.t.Errorf("weir discover printed\n%s", got)
	}
	slices := discover("-o", "yaml")
	if strings.Count(slices, "kind: EndpointSlice") != 1 || strings.Count(slices, "- ADDR") != 2 || !strings.Contains(slices, "managed-by: weir") {
		d.t.Errorf("weir discover -o yaml printed\n%s", slices)
	}
}

// TestPodsOnOneBridge connects to a Service from its own pods, on the bridge that podman makes, whether its frames pass through
// the packet filter or not. Every pod is reached, from each of them, after podman and a firewall loaded their rules again too.
func TestPodsOnOneBridge(t *testing.T) {
	for _, m := range append(slices.Clone(ruleModes), modes[4]) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			lab := netlab.New(t, netlab.Topology{Pods: 1})
			node, outside := lab.Node(), lab.Host(netlab.Outside)
			p := podmantest.New(t, node.Start)
			p.Serve(t)
			d := newDaemon(t, lab, m, "--pod-source", "podman=unix://"+p.Socket)
			d.write(map[string]string{"config.yaml": shortSyncs, "web.yaml": selectingWeb})
			d.start()
			pods := []string{"pod-a", "pod-b"}
			for _, name := range pods {
				p.Play(t, played(name))
			}
			everywhere := func(when string) {
				t.Helper()
				d.await("both pods "+when, func() error {
					return errors.Join(answeredBy(node, t, "http://10.96.0.10/", pods...), answeredBy(outside, t, "http://192.168.77.1:30080/", pods...))
				})
				for _, from := range pods {
					d.await("both pods from "+from+" "+when, func() error { return answeredInside(p, t, from, pods) })
				}
			}
			for _, frames := range []string{"past", "through"} {
				value := map[string]string{"past": "0", "through": "1"}[frames]
				if _, err := node.Exec(t.Context(), "sysctl", "-w", "net.bridge.bridge-nf-call-iptables="+value); err != nil {
					t.Logf("without br_netfilter: %v", err)
					if frames == "through" {
						break
					}
				}
				everywhere("with frames " + frames + " the packet filter")
			}
			if m.name == "nftables" || m.name == "iptables-nft" {
				p.Run(t, "network", "reload", "-a")
				everywhere("after podman network reload")
				// firewalld, when it loads its rules again, flushes its own table of nftables and makes it anew.
				const firewall = "add table inet firewalld; flush table inet firewalld; add chain inet firewalld filter_FORWARD { type filter hook forward priority filter + 10; policy accept; }; add rule inet firewalld filter_FORWARD ct state { established, related } accept; add rule inet firewalld filter_FORWARD ct status dnat accept"
				d.nodeExec("nft", firewall)
				d.nodeExec("nft", firewall)
				everywhere("after a reload of firewalld")
			}
			d.awaitSync()
			ports := func(mode string) int {
				return strings.Count(d.nodeExec("bridge", "-d", "link", "show"), "hairpin "+mode)
			}
			if on := ports("on"); m.proxies && on != 0 || !m.proxies && on != len(pods) {
				t.Errorf("%d ports have hairpin mode", on)
			}
			d.kill()
			if out, err := d.cleanup(); err != nil || ports("on") != 0 {
				t.Errorf("%v: cleanup left the hairpin mode of %d ports\n%s", err, ports("on"), out)
			}
		})
	}
}

// TestPodsAfterReboot starts an offline node again: the kernel holds nothing, the runtime comes after weir, and its pods have other
// addresses than those that weir remembers. They are served within two seconds of the runtime.
func TestPodsAfterReboot(t *testing.T) {
	t.Parallel()
	lab := netlab.New(t, netlab.Topology{Pods: 1})
	node := lab.Node()
	p := podmantest.New(t, node.Start)
	stop := p.Serve(t)
	d := newDaemon(t, lab, modes[2], "--pod-source", "podman=unix://"+p.Socket)
	d.write(map[string]string{"web.yaml": selectingWeb})
	d.start()
	pods := []string{"pod-a", "pod-b"}
	addresses := func() (list []string) {
		for _, name := range pods {
			list = append(list, p.Run(t, "exec", name+"-server", "/bin/busybox", "hostname", "-i"))
		}
		return list
	}
	for _, name := range pods {
		p.Play(t, played(name))
	}
	d.await("both pods", func() error { return answeredBy(node, t, "http://10.96.0.10/", pods...) })
	before := addresses()

	d.kill()
	stop()
	for _, name := range pods {
		p.Run(t, "pod", "rm", "-f", "-t", "0", name)
	}
	d.nodeExec("nft", "flush", "ruleset")
	d.nodeExec("ip", "route", "del", "default")
	d.nodeExec("ip", "route", "add", "10.96.0.0/12", "dev", "lo", "src", "192.168.77.1") // as weir doctor says of a node without a default route
	d.start()
	d.awaitRunning()
	for _, name := range pods {
		p.Play(t, played(name))
	}
	after := addresses()
	if slices.ContainsFunc(after, func(a string) bool { return slices.Contains(before, a) }) {
		t.Fatalf("the pods have addresses that they had, %v and %v: the premise of the test is wrong", before, after)
	}
	p.Serve(t)
	began := time.Now()
	d.await("the kernel to lead to the pods", func() error {
		rules := d.nodeExec("nft", "list", "ruleset", "ip")
		for _, a := range after {
			if !strings.Contains(rules, a+" . 8080") {
				return fmt.Errorf("%s is not there", a)
			}
		}
		return nil
	})
	const bound, slowMachine = 2 * time.Second, 3 * time.Second
	took := time.Since(began)
	t.Logf("served %s after the runtime came", took)
	if took > bound+slowMachine {
		t.Errorf("served %s after the runtime came, which should take %s at most", took, bound)
	}
	d.await("both pods after the reboot", func() error { return answeredBy(node, t, "http://10.96.0.10/", pods...) })
}

// answeredInside returns nil if exactly these pods answer at the ClusterIP, asked from one of them.
func answeredInside(p *podmantest.Podman, t *testing.T, from string, want []string) error {
	out, err := p.Try(t.Context(), "exec", from+"-server", "/bin/sh", "-c",
		`for i in $(/bin/busybox seq 24); do printf "GET / HTTP/1.0\r\n\r\n" | /bin/busybox nc -w 3 10.96.0.10 80 | /bin/busybox tail -n 1; done`)
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	met := map[string]bool{}
	for _, pod := range strings.Fields(out) {
		met[pod] = true
	}
	if got := slices.Sorted(maps.Keys(met)); !slices.Equal(got, want) {
		return fmt.Errorf("answered by %v", got)
	}
	return nil
}

// deployedWeb is what people have in one file for a cluster: a Deployment, and a Service that names the port of its pods.
const deployedWeb = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {app: web}
spec:
  replicas: 1
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: server
        image: "` + podmantest.Image + `"
        ports:
        - name: http
          containerPort: 8080
        readinessProbe:
          httpGet: {path: /, port: http}
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports:
  - name: http
    port: 80
    targetPort: http
    nodePort: 30080
`

// TestPodsOfOneFile has podman play the file that weir runs with. Only the Deployment in it tells which port http is.
func TestPodsOfOneFile(t *testing.T) {
	t.Parallel()
	lab := netlab.New(t, netlab.Topology{Pods: 1})
	node, outside := lab.Node(), lab.Host(netlab.Outside)
	p := podmantest.New(t, node.Start)
	p.Serve(t)
	socket := "podman=unix://" + p.Socket
	d := newDaemon(t, lab, modes[0], "--pod-source", socket)
	d.write(map[string]string{"app.yaml": deployedWeb})
	d.start()
	d.awaitRunning()
	says := func(want string) error {
		if out := d.status(); !strings.Contains(out, want) {
			return fmt.Errorf("weir status does not say %q:\n%s", want, out)
		}
		return nil
	}
	d.await("word of the pods to come", func() error { return says("Deployment default/web (1 replica) is to make such pods") })

	p.Play(t, deployedWeb)
	everywhere := func(what string, want ...string) {
		t.Helper()
		d.await(what, func() error {
			return errors.Join(answeredBy(node, t, "http://10.96.0.10/", want...), answeredBy(outside, t, "http://192.168.77.1:30080/", want...))
		})
	}
	everywhere("the pod of the Deployment", "web-pod-0")
	if out, err := d.weir("discover", "-f", d.dir, "--pod-source", socket); err != nil || !strings.Contains(out, "weir run asks their readinessProbe") {
		t.Errorf("weir discover: %v\n%s", err, out)
	}

	if out, err := d.weir("snapshot", "--state-dir", d.state); err != nil || !strings.Contains(out, `"web-pod-0"`) {
		t.Errorf("weir snapshot has no pod: %v\n%s", err, out)
	}

	d.write(map[string]string{"app.yaml": strings.Replace(deployedWeb, "- name: http\n          containerPort", "- name: other\n          containerPort", 1)})
	everywhere("no port of that name")
	d.write(map[string]string{"app.yaml": deployedWeb})
	everywhere("the pod again", "web-pod-0")
	p.Run(t, "pod", "rm", "-f", "-t", "0", "web-pod-0")
	everywhere("no pod")
}

// TestReadinessProbesOfPodman runs a pod of a template whose readinessProbe is a command.
func TestReadinessProbesOfPodman(t *testing.T) {
	lab := netlab.New(t, netlab.Topology{Pods: 1})
	node := lab.Node()
	p := podmantest.New(t, node.Start)
	p.Serve(t)
	d := newDaemon(t, lab, modes[2], "--pod-source", "podman=unix://"+p.Socket)
	pod := strings.Replace(played("pod-a"), "{name: server, ",
		"{name: server, readinessProbe: {exec: {command: [/bin/busybox, test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}, ", 1)
	web := strings.Replace(selectingWeb, "metadata: {name: web}", "metadata: {name: web, annotations: {weir/min-healthy: '0'}}", 1)
	d.write(map[string]string{"web.yaml": web, "pod.yaml": pod})
	d.start()
	d.awaitRunning()
	p.Play(t, pod)
	d.awaitStatus("probes: 0 healthy, ")
	d.await("the first result", func() error {
		out := weir(t, "", "status", "web", "--state-dir", d.state).stdout
		if !strings.Contains(out, "last ") || !strings.Contains(out, `failure, "the command ended with 1`) {
			return fmt.Errorf("weir status web says\n%s", out)
		}
		return nil
	})
	if err := answeredBy(node, t, "http://10.96.0.10/"); err != nil {
		t.Errorf("before the first success: %v", err)
	}
	p.Run(t, "exec", "pod-a-server", "/bin/busybox", "touch", "/tmp/ready")
	d.await("the pod that is ready", func() error { return answeredBy(node, t, "http://10.96.0.10/", "pod-a") })
	p.Run(t, "exec", "pod-a-server", "/bin/busybox", "rm", "/tmp/ready")
	d.await("the pod to go", func() error { return answeredBy(node, t, "http://10.96.0.10/") })
	if out, err := d.weir("probe", "web", "-f", d.dir, "--pod-source", "podman=unix://"+p.Socket); err == nil || !strings.Contains(out, "the command ended with 1") {
		t.Errorf("weir probe: %v\n%s", err, out)
	}
}
