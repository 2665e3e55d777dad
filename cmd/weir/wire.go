package main

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends/dataplane"
	"weir/backends/firewall"
	"weir/backends/hostnet"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/nodeconfig"
)

// modeManager turns a Snapshot into the Engine's data path and settings. A Snapshot that changes nothing for the data
// path gets the same one again. One goroutine at a time may use it, except for await.
type modeManager struct {
	*platform

	// accepted is the data path that the Loop accepted last, and candidate a later one.
	accepted, candidate *openMode

	// unavailable is the last logged reason why the mode that was asked for cannot be used, or "".
	unavailable string
	// awaited is the mode that was asked for and cannot be used, or nil.
	awaited atomic.Pointer[mode]

	// found are the ranges of pods that the Node in force had last.
	found   nodeRanges
	network networkLook
}

// networkLook is the last look at the networks of the node.
type networkLook struct {
	// moved reports whether a route has changed since then.
	moved   atomic.Bool
	notices []spec.Notice
	mode    *mode
	// clusterIPs are those of snap.
	clusterIPs nodeconfig.ClusterIPs
	snap       *spec.Snapshot
	// latest is the last Snapshot in use.
	latest *spec.Snapshot
}

// follow takes an accepted Update. The ClusterIPs are not gathered again for a change of endpoints.
func (l *networkLook) follow(u spec.Update) {
	before := l.latest
	l.latest = u.Snapshot
	if before == nil || l.snap != before || u.Delta.All || u.Delta.Config {
		return
	}
	for _, name := range u.Delta.Services {
		if !sameAddresses(before.Services.Get(name), u.Snapshot.Services.Get(name)) {
			return
		}
	}
	l.snap = u.Snapshot
}

// sameAddresses reports whether two states of a Service, nil for none, certainly have the same ClusterIPs.
func sameAddresses(a, b *spec.Service) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Object == b.Object && a.Answered == b.Answered && slices.Equal(a.Allocated, b.Allocated)
}

// nodeRanges are the ranges of the pods of a node.
type nodeRanges struct {
	node     string
	podCIDRs []netip.Prefix
}

func newModeManager(log hclog.Logger, flags nodeFlags, serves bool) *modeManager {
	return &modeManager{platform: newPlatform(log, flags, serves)}
}

// nodeConfig is the meaning of a Snapshot on this node.
type nodeConfig struct {
	reconcile.Settings
	// Config includes the flags, and its Mode is the one to use.
	Config *kubeproxyconfig.KubeProxyConfiguration
	// Object is this node's Node object, or nil.
	Object *corev1.Node
	// DataPlane is the Backend's Config.
	DataPlane dataplane.Config
	// Fallback is why this mode is used instead of the one that was asked for, or "".
	Fallback string
	// Notices are about what the configuration does not find on this node, and Network about where ClusterIPs and the
	// node's networks do not fit.
	Notices, Network []spec.Notice

	mode *mode
	open *openMode
	// opening is what the mode accepts of what a firewall would drop.
	opening firewall.Opening
}

// resolve works out what the Snapshot means for this node. It only reads from the node, and does not change accepted.
func (m *modeManager) resolve(ctx context.Context, snap *spec.Snapshot) (*nodeConfig, error) {
	c := snap.Config.DeepCopy()
	name, err := nodeName(m.flags.hostname, c.HostnameOverride)
	if err != nil {
		return nil, err
	}
	chosen, fallback, err := m.choose(ctx, cmp.Or(m.flags.mode, string(c.Mode)))
	if err != nil {
		return nil, err
	}
	c.Mode = kubeproxyconfig.ProxyMode(chosen.name)
	n := &nodeConfig{Config: c, Object: snap.Nodes[name], Fallback: fallback, mode: chosen}
	node, err := lookAtNode(n.Object)
	if err != nil {
		return nil, err
	}
	if m.found.node == name {
		node.LastPodCIDRs = m.found.podCIDRs
	}
	n.Notices = nodeconfig.DetectionNotices(c, snap.ConfigOrigin, name, n.Object, node.LastPodCIDRs)
	n.Network = m.networkNotices(snap, chosen)
	section := chosen.section(c)
	if n.DataPlane, err = nodeconfig.DataPath(c, section, node); err != nil {
		return nil, err
	}
	if chosen.translates {
		n.Notices = append(n.Notices, nodeconfig.ProxiedLoopback(&n.DataPlane, snap.ConfigOrigin)...)
	}
	if n.open, err = m.openMode(ctx, chosen, snap, &n.DataPlane); err != nil {
		return nil, err
	}
	n.Settings = reconcile.Settings{
		DataPath:      n.open.path,
		Node:          m.node(name, snap, &n.DataPlane),
		MinSyncPeriod: section.MinSyncPeriod,
		SyncPeriod:    section.SyncPeriod,
		Hurries:       !snap.MinSyncPeriodGiven,
		From:          n,
	}
	n.Node.Answers = chosen.answers != nil && chosen.answers(ctx)
	n.opening = m.opening(chosen.name)
	if n.Object != nil {
		n.Node.Zone = n.Object.Labels[corev1.LabelTopologyZone]
	}
	return n, nil
}

// networkNotices returns the notices about the ClusterIPs of a Snapshot and the networks that the node has now. What
// cannot be read has none.
func (m *modeManager) networkNotices(snap *spec.Snapshot, chosen *mode) []spec.Notice {
	l := &m.network
	l.moved.Store(false)
	if l.snap != snap {
		l.clusterIPs, l.snap = nodeconfig.ClusterIPsOf(snap), snap
	}
	l.mode, l.notices = chosen, nil
	if chosen.leavesKernel { // it serves addresses that the node has
		return nil
	}
	found, err := hostnet.Networks()
	if err != nil {
		m.log.Debug("the networks of this node cannot be read", "error", err)
		return nil
	}
	l.notices = l.clusterIPs.OverlapNotices(networksOf(found))
	if chosen.name != modeIPVS { // in which ClusterIPs are addresses of the node
		sources, _ := hostnet.Sources() // the remedy has a placeholder then
		l.notices = append(l.notices, l.clusterIPs.RouteNotices(networksOf(found), sources, hostnet.Reaches)...)
	}
	return l.notices
}

// networkNoticesNow is networkNotices without a look if neither the Snapshot nor a route has changed since the last one.
func (m *modeManager) networkNoticesNow(snap *spec.Snapshot, n *nodeConfig) []spec.Notice {
	if l := &m.network; l.snap == snap && l.mode == n.mode && !l.moved.Load() {
		return l.notices
	}
	return m.networkNotices(snap, n.mode)
}

func networksOf(found []hostnet.Network) []nodeconfig.Network {
	out := make([]nodeconfig.Network, len(found))
	for i, n := range found {
		out[i] = nodeconfig.Network(n)
	}
	return out
}

// node returns what Services are resolved for.
func (m *modeManager) node(name string, snap *spec.Snapshot, c *dataplane.Config) reconcile.Node {
	n := reconcile.Node{Name: name, Families: c.Families, NodePortAddresses: c.NodePortAddresses}
	if n.NodePortAddresses == nil {
		n.NodePortAddresses = c.NodeAddresses
	}
	own := c.NodeAddresses
	if m.flags.rootless { // such a node serves the addresses that it has, and no others
		own = nil
	}
	n.External = reconcile.ExternalPolicyOf(&snap.Weir, own)
	return n
}

// nodeName returns the name of this node in endpoints.
func nodeName(flag, override string) (string, error) {
	hostname, unknown := os.Hostname()
	name, err := nodeconfig.Name(flag, override, hostname)
	if err != nil {
		return "", errors.Join(err, unknown)
	}
	return name, nil
}

// lookAtNode returns the facts about the node. The object is its Node object, or nil.
func lookAtNode(object *corev1.Node) (nodeconfig.Node, error) {
	addrs, err := hostnet.Addresses()
	if err != nil {
		return nodeconfig.Node{}, err
	}
	bridges, err := hostnet.LookAtBridges(hostnet.Sysctl{})
	if err != nil {
		return nodeconfig.Node{}, err
	}
	return nodeconfig.Node{
		Families: families(), Addresses: addrs, Routed: hostnet.Primary(addrs),
		Bridged: bridges.Past, BridgedThrough: bridges.Through, Object: object,
	}, nil
}

var bothFamilies = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}

// families returns the families that the kernel supports. IPv6 may have been disabled at boot.
func families() []dataplane.Family {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return []dataplane.Family{dataplane.IPv4}
	}
	return bothFamilies
}
