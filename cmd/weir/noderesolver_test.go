package main_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"weir/backends/netlab"
)

// withEtc returns a command line that sees the node's own /etc.
func (d *daemon) withEtc(line ...string) []string {
	if d.etc == "" {
		return line
	}
	return append([]string{"unshare", "--mount", "--propagation", "private", "sh", "-c", d.mounts() + `exec "$@"`, "sh"}, line...)
}

// mounts returns the commands that mount the node's own /etc. A file below mounted is mounted itself, as container runtimes do,
// and a directory below run at its name in /run.
func (d *daemon) mounts() string {
	text := fmt.Sprintf("mount --bind %s /etc && ", d.etc)
	mounted, _ := filepath.Glob(filepath.Join(d.etc, "mounted", "*"))
	for _, file := range mounted {
		text += fmt.Sprintf("mount --bind %s /etc/%s && ", file, filepath.Base(file))
	}
	runs, _ := filepath.Glob(filepath.Join(d.etc, "run", "*"))
	for _, dir := range runs {
		text += fmt.Sprintf("mkdir -p /run/%[2]s && mount --bind %[1]s /run/%[2]s && ", dir, filepath.Base(dir))
	}
	if dir, err := filepath.Abs(unpackedResolved); err == nil {
		text += "export PATH=$PATH:" + dir + "/usr/bin && "
	}
	return text
}

// giveEtc gives the node files in an /etc of its own.
func (d *daemon) giveEtc(files map[string]string) {
	d.t.Helper()
	d.etc = d.t.TempDir()
	if err := os.Chmod(d.etc, 0o755); err != nil {
		d.t.Fatal(err)
	}
	for _, name := range []string{"passwd", "group", "ld.so.cache"} {
		if data, err := os.ReadFile(filepath.Join("/etc", name)); err == nil {
			d.writeEtc(name, string(data))
		}
	}
	_ = os.Mkdir(filepath.Join(d.etc, "alternatives"), 0o755)
	programs, _ := filepath.Glob("/etc/alternatives/ip*")
	for _, link := range programs {
		if to, err := os.Readlink(link); err == nil {
			_ = os.Symlink(to, filepath.Join(d.etc, "alternatives", filepath.Base(link)))
		}
	}
	d.writeEtc("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
	for name, text := range files {
		d.writeEtc(name, text)
	}
}

func (d *daemon) writeEtc(name, text string) {
	d.t.Helper()
	file := filepath.Join(d.etc, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		d.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		d.t.Fatal(err)
	}
}

// expectEtc compares a file with what it must be.
func (d *daemon) expectEtc(when, name, want string) {
	d.t.Helper()
	got, err := os.ReadFile(filepath.Join(d.etc, name))
	if err != nil || string(got) != want {
		d.t.Errorf("%s: %s is %q, %v; want %q", when, name, got, err, want)
	}
}

// process runs a program of the node, and returns what it prints.
func (d *daemon) process(line ...string) (string, error) {
	line = d.withEtc(line...)
	return d.lab.Node().Exec(d.t.Context(), line[0], line[1:]...)
}

// awaitHost waits until processes of the node find an address of a name, or none, by libc.
func (d *daemon) awaitHost(name, want string) {
	d.t.Helper()
	d.await(name+" to lead to "+want, func() error {
		out, err := d.process("getent", "ahostsv4", name)
		if got, _, _ := strings.Cut(out, " "); got != want {
			return fmt.Errorf("getent prints %q, %v", out, err)
		}
		return nil
	})
}

// expectPrograms has programs with glibc, with musl and with a library of their own find web.
func (d *daemon) expectPrograms(when string) {
	d.t.Helper()
	const web = "web.default.svc.cluster.local"
	if out, err := d.process("curl", "-s", "-S", "-m", "10", "http://"+web+"/"); err != nil || out != "pod1\n" {
		d.t.Errorf("%s: curl: %q, %v", when, out, err)
	}
	musl := muslProgram(d.t)
	for range 20 {
		if out, err := d.process(musl, web); err != nil || strings.TrimSpace(out) != serviceIP(d.t) {
			d.t.Errorf("%s: musl: %q, %v", when, out, err)
			return
		}
	}
}

// muslProgram builds a program that looks up a name with musl.
func muslProgram(t *testing.T) string {
	t.Helper()
	netlab.RequireProgram(t, "musl-gcc")
	const source = `#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
	char text[INET_ADDRSTRLEN];
	int e = getaddrinfo(argv[1], "80", &hints, &found);
	if (e) return fprintf(stderr, "%s\n", gai_strerror(e)), 1;
	puts(inet_ntop(AF_INET, &((struct sockaddr_in *)found->ai_addr)->sin_addr, text, sizeof text));
}
`
	program := filepath.Join(t.TempDir(), "lookup")
	cmd := exec.Command("musl-gcc", "-static", "-o", program, "-x", "c", "-")
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("musl-gcc: %v\n%s", err, out)
	}
	return program
}

// serveWeb answers HTTP as the endpoint of the Service web.
func (d *daemon) serveWeb() {
	d.t.Helper()
	var ln net.Listener
	err := d.lab.Host("pod1").Do(func() (err error) {
		ln, err = net.Listen("tcp", ":8080")
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { ln.Close() })
	go http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "pod1") }))
}

// serveUpstream answers for www.example.com, and that nothing else exists, as late as a resolver that is not on the node.
func (d *daemon) serveUpstream(at string) {
	d.t.Helper()
	var conn net.PacketConn
	err := d.lab.Node().Do(func() (err error) {
		conn, err = net.ListenPacket("udp", at)
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable, m.Additionals, m.RCode = true, true, nil, dnsmessage.RCodeNameError
			if q.Name.String() == "www.example.com." {
				m.RCode = dnsmessage.RCodeSuccess
				if q.Type == dnsmessage.TypeA {
					m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 80}}}}
				}
			}
			if reply, err := m.Pack(); err == nil {
				time.AfterFunc(100*time.Millisecond, func() { conn.WriteTo(reply, from) }) // musl takes the first answer of any server
			}
		}
	}()
}

// unpackedResolved has the files of the package systemd-resolved. Installed, it would take over the machine's /etc/resolv.conf.
const unpackedResolved = "../../.cache/systemd-resolved"

// background runs a program of the node until the test ends.
func (d *daemon) background(line ...string) {
	d.t.Helper()
	line = d.withEtc(line...)
	cmd := d.lab.Node().Command(d.t.Context(), line[0], line[1:]...)
	cmd.Stdout, cmd.Stderr = d.log, d.log
	if err := d.lab.Node().Start(cmd); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// TestNodeResolverResolved has the real systemd-resolved ask weir for the names of the cluster, and no more after each of its
// ends.
func TestNodeResolverResolved(t *testing.T) {
	t.Parallel()
	resolved, err := filepath.Abs(unpackedResolved + "/lib/systemd/systemd-resolved")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(resolved); err != nil {
		netlab.Missing(t, "make test unpacks it: %v", err)
	}
	netlab.RequireRoot(t, "give the user of systemd-resolved its files")
	netlab.RequireProgram(t, "dbus-daemon")
	d := newRunDaemon(t)
	const web, stub = "web.default.svc.cluster.local", "nameserver 127.0.0.53\n"
	d.giveEtc(map[string]string{"resolv.conf": stub, "hosts": "127.0.0.1 localhost\n", "systemd/resolved.conf": "[Resolve]\nDNS=127.0.0.9\nDNSSEC=no\n",
		"passwd": "root:x:0:0::/:/bin/sh\nsystemd-resolve:x:989:989::/:/bin/false\n", "group": "root:x:0:\nsystemd-resolve:x:989:\n", "run/dbus/none": "",
		"bus.conf": `<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth><policy context="default">
<allow user="*"/><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/></policy></busconfig>`})
	resolve := filepath.Join(d.etc, "run/systemd/resolve")
	if err := os.MkdirAll(resolve, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(resolve, 989, 989); err != nil {
		t.Fatal(err)
	}
	d.serveWeb()
	d.serveUpstream("127.0.0.9:53")
	d.background("dbus-daemon", "--config-file=/etc/bus.conf", "--nofork", "--nopidfile")
	d.await("the bus", func() error { _, err := os.Stat(filepath.Join(d.etc, "run/dbus/system_bus_socket")); return err })
	d.background(resolved)
	d.awaitHost("www.example.com", "192.0.2.80")
	status := func() string {
		out, err := d.process("resolvectl", "domain")
		if err != nil {
			t.Errorf("resolvectl: %v", err)
		}
		return out
	}

	d.flags = []string{"--dns", "--dns-listen", "127.0.0.1:5353"}
	d.start()
	d.awaitHost(web, serviceIP(t))
	d.expectPrograms("set")
	d.awaitHost("www.example.com", "192.0.2.80")
	if out, err := d.process("getent", "hosts", serviceIP(t)); err != nil || !strings.Contains(out, web) {
		t.Errorf("the name of the address: %q, %v", out, err)
	}
	if out, err := d.process("resolvectl", "revert", "weir-names0"); err != nil {
		t.Fatal(out, err)
	}
	d.await("a repair", func() error {
		if out := status(); !strings.Contains(out, "~cluster.local") {
			return fmt.Errorf("resolvectl domain:\n%s", out)
		}
		return nil
	})
	d.awaitHost(web, serviceIP(t))
	d.terminate()
	if out := status(); strings.Contains(out, "weir") {
		t.Errorf("after SIGTERM:\n%s", out)
	}
	d.start()
	d.awaitHost(web, serviceIP(t))
	d.kill()
	d.await("the link to go", func() error {
		if out := status(); strings.Contains(out, "weir") {
			return fmt.Errorf("resolvectl domain:\n%s", out)
		}
		return nil
	})
	d.awaitHost("www.example.com", "192.0.2.80")
	d.expectEtc("all the time", "resolv.conf", stub)
}

// runDnsmasq has the node ask a dnsmasq of its own, at 127.0.0.1, and returns its resolv.conf.
func (d *daemon) runDnsmasq() (resolv string) {
	d.t.Helper()
	netlab.RequireProgram(d.t, "dnsmasq")
	resolv = "nameserver 127.0.0.1\noptions timeout:1\n"
	d.giveEtc(map[string]string{"resolv.conf": resolv, "hosts": "127.0.0.1 localhost\n", "dnsmasq.d/README": "",
		"dnsmasq.conf": "no-resolv\nserver=127.0.0.9\nlisten-address=127.0.0.1\nbind-interfaces\nuser=root\nconf-dir=/etc/dnsmasq.d/,*.conf\n",
		"init.d/dnsmasq": `#!/bin/sh
p=$(cat /etc/dnsmasq.pid 2>/dev/null) && kill $p && while grep -q 'State:.[^Z]' /proc/$p/status 2>/dev/null; do sleep 0.02; done
if rm /etc/slow 2>/dev/null; then
	touch /etc/restarting
	sleep 1
fi
exec dnsmasq -C /etc/dnsmasq.conf -x /etc/dnsmasq.pid
`})
	if err := os.Chmod(filepath.Join(d.etc, "init.d/dnsmasq"), 0o755); err != nil {
		d.t.Fatal(err)
	}
	d.serveUpstream("127.0.0.9:53")
	d.t.Cleanup(func() {
		text, _ := os.ReadFile(filepath.Join(d.etc, "dnsmasq.pid"))
		if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
	})
	if out, err := d.process("/etc/init.d/dnsmasq", "restart"); err != nil {
		d.t.Fatal(out, err)
	}
	d.awaitHost("www.example.com", "192.0.2.80")
	return resolv
}

// TestNodeResolverDnsmasq has a dnsmasq of the node ask weir for the names of the cluster, and no more after each of its ends.
func TestNodeResolverDnsmasq(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	const web = "web.default.svc.cluster.local"
	resolv := d.runDnsmasq()
	d.serveWeb()
	none := func(when string) {
		t.Helper()
		if left, _ := filepath.Glob(filepath.Join(d.etc, "dnsmasq.d", "*.conf")); left != nil {
			t.Errorf("%s: left %v", when, left)
		}
		if out, err := d.process("getent", "hosts", web); err == nil {
			t.Errorf("%s: %s", when, out)
		}
		d.awaitHost("www.example.com", "192.0.2.80")
	}
	d.flags = []string{"--dns", "--dns-listen", "127.0.0.1:5353"}
	d.start()
	d.awaitHost(web, serviceIP(t))
	d.expectPrograms("set")
	d.awaitHost("www.example.com", "192.0.2.80")
	if err := os.Remove(filepath.Join(d.etc, "dnsmasq.d/weir.conf")); err != nil {
		t.Fatal(err)
	}
	d.await("a repair", func() error { _, err := os.Stat(filepath.Join(d.etc, "dnsmasq.d/weir.conf")); return err })
	d.awaitHost(web, serviceIP(t))
	d.terminate()
	none("SIGTERM")

	d.start()
	d.awaitHost(web, serviceIP(t))
	d.expectPrograms("set")
	d.writeEtc("slow", "")
	if err := os.Remove(filepath.Join(d.etc, "dnsmasq.d/weir.conf")); err != nil {
		t.Fatal(err)
	}
	d.await("a restart of dnsmasq", func() error { _, err := os.Stat(filepath.Join(d.etc, "restarting")); return err })
	d.terminate()
	none("SIGTERM while dnsmasq restarts")

	d.start()
	d.awaitHost(web, serviceIP(t))
	d.expectPrograms("set")
	d.kill()
	d.awaitHost("www.example.com", "192.0.2.80")
	if out, err := d.cleanup(); err != nil || !strings.Contains(out, "resolvers: 1 put back") {
		t.Errorf("weir cleanup: %v\n%s", err, out)
	}
	none("SIGKILL and cleanup")
	d.expectEtc("all the time", "resolv.conf", resolv)
}

// TestNodeResolverPortTaken has a dnsmasq of the node hold the port at which weir would answer. It asks weir where pods do.
func TestNodeResolverPortTaken(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	resolv := d.runDnsmasq()
	d.write(map[string]string{"web.yaml": strings.Replace(webService, serviceIP(t), "10.96.0.80", 1)})
	d.flags = []string{"--dns"}
	d.start()
	d.awaitHost("web.default.svc.cluster.local", "10.96.0.80")
	d.awaitHost("www.example.com", "192.0.2.80")
	if out, err := d.process(d.line("doctor", "--state-dir", d.state)...); strings.Contains(out, "not asked for") {
		t.Errorf("weir doctor: %v\n%s", err, out)
	}
	d.terminate()
	if left, _ := filepath.Glob(filepath.Join(d.etc, "dnsmasq.d", "*.conf")); left != nil {
		t.Errorf("left %v", left)
	}
	d.expectEtc("all the time", "resolv.conf", resolv)
}

const weirDNS = "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\ndns: {%s}\n"

// TestNodeResolver has a node with a plain resolv.conf ask weir, and no more after each of its ends.
func TestNodeResolver(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	const web, foreign, hosts = "web.default.svc.cluster.local", "search lan\nnameserver 127.0.0.9", "127.0.0.1 localhost\n"
	d.giveEtc(map[string]string{"resolv.conf": foreign, "hosts": hosts})
	d.serveWeb()
	d.serveUpstream("127.0.0.9:53")
	d.write(map[string]string{"weir.yaml": fmt.Sprintf(weirDNS, "")})
	if plan, err := d.pendingPlan(); err != nil || !strings.Contains(plan, `+ names: "nameserver 127.0.0.1" in /etc/resolv.conf`) {
		t.Errorf("the plan: %v\n%s", err, plan)
	}

	d.start()
	d.awaitHost(web, serviceIP(t))
	d.expectPrograms("set")
	d.awaitHost("www.example.com", "192.0.2.80")
	if plan, err := d.pendingPlan(); err != nil || strings.Contains(plan, "names") {
		t.Errorf("the plan of what is in force: %v\n%s", err, plan)
	}
	if out, err := d.process(d.line("doctor", "--state-dir", d.state)...); !strings.Contains(out, "names for processes, kept") {
		t.Errorf("weir doctor: %v\n%s", err, out)
	}

	const later = "nameserver 127.0.0.9\n# of a DHCP client\n"
	d.writeEtc("resolv.conf", later)
	d.awaitHost(web, serviceIP(t))
	d.awaitLog("another process changed how this node finds names: set again")

	// Without a resolv.conf the names are in /etc/hosts, and only as long as that is so.
	if err := errors.Join(os.Remove(filepath.Join(d.etc, "resolv.conf")), os.Symlink("none/of/these", filepath.Join(d.etc, "resolv.conf"))); err != nil {
		t.Fatal(err)
	}
	d.awaitLog("set on the node: what=.*/etc/hosts|set again: what=.*/etc/hosts")
	d.awaitNameAt("127.0.0.1:53", "www.example.com.", "192.0.2.80") // by the resolvers that were known
	if err := os.Remove(filepath.Join(d.etc, "resolv.conf")); err != nil {
		t.Fatal(err)
	}
	d.writeEtc("resolv.conf", later)
	d.await("resolv.conf to be used again", func() error {
		resolv, err := os.ReadFile(filepath.Join(d.etc, "resolv.conf"))
		lines, err2 := os.ReadFile(filepath.Join(d.etc, "hosts"))
		if err := errors.Join(err, err2); err != nil || !strings.Contains(string(resolv), "nameserver 127.0.0.1\n") || string(lines) != hosts {
			return fmt.Errorf("resolv.conf is %q, hosts %q, %v", resolv, lines, err)
		}
		return nil
	})

	d.terminate()
	d.expectEtc("SIGTERM", "resolv.conf", later)

	d.start()
	d.awaitHost(web, serviceIP(t))
	d.kill()
	d.awaitHost("www.example.com", "192.0.2.80")
	if out, err := d.process(d.line("doctor", "--state-dir", d.state)...); !strings.Contains(out, "weir cleanup") {
		t.Errorf("weir doctor: %v\n%s", err, out)
	}
	if out, err := d.cleanup(); err != nil || !strings.Contains(out, "resolvers: 1 put back") {
		t.Errorf("weir cleanup: %v\n%s", err, out)
	}
	d.expectEtc("SIGKILL and cleanup", "resolv.conf", later)

	at := netip.AddrPortFrom(netlab.NodeIPv4, 53).String()
	d.flags = []string{"--dns-listen", at}
	d.start()
	d.awaitHost(web, serviceIP(t))
	if out, err := d.process(d.line("doctor", "--state-dir", d.state)...); strings.Contains(out, "weir cleanup") || strings.Contains(out, "not asked for") {
		t.Errorf("weir doctor of a weir that answers at %s: %v\n%s", at, err, out)
	}
	d.kill()
	d.flags = []string{"--dns-node-resolver", "none"}
	d.start()
	d.await("the resolver to be taken back", func() error {
		if got, err := os.ReadFile(filepath.Join(d.etc, "resolv.conf")); err != nil || string(got) != later {
			return fmt.Errorf("resolv.conf is %q, %v", got, err)
		}
		return nil
	})
	d.expectEtc("all the time", "hosts", hosts)
}

// TestNodeResolverHosts has a node whose resolv.conf cannot name weir find names in /etc/hosts. Both files are mounted, as in a
// container.
func TestNodeResolverHosts(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	const web, hosts = "web.default.svc.cluster.local", "127.0.0.1 localhost\n# no end"
	d.giveEtc(map[string]string{"resolv.conf": "nameserver 127.0.0.9\n", "mounted/hosts": hosts, "hosts": ""})
	d.serveWeb()
	d.serveUpstream("127.0.0.9:53")
	d.flags = []string{"--dns", "--dns-listen", "127.0.0.1:5353"}
	d.start()
	d.awaitHost(web, serviceIP(t))
	d.expectPrograms("set")
	d.write(map[string]string{"other.yaml": strings.NewReplacer("name: web", "name: other", serviceIP(t), "10.96.0.99").Replace(webService)})
	d.awaitHost("other.default.svc.cluster.local", "10.96.0.99")
	if out, err := d.process(d.line("doctor", "--state-dir", d.state)...); !strings.Contains(out, "in /etc/hosts") || strings.Contains(out, "find no names") {
		t.Errorf("weir doctor: %v\n%s", err, out)
	}
	d.write(map[string]string{"other.yaml": ""})
	d.await("the name to go", func() error {
		if out, err := d.process("getent", "hosts", "other.default.svc.cluster.local"); err == nil {
			return fmt.Errorf("getent prints %s", out)
		}
		return nil
	})
	d.terminate()
	d.expectEtc("SIGTERM", "mounted/hosts", hosts)
	d.start()
	d.awaitHost(web, serviceIP(t))
	d.kill()
	if out, err := d.cleanup(); err != nil || !strings.Contains(out, "resolvers: 1 put back") {
		t.Errorf("weir cleanup: %v\n%s", err, out)
	}
	d.expectEtc("cleanup", "mounted/hosts", hosts)
	d.expectEtc("all the time", "resolv.conf", "nameserver 127.0.0.9\n")
}

// TestNodeResolverElsewhere leaves the files alone that are those of the whole machine: weir has entered a network namespace.
func TestNodeResolverElsewhere(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	before, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		netlab.Missing(t, "%v", err)
	}
	d.flags = []string{"--dns", "--dns-upstream", "127.0.0.1:9"}
	d.start()
	d.awaitLog("is that of processes in another network namespace")
	if now, err := os.ReadFile("/etc/resolv.conf"); err != nil || string(now) != string(before) {
		t.Errorf("/etc/resolv.conf is\n%s", now)
	}
}
