package main_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends/doctor"
	"weir/backends/netlab"
)

// parameters are those that weir sets in some mode.
var parameters = []string{
	"net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/ipv4/conf/all/arp_ignore", "net/ipv4/conf/all/arp_announce",
	"net/ipv4/vs/conntrack", "net/ipv4/vs/conn_reuse_mode", "net/ipv4/vs/expire_nodest_conn", "net/ipv4/vs/expire_quiescent_template",
	"net/netfilter/nf_conntrack_tcp_timeout_established", "net/netfilter/nf_conntrack_tcp_timeout_close_wait", "net/netfilter/nf_conntrack_tcp_be_liberal",
}

// kernelParameters returns the parameters of the node with their values.
func (d *daemon) kernelParameters() string {
	d.t.Helper()
	return d.nodeExec("sh", "-c", "cd /proc/sys; for p in "+strings.Join(parameters, " ")+"; do test ! -e $p || echo $p $(cat $p); done")
}

func (d *daemon) awaitParameter(name, want string) {
	d.t.Helper()
	d.await(name+" = "+want, func() error {
		if got := strings.TrimSpace(d.nodeExec("cat", "/proc/sys/"+name)); got != want {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
}

const routeLocalnet, ipForward, established = "net/ipv4/conf/all/route_localnet", "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_tcp_timeout_established"

// TestKernelParameters has another process change parameters: they are repaired as drift, which is told. A configuration
// that no longer needs one has it put back, and cleanup puts back the rest, after a restart too.
func TestKernelParameters(t *testing.T) {
	netlab.Require(t)
	eachMode(t, modes, func(t *testing.T, m mode) {
		if m.rootless {
			t.Skip("sets no kernel parameters")
		}
		d := painDaemon(t, m)
		const sync = "{minSyncPeriod: 50ms, syncPeriod: 1s}"
		config := "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\nmetricsBindAddress: 127.0.0.1:10249\n" +
			"iptables: " + sync + "\nnftables: " + sync + "\nipvs: " + sync + "\n"
		d.nodeExec("sh", "-c", "echo 0 >/proc/sys/"+ipForward)
		before := d.kernelParameters()
		d.write(map[string]string{"config.yaml": config + "nodePortAddresses: [127.0.0.0/8]\n"})
		d.start()
		d.awaitSync()
		localnet := "1"
		if m.plans == ipvsMode.plans {
			localnet = "0" // it serves no node ports on loopback addresses
		}
		d.awaitParameter(ipForward, "1")
		d.awaitParameter(routeLocalnet, localnet)
		if strings.Contains(d.logs(), "another process") {
			t.Errorf("nobody changed a parameter yet, but the log is\n%s", d.logs())
		}
		d.nodeExec("sh", "-c", "cd /proc/sys; echo 0 >"+ipForward+"; echo 0 >"+routeLocalnet+"; echo 77 >"+established)
		d.awaitParameter(ipForward, "1")
		d.awaitParameter(routeLocalnet, localnet)
		d.awaitParameter(established, "86400")
		d.awaitLog("another process changed a kernel parameter.*net.ipv4.ip_forward")
		d.awaitAnswer("pod1")
		d.await("the metric", func() error {
			client := http.Client{Transport: &http.Transport{DialContext: d.lab.Node().DialContext, DisableKeepAlives: true}, Timeout: answerWait}
			resp, err := client.Get("http://127.0.0.1:10249/metrics")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			text, err := io.ReadAll(resp.Body)
			if err == nil && strings.Contains(string(text), "\nweir_kernel_parameters_repaired_total 0\n") {
				err = fmt.Errorf("it counted nothing")
			}
			return err
		})
		d.write(map[string]string{"config.yaml": config + "nodePortAddresses: [192.168.77.0/24]\n"})
		d.awaitParameter(routeLocalnet, "0")
		d.kill()
		d.start()
		d.awaitSync()
		d.terminate()
		if out, err := d.cleanup(); err != nil {
			t.Errorf("cleanup: %v\n%s", err, out)
		}
		if after := d.kernelParameters(); after != before {
			t.Errorf("cleanup left\n%swhere there was\n%s", after, before)
		}
	})
}

// TestLoopbackStaysGuarded loses the state directory between two runs, so that weir has no record of route_localnet. weir
// doctor advises nothing while the rules of a mode guard the loopback addresses, and does so without them. nftables mode has
// them always. A run or a cleanup that removes them warns, and a state directory that is removed while weir runs comes back, so
// that cleanup puts the parameter back.
func TestLoopbackStaysGuarded(t *testing.T) {
	const all, outward = "127.0.0.0/8", "192.168.77.0/24"
	for _, m := range []struct{ mode, then string }{
		{"iptables", "iptables"},
		{"iptables", "nftables"},
		{"nftables", "nftables"},
		{"nftables", "iptables"},
	} {
		t.Run(m.mode+" then "+m.then, func(t *testing.T) {
			d := painDaemon(t, mode{name: "from configuration"})
			set := func(mode, addresses string) {
				d.write(map[string]string{"config.yaml": strings.ReplaceAll(painConfig, "{minSyncPeriod", "{syncPeriod: 1s, minSyncPeriod") + "mode: " + mode + "\nnodePortAddresses: [" + addresses + "]\n"})
			}
			awaitAdvice := func(want doctor.State) { // what a mode left is removed after the other one is in force
				t.Helper()
				d.await(fmt.Sprintf("the state %q of weir doctor", want), func() error {
					r, _ := examine(t, d.lab.Node())
					if c := find(t, r, "", "net.ipv4.conf.all.route_localnet"); c.State != want || (c.Mend != "") != (want == doctor.Advice) {
						return fmt.Errorf("%+v", c)
					}
					return nil
				})
			}
			const warning = "has no record that weir set it: with it neighbours can reach servers on 127.0.0.1"
			set(m.mode, all)
			d.start()
			d.awaitSync()
			d.awaitParameter(routeLocalnet, "1")
			awaitAdvice(doctor.OK)

			if err := os.Rename(d.state, filepath.Join(t.TempDir(), "gone")); err != nil { // at once, because weir may be writing
				t.Fatal(err)
			}
			d.await("the record", func() error {
				_, err := os.Stat(filepath.Join(d.state, "parameters.json"))
				return err
			})
			d.kill()
			if out, err := d.cleanup(); err != nil || strings.Contains(out, warning) {
				t.Errorf("cleanup: %v\n%s", err, out)
			}
			d.awaitParameter(routeLocalnet, "0")

			d.start()
			d.awaitSync()
			d.awaitParameter(routeLocalnet, "1")
			d.kill()
			if err := os.RemoveAll(d.state); err != nil {
				t.Fatal(err)
			}
			d.start()
			d.awaitSync()
			if strings.Contains(d.logs(), warning) {
				t.Errorf("it is guarded, but the log is\n%s", d.logs())
			}
			set(m.then, outward)
			if m.then == "nftables" { // it always has the rules
				d.await("that no loopback address serves node ports", func() error {
					out, err := d.lab.Node().Exec(t.Context(), "nft", "list", "chain", "ip", "weir", "services")
					if err == nil && !strings.Contains(out, "127.0.0.0/8") {
						err = errors.New(out)
					}
					return err
				})
				awaitAdvice(doctor.OK)
				if strings.Contains(d.logs(), warning) {
					t.Errorf("it is guarded, but the log is\n%s", d.logs())
				}
				d.terminate()
				line := append([]string{"-c", `exec "$@" 2>&1`, "sh"}, d.line("cleanup", "--state-dir", d.state)...)
				if out, err := d.lab.Node().Exec(t.Context(), "sh", line...); err != nil || !strings.Contains(out, warning) {
					t.Errorf("cleanup: %v\n%s", err, out)
				}
			} else {
				d.awaitLog(warning)
			}
			awaitAdvice(doctor.Advice)
		})
	}
}

// TestNeighboursDoNotSpeakFromLoopback sends datagrams to a server of the node from a loopback address of a neighbour. The
// server would take it for a client on the node. They arrive before weir runs, so that the test proves something.
func TestNeighboursDoNotSpeakFromLoopback(t *testing.T) {
	for _, m := range []string{"iptables", "nftables", "userspace"} {
		t.Run(m, func(t *testing.T) {
			d := painDaemon(t, mode{name: "from configuration"})
			d.write(map[string]string{"config.yaml": painConfig + "mode: " + m + "\nnodePortAddresses: [127.0.0.0/8]\n"})
			d.nodeExec("sh", "-c", "echo 1 >/proc/sys/"+routeLocalnet)
			outside := d.lab.Host(netlab.Outside)
			for _, c := range []string{"echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet", "ip address add 127.0.0.9/32 dev eth0"} {
				if out, err := outside.Exec(t.Context(), "sh", "-c", c); err != nil {
					t.Fatal(c, err, out)
				}
			}
			var server net.PacketConn
			if err := d.lab.Node().Do(func() (err error) { server, err = net.ListenPacket("udp4", "192.168.77.1:9191"); return err }); err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			to := netip.MustParseAddrPort("192.168.77.1:9191")
			say := func(from string) (heard string) {
				t.Helper()
				f, err := outside.OpenFrom(netlab.UDP, netip.AddrPortFrom(netip.MustParseAddr(from), 0), to, answerWait)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				_ = f.Ask(time.Millisecond)
				buf := make([]byte, 100)
				_ = server.SetReadDeadline(time.Now().Add(answerWait))
				_, client, err := server.ReadFrom(buf)
				if err != nil {
					return ""
				}
				return client.(*net.UDPAddr).IP.String()
			}
			if got := say("127.0.0.9"); got != "127.0.0.9" {
				t.Fatalf("without weir the server hears %q, so that this proves nothing", got)
			}
			d.start()
			d.awaitSync()
			if got := say("127.0.0.9"); got != "" {
				t.Errorf("the server hears %q", got)
			}
			if got := say("192.168.77.100"); got != "192.168.77.100" {
				t.Errorf("of another client the server hears %q", got)
			}
		})
	}
}

// TestDoctorReadsTheState asks doctor what weir set, by its state directory, and after another process has set it back.
func TestDoctorReadsTheState(t *testing.T) {
	d := painDaemon(t, iptablesMode("nft"))
	d.start()
	d.awaitSync()
	d.awaitParameter(routeLocalnet, "1")
	told := func(state string) (all string) {
		r, _ := examine(t, d.lab.Node(), "--state-dir", state)
		for _, c := range r.Node {
			all += fmt.Sprintln(c.Name, c.State, c.Detail)
		}
		return all
	}
	const set = "net.ipv4.conf.all.route_localnet, kept ok weir set it to 1 and puts 0 back"
	if got := told(d.state); !strings.Contains(got, set) {
		t.Errorf("doctor does not say %q:\n%s", set, got)
	}
	if got := told(t.TempDir()); strings.Contains(got, "weir set it") {
		t.Errorf("with another state directory:\n%s", got)
	}
	d.kill()
	d.nodeExec("sysctl", "-qw", routeLocalnet+"=0")
	const lost = "net.ipv4.conf.all.route_localnet, kept advice 0, although weir set it to 1 (it was 0 before)"
	if got := told(d.state); !strings.Contains(got, lost) {
		t.Errorf("doctor does not say %q:\n%s", lost, got)
	}
}

// TestKernelParametersFollowTheMode changes the mode of a running weir, and of one that starts again.
func TestKernelParametersFollowTheMode(t *testing.T) {
	d := painDaemon(t, mode{name: "from configuration"})
	set := func(mode string) { d.write(map[string]string{"config.yaml": painConfig + "mode: " + mode + "\n"}) }
	set("iptables")
	d.start()
	d.awaitSync()
	d.awaitParameter(routeLocalnet, "1")
	set("nftables")
	d.awaitParameter(routeLocalnet, "0")
	d.awaitParameter(ipForward, "1")
	set("iptables")
	d.awaitParameter(routeLocalnet, "1")
	d.kill()
	set("nftables")
	d.start()
	d.awaitParameter(routeLocalnet, "0")
	d.awaitSync()
	d.awaitAnswer("pod1")
	d.awaitParameter(ipForward, "1")
}

// TestIdleReadsNothing counts the reads of files of a weir without work and without full syncs.
func TestIdleReadsNothing(t *testing.T) {
	for _, m := range []mode{iptablesMode("nft"), {name: "nftables", flags: []string{"--proxy-mode", "nftables"}}} {
		t.Run(m.name, func(t *testing.T) {
			d := painDaemon(t, m)
			d.write(map[string]string{"config.yaml": painNoFullSync})
			d.start()
			d.awaitSync()
			reads := func() (n int) {
				t.Helper()
				text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", d.cmd.Process.Pid))
				if err == nil {
					_, err = fmt.Sscanf(string(text[strings.Index(string(text), "syscr:"):]), "syscr: %d", &n)
				}
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			time.Sleep(time.Second) // what follows the last change
			// Others make files beside the directory that is watched, each of which is read of, but not all the time.
			var seen []int
			for range 5 {
				before := reads()
				time.Sleep(4 * time.Second) // eight questions whether another process wrote
				seen = append(seen, reads()-before)
				if slices.Min(seen) <= 50 { // Go's runtime reads a few itself
					return
				}
			}
			t.Errorf("%v reads", seen)
		})
	}
}
