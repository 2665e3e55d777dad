package main

import (
	"bytes"
	"errors"
	"net/netip"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logsapi "k8s.io/component-base/logs/api/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends"
	"weir/backends/hostnet"
	"weir/spec"
	"weir/spec/config"
)

// TestPrimary goes through what may say which address of a family is the node's own.
func TestPrimary(t *testing.T) {
	node := func(addresses ...corev1.NodeAddress) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Addresses: addresses}}
	}
	internal := func(a string) corev1.NodeAddress { return corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a} }
	external := func(a string) corev1.NodeAddress { return corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: a} }
	here := []hostnet.Address{{Addr: netip.MustParseAddr("203.0.113.1"), Interface: "x"}, {Addr: netip.MustParseAddr("fd00:203::1"), Interface: "x"}}
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
			for _, a := range primary(&kubeproxyconfig.KubeProxyConfiguration{BindAddress: tc.bind}, tc.node, here) {
				got = append(got, a.String())
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}

func TestLocalDetector(t *testing.T) {
	cidrs := func(s ...string) backends.LocalDetector {
		var d backends.LocalDetector
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
		want   backends.LocalDetector
	}{
		{"no cluster CIDR", config.LocalModeClusterCIDR, nil, node, cidrs()},
		{"cluster CIDR", config.LocalModeClusterCIDR, func(c *kubeproxyconfig.KubeProxyConfiguration) { c.ClusterCIDR = "10.244.0.0/16" }, nil, cidrs("10.244.0.0/16")},
		{"dual stack", config.LocalModeClusterCIDR, func(c *kubeproxyconfig.KubeProxyConfiguration) { c.ClusterCIDR = "10.244.0.0/16, fd00:244::/48" }, nil, cidrs("10.244.0.0/16", "fd00:244::/48")},
		{"node CIDR", config.LocalModeNodeCIDR, nil, node, cidrs("10.244.1.0/24", "fd00:244:1::/64")},
		{"node with the old field", config.LocalModeNodeCIDR, nil, oldNode, cidrs("10.244.2.0/24")},
		{"node is not known", config.LocalModeNodeCIDR, nil, nil, cidrs()},
		{"bridge", config.LocalModeBridgeInterface, func(c *kubeproxyconfig.KubeProxyConfiguration) { c.DetectLocal.BridgeInterface = "cni0" }, nil, backends.LocalDetector{Interface: "cni0"}},
		{"prefix", config.LocalModeInterfaceNamePrefix, func(c *kubeproxyconfig.KubeProxyConfiguration) { c.DetectLocal.InterfaceNamePrefix = "veth" }, nil, backends.LocalDetector{Interface: "veth", Prefix: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := config.Default().KubeProxyConfiguration
			c.DetectLocalMode = tc.mode
			if tc.config != nil {
				tc.config(c)
			}
			got, err := localDetector(c, tc.node)
			if err != nil || !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got %+v, %v; want %+v", got, err, tc.want)
			}
		})
	}
	c := config.Default().KubeProxyConfiguration
	c.DetectLocalMode = config.LocalModeNodeCIDR
	bad := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: corev1.NodeSpec{PodCIDR: "10.244"}}
	if _, err := localDetector(c, bad); err == nil || !strings.Contains(err.Error(), "Node n1: spec.podCIDRs") {
		t.Errorf("a bad podCIDR: %v", err)
	}
}

func TestNodeName(t *testing.T) {
	for _, tc := range []struct{ flag, config, want string }{
		{"Edge-7 ", "other", "edge-7"},
		{"", "Other", "other"},
	} {
		if got, err := nodeName(tc.flag, tc.config); got != tc.want || err != nil {
			t.Errorf("nodeName(%q, %q) = %q, %v; want %q", tc.flag, tc.config, got, err, tc.want)
		}
	}
	if _, err := nodeName(" ", ""); err == nil {
		t.Error("an empty name is accepted")
	}
}

func TestBackendConfig(t *testing.T) {
	bit := int32(5)
	c := config.Default().KubeProxyConfiguration
	c.NodePortAddresses = []string{"localhost"}
	c.IPTables.MasqueradeBit, c.NFTables.MasqueradeAll = &bit, true
	c.Conntrack.TCPBeLiberal = true
	got, err := backendConfig(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.MasqueradeMark != 1<<5 || got.MasqueradeAll || !got.LocalhostNodePorts || !got.TCPBeLiberal || got.NodePortAddresses == nil {
		t.Errorf("iptables: %+v", got)
	}
	c.Mode = modeNFTables
	if got, err = backendConfig(c, nil); err != nil || got.MasqueradeMark != 1<<14 || !got.MasqueradeAll || !got.LocalhostNodePorts {
		t.Errorf("nftables: %+v, %v", got, err)
	}
}

// TestSyncPeriods: each mode has its own; userspace mode has those of iptables, and so has the one in force where IPVS is
// missing (TestFallbackWithoutIPVS).
func TestSyncPeriods(t *testing.T) {
	c := config.Default().KubeProxyConfiguration
	for _, s := range []struct {
		mode        kubeproxyconfig.ProxyMode
		least, full *metav1.Duration
	}{
		{modeIPTables, &c.IPTables.MinSyncPeriod, &c.IPTables.SyncPeriod},
		{modeIPVS, &c.IPVS.MinSyncPeriod, &c.IPVS.SyncPeriod},
		{modeNFTables, &c.NFTables.MinSyncPeriod, &c.NFTables.SyncPeriod},
		{modeUserspace, &c.IPTables.MinSyncPeriod, &c.IPTables.SyncPeriod},
	} {
		c.Mode = s.mode
		was := [2]metav1.Duration{*s.least, *s.full}
		s.least.Duration, s.full.Duration = 3*time.Second, 77*time.Second
		if least, full := syncPeriods(c); least != 3*time.Second || full != 77*time.Second {
			t.Errorf("%s: %v at least, %v at most", s.mode, least, full)
		}
		*s.least, *s.full = was[0], was[1]
	}
}

// TestToldOnce checks that a condition that lasts is logged once.
func TestToldOnce(t *testing.T) {
	var out bytes.Buffer
	told := newChangeLog(hclog.New(&hclog.LoggerOptions{Output: &out}))
	lines := func() int {
		n := strings.Count(out.String(), "\n")
		out.Reset()
		return n
	}
	bad := spec.Update{Err: spec.Problems{{Detail: "one"}, {Detail: "two"}}}
	good := spec.Update{Snapshot: &spec.Snapshot{Notices: []spec.Problem{{Detail: "a notice"}}}, Delta: spec.Delta{All: true}}
	for i, step := range []struct {
		u    spec.Update
		want int
	}{
		{bad, 3}, {bad, 0}, {spec.Update{Err: errors.New("gone")}, 2}, {good, 2}, {good, 0}, {bad, 3}, {good, 1},
	} {
		told.update(step.u)
		if got := lines(); got != step.want {
			t.Errorf("step %d: %d lines, want %d", i, got, step.want)
		}
	}
}

// TestLoggingFollowsTheConfiguration changes the configuration under a logger and one that was named after it.
func TestLoggingFollowsTheConfiguration(t *testing.T) {
	text, json := regexp.MustCompile(`^\S+ \[DEBUG\] weir\.part: hello: n=1\n$`), regexp.MustCompile(`^\{"@level":"debug","@message":"hello","@module":"weir\.part",.*"n":1\}\n$`)
	for _, tc := range []struct {
		flags    string
		format   string
		verbose  logsapi.VerbosityLevel
		want     *regexp.Regexp // of a debug line; nil for none
		warnings bool
	}{
		{"", "text", 0, nil, true},
		{"", "text", 2, text, true},
		{"", "json", 4, json, true},
		{"", "json", 0, nil, true},
		{"--log-format text", "json", 2, text, true},
		{"--log-format json", "text", 2, json, true},
		{"-v 2", "json", 0, json, true},
		{"-v 0", "text", 4, nil, true},
		{"--log-level error", "text", 4, nil, false},
	} {
		var flags logFlags
		cmd := &cobra.Command{}
		flags.add(cmd, "info")
		if err := cmd.ParseFlags(strings.Fields(tc.flags)); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		log := flags.liveLogger(&out)
		part := log.Named("part")
		for _, c := range []logsapi.LoggingConfiguration{{Format: "json", Verbosity: 9}, {Format: "text"}, {Format: tc.format, Verbosity: tc.verbose}} {
			log.follow(&c)
		}
		part.Debug("hello", "n", 1)
		if got := out.String(); tc.want == nil && got != "" || tc.want != nil && !tc.want.MatchString(got) {
			t.Errorf("%s, %s, %d: %q, want %v", tc.flags, tc.format, tc.verbose, got, tc.want)
		}
		out.Reset()
		if part.Warn("hello"); strings.Count(out.String(), "\n") == 1 != tc.warnings {
			t.Errorf("%s, %s, %d: warned %q", tc.flags, tc.format, tc.verbose, out.String())
		}
	}
}

func TestVerbosity(t *testing.T) {
	for _, tc := range []struct {
		level string
		v     int
		want  hclog.Level
	}{
		{"info", 0, hclog.Info}, {"error", 0, hclog.Error}, {"info", 2, hclog.Debug}, {"warn", 1, hclog.Info}, {"info", 9, hclog.Trace}, {"trace", 2, hclog.Trace},
	} {
		f := logFlags{format: "text", level: tc.level, verbosity: tc.v}
		if got := f.logger(&bytes.Buffer{}).GetLevel(); got != tc.want {
			t.Errorf("--log-level %s -v %d: %v, want %v", tc.level, tc.v, got, tc.want)
		}
	}
}
