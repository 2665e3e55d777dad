package nodeconfig

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/config"
)

func addrs(list ...string) []netip.Addr {
	out := []netip.Addr{}
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestName(t *testing.T) {
	for _, tc := range []struct{ flag, override, hostname, want string }{
		{"Edge-7 ", "other", "host", "edge-7"},
		{"", "Other", "host", "other"},
		{"", "", "Host.example ", "host.example"},
	} {
		if got, err := Name(tc.flag, tc.override, tc.hostname); got != tc.want || err != nil {
			t.Errorf("Name(%q, %q, %q) = %q, %v; want %q", tc.flag, tc.override, tc.hostname, got, err, tc.want)
		}
	}
	for _, flag := range []string{" ", ""} {
		if _, err := Name(flag, "", ""); err == nil {
			t.Errorf("an empty name (%q) is accepted", flag)
		}
	}
}

func TestDataPath(t *testing.T) {
	bit := int32(5)
	node := Node{Families: []dataplane.Family{dataplane.IPv4}, Addresses: addrs("127.0.0.1", "192.0.2.7", "::1")}
	c := config.Default().KubeProxyConfiguration
	c.NodePortAddresses = []string{"localhost"}
	c.ClusterCIDR = "10.244.0.0/16"
	c.IPTables.MasqueradeBit, c.NFTables.MasqueradeAll = &bit, true
	c.Conntrack.TCPBeLiberal = true
	want := dataplane.Config{
		Families: node.Families, MasqueradeMark: 1 << 5, LocalhostNodePorts: true, LocalhostNodePortsIPv6: true, TCPBeLiberal: true,
		LocalDetector:     dataplane.LocalDetector{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}},
		NodePortAddresses: addrs("127.0.0.1", "::1"), NodeAddresses: addrs("192.0.2.7"),
	}
	check := func(what string, s Section) {
		t.Helper()
		if got, err := DataPath(c, s, node); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got  %+v, %v\nwant %+v", what, got, err, want)
		}
	}
	check("iptables", IPTables(c))
	check("ipvs", IPVS(c))
	want.MasqueradeMark, want.MasqueradeAll = 1<<14, true
	check("nftables", NFTables(c))

	never := false
	c.IPTables.LocalhostNodePorts = &never
	want.MasqueradeMark, want.MasqueradeAll, want.LocalhostNodePorts, want.LocalhostNodePortsIPv6 = 1<<5, false, false, false
	check("iptables without localhostNodePorts", IPTables(c))

	for _, mistake := range []func(c *kubeproxyconfig.KubeProxyConfiguration){
		func(c *kubeproxyconfig.KubeProxyConfiguration) { c.NodePortAddresses = []string{"192.0.2.1"} },
		func(c *kubeproxyconfig.KubeProxyConfiguration) { c.ClusterCIDR = "10.244" },
	} {
		bad := c.DeepCopy()
		mistake(bad)
		if got, err := DataPath(bad, IPTables(bad), node); err == nil {
			t.Errorf("%v, %q is accepted: %+v", bad.NodePortAddresses, bad.ClusterCIDR, got)
		}
	}
}

// TestSectionsWithoutNodePortAddresses goes through where node ports are served if the configuration does not say it.
func TestSectionsWithoutNodePortAddresses(t *testing.T) {
	c := config.Default().KubeProxyConfiguration
	for _, tc := range []struct {
		mode      string
		section   Section
		addresses string
		localhost bool
	}{
		{"iptables", IPTables(c), "all", true},
		{"ipvs", IPVS(c), "all", true},
		{"nftables", NFTables(c), "primary", false},
	} {
		if got := strings.Join(tc.section.NodePortAddresses, " "); got != tc.addresses || tc.section.LocalhostNodePorts != tc.localhost {
			t.Errorf("%s: %s, localhost %v; want %s, %v", tc.mode, got, tc.section.LocalhostNodePorts, tc.addresses, tc.localhost)
		}
	}
}

// TestSyncPeriods: each section has its own.
func TestSyncPeriods(t *testing.T) {
	c := config.Default().KubeProxyConfiguration
	for _, s := range []struct {
		name        string
		section     func(*kubeproxyconfig.KubeProxyConfiguration) Section
		least, full *metav1.Duration
	}{
		{"iptables", IPTables, &c.IPTables.MinSyncPeriod, &c.IPTables.SyncPeriod},
		{"ipvs", IPVS, &c.IPVS.MinSyncPeriod, &c.IPVS.SyncPeriod},
		{"nftables", NFTables, &c.NFTables.MinSyncPeriod, &c.NFTables.SyncPeriod},
	} {
		was := [2]metav1.Duration{*s.least, *s.full}
		s.least.Duration, s.full.Duration = 3*time.Second, 77*time.Second
		if got := s.section(c); got.MinSyncPeriod != 3*time.Second || got.SyncPeriod != 77*time.Second {
			t.Errorf("%s: %v at least, %v at most", s.name, got.MinSyncPeriod, got.SyncPeriod)
		}
		*s.least, *s.full = was[0], was[1]
	}
}

// TestPrimary goes through what may say which address of a family is the node's own.
func TestPrimary(t *testing.T) {
	node := func(addresses ...corev1.NodeAddress) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Addresses: addresses}}
	}
	internal := func(a string) corev1.NodeAddress { return corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a} }
	external := func(a string) corev1.NodeAddress { return corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: a} }
	routed := addrs("203.0.113.1", "fd00:203::1")
	for _, tc := range []struct {
		name, bind string
		node       *corev1.Node
		want       string
	}{
		{"the routes", "0.0.0.0", nil, "203.0.113.1 fd00:203::1"},
		{"a Node that has none", "", node(), "203.0.113.1 fd00:203::1"},
		{"a Node", "", node(external("198.51.100.1"), internal("192.0.2.1"), internal("fd00::1")), "192.0.2.1 fd00::1"},
		{"a Node with one family", "", node(internal("192.0.2.1")), "192.0.2.1"},
		{"a Node that is reached from outside", "", node(external("198.51.100.1")), "198.51.100.1"},
		{"bindAddress wins over the Node", "192.0.2.9", node(internal("192.0.2.1"), internal("fd00::1")), "192.0.2.9 fd00::1"},
		{"bindAddress and the routes", "fd00::9", nil, "fd00::9 203.0.113.1"},
		{"bindAddress is a loopback address", "127.0.0.1", node(internal("192.0.2.1")), "192.0.2.1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var got []string
			for _, a := range Primary(tc.bind, Node{Object: tc.node, Routed: routed}) {
				got = append(got, a.String())
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}

func TestLocalDetector(t *testing.T) {
	cidrs := func(s ...string) dataplane.LocalDetector {
		var d dataplane.LocalDetector
		for _, c := range s {
			d.PodCIDRs = append(d.PodCIDRs, netip.MustParsePrefix(c))
		}
		return d
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24", "fd00:244:1::/64"}}}
	oldNode := &corev1.Node{Spec: corev1.NodeSpec{PodCIDR: "10.244.2.0/24"}}
	for _, tc := range []struct {
		name   string
		mode   kubeproxyconfig.LocalMode
		config func(c *kubeproxyconfig.KubeProxyConfiguration)
		node   *corev1.Node
		want   dataplane.LocalDetector
	}{
		{"no cluster CIDR", config.LocalModeClusterCIDR, nil, node, cidrs()},
		{"cluster CIDR", config.LocalModeClusterCIDR, func(c *kubeproxyconfig.KubeProxyConfiguration) { c.ClusterCIDR = "10.244.0.0/16" }, nil, cidrs("10.244.0.0/16")},
		{"dual stack", config.LocalModeClusterCIDR, func(c *kubeproxyconfig.KubeProxyConfiguration) { c.ClusterCIDR = "10.244.0.0/16, fd00:244::/48" }, nil, cidrs("10.244.0.0/16", "fd00:244::/48")},
		{"node CIDR", config.LocalModeNodeCIDR, nil, node, cidrs("10.244.1.0/24", "fd00:244:1::/64")},
		{"node with the old field", config.LocalModeNodeCIDR, nil, oldNode, cidrs("10.244.2.0/24")},
		{"node is not known", config.LocalModeNodeCIDR, nil, nil, cidrs()},
		{"bridge", config.LocalModeBridgeInterface, func(c *kubeproxyconfig.KubeProxyConfiguration) { c.DetectLocal.BridgeInterface = "cni0" }, nil, dataplane.LocalDetector{Interface: "cni0"}},
		{"prefix", config.LocalModeInterfaceNamePrefix, func(c *kubeproxyconfig.KubeProxyConfiguration) { c.DetectLocal.InterfaceNamePrefix = "veth" }, nil, dataplane.LocalDetector{Interface: "veth", Prefix: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config.Default().KubeProxyConfiguration
			c.DetectLocalMode = tc.mode
			if tc.config != nil {
				tc.config(c)
			}
			got, err := localDetector(c, tc.node, nil)
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
	c := config.Default().KubeProxyConfiguration
	c.DetectLocalMode = config.LocalModeNodeCIDR
	bad := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDR: "10.244"}}
	if _, err := localDetector(c, bad, nil); err == nil || !strings.Contains(err.Error(), "Node n1: spec.podCIDRs") {
		t.Errorf("a bad podCIDR: %v", err)
	}
}

func TestResolveNodePorts(t *testing.T) {
	node := addrs("127.0.0.1", "192.0.2.7", "198.51.100.7", "::1", "2001:db8:1::7")
	tests := []struct {
		name      string
		want      []string
		primary   []netip.Addr
		addrs     []netip.Addr
		localhost string
	}{
		{"unset", nil, nil, nil, "4 6"},
		{"all", []string{"all"}, nil, nil, "4 6"},
		{"all by number", []string{"0.0.0.0/0", "::/0"}, nil, nil, "4 6"},
		{"all of one family", []string{"0.0.0.0/0"}, nil, nil, "4 6"},
		{"one network, the other family is free", []string{"192.0.2.0/24"}, nil, addrs("192.0.2.7", "::1", "2001:db8:1::7"), "6"},
		{"both families", []string{"192.0.2.0/24", "2001:db8:1::/64"}, nil, addrs("192.0.2.7", "2001:db8:1::7"), ""},
		{"a network that the node is not in", []string{"203.0.113.0/24", "fd00::/8"}, nil, addrs(), ""},
		{"IPv6 only limited", []string{"fd00::/8"}, nil, addrs("127.0.0.1", "192.0.2.7", "198.51.100.7"), "4"},
		{"localhost", []string{"localhost"}, nil, addrs("127.0.0.1", "::1"), "4 6"},
		{"only ::1", []string{"::1/128", "192.0.2.0/24"}, nil, addrs("192.0.2.7", "::1"), "6"},
		{"primary", []string{"primary"}, addrs("198.51.100.7", "2001:db8:1::7"), addrs("198.51.100.7", "2001:db8:1::7"), ""},
		{"primary of one family", []string{"primary"}, addrs("198.51.100.7"), addrs("198.51.100.7", "::1", "2001:db8:1::7"), "6"},
		{"primary and localhost", []string{"primary", "localhost"}, addrs("192.0.2.7", "2001:db8:1::7"), addrs("127.0.0.1", "192.0.2.7", "::1", "2001:db8:1::7"), "4 6"},
		{"primary that the node does not have", []string{"primary", "::/128"}, addrs("203.0.113.1"), addrs(), ""},
		{"everything wins", []string{"192.0.2.0/24", "0.0.0.0/0"}, nil, nil, "4 6"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := resolveNodePorts(tt.want, tt.primary, node)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(nodePorts{tt.addrs, map[dataplane.Family]bool{dataplane.IPv4: strings.Contains(tt.localhost, "4"), dataplane.IPv6: strings.Contains(tt.localhost, "6")}}, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.AllowUnexported(nodePorts{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if _, err := resolveNodePorts([]string{"192.0.2.1"}, nil, node); err == nil || !strings.Contains(err.Error(), `"192.0.2.1"`) {
		t.Errorf("not a CIDR: error %v", err)
	}
}

// TestNodeCIDRWithoutARange looks for the range of a node's pods where there is none, and where there was one before.
func TestNodeCIDRWithoutARange(t *testing.T) {
	last := []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	with := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Spec: corev1.NodeSpec{PodCIDR: "10.244.7.0/24"}}
	without := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	for _, tt := range []struct {
		name   string
		object *corev1.Node
		last   []netip.Prefix
		all    bool
		want   string // the ranges
		notice string
	}{
		{"a Node with a range", with, last, false, "[10.244.7.0/24]", ""},
		{"no Node", nil, nil, false, "[]", "there is no Node n in the input: nothing is masqueraded"},
		{"a Node without a range", without, nil, false, "[]", "Node n has no podCIDR: nothing is masqueraded"},
		{"a Node that vanished", nil, last, false, "[10.244.1.0/24]", "the last range that was found stays in force (10.244.1.0/24)"},
		{"a Node that lost its range", without, last, false, "[10.244.1.0/24]", "stays in force"},
		{"all is masqueraded", nil, nil, true, "[]", ""},
	} {
		c := config.Default().KubeProxyConfiguration
		c.DetectLocalMode, c.IPTables.MasqueradeAll = config.LocalModeNodeCIDR, tt.all
		d, err := localDetector(c, tt.object, tt.last)
		if got := fmt.Sprint(d.PodCIDRs); err != nil || got != tt.want {
			t.Errorf("%s: %s, %v", tt.name, got, err)
		}
		got := fmt.Sprint(DetectionNotices(c, spec.Origin{File: "c.yaml", Line: 1}, "n", tt.object, tt.last))
		if tt.notice == "" && got != "[]" || !strings.Contains(got, tt.notice) {
			t.Errorf("%s: %s", tt.name, got)
		}
	}
}

// TestProxiedLoopback has weir serve ::1 where a bridge with IPv6 passes its frames through the packet filter, and nowhere else.
func TestProxiedLoopback(t *testing.T) {
	four, six := netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")
	both := []dataplane.Family{dataplane.IPv4, dataplane.IPv6}
	for _, tc := range []struct {
		name   string
		config dataplane.Config
		told   bool
	}{
		{"no bridge", dataplane.Config{Families: both, LocalhostNodePortsIPv6: true}, false},
		{"a bridge with IPv4", dataplane.Config{Families: both, LocalhostNodePortsIPv6: true, BridgedThrough: []netip.Prefix{four}}, false},
		{"a bridge past the filter", dataplane.Config{Families: both, LocalhostNodePortsIPv6: true, Bridged: []netip.Prefix{six}}, false},
		{"a bridge", dataplane.Config{Families: both, LocalhostNodePortsIPv6: true, BridgedThrough: []netip.Prefix{four, six}}, true},
		{"not asked for", dataplane.Config{Families: both, LocalhostNodePorts: true, BridgedThrough: []netip.Prefix{six}}, false},
		{"no IPv6", dataplane.Config{Families: both[:1], LocalhostNodePortsIPv6: true, BridgedThrough: []netip.Prefix{six}}, false},
	} {
		c := tc.config
		found := ProxiedLoopback(&c, spec.Origin{})
		if told := len(found) == 1 && found[0].ID() == spec.LoopbackProxied; told != tc.told || c.LocalhostNodePortsIPv6 != (tc.config.LocalhostNodePortsIPv6 && !tc.told) || c.ProxiesLoopbackIPv6 != tc.told {
			t.Errorf("%s: %v, served %v", tc.name, found, c.LocalhostNodePortsIPv6)
		}
	}
}
