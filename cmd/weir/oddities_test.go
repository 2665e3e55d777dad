package main_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"golang.org/x/tools/txtar"

	"weir/backends/netlab"
)

// askStatus runs `weir status` on the node and returns all that it prints.
func (d *daemon) askStatus(more ...string) (string, error) {
	cmd := d.lab.Node().Command(context.Background(), os.Getenv(binaryEnv), append([]string{"status", "--state-dir", d.state}, more...)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := d.lab.Node().Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

// TestReadOnlyState runs weir with a state directory that nothing can be written to. Traffic follows the input, weir status
// tells a weir that cannot be reached from one that does not run, and the socket appears once it can be made.
func TestReadOnlyState(t *testing.T) {
	d := newRunDaemon(t)
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", d.state, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", d.state, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(d.state, unix.MNT_DETACH) })
	remount(unix.MS_RDONLY)
	d.write(map[string]string{"config.yaml": strings.Replace(kubeProxyConfig, "{minSyncPeriod", "{syncPeriod: 1s, minSyncPeriod", 1)})
	d.start()
	d.awaitSync()
	d.awaitLog(`\[WARN\].*read-only file system`)
	want := fmt.Sprintf("process %d runs as weir in this network namespace but cannot be reached", d.cmd.Process.Pid)
	if out, err := d.askStatus(); err == nil || !strings.Contains(out, want) {
		t.Errorf("read-only: %v: %s", err, out)
	}
	served := func(address string) {
		t.Helper()
		d.write(map[string]string{"web.yaml": strings.ReplaceAll(webService, "10.96.0.10", address)})
		d.awaitSync()
		d.expectHTTP("http://127.0.0.1:10256/healthz", 200, "")
	}
	served("10.96.0.77")
	for _, address := range []string{"10.96.0.80", "10.96.0.81", "10.96.0.77"} { // each is a reason to write everything again
		served(address)
	}
	told := map[string]int{}
	for line := range strings.Lines(d.logs()) {
		if _, message, warns := strings.Cut(line, "[WARN]"); warns && strings.Contains(message, "read-only file system") {
			if told[message]++; told[message] > 1 || len(told) > 4 {
				t.Errorf("told again: %s", message)
			}
		}
	}
	remount(0)
	d.await("the socket", func() error {
		out, err := d.askStatus()
		if err == nil && !strings.Contains(out, "10.96.0.77:80") {
			err = errors.New(out)
		}
		return err
	})
	remount(unix.MS_RDONLY)
	served("10.96.0.78")
	if out, err := d.askStatus(); err != nil || !strings.Contains(out, "10.96.0.78:80") {
		t.Errorf("read-only again: %v: %s", err, out)
	}
	d.kill()
	if out, err := d.askStatus(); err == nil || !strings.Contains(out, "no weir run is listening") || strings.Contains(out, "cannot be reached") {
		t.Errorf("after the end: %v: %s", err, out)
	}
}

// TestFewDescriptors has clients hold more connections than a weir in userspace mode may have descriptors. What is above the
// limit is refused, and files are read, commands run and probes answered as ever.
func TestFewDescriptors(t *testing.T) {
	d := painDaemon(t, userspaceMode(t))
	line := d.line(d.args("run")...)
	d.launch(d.lab.Node().Command(context.Background(), "sh", append([]string{"-c", `ulimit -n 256; exec "$@"`, "sh"}, line...)...))
	d.awaitSync()
	client, refused := d.lab.Host(netlab.Client), 0
	for range 300 {
		flow, err := client.Open(netlab.TCP, webFront, answerWait)
		if err != nil {
			refused++
			continue
		}
		defer flow.Close()
	}
	second := netip.MustParseAddrPort("10.96.0.11:80")
	d.write(map[string]string{"more.yaml": "---\n" + strings.NewReplacer("name: web", "name: more", webFront.Addr().String(), second.Addr().String()).Replace(painService) +
		"---\n" + strings.ReplaceAll(painSlice(2), "web", "more")})
	d.awaitSync()
	d.expectHTTP("http://127.0.0.1:10256/healthz", 200, "")
	d.await("the other Service", func() error {
		if r := client.Probe(netlab.TCP, second, answerWait); r.Server != "pod2" {
			return fmt.Errorf("%v; %d were refused before", r, refused)
		}
		return nil
	})
}

// TestNoForeignScalarIsTold gives each document that is not weir's to a running weir, and looks at all that it tells: its log,
// /healthz, its metrics and weir status.
func TestNoForeignScalarIsTold(t *testing.T) {
	archive, err := txtar.ParseFile("testdata/secrets.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, strict := range []bool{false, true} {
		t.Run(fmt.Sprintf("strict=%v", strict), func(t *testing.T) {
			d := newRunDaemon(t)
			d.flags = append(d.flags, fmt.Sprintf("--strict-tree=%v", strict), "--log-level", "trace")
			d.start()
			d.awaitSync()
			for i, f := range archive.Files {
				faulty := fmt.Sprintf("faulty-%d", i) // which is told once all was read
				d.write(map[string]string{f.Name: string(f.Data), "zz.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: " + faulty + "}\nspec: {prots: []}\n"})
				var told string
				d.await("a message about "+f.Name, func() error {
					_, health, err := httpGet(d, "http://127.0.0.1:10256/healthz")
					if err != nil {
						return err
					}
					_, metrics, err := httpGet(d, "http://127.0.0.1:10249/metrics")
					if err != nil {
						return err
					}
					state, err := d.askStatus("--verbose")
					if err != nil {
						return err
					}
					if told = health + metrics + state + d.logs(); !strings.Contains(told, faulty) {
						return errors.New(state)
					}
					return nil
				})
				if at := strings.Index(told, "S3CRETmarker"); at >= 0 {
					t.Errorf("%s: %s", f.Name, told[max(0, at-300):min(len(told), at+100)])
				}
				d.write(map[string]string{f.Name: ""})
			}
		})
	}
}

// TestNodeIsTold runs weir on a node that no endpoint names, and that is asked to give away its own address. Both are told, and
// the node keeps its servers.
func TestNodeIsTold(t *testing.T) {
	eachMode(t, modes, func(t *testing.T, m mode) {
		if m.rootless {
			t.Skip("serves the addresses that the node has")
		}
		d := painDaemon(t, m)
		d.lab.Node().Serve(t, netlab.TCP, 80)
		d.write(map[string]string{
			"web.yaml":   painService + "  externalIPs: [" + netlab.NodeIPv4.String() + "]\n",
			"slice.yaml": painSlice(1) + "  nodeName: node-by-another-name\n",
		})
		d.start()
		d.awaitSync()
		d.awaitLog(regexp.QuoteMeta(netlab.NodeIPv4.String()) + " is not served: it is an address of this node.*id=W024")
		d.awaitLog("for instance on node-by-another-name.*id=W028")
		if r := d.lab.Host(netlab.Outside).Probe(netlab.TCP, netip.AddrPortFrom(netlab.NodeIPv4, 80), answerWait); r.Server != netlab.Node {
			t.Errorf("the node's own server: %v", r)
		}
		d.awaitAnswer("pod1")
	})
}

// TestNodeGetsAnAddressOfAService gives a running node the address that a load balancer had. The Service is served there as
// before, which takes the port from the node's own server: the log, weir status and weir plan tell.
func TestNodeGetsAnAddressOfAService(t *testing.T) {
	eachMode(t, modes, func(t *testing.T, m mode) {
		if m.rootless {
			t.Skip("serves the addresses that the node has")
		}
		d := painDaemon(t, m)
		d.write(map[string]string{"web.yaml": strings.Replace(painService, "spec:", "status: {loadBalancer: {ingress: [{ip: 203.0.113.9}]}}\nspec:\n  type: LoadBalancer", 1)})
		d.start()
		d.awaitSync()
		const told = "203.0.113.9:80/TCP is an address of this node too"
		if strings.Contains(d.logs(), told) {
			t.Errorf("the node has no such address yet, but the log is\n%s", d.logs())
		}
		d.nodeExec("ip", "address", "add", "203.0.113.9/32", "dev", "lo")
		d.awaitLog(regexp.QuoteMeta(told) + ".*id=W006")
		d.awaitAnswer("pod1")
		if out, err := d.askStatus("--verbose"); err != nil || !strings.Contains(out, told) {
			t.Errorf("weir status: %v\n%s", err, out)
		}
		if out, err := d.run("reconcile", "--dry-run", "--verbose"); err != nil || !strings.Contains(out, told) {
			t.Errorf("weir plan: %v\n%s", err, out)
		}
		d.nodeExec("ip", "address", "del", "203.0.113.9/32", "dev", "lo")
		d.await("the end of the notice", func() error {
			out, err := d.askStatus("--verbose")
			if err == nil && strings.Contains(out, told) {
				err = errors.New(out)
			}
			return err
		})
	})
}

// TestNodeVanishes removes the Node that told the range of local pods: the last one stays in force, and that is told.
func TestNodeVanishes(t *testing.T) {
	for _, m := range ruleModes {
		t.Run(m.name, func(t *testing.T) {
			d := painDaemon(t, m)
			d.write(map[string]string{
				"config.yaml": strings.Replace(painConfig, "clusterCIDR: 10.244.0.0/16", "detectLocalMode: NodeCIDR", 1),
				"node.yaml":   "apiVersion: v1\nkind: Node\nmetadata: {name: node}\nspec: {podCIDR: " + netlab.PodCIDR4.String() + "}\n",
			})
			d.start()
			d.awaitSync()
			before := d.nodeExec("nft", "list", "ruleset") + d.ownRules()
			d.write(map[string]string{"node.yaml": ""})
			d.awaitLog("last range that was found stays in force.*id=W027")
			if r := d.lab.Host(netlab.Client).Probe(netlab.TCP, webFront, answerWait); r.Source.Addr() != netlab.PodIPv4(100) {
				t.Errorf("a pod of the node is masqueraded: %v", r)
			}
			if after := d.nodeExec("nft", "list", "ruleset") + d.ownRules(); withoutCounters(after) != withoutCounters(before) {
				t.Errorf("the rules changed:\n%s\nwere:\n%s", after, before)
			}
		})
	}
}

func withoutCounters(rules string) string {
	return regexp.MustCompile(`packets \d+ bytes \d+`).ReplaceAllString(rules, "")
}
