package main_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// lookup asks the name server at 127.0.0.1:53 of the node for the addresses of a name.
func (d *daemon) lookup(network, name string) (rcode dnsmessage.RCode, addrs []string, err error) {
	return d.lookupAt("127.0.0.1:53", network, name)
}

func (d *daemon) lookupAt(at, network, name string) (rcode dnsmessage.RCode, addrs []string, err error) {
	return d.lookupFrom(netlab.Node, at, network, name)
}

func (d *daemon) lookupFrom(host, at, network, name string) (rcode dnsmessage.RCode, addrs []string, err error) {
	m, err := d.question(host, at, network, name, dnsmessage.TypeA)
	for _, r := range m.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			addrs = append(addrs, net.IP(a.A[:]).String())
		}
	}
	return m.RCode, addrs, err
}

// question asks a name server one question.
func (d *daemon) question(host, at, network, name string, kind dnsmessage.Type) (m dnsmessage.Message, err error) {
	return d.questionWithin(2*time.Second, host, at, network, name, kind)
}

func (d *daemon) questionWithin(limit time.Duration, host, at, network, name string, kind dnsmessage.Type) (m dnsmessage.Message, err error) {
	ask := dnsmessage.Message{Header: dnsmessage.Header{ID: 9, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	msg, err := ask.Pack()
	if err != nil {
		return m, err
	}
	var reply []byte
	err = d.lab.Host(host).Do(func() error {
		conn, err := net.Dial(network, at)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(limit))
		if network == "tcp" {
			msg = append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
		}
		if _, err := conn.Write(msg); err != nil {
			return err
		}
		reply = make([]byte, 4096)
		n, err := conn.Read(reply)
		reply = reply[:n]
		return err
	})
	if err != nil {
		return m, err
	}
	if network == "tcp" {
		reply = reply[2:]
	}
	return m, m.Unpack(reply)
}

// awaitName waits until a name has these addresses, or the response code if there are none.
func (d *daemon) awaitName(name, want string) {
	d.t.Helper()
	d.awaitNameAt("127.0.0.1:53", name, want)
}

func (d *daemon) awaitNameAt(at, name, want string) {
	d.t.Helper()
	d.await(name+" is "+want, func() error {
		for _, network := range []string{"udp", "tcp"} {
			rcode, addrs, err := d.lookupAt(at, network, name)
			if err != nil {
				return err
			}
			got := strings.Join(addrs, " ")
			if len(addrs) == 0 {
				got = rcode.String()
			}
			if got != want {
				return fmt.Errorf("%s over %s is %s", name, network, got)
			}
		}
		return nil
	})
}

// TestNames asks a running weir for names while its input changes, breaks, goes and comes back.
func TestNames(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	d.flags = []string{"--dns", "--dns-upstream", "127.0.0.1:9"}
	const web, other = "web.default.svc.cluster.local.", "other.default.svc.cluster.local."
	d.start()
	d.awaitName(web, serviceIP(t))
	d.awaitName(other, "RCodeNameError")
	d.awaitName("www.example.com.", "RCodeServerFailure")

	service := strings.NewReplacer("name: web", "name: other", serviceIP(t), "10.96.0.99").Replace(webService)
	d.write(map[string]string{"other.yaml": service})
	d.awaitName(other, "10.96.0.99")
	d.write(map[string]string{"other.yaml": strings.Replace(service, "10.96.0.99", "10.96.0.98", 1)})
	d.awaitName(other, "10.96.0.98")
	for args, want := range map[string]string{"other": "10.96.0.98", "other.default AAAA": "no record of that type", "none": "none does not exist", "www.example.com": "www.example.com. is of no Service; other resolvers answer for it, and do not: no resolver answers"} {
		out, err := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), append([]string{"dns", "lookup", "--state-dir", d.state}, strings.Fields(args)...)...)
		if text := fmt.Sprint(out, err); !strings.Contains(text, want) {
			t.Errorf("weir dns lookup %s: %s", args, text)
		}
	}

	d.write(map[string]string{"web.yaml": "kind: Service\napiVersion: v1\nmetadata: {name: web}\nspec: {prots: []}\n"})
	d.awaitLog("prots")
	d.awaitName(web, serviceIP(t))

	d.write(map[string]string{"web.yaml": webService, "other.yaml": ""})
	d.awaitName(other, "RCodeNameError")
	d.awaitName(web, serviceIP(t))
}

// TestNamesConfigured has the configuration of a running weir ask for names, in other ways, and no more.
func TestNamesConfigured(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	const head = "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\n"
	const web, printer = "web.default.svc.cluster.local.", "printer.lan."
	d.start()
	d.awaitRunning()
	if _, _, err := d.lookup("udp", web); err == nil {
		t.Error("names are answered although nobody asked for that")
	}
	d.write(map[string]string{"weir.yaml": head + "dns: {hosts: {printer.lan: [192.0.2.7]}, rewrite: {shop.lan: web.default.svc.cluster.local}, upstreams: [\"127.0.0.1:9\"]}\n"})
	d.awaitName(web, serviceIP(t))
	d.awaitName(printer, "192.0.2.7")
	d.awaitName("shop.lan.", serviceIP(t))
	d.awaitName("www.example.com.", "RCodeServerFailure")
	if m, err := d.question(netlab.Node, "127.0.0.1:53", "tcp", "cluster.local.", dnsmessage.TypeAXFR); err != nil || m.RCode != dnsmessage.RCodeRefused {
		t.Errorf("a copy of the zone that nobody may have: %v %v", m.RCode, err)
	}
	report, _ := examine(t, d.lab.Node())
	if c := find(t, report, "", "names for processes"); strings.Contains(c.Detail, "not asked for") {
		t.Errorf("doctor does not find that weir answers: %+v", c)
	}
	d.write(map[string]string{"corp.yaml": head + "dns: {}\n"})
	d.awaitLog("WeirConfiguration")
	d.awaitName(printer, "192.0.2.7") // two configurations are refused
	d.write(map[string]string{"corp.yaml": "", "weir.yaml": head + "dns: {listen: [\"127.0.0.1:5353\"], clusterDomain: edge.example, transfer: [127.0.0.0/8]}\n"})
	d.awaitNameAt("127.0.0.1:5353", "web.default.svc.edge.example.", serviceIP(t))
	if m, err := d.question(netlab.Node, "127.0.0.1:5353", "tcp", "edge.example.", dnsmessage.TypeAXFR); err != nil || len(m.Answers) < 4 {
		t.Errorf("the whole zone: %v %v, %d records", err, m.RCode, len(m.Answers))
	}
	if _, _, err := d.lookup("udp", web); err == nil {
		t.Error("the former address still answers")
	}
	d.write(map[string]string{"weir.yaml": ""})
	d.await("no answers", func() error {
		if _, addrs, err := d.lookupAt("127.0.0.1:5353", "udp", "web.default.svc.edge.example."); err == nil {
			return fmt.Errorf("answered with %v", addrs)
		}
		return nil
	})
}

// TestNamesOnly runs without any capability beside a data path of another program, which is left alone.
func TestNamesOnly(t *testing.T) {
	t.Parallel()
	netlab.RequireProgram(t, "setpriv")
	d := newRunDaemon(t)
	const own = "lab.default.svc.cluster.local."
	if out, err := d.run("run", "--dns-only", "--proxy-mode", "nftables"); err == nil {
		t.Errorf("--dns-only with a mode is accepted: %s", out)
	}
	cmd := d.lab.Node().Command(context.Background(), "setpriv",
		append([]string{"--bounding-set=-all", "--inh-caps=-all", os.Getenv(binaryEnv)}, d.args("run", "--dns-only", "--dns-listen", "127.0.0.1:5300")...)...)
	d.launch(cmd)
	d.awaitNameAt("127.0.0.1:5300", "web.default.svc.cluster.local.", serviceIP(t))
	d.awaitNameAt("127.0.0.1:5300", own, "RCodeNameError")
	d.write(map[string]string{"lab.yaml": strings.NewReplacer("name: web", "name: lab", serviceIP(t), "10.96.0.99").Replace(webService)})
	d.awaitNameAt("127.0.0.1:5300", own, "10.96.0.99")
	if rules := d.ownRules(); rules != "" {
		t.Errorf("rules are programmed:\n%s", rules)
	}
	d.terminate()
}

// TestNamesForWhom has the node, a pod and a host outside ask at an address that all of them reach.
func TestNamesForWhom(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	const web = "web.default.svc.cluster.local."
	at := netip.AddrPortFrom(netlab.NodeIPv4, 53).String()
	service := strings.Replace(webService, serviceIP(t), "10.96.0.80", 1) // the address in it is that of kube-dns
	d.write(map[string]string{"config.yaml": kubeProxyConfig + "clusterCIDR: 10.244.0.0/16\n", "web.yaml": service})
	d.flags = []string{"--dns", "--dns-listen", at, "--dns-upstream", "127.0.0.1:9"}
	d.start()
	d.awaitNameAt(at, web, "10.96.0.80")
	expect := func(host string, want bool) {
		t.Helper()
		_, addrs, err := d.lookupFrom(host, at, "udp", web)
		if got := err == nil && len(addrs) == 1; got != want {
			t.Errorf("%s: answered %v: %v %v", host, got, addrs, err)
		}
	}
	expect(netlab.Client, true)
	expect(netlab.Outside, false)
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, `coredns_dns_requests_total{family="1",proto="udp",server="dns://`+at+`",type="A",view="",zone="cluster.local."}`)
	d.write(map[string]string{"weir.yaml": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\ndns: {search: true, allow: [192.168.0.0/16]}\n",
		"client.yaml": strings.NewReplacer("10.244.1.2", netlab.PodIPv4(100).String(), "db", "clients").Replace(headlessDB),
		"web.yaml":    strings.Replace(service, "10.96.0.80", "10.96.0.77", 1)})
	d.awaitNameAt(at, web, "10.96.0.77")
	expect(netlab.Outside, true)
	d.awaitNameAt(at, "clients-0.clients.default.svc.cluster.local.", netlab.PodIPv4(100).String())
	// What a pod does not find in its first search domain is searched for: web.default is one question instead of two.
	const first = "web.default.default.svc.cluster.local."
	if rcode, addrs, err := d.lookupFrom(netlab.Client, at, "udp", first); err != nil || len(addrs) != 1 || addrs[0] != "10.96.0.77" {
		t.Errorf("a known pod: %v %v %v", rcode, addrs, err)
	}
	if rcode, addrs, err := d.lookupFrom(netlab.Outside, at, "udp", first); err != nil || rcode != dnsmessage.RCodeNameError {
		t.Errorf("a client that is no pod: %v %v %v", rcode, addrs, err)
	}
	d.expectHTTP("http://127.0.0.1:10249/metrics", 200, `coredns_kubernetes_dns_programming_duration_seconds_count{service_kind="cluster_ip"} 1`)
}

// TestKubeDNS has a pod and the node ask at the address that kubelets give to pods, which nobody declares, in every mode that
// this kernel has. Ten thousand pairs of questions for A and AAAA, each pair at once from one socket, are all answered, and none is
// tracked.
func TestKubeDNS(t *testing.T) {
	eachMode(t, modes, func(t *testing.T, m mode) {
		t.Parallel()
		if m.rootless {
			t.Skip("nothing leads to ClusterIPs that the node does not have")
		}
		d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), m)
		node, node6 := netip.AddrPortFrom(netlab.NodeIPv4, 53).String(), netip.AddrPortFrom(netlab.NodeIPv6, 53).String()
		d.write(map[string]string{"web.yaml": webService, "config.yaml": strings.Replace(kubeProxyConfig, "mode: iptables\n", "", 1) + "clusterCIDR: 10.244.0.0/16,fd00:244:1::/64\n",
			"weir.yaml": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\ndns: {listen: [\"127.0.0.1:53\", \"" + node + "\", \"" + node6 + "\"], upstreams: [\"127.0.0.1:9\"]}\n"})
		web := strings.Replace(webService, serviceIP(t), "10.96.0.80", 1)
		d.write(map[string]string{"web.yaml": web})
		d.start()
		const name, kubeDNS, kubeDNS6 = "web.default.svc.cluster.local.", "10.96.0.10:53", "[fd00:10:96::a]:53"
		d.awaitNameAt(kubeDNS, name, "10.96.0.80")
		d.awaitNameAt(kubeDNS6, name, "10.96.0.80")
		d.awaitNameAt(kubeDNS, "kube-dns.kube-system.svc.cluster.local.", "10.96.0.10")
		d.forgetFlows() // some may be of before the first round
		for _, at := range []string{kubeDNS, kubeDNS6} {
			for _, network := range []string{"udp", "tcp"} {
				if _, addrs, err := d.lookupFrom(netlab.Client, at, network, name); err != nil || len(addrs) != 1 {
					t.Errorf("a pod at %s over %s: %v %v", at, network, addrs, err)
				}
			}
		}
		d.awaitNameAt(kubeDNS, name, "10.96.0.80")
		if _, _, err := d.lookupFrom(netlab.Outside, kubeDNS, "udp", name); err == nil {
			t.Error("a host outside is answered")
		}
		pairs := 10000
		if testing.Short() || os.Getenv(netlab.VMEnv) != "" {
			pairs = 500
		}
		if answered, err := d.askPairs(kubeDNS, name, pairs); err != nil || answered != pairs {
			t.Errorf("%d of %d pairs are answered: %v", answered, pairs, err)
		}
		if tracked := d.questionsTracked(); len(tracked) > 0 {
			t.Errorf("%d questions are tracked, such as %v", len(tracked), tracked[0])
		}
		d.expectRefused("10.96.0.10")
		d.kill() // what it leaves in the kernel is its own at the next start
		d.start()
		d.awaitNameAt(kubeDNS6, name, "10.96.0.80")
		if _, addrs, err := d.lookupFrom(netlab.Client, kubeDNS, "udp", name); err != nil || len(addrs) != 1 {
			t.Errorf("a pod after a kill: %v %v", addrs, err)
		}
		d.write(map[string]string{"weir.yaml": ""})
		d.await("no kube-dns", func() error {
			if _, addrs, err := d.lookupAt(kubeDNS, "udp", name); err == nil {
				return fmt.Errorf("answered with %v", addrs)
			}
			return nil
		})
		d.await("nothing left of it in the kernel", func() error {
			if left := d.deliveries(); left != "" {
				return errors.New(left)
			}
			return nil
		})
	})
}

// TestKubeDNSByDefault has --dns and nothing else: pods are answered at the address that kubelets give them, where the mode can leave
// that to weir, and elsewhere nothing is said of a kube-dns.
func TestKubeDNSByDefault(t *testing.T) {
	eachMode(t, modes, func(t *testing.T, m mode) {
		t.Parallel()
		d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), m)
		d.addForeign()
		before := d.foreignRules()
		d.flags = []string{"--dns", "--dns-upstream", "127.0.0.1:9"}
		d.write(map[string]string{
			"web.yaml":    strings.Replace(webService, serviceIP(t), "10.96.0.80", 1),
			"config.yaml": strings.Replace(kubeProxyConfig, "mode: iptables\n", "", 1) + "clusterCIDR: 10.244.0.0/16,fd00:244:1::/64\n",
		})
		d.start()
		const name, kubeDNS = "web.default.svc.cluster.local.", "10.96.0.10:53"
		d.awaitName(name, "10.96.0.80")
		if m.rootless {
			if log := d.logs(); strings.Contains(log, "W001") || !strings.Contains(log, "pods have no kube-dns to ask") {
				t.Errorf("the log has\n%s", log)
			}
			return
		}
		d.awaitNameAt(kubeDNS, name, "10.96.0.80")
		d.forgetFlows()
		for _, network := range []string{"udp", "tcp"} {
			if _, addrs, err := d.lookupFrom(netlab.Client, kubeDNS, network, name); err != nil || len(addrs) != 1 {
				t.Errorf("a pod over %s: %v %v", network, addrs, err)
			}
		}
		if _, _, err := d.lookupFrom(netlab.Outside, kubeDNS, "udp", name); err == nil {
			t.Error("a host outside is answered")
		}
		d.awaitLog(`may not ask for names.*client=` + d.lab.Host(netlab.Outside).IPv4.String())
		d.expectHTTP("http://127.0.0.1:10249/metrics", 200, `weir_dns_not_allowed_total{server="dns://10.96.0.10:53"} `)
		if tracked := d.questionsTracked(); len(tracked) > 0 {
			t.Errorf("%d questions are tracked, such as %v", len(tracked), tracked[0])
		}
		if log := d.logs(); strings.Contains(log, "W001") {
			t.Errorf("the log has\n%s", log)
		}
		d.checkLeavesNothing(before)
	})
}

// TestClusterDNSOfKubelet has pods ask where a KubeletConfiguration in the input points them, in every mode: at addresses of the
// range of Services, at that of a NodeLocal DNSCache, which is link-local, at one that weir listens at anyway, and at one of another host,
// which weir does not take. A change of it takes the former addresses away.
func TestClusterDNSOfKubelet(t *testing.T) {
	eachMode(t, modes, func(t *testing.T, m mode) {
		t.Parallel()
		if m.rootless {
			t.Skip("nothing leads to addresses that the node does not have")
		}
		d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), m)
		node := netip.AddrPortFrom(netlab.NodeIPv4, 53)
		d.flags = []string{"--dns", "--dns-listen", "127.0.0.1:53", "--dns-listen", node.String(), "--dns-upstream", "127.0.0.1:9"}
		kubelet := func(addrs, domain string) map[string]string {
			return map[string]string{"kubelet.yaml": "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nclusterDomain: " + domain +
				"\nclusterDNS: [" + addrs + "]\nauthentication: {anonymous: {enabled: false}}\n"}
		}
		d.write(map[string]string{
			"web.yaml":    strings.Replace(webService, serviceIP(t), "10.96.0.80", 1),
			"config.yaml": strings.Replace(kubeProxyConfig, "mode: iptables\n", "", 1) + "clusterCIDR: 10.244.0.0/16,fd00:244:1::/64\n",
		})
		d.write(kubelet("10.96.5.5", "cluster.local"))
		d.start()
		steps := []struct{ addrs, domain, asked, gone string }{
			{"10.96.5.5", "cluster.local", "10.96.5.5", "10.96.0.10"},
			{`169.254.20.10, "fd00:10:96::5"`, "edge.example", "169.254.20.10 fd00:10:96::5", "10.96.5.5"},
			{node.Addr().String(), "cluster.local", node.Addr().String() + " 10.96.0.10", "169.254.20.10"},
			{netlab.OutsideIPv4.String(), "cluster.local", "10.96.0.10", netlab.OutsideIPv4.String()},
		}
		for _, s := range steps {
			d.write(kubelet(s.addrs, s.domain))
			name := "web.default.svc." + s.domain + "."
			for asked := range strings.FieldsSeq(s.asked) {
				at := netip.AddrPortFrom(netip.MustParseAddr(asked), 53).String()
				d.awaitNameAt(at, name, "10.96.0.80")
				for _, network := range []string{"udp", "tcp"} {
					d.await("an answer for a pod at "+at, func() error {
						_, addrs, err := d.lookupFrom(netlab.Client, at, network, name)
						if err == nil && !slices.Equal(addrs, []string{"10.96.0.80"}) {
							err = fmt.Errorf("answered with %v", addrs)
						}
						return err
					})
				}
			}
			d.await("no answer at "+s.gone, func() error {
				if _, addrs, err := d.lookupAt(s.gone+":53", "udp", name); err == nil {
					return fmt.Errorf("answered with %v", addrs)
				}
				return nil
			})
		}
		d.awaitLog("weir does not answer at " + netlab.OutsideIPv4.String() + ", .* the network of ")
		if log := d.logs(); strings.Contains(log, "names cannot be answered") {
			t.Errorf("the log has\n%s", log)
		}
	})
}

// TestNamesFromPods has programs with glibc and with musl in a pod, whose resolv.conf is as the kubelet writes it, look up the names
// that the tests of Kubernetes for cluster DNS look up: of Services, short and in full, of headless ones and their endpoints, of
// pods, of what is elsewhere, and of addresses.
func TestNamesFromPods(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	d.serveUpstream("127.0.0.9:53")
	d.flags = []string{"--dns", "--dns-upstream", "127.0.0.9"}
	const elsewhere = "---\napiVersion: v1\nkind: Service\nmetadata: {name: elsewhere}\nspec: {type: ExternalName, externalName: www.example.com}\n"
	d.write(map[string]string{
		"web.yaml":    strings.Replace(webService, serviceIP(t), "10.96.0.80", 1),
		"more.yaml":   headlessDB + elsewhere,
		"config.yaml": kubeProxyConfig + "clusterCIDR: 10.244.0.0/16,fd00:244:1::/64\n",
	})
	d.start()
	d.awaitNameAt("10.96.0.10:53", "web.default.svc.cluster.local.", "10.96.0.80")
	pod := &daemon{t: t}
	pod.giveEtc(map[string]string{"hosts": "127.0.0.1 localhost\n",
		"resolv.conf": "nameserver 10.96.0.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:2\n"})
	run := func(line ...string) (string, error) {
		line = pod.withEtc(line...)
		out, err := d.lab.Host(netlab.Client).Exec(t.Context(), line[0], line[1:]...)
		return strings.TrimSpace(out), err
	}
	musl := muslProgram(t)
	for name, want := range map[string]string{
		"web": "10.96.0.80", "web.default": "10.96.0.80", "web.default.svc": "10.96.0.80", "web.default.svc.cluster.local": "10.96.0.80",
		"WEB.Default.svc.cluster.local.": "10.96.0.80", "kube-dns.kube-system": "10.96.0.10",
		"db": "10.244.1.2 10.244.1.3", "db-0.db": "10.244.1.2", "db-1.db.default.svc.cluster.local": "10.244.1.3",
		"10-244-1-2.default.pod": "10.244.1.2", "10-244-1-2.default.pod.cluster.local": "10.244.1.2",
		"elsewhere": "192.0.2.80", "elsewhere.default.svc.cluster.local": "192.0.2.80", "www.example.com": "192.0.2.80",
		"nosuch": "", "nosuch.default.svc.cluster.local": "", "web.nosuch": "", "db-2.db": "", "nosuch.example.com": "",
	} {
		for _, program := range [][]string{{"getent", "ahostsv4"}, {musl}} {
			out, err := run(append(program, name)...)
			got, _, _ := strings.Cut(out, " ")
			if want == "" && err == nil || want != "" && (err != nil || !slices.Contains(strings.Fields(want), got)) {
				t.Errorf("%s %s: %q, %v; want one of %q", filepath.Base(program[0]), name, out, err, want)
			}
		}
	}
	for addr, want := range map[string]string{"10.96.0.80": "web.default.svc.cluster.local", "10.244.1.2": "db-0.db.default.svc.cluster.local"} {
		if out, err := run("getent", "hosts", addr); err != nil || !strings.HasSuffix(out, " "+want) {
			t.Errorf("getent hosts %s: %q, %v; want %s", addr, out, err, want)
		}
	}
}

// TestPodsMayAsk has a pod run outside of the ranges of pods: it may ask, and another address there may not.
func TestPodsMayAsk(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	at := netip.AddrPortFrom(netlab.NodeIPv4, 53).String()
	d.flags = []string{"--dns", "--dns-listen", at, "--dns-upstream", "127.0.0.1:9"}
	d.write(map[string]string{"config.yaml": kubeProxyConfig + "clusterCIDR: 10.99.0.0/16\n"})
	d.start()
	const name = "web.default.svc.cluster.local."
	d.awaitNameAt(at, name, serviceIP(t))
	if _, _, err := d.lookupFrom(netlab.Client, at, "udp", name); err == nil {
		t.Fatal("an address of no pod is answered")
	}
	d.write(map[string]string{"pod.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {name: client, labels: {app: client}}\nspec: {nodeName: node, containers: [{name: c, image: c}]}\n" +
		"status: {phase: Running, podIP: " + d.lab.Host(netlab.Client).IPv4.String() + ", podIPs: [{ip: " + d.lab.Host(netlab.Client).IPv4.String() + "}], conditions: [{type: Ready, status: \"True\"}]}\n"})
	d.await("an answer for the pod", func() error {
		_, addrs, err := d.lookupFrom(netlab.Client, at, "udp", name)
		if err == nil && len(addrs) != 1 {
			err = fmt.Errorf("answered with %v", addrs)
		}
		return err
	})
}

// forgetFlows empties the node's table of flows.
func (d *daemon) forgetFlows() {
	d.t.Helper()
	if err := d.lab.Node().Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
		d.t.Fatal(err)
	}
}

// questionsTracked returns the flows of the node to port 53 of the Service kube-dns.
func (d *daemon) questionsTracked() (found []string) {
	d.t.Helper()
	err := d.lab.Node().Do(func() error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			if err != nil {
				return err
			}
			for _, f := range flows {
				if to := f.Forward.DstIP.String(); f.Forward.DstPort == 53 && (to == "10.96.0.10" || to == "fd00:10:96::a") {
					found = append(found, f.String())
				}
			}
		}
		return nil
	})
	if err != nil {
		d.t.Fatal(err)
	}
	return found
}

// expectRefused has a pod connect to an address at a port at which a server of the node listens at all of its addresses.
func (d *daemon) expectRefused(addr string) {
	d.t.Helper()
	var server net.Listener
	if err := d.lab.Node().Do(func() (err error) { server, err = net.Listen("tcp", "0.0.0.0:0"); return err }); err != nil {
		d.t.Fatal(err)
	}
	defer server.Close()
	at := netip.AddrPortFrom(netip.MustParseAddr(addr), server.Addr().(*net.TCPAddr).AddrPort().Port()).String()
	err := d.lab.Host(netlab.Client).Do(func() error {
		conn, err := net.DialTimeout("tcp", at, 2*time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
	if !errors.Is(err, unix.ECONNREFUSED) {
		d.t.Errorf("a server of the node at another port of %s: %v", addr, err)
	}
}

// deliveries returns the local routes of weir to ClusterIPs, and its rules about what it answers itself.
func (d *daemon) deliveries() string {
	d.t.Helper()
	var found strings.Builder
	for _, family := range []string{"-4", "-6"} {
		out, err := d.lab.Node().Exec(d.t.Context(), "ip", family, "route", "show", "table", "local", "proto", "119")
		if err != nil {
			d.t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if !strings.HasPrefix(line, "local ::1 ") {
				found.WriteString(line)
			}
		}
	}
	for line := range strings.Lines(d.ownRules()) {
		if strings.Contains(strings.ToLower(line), "answered") {
			found.WriteString(line)
		}
	}
	return found.String()
}

// askPairs has a pod ask for A and AAAA at once, as glibc does, from a socket of their own for each pair. It returns how many
// pairs were answered within the five seconds that glibc waits for.
func (d *daemon) askPairs(at, name string, pairs int) (answered int, err error) {
	var questions [2][]byte
	for i, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA} {
		m := dnsmessage.Message{Header: dnsmessage.Header{ID: uint16(i)}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
		if questions[i], err = m.Pack(); err != nil {
			return 0, err
		}
	}
	err = d.lab.Host(netlab.Client).Do(func() error {
		buf := make([]byte, 1232)
		for range pairs {
			conn, err := net.Dial("udp", at)
			if err != nil {
				return err
			}
			conn.SetDeadline(time.Now().Add(5 * time.Second))
			got := 0
			for _, q := range questions {
				if _, err := conn.Write(q); err != nil {
					return err
				}
			}
			for range questions {
				if _, err := conn.Read(buf); err == nil {
					got++
				}
			}
			conn.Close()
			if got == len(questions) {
				answered++
			}
		}
		return nil
	})
	return answered, err
}

// serviceIP returns the ClusterIP of webService.
func serviceIP(t *testing.T) string {
	t.Helper()
	_, rest, ok := strings.Cut(webService, "clusterIP: ")
	if !ok {
		t.Fatal("webService has no clusterIP")
	}
	ip, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(ip)
}

// headlessDB is a headless Service with two endpoints that have host names, behind a separator.
const headlessDB = `---
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 5432}]
endpoints: [{addresses: [10.244.1.2], hostname: db-0}, {addresses: [10.244.1.3], hostname: db-1}]
`

// TestNamesBeforeInput starts weir without an input that can be used: names of Services are answered with SERVFAIL and others are
// asked for elsewhere, until there is one.
func TestNamesBeforeInput(t *testing.T) {
	t.Parallel()
	for name, files := range map[string]map[string]string{
		"empty":   {"web.yaml": "", "config.yaml": ""},
		"invalid": {"web.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {prots: []}\n"},
		"invalid, with a section dns": {"web.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {prots: []}\n",
			"weir.yaml": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\ndns: {listen: [\"127.0.0.1:53\"], upstreams: [\"127.0.0.1:9\"]}\n"},
	} {
		for _, only := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, only names: %v", name, only), func(t *testing.T) {
				t.Parallel()
				d := newRunDaemon(t)
				d.write(files)
				if d.flags = []string{"--dns", "--dns-upstream", "127.0.0.1:9"}; files["weir.yaml"] != "" {
					d.flags = nil
				}
				if only {
					d.flags = append(d.flags, "--dns-only")
					d.mode.flags = nil
				}
				d.start()
				d.awaitName("web.default.svc.cluster.local.", "RCodeServerFailure")
				d.awaitName("www.example.com.", "RCodeServerFailure")
				d.write(map[string]string{"web.yaml": webService, "config.yaml": kubeProxyConfig})
				d.awaitName("web.default.svc.cluster.local.", serviceIP(t))
				d.awaitName("none.default.svc.cluster.local.", "RCodeNameError")
			})
		}
	}
}

// TestResolverThatIsWeir names weir itself as the resolver for other names: it is told, and not asked in a circle.
func TestResolverThatIsWeir(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	d.flags = []string{"--dns", "--dns-upstream", "127.0.0.1:53"}
	d.start()
	d.awaitName("web.default.svc.cluster.local.", serviceIP(t))
	d.awaitName("www.example.com.", "RCodeServerFailure")
	d.awaitLog("a resolver for other names is weir itself")
}

// TestKeptStateWithKubeDNS starts weir with an input that is refused, while the kernel holds what delivers to the kube-dns that weir
// answers for: the kept state is served, names included.
func TestKeptStateWithKubeDNS(t *testing.T) {
	for _, m := range modes[:3] {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), m)
			at := netip.AddrPortFrom(netlab.NodeIPv4, 53).String()
			d.flags = []string{"--dns", "--dns-listen", "127.0.0.1:53", "--dns-listen", at, "--dns-upstream", "127.0.0.1:9"}
			d.write(map[string]string{"web.yaml": strings.Replace(webService, serviceIP(t), "10.96.0.80", 1), "config.yaml": strings.Replace(kubeProxyConfig, "mode: iptables\n", "", 1)})
			const name, kubeDNS = "web.default.svc.cluster.local.", "10.96.0.10:53"
			d.start()
			d.awaitNameAt(kubeDNS, name, "10.96.0.80")
			d.awaitRunning()
			d.kill()
			d.write(map[string]string{"bad.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {prots: []}\n"})
			for range 2 {
				d.start()
				d.awaitNameAt(kubeDNS, name, "10.96.0.80")
				d.awaitName(name, "10.96.0.80")
				d.kill()
			}
		})
	}
}

// TestLookupElsewhere has weir dns lookup ask a running weir for names that other resolvers answer for.
func TestLookupElsewhere(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	var upstream net.PacketConn
	if err := d.lab.Node().Do(func() (err error) { upstream, err = net.ListenPacket("udp", "127.0.0.1:5300"); return err }); err != nil {
		t.Fatal(err)
	}
	defer upstream.Close()
	go func() {
		for buf := make([]byte, 512); ; {
			n, from, err := upstream.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.Additionals = true, nil
			switch q := m.Questions[0]; {
			case q.Name.String() != "www.example.com.":
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}}}
			}
			reply, _ := m.Pack()
			_, _ = upstream.WriteTo(reply, from)
		}
	}()
	d.write(map[string]string{"elsewhere.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: elsewhere}\nspec: {type: ExternalName, externalName: www.example.com}\n"})
	d.flags = []string{"--dns", "--dns-upstream", "127.0.0.1:5300"}
	d.start()
	d.awaitName("web.default.svc.cluster.local.", serviceIP(t))
	const answer = "www.example.com.\tTTL\tIN\tA\t192.0.2.1\n"
	ttl := regexp.MustCompile(`\t[0-9]+\tIN`) // it goes down
	for args, want := range map[string]string{
		"www.example.com":                 answer,
		"www.example.com.":                answer,
		"www.example.com A":               answer,
		"www.example.com TXT":             "www.example.com exists and has no record of that type",
		"nosuch.example.com":              "nosuch.example.com does not exist",
		"nosuch.web.default":              "nosuch.web.default does not exist",
		"elsewhere A":                     "elsewhere.default.svc.cluster.local.\tTTL\tIN\tCNAME\twww.example.com.\n" + answer,
		"www.example.com --from client A": "; www.example.com. other resolvers answer for it\n",
	} {
		out, err := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), append([]string{"dns", "lookup", "--state-dir", d.state}, strings.Fields(args)...)...)
		if text := ttl.ReplaceAllString(fmt.Sprint(out, err), "\tTTL\tIN"); !strings.Contains(text, want) {
			t.Errorf("weir dns lookup %s: %s, want %q", args, text, want)
		}
	}
}

// TestNamesInPlan compares two inputs of a node that answers for names: the plan lists the names that come and go, and one that
// goes is a warning.
func TestNamesInPlan(t *testing.T) {
	t.Parallel()
	const config = "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\ndns: {listen: [\"127.0.0.1:53\", \"192.0.2.1:53\"]}\n---\n"
	web := strings.Replace(webService, serviceIP(t), "10.96.0.80", 1)
	before := filepath.Join(t.TempDir(), "before.yaml")
	if err := os.WriteFile(before, []byte(config+web+headlessDB), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(after string, more ...string) result {
		return weir(t, after, append([]string{"reconcile", "--dry-run", "--against", before, "-f", "-"}, more...)...)
	}
	after := config + strings.Replace(web, "name: web", "name: site", 1) + strings.Replace(headlessDB, ", {addresses: [10.244.1.3], hostname: db-1}", "", 1)
	const want = `names
+ site.default.svc.cluster.local.
- db-1.db.default.svc.cluster.local.
- web.default.svc.cluster.local.
`
	got := run(after)
	if got.code != 0 || !strings.Contains(got.stdout, want) || !strings.Contains(got.stdout, "W038-name-removed") || strings.Contains(got.stdout, "kube-dns") {
		t.Errorf("exit %d:\n%s%s", got.code, got.stdout, got.stderr)
	}
	if got := run(after, "--fail-on", "W038"); got.code != 1 {
		t.Errorf("--fail-on W038: exit %d", got.code)
	}
	if got := run(after, "-o", "json"); !strings.Contains(got.stdout, `"removed"`) {
		t.Errorf("as JSON:\n%s", got.stdout)
	}
	if got := run(after, "-o", "markdown"); !strings.Contains(got.stdout, "\n- web.default.svc.cluster.local.\n") {
		t.Errorf("as Markdown:\n%s", got.stdout)
	}
	if got := run(config+web+headlessDB, "--exit-code"); got.code != 0 || strings.Contains(got.stdout, "names") {
		t.Errorf("nothing changes: exit %d:\n%s", got.code, got.stdout)
	}
	unserved := strings.TrimPrefix(after, config)
	if got := run(unserved); !strings.Contains(got.stdout, "- web.default.svc.cluster.local.") {
		t.Errorf("names are not answered any more:\n%s", got.stdout)
	}
}

// TestNamesInPlanOfTheKernel compares an input with what a running weir answers, which a flag or the configuration has it do.
func TestNamesInPlanOfTheKernel(t *testing.T) {
	t.Parallel()
	for name, section := range map[string]string{"a flag": "", "the configuration": "apiVersion: weir/v1alpha1\nkind: WeirConfiguration\ndns: {listen: [\"127.0.0.1:53\"], upstreams: [\"127.0.0.1:9\"]}\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, domain := newRunDaemon(t), "cluster.local"
			web := strings.Replace(webService, serviceIP(t), "10.96.0.80", 1)
			d.write(map[string]string{"web.yaml": web + headlessDB})
			if section != "" {
				d.write(map[string]string{"weir.yaml": section})
			} else {
				domain = "edge.example"
				d.flags = []string{"--dns", "--dns-upstream", "127.0.0.1:9", "--cluster-domain", domain}
			}
			d.start()
			d.awaitName("web.default.svc."+domain+".", "10.96.0.80")
			plan := func(files map[string]string, want string) {
				t.Helper()
				dir := t.TempDir()
				for file, text := range files {
					if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				out, _ := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), "reconcile", "--dry-run", "-f", dir, "--state-dir", d.state, "--hostname-override", "node", "--pod-source", "none")
				if want == "" && strings.Contains(out, "names\n") || !strings.Contains(out, want) || (want == "") == strings.Contains(out, "W038") {
					t.Errorf("want %q, got\n%s", want, out)
				}
			}
			plan(map[string]string{"config.yaml": kubeProxyConfig, "weir.yaml": section, "web.yaml": web + headlessDB}, "")
			plan(map[string]string{"config.yaml": kubeProxyConfig, "weir.yaml": section, "web.yaml": strings.Replace(web, "name: web", "name: site", 1) + strings.Replace(headlessDB, ", {addresses: [10.244.1.3], hostname: db-1}", "", 1)},
				strings.ReplaceAll("names\n+ site.default.svc.DOMAIN.\n- db-1.db.default.svc.DOMAIN.\n- web.default.svc.DOMAIN.\n", "DOMAIN", domain))
		})
	}
}

// TestDNSCommands prints the zone of an input, and answers to single questions.
func TestDNSCommands(t *testing.T) {
	t.Parallel()
	headless := strings.Replace(headlessDB, "hostname: db-1}", "hostname: db-1, conditions: {ready: false}}", 1) + `---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {type: ExternalName, externalName: www.example.com}
`
	const fromDefault = "; search default.svc.cluster.local. svc.cluster.local. cluster.local., ndots 5\n"
	const zone = `cluster.local.	5	IN	SOA	ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5
cluster.local.	5	IN	NS	ns.dns.cluster.local.
ns.dns.cluster.local.	5	IN	A	10.96.0.10
ns.dns.cluster.local.	5	IN	AAAA	fd00:10:96::a
dns-version.cluster.local.	28800	IN	TXT	"1.1.0"
db.default.svc.cluster.local.	5	IN	A	10.244.1.2
db-0.db.default.svc.cluster.local.	5	IN	A	10.244.1.2
_sql._tcp.db.default.svc.cluster.local.	5	IN	SRV	0 100 5432 db-0.db.default.svc.cluster.local.
2.1.244.10.in-addr.arpa.	5	IN	PTR	db-0.db.default.svc.cluster.local.
elsewhere.default.svc.cluster.local.	5	IN	CNAME	www.example.com.
web.default.svc.cluster.local.	5	IN	A	10.96.0.80
80.0.96.10.in-addr.arpa.	5	IN	PTR	web.default.svc.cluster.local.
kube-dns.kube-system.svc.cluster.local.	5	IN	A	10.96.0.10
kube-dns.kube-system.svc.cluster.local.	5	IN	AAAA	fd00:10:96::a
_dns._udp.kube-dns.kube-system.svc.cluster.local.	5	IN	SRV	0 50 53 kube-dns.kube-system.svc.cluster.local.
_dns-tcp._tcp.kube-dns.kube-system.svc.cluster.local.	5	IN	SRV	0 50 53 kube-dns.kube-system.svc.cluster.local.
10.0.96.10.in-addr.arpa.	5	IN	PTR	kube-dns.kube-system.svc.cluster.local.
a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.	5	IN	PTR	kube-dns.kube-system.svc.cluster.local.
`
	for _, tc := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"zone", 0, zone, ""},
		{"zone --cluster-domain _", 2, "", "--cluster-domain"},
		{"lookup web", 0, "web.default.svc.cluster.local.	5	IN	A	10.96.0.80\n", ""},
		{"lookup WEB.default.svc a", 0, "WEB.default.svc.cluster.local.	5	IN	A	10.96.0.80\n", ""},
		{"lookup 10.96.0.80", 0, "80.0.96.10.in-addr.arpa.	5	IN	PTR	web.default.svc.cluster.local.\n", ""},
		{"lookup _sql._tcp.db SRV", 0, "_sql._tcp.db.default.svc.cluster.local.	5	IN	SRV	0 100 5432 db-0.db.default.svc.cluster.local.\ndb-0.db.default.svc.cluster.local.	5	IN	A	10.244.1.2\n", ""},
		{"lookup elsewhere A", 0, "elsewhere.default.svc.cluster.local.	5	IN	CNAME	www.example.com.\n", "www.example.com. is elsewhere"},
		{"lookup db A", 0, "db.default.svc.cluster.local.	5	IN	A	10.244.1.2\n", "left out: 10.244.1.3 (db-1): not ready"},
		{"lookup 10.9.9.9", 1, "", "other resolvers answer for it"},
		{"lookup nonesuch", 1, "", "nonesuch does not exist"},
		{"lookup web SRV", 0, "web.default.svc.cluster.local.	5	IN	SRV	0 100 80 web.default.svc.cluster.local.\nweb.default.svc.cluster.local.	5	IN	A	10.96.0.80\n", ""},
		{"lookup web TXT", 1, "", "web exists and has no record of that type"},
		{"lookup www.example.com.", 1, "", "www.example.com. is of no Service; other resolvers answer for it"},
		{"lookup www.example.com", 1, "", "www.example.com. is of no Service; other resolvers answer for it"},
		{"lookup nosuch.default", 1, "", "nosuch.default. is of no Service; other resolvers answer for it"},
		{"lookup nosuch.default.svc.cluster.local", 1, "", "nosuch.default.svc.cluster.local does not exist"},
		{"lookup web WKS", 2, "", `"WKS" is not a type`},
		{"lookup", 2, "", "give one name"},
		{"lookup a..b", 2, "", "a part between dots is empty"},
		{"lookup " + strings.Repeat("a", 64), 2, "", "more than 63 characters"},
		{"lookup web --from client A", 0, fromDefault + "; web.default.svc.cluster.local. answered\nweb.default.svc.cluster.local.	5	IN	A	10.96.0.80\n", ""},
		{"lookup web.default --from 10.244.1.2 A", 0, fromDefault + "; web.default.default.svc.cluster.local. does not exist\n; web.default.svc.cluster.local. answered\n" +
			"web.default.svc.cluster.local.	5	IN	A	10.96.0.80\n", ""},
		{"lookup web --from shop/client A", 1, "; search shop.svc.cluster.local. svc.cluster.local. cluster.local., ndots 5\n; web.shop.svc.cluster.local. does not exist\n" +
			"; web.svc.cluster.local. does not exist\n; web.cluster.local. does not exist\n; web. other resolvers answer for it\n", "web. is of no Service"},
		{"lookup a.b.c.d.e.f --from client A", 1, fromDefault + "; a.b.c.d.e.f. other resolvers answer for it\n", ""},
		{"lookup web.default.svc.cluster.local. --from client TXT", 1, fromDefault + "; web.default.svc.cluster.local. exists, without a record of that type\n", ""},
		{"lookup web --from 10.9.9.9", 1, "", "no pod and no endpoint"},
	} {
		got := weir(t, strings.Replace(webService, serviceIP(t), "10.96.0.80", 1)+headless, append([]string{"dns"}, append(strings.Fields(tc.args), "-f", "-")...)...)
		if got.code != tc.code || got.stdout != tc.stdout || !strings.Contains(got.stderr, tc.stderr) {
			t.Errorf("%s: exit %d, stdout:\n%sstderr: %s", tc.args, got.code, got.stdout, got.stderr)
		}
	}
}

// TestNamesSurviveKills kills weir under load and starts it again. No answer is wrong, and half a second after the start names
// are answered again, or on a busy machine within eight times what it takes to start a weir that only prints its version.
func TestNamesSurviveKills(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	const web = "web.default.svc.cluster.local."
	d.flags = []string{"--dns", "--dns-upstream", "127.0.0.1:9"}
	d.start()
	d.awaitName(web, serviceIP(t))

	ip := netip.MustParseAddr(serviceIP(t)).As4()
	right := (&dnsmessage.AResource{A: ip}).GoString()
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var asked atomic.Int64                   // right answers
	var first atomic.Pointer[chan time.Time] // gets the time of one
	wrong := make(chan string, 1)
	for range 2 {
		clients.Go(func() {
			for ctx.Err() == nil {
				m, err := d.questionWithin(50*time.Millisecond, netlab.Node, "127.0.0.1:53", "udp", web, dnsmessage.TypeA)
				switch {
				case err != nil, m.RCode == dnsmessage.RCodeServerFailure: // the client asks again
				case len(m.Answers) == 1 && strings.Contains(m.Answers[0].Body.GoString(), right):
					asked.Add(1)
					if c := first.Swap(nil); c != nil {
						*c <- time.Now()
					}
				default:
					select {
					case wrong <- m.GoString():
					default:
					}
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	defer clients.Wait()
	defer stop()
	var gaps, over []time.Duration
	for range 4 {
		began := time.Now()
		if _, err := d.lab.Node().Exec(t.Context(), os.Getenv(binaryEnv), "version"); err != nil {
			t.Fatal(err)
		}
		most := max(500*time.Millisecond, 8*time.Since(began))
		d.kill()
		d.start()
		back := make(chan time.Time, 1)
		began = time.Now()
		first.Store(&back)
		d.await("answers", func() error {
			select {
			case at := <-back:
				gap := at.Sub(began)
				if gaps = append(gaps, gap); gap > most {
					over = append(over, most)
				}
				return nil
			default:
				return errors.New("none")
			}
		})
		d.awaitRunning()
	}
	t.Logf("%d answers; without any for %v", asked.Load(), gaps)
	if len(over) == len(gaps) {
		t.Errorf("without answers for %v, more than %v", gaps, over)
	}
	select {
	case w := <-wrong:
		t.Error("a wrong answer: " + w)
	default:
	}
}
