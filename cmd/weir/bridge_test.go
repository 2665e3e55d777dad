package main_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weir/backends/doctor"
	"weir/backends/netlab"
)

// bridgedDaemon returns a daemon on a node with three pods on a bridge as podman and docker make it, of which pod1 is the
// endpoint of a Service. The port of pod3 has hairpin mode from the start.
func bridgedDaemon(t *testing.T, m mode) *daemon {
	t.Helper()
	lab := netlab.New(t, netlab.Topology{Bridge: "cni0"})
	d := newDaemon(t, lab, m)
	d.nodeExec("sh", "-ec", `ip addr add 10.244.1.254/24 dev cni0
		ip neigh flush dev cni0 nud permanent
		for pod in pod1 pod2; do bridge link set dev veth$pod hairpin off; done`)
	for _, pod := range []string{"pod1", "pod2", "pod3"} {
		lab.Host(pod).Serve(t, netlab.TCP, 80)
		if _, err := lab.Host(pod).Exec(t.Context(), "ip", "route", "add", "10.244.1.0/24", "dev", "eth0"); err != nil {
			t.Fatal(err)
		}
	}
	d.passPackets(true)
	d.write(map[string]string{"config.yaml": shortSyncs, "web.yaml": painService, "slice.yaml": painSlice(1)})
	return d
}

// passPackets has bridged frames pass through the packet filter, or not.
func (d *daemon) passPackets(on bool) {
	d.t.Helper()
	value := map[bool]string{true: "1", false: "0"}[on]
	if _, err := d.lab.Node().Exec(d.t.Context(), "sysctl", "-w", "net.bridge.bridge-nf-call-iptables="+value); err != nil && on {
		netlab.Missing(d.t, "without br_netfilter: %v", err)
	}
}

// hairpins returns the pods whose ports have hairpin mode.
func (d *daemon) hairpins() (pods []string) {
	d.t.Helper()
	for _, pod := range []string{"pod1", "pod2", "pod3"} {
		if strings.Contains(d.nodeExec("bridge", "-d", "link", "show", "dev", "veth"+pod), "hairpin on") {
			pods = append(pods, pod)
		}
	}
	return pods
}

func (d *daemon) awaitHairpins(pods ...string) {
	d.t.Helper()
	d.await(fmt.Sprintf("hairpin mode of the ports of %v", pods), func() error {
		if got := d.hairpins(); !slices.Equal(got, pods) {
			return fmt.Errorf("those of %v have it", got)
		}
		return nil
	})
}

// itself returns nil if the pod reaches itself at the ClusterIP.
func (d *daemon) itself(pod string) error {
	if r := d.lab.Host(pod).Probe(netlab.TCP, netip.MustParseAddrPort("10.96.0.10:80"), time.Second); r.Server != pod {
		return fmt.Errorf("%s: %v", pod, r)
	}
	return nil
}

// TestHairpinOfBridgePorts has the hairpin mode of ports follow the endpoints of Services, and their repair, the end of weir and
// cleanup, whatever happens to the ports. A port that has the mode by another program keeps it.
func TestHairpinOfBridgePorts(t *testing.T) {
	for _, m := range ruleModes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			d := bridgedDaemon(t, m)
			plan, err := d.pendingPlan()
			if err != nil || !strings.Contains(plan, "+ hairpin on of the bridge port to 10.244.1.1, because") {
				t.Errorf("%v: the plan is\n%s", err, plan)
			}
			d.start()
			d.awaitSync()
			d.awaitHairpins("pod1", "pod3")
			d.await("pod1 to reach itself", func() error { return d.itself("pod1") })
			if log := d.logs(); strings.Contains(log, "another process") || strings.Contains(log, "drifted") {
				t.Errorf("nobody changed a port yet, but the log is\n%s", log)
			}
			r, _ := examine(t, d.lab.Node(), "--state-dir", d.state)
			if c := find(t, r, "", "hairpin of vethpod1, kept"); c.State != doctor.OK || !strings.Contains(c.Detail, "10.244.1.1") {
				t.Errorf("doctor: %+v", c)
			}
			if c := find(t, r, "", "bridge cni0, 10.244.1.0/24"); c.State != doctor.OK || !strings.Contains(c.Detail, "through the packet filter") {
				t.Errorf("doctor: %+v", c)
			}

			d.nodeExec("bridge", "link", "set", "dev", "vethpod1", "hairpin", "off")
			d.awaitHairpins("pod1", "pod3")
			d.awaitLog("another process changed a bridge port.*vethpod1")

			// A pod that starts again has another port of the same name. The node knows that when the pod first speaks.
			d.replacePort("pod1")
			d.await("pod1 to reach itself again", func() error { return d.itself("pod1") })
			d.awaitHairpins("pod1", "pod3")

			d.write(map[string]string{"slice.yaml": painSlice(2)})
			d.awaitHairpins("pod2", "pod3")
			d.await("pod2 to reach itself", func() error { return d.itself("pod2") })
			d.write(map[string]string{"slice.yaml": painSlice(3)})
			d.awaitHairpins("pod3")
			d.awaitSync()
			d.write(map[string]string{"slice.yaml": painSlice(1)})
			d.awaitHairpins("pod1", "pod3")

			d.passPackets(false)
			d.awaitHairpins("pod3")
			d.await("pod1 to reach itself without the packet filter", func() error { return d.itself("pod1") })
			d.passPackets(true)
			d.awaitHairpins("pod1", "pod3")
			d.awaitSync()

			d.kill()
			out, err := d.cleanup()
			if err != nil {
				t.Errorf("cleanup: %v\n%s", err, out)
			}
			d.awaitHairpins("pod3")

			d.start()
			d.awaitHairpins("pod1", "pod3")
			d.kill()
			d.write(map[string]string{"slice.yaml": painSlice(2)})
			d.start()
			d.awaitHairpins("pod2", "pod3")
		})
	}
}

// TestModeChangeKeepsHairpins: what a mode leaves behind is not put back if the next one needs it.
func TestModeChangeKeepsHairpins(t *testing.T) {
	t.Parallel()
	netlab.RequireProgram(t, "nft")
	m := ruleModes[0]
	m.flags = nil
	d := bridgedDaemon(t, m)
	set := func(mode string) { d.write(map[string]string{"config.yaml": shortSyncs + "mode: " + mode + "\n"}) }
	set("nftables")
	d.start()
	d.awaitSync()
	d.awaitHairpins("pod1", "pod3")
	for _, mode := range []string{"iptables", "nftables", "iptables"} {
		set(mode)
		d.expectHTTP("http://127.0.0.1:10249/proxyMode", 200, mode)
		d.awaitSync()
		d.awaitHairpins("pod1", "pod3")
		if log := d.logs(); strings.Contains(log, "a bridge port put back") || strings.Contains(log, "changed a bridge port") {
			t.Fatalf("after the change to %s the log is\n%s", mode, log)
		}
	}
	set("userspace") // needs none
	d.awaitHairpins("pod3")
}

// replacePort gives a pod another port on the bridge, with the same name and the same address behind it.
func (d *daemon) replacePort(pod string) {
	d.t.Helper()
	d.nodeExec("ip", "link", "del", "veth"+pod)
	h := d.lab.Host(pod)
	script := fmt.Sprintf(`ip link add eth0 type veth peer name veth%s netns %d
		ip link set eth0 up
		ip addr add %s/24 dev eth0
		ip route add default via 10.244.1.254`, pod, d.cmd.Process.Pid, h.IPv4)
	if _, err := h.Exec(d.t.Context(), "sh", "-ec", script); err != nil {
		d.t.Fatal(err)
	}
	d.nodeExec("ip", "link", "set", "veth"+pod, "master", "cni0", "up")
}
