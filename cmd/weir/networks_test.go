package main_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weir/backends/doctor"
	"weir/backends/netlab"
)

const dualService = `apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  ipFamilyPolicy: RequireDualStack
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:10:96::a"]
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: allocated}
spec:
  ipFamilyPolicy: RequireDualStack
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.244.1.1]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{port: 80}]
endpoints: [{addresses: ["fd00:244:1::1"]}]
`

// TestNodeWithoutRouteToServices takes the default routes from a node, as on an edge box that is offline. weir and doctor
// tell of it, the command that they print mends it, and they stop telling.
func TestNodeWithoutRouteToServices(t *testing.T) {
	type test struct {
		name  string
		mode  mode
		pods  string // the ranges of pods, or ""
		first bool   // a bridge has a lower address than the node's own
	}
	const pods = "clusterCIDR: 10.244.0.0/16,fd00:244::/32\n"
	for _, test := range []test{{"iptables", iptablesMode("nft"), pods, false}, {"nftables", modes[2], pods, false}, {"userspace", modes[4], pods, false},
		{"iptables without ranges of pods", iptablesMode("nft"), "", true}, {"nftables without ranges of pods", modes[2], "", true}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), test.mode)
			d.lab.Host("pod1").Serve(t, netlab.TCP, 80)
			d.write(map[string]string{"config.yaml": strings.Replace(shortSyncs, pods, test.pods, 1), "web.yaml": dualService})
			if test.first {
				d.nodeExec("ip", "link", "add", "br0", "type", "bridge")
				d.nodeExec("ip", "address", "add", "10.9.0.1/24", "dev", "br0")
				d.nodeExec("ip", "address", "add", "fd00:9::1/64", "dev", "br0", "nodad")
				d.nodeExec("ip", "link", "set", "br0", "up")
			}
			fronts := []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:80"), netip.MustParseAddrPort("[fd00:10:96::a]:80")}
			d.nodeExec("ip", "route", "del", "default")
			d.nodeExec("ip", "-6", "route", "del", "default")
			d.start()
			d.awaitSync()
			d.awaitNotices("W032", 2)
			d.awaitLog(`ip route add 10\.96\.0\.0/12 dev lo src \S+ .*W032`)
			for _, front := range fronts {
				if r := d.lab.Node().Probe(netlab.TCP, front, patience); r.Server == "pod1" {
					t.Fatalf("%s answers without a route: the premise of the test is wrong", front)
				}
			}
			remedies := regexp.MustCompile(`ip (-6 )?route add \S+ dev \S+ src \S+`).FindAllString(d.status(), -1)
			r, _ := examine(t, d.lab.Node())
			for i, cidr := range []string{"10.96.0.0/12", "fd00:10:96::/112"} {
				c := find(t, r, "", "ClusterIPs "+cidr)
				if c.State != doctor.Advice || !strings.Contains(c.Detail, "no route") || !slices.Contains(remedies, c.Mend) {
					t.Errorf("doctor: %+v; status has %q", c, remedies)
				}
				words := strings.Fields(c.Mend)
				d.nodeExec(words[0], words[1:]...)
				if r := d.lab.Node().Probe(netlab.TCP, fronts[i], patience); r.Server != "pod1" {
					t.Errorf("%s after %s: %v", fronts[i], c.Mend, r)
				}
			}
			d.awaitNotices("W032", 0)
			d.awaitNotices("W031", 0)
			for _, c := range func() []doctor.Check { r, _ := examine(t, d.lab.Node()); return r.Node }() {
				if strings.HasPrefix(c.Name, "ClusterIPs") && c.State != doctor.OK {
					t.Errorf("doctor, after its own remedy: %+v", c)
				}
			}
		})
	}
}

// TestServiceRangeOverlapsNetwork gives a node networks in the ranges of its ClusterIPs, and takes them away.
func TestServiceRangeOverlapsNetwork(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, netlab.New(t, netlab.Topology{Pods: 1}), modes[2])
	d.write(map[string]string{"config.yaml": shortSyncs, "web.yaml": dualService})
	d.start()
	d.awaitSync()
	d.awaitNotices("W031", 0)
	d.awaitNotices("W032", 0) // there is a default route
	for _, tc := range []struct{ what, where string }{
		{"addr %s 10.100.0.1/16 dev eth0", "10.100.0.0/16, the network of eth0"},
		{"addr %s fd00:10:96::ff/120 dev eth0 nodad", "fd00:10:96::/120, the network of eth0"},
		{"route %s 10.0.0.0/8 dev eth1", "10.0.0.0/8, to which a route by eth1 leads"},
		{"-6 route %s fd00:10::/32 dev eth1", "fd00:10::/32, to which a route by eth1 leads"},
	} {
		d.nodeExec("ip", strings.Fields(fmt.Sprintf(tc.what, "add"))...)
		d.await("status to tell of "+tc.where, func() error {
			if s := d.status(); !strings.Contains(s, tc.where) {
				return fmt.Errorf("it says: %s", s)
			}
			return nil
		})
		d.awaitLog(regexp.QuoteMeta(tc.where) + ".*W031")
		r, _ := examine(t, d.lab.Node())
		if !slices.ContainsFunc(r.Node, func(c doctor.Check) bool { return c.State == doctor.Advice && strings.Contains(c.Detail, tc.where) }) {
			t.Errorf("doctor: %+v", r.Node)
		}
		d.nodeExec("ip", strings.Fields(fmt.Sprintf(tc.what, "del"))...)
		d.awaitNotices("W031", 0)
	}
}

// shortSyncs has the node looked at every second.
const shortSyncs = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16,fd00:244::/32
iptables: {syncPeriod: 1s}
nftables: {syncPeriod: 1s}
`

// status returns what weir status prints of a running weir.
func (d *daemon) status() string {
	d.t.Helper()
	got := weir(d.t, "", "status", "--verbose", "--state-dir", d.state)
	return got.stdout + got.stderr
}

// awaitNotices waits until weir status tells of so many notices of a kind.
func (d *daemon) awaitNotices(id string, want int) {
	d.t.Helper()
	d.await(fmt.Sprintf("%d notices %s", want, id), func() error {
		if s := d.status(); strings.Count(s, id) != want {
			return fmt.Errorf("status says: %s", s)
		}
		return nil
	})
}
