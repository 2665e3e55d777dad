package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends"
	"weir/backends/conntrack"
	"weir/backends/doctor"
	"weir/backends/hostnet"
	"weir/backends/iptables"
	"weir/backends/ipvs"
	"weir/backends/nftables"
	"weir/backends/userspace"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/config"
)

// defaultMasqueradeMark is masqueradeBit's default, 14.
const defaultMasqueradeMark = 1 << 14

var bothFamilies = []backends.Family{backends.IPv4, backends.IPv6}

// wiring knows the concrete backends. It turns a Snapshot into what the Engine is given, and remembers what it built, so
// that a Snapshot that changes nothing for the backend is given the same one again. It is used by one goroutine at a time.
type wiring struct {
	log   hclog.Logger
	flags nodeFlags

	mode    string
	config  backends.Config
	backend backends.Backend
	flows   liveFlows

	kernel iptables.Kernel // found once; a node does not change its iptables under a running process
	proxy  proxy

	virtual virtual
}

// target is what a Snapshot comes down to on this node.
type target struct {
	reconcile.Settings
	// Config has the flags applied, and Mode is never "".
	Config *kubeproxyconfig.KubeProxyConfiguration
	// Object is this node's Node object, or nil.
	Object *corev1.Node
	// Backend's Config.
	BackendConfig backends.Config
	// Fallback is why this mode is in force although another one was asked for, or "".
	Fallback string
	// Rootless says that the kernel is left alone.
	Rootless bool
}

// target works out what the Snapshot means for this node. It reads from the node and changes nothing on it.
func (w *wiring) target(ctx context.Context, snap *spec.Snapshot) (*target, error) {
	c := snap.Config.DeepCopy()
	if w.flags.mode != "" {
		c.Mode = kubeproxyconfig.ProxyMode(w.flags.mode)
	}
	name, err := nodeName(w.flags.hostname, c.HostnameOverride)
	if err != nil {
		return nil, err
	}
	mode, fallback, err := w.chooseMode(ctx, string(c.Mode))
	if err != nil {
		return nil, err
	}
	c.Mode = kubeproxyconfig.ProxyMode(mode)
	t := &target{Config: c, Object: snap.Nodes[name], Fallback: fallback, Rootless: w.flags.rootless}
	if t.BackendConfig, err = backendConfig(c, t.Object); err != nil {
		return nil, err
	}
	if mode == modeIPTables || mode == modeIPVS {
		kernel, err := w.probeIPTables(ctx)
		if err != nil {
			return nil, err
		}
		t.BackendConfig.Families = kernel.Features().Families
	}
	if mode == modeNFTables && snap.Weir.ServiceCIDRsGiven {
		t.BackendConfig.ServiceCIDRs = snap.Weir.ServiceCIDRs
	}
	if err := w.build(ctx, mode, t.BackendConfig, userspaceSettingsOf(snap), ipvsSettingsOf(c)); err != nil {
		return nil, err
	}
	t.Settings = reconcile.Settings{
		Mode:    mode,
		Backend: w.backend,
		Node:    reconcile.Node{Name: name, Families: t.BackendConfig.Families},
	}
	if t.Object != nil {
		t.Node.Zone = t.Object.Labels[corev1.LabelTopologyZone]
	}
	t.MinSyncPeriod, t.SyncPeriod = syncPeriods(c)
	return t, nil
}

// build makes the backend anew if anything it is built from differs.
func (w *wiring) build(ctx context.Context, mode string, cfg backends.Config, us userspaceSettings, vs ipvs.Settings) error {
	own := mode == modeUserspace && w.proxy.settings != us || mode == modeIPVS && w.virtual.settings != vs
	if w.backend != nil && w.mode == mode && reflect.DeepEqual(w.config, cfg) && !own {
		return nil
	}
	b, err := w.newBackend(ctx, mode, cfg, us, vs)
	if err != nil {
		return err
	}
	w.mode, w.config, w.backend, w.virtual.settings = mode, cfg, b, vs
	w.flows.Cleaner = conntrack.New(cfg)
	if mode == modeIPVS {
		w.flows.Cleaner = conntrack.ForIPVS(cfg)
	}
	w.flows.proxy, _ = b.(*userspace.Backend)
	return nil
}

func (w *wiring) newBackend(ctx context.Context, mode string, cfg backends.Config, us userspaceSettings, vs ipvs.Settings) (backends.Backend, error) {
	switch mode {
	case modeIPTables:
		kernel, err := w.probeIPTables(ctx)
		if err != nil {
			return nil, err
		}
		return iptables.New(cfg, kernel), nil
	case modeIPVS:
		return w.newIPVS(ctx, cfg, vs)
	case modeNFTables:
		return nftables.New(cfg), nil
	case modeUserspace:
		return w.newUserspace(ctx, cfg, us)
	}
	return nil, checkMode(mode)
}

func (w *wiring) probeIPTables(ctx context.Context) (iptables.Kernel, error) {
	if w.kernel != nil {
		return w.kernel, nil
	}
	force := iptables.Mode(w.flags.variant)
	if w.flags.variant == "auto" {
		force = ""
	}
	kernel, err := iptables.Probe(ctx, w.log.Named("iptables"), families(), force)
	switch {
	case err != nil && !privileged():
		return nil, errUnprivileged
	case err != nil:
		return nil, fmt.Errorf("iptables cannot be used: %w", err)
	}
	w.kernel = kernel
	return kernel, nil
}

// errUnprivileged is what whoever tries a dry run as a user sees.
var errUnprivileged = errors.New("the kernel's rules cannot be read without privileges; run this as root, or with CAP_NET_ADMIN")

// privileged says whether this process may read and write the rules of its network namespace.
func privileged() bool { return doctor.Capable(unix.CAP_NET_ADMIN) }

// chooseMode returns the mode asked for, or iptables and the reason where the node has no IPVS. If nobody asked for one, it
// is iptables where the node has it, else nftables, and it does not change while the process lives.
func (w *wiring) chooseMode(ctx context.Context, asked string) (mode, fallback string, err error) {
	if err := checkMode(asked); err != nil {
		return "", "", err
	}
	if asked == modeIPVS {
		return w.ipvsOrFallback(ctx)
	}
	w.virtual.missing.Store(false)
	w.virtual.told = ""
	if asked != "" {
		return asked, "", nil
	}
	if w.mode != "" {
		return w.mode, "", nil
	}
	_, errIPTables := w.probeIPTables(ctx)
	if errIPTables == nil {
		return modeIPTables, "", nil
	}
	if err := w.probeNFTables(ctx, errIPTables); err != nil {
		return "", "", err
	}
	return modeNFTables, "", nil
}

// probeNFTables says whether nftables can stand in for iptables, which cannot be used.
func (w *wiring) probeNFTables(ctx context.Context, errIPTables error) error {
	if err := nftables.Probe(ctx); err != nil {
		return errors.Join(errIPTables, fmt.Errorf("nftables cannot be used: %w", err))
	}
	w.log.Warn("using nftables, since iptables cannot be used", "error", errIPTables)
	return nil
}

// leftover takes down what weir left in a mechanism that it does not use now.
type leftover struct {
	name   string // as a person calls it, such as "iptables-legacy"
	engine *reconcile.Engine
}

// others returns each mechanism that this node can run, but for those of the given mode.
func (w *wiring) others(ctx context.Context, mode string) []leftover {
	cfg := backends.Config{Families: families(), MasqueradeMark: defaultMasqueradeMark}
	var all []leftover
	add := func(mode, name string, b backends.Backend) {
		node := reconcile.Node{Families: cfg.Families}
		all = append(all, leftover{name, reconcile.NewEngine(reconcile.Options{Mode: mode, Backend: b, Node: node, Log: w.log})})
	}
	vs, _ := ipvs.Open() // where there is no IPVS, there is nothing of it
	for _, v := range w.variants() {
		kernel, err := iptables.Probe(ctx, w.log.Named("iptables"), cfg.Families, v)
		if err != nil {
			continue // what this node cannot run, it holds nothing of
		}
		if mode != modeIPTables {
			add(modeIPTables, "iptables-"+string(v), iptables.New(cfg, kernel))
		}
		if mode != modeIPVS && vs != nil {
			if b, err := ipvsBackend(cfg, ipvs.Settings{}, kernel, vs); err == nil {
				add(modeIPVS, "ipvs with iptables-"+string(v), b)
			}
		}
		if mode != modeUserspace {
			add(modeUserspace, "userspace over iptables-"+string(v), iptables.NewLayer(cfg, kernel))
		}
	}
	if nftables.Probe(ctx) == nil {
		if mode != modeNFTables {
			add(modeNFTables, modeNFTables, nftables.New(cfg))
		}
		if mode != modeUserspace || w.proxy.overIPTables {
			add(modeUserspace, "userspace over nftables", nftables.NewLayer(cfg))
		}
	}
	return all
}

// cleanup takes down all that the leftovers are of, and tells done how each went. Those of ipvs mode share its sets, which go
// only when the rules of every variant of iptables have gone that match them: so what failed is tried again after the rest.
func cleanup(ctx context.Context, all []leftover, done func(name string, deleted int, err error)) {
	deleted := map[string]int{}
	var again []leftover
	for _, l := range all {
		r := l.engine.Cleanup(ctx)
		if deleted[l.name] = r.Deleted; unclean(r) != nil {
			again = append(again, l)
		} else {
			done(l.name, r.Deleted, nil)
		}
	}
	for _, l := range again {
		r := l.engine.Cleanup(ctx)
		done(l.name, deleted[l.name]+r.Deleted, unclean(r))
	}
}

// unclean says why a cleanup left something.
func unclean(r reconcile.Report) error {
	err := r.Err
	for _, i := range r.Isolated {
		err = errors.Join(err, i.Err)
	}
	return err
}

// variants returns the variants of iptables that may hold anything of weir's. Legacy is left out unless its tables are
// there: to ask iptables-legacy for them would make them.
func (w *wiring) variants() []iptables.Mode {
	if w.flags.variant != "auto" {
		return []iptables.Mode{iptables.Mode(w.flags.variant)}
	}
	variants := []iptables.Mode{iptables.NFT}
	for _, file := range []string{"/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"} {
		if names, err := os.ReadFile(file); err == nil && len(names) > 0 {
			return append(variants, iptables.Legacy)
		}
	}
	return variants
}

// nodeName is the name by which endpoints know this node: kube-proxy's rule.
func nodeName(flag, fromConfig string) (string, error) {
	name := flag
	if name == "" {
		name = fromConfig
	}
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return "", fmt.Errorf("cannot tell the name of this node, so give --hostname-override: %w", err)
		}
	}
	if name = strings.ToLower(strings.TrimSpace(name)); name == "" {
		return "", errors.New("the name of this node is empty; give --hostname-override")
	}
	return name, nil
}

func syncPeriods(c *kubeproxyconfig.KubeProxyConfiguration) (least, full time.Duration) {
	switch c.Mode {
	case modeIPVS:
		return c.IPVS.MinSyncPeriod.Duration, c.IPVS.SyncPeriod.Duration
	case modeNFTables:
		return c.NFTables.MinSyncPeriod.Duration, c.NFTables.SyncPeriod.Duration
	}
	return c.IPTables.MinSyncPeriod.Duration, c.IPTables.SyncPeriod.Duration
}

// backendConfig brings the KubeProxyConfiguration and this node's addresses together.
func backendConfig(c *kubeproxyconfig.KubeProxyConfiguration, node *corev1.Node) (backends.Config, error) {
	cfg := backends.Config{Families: families(), TCPBeLiberal: c.Conntrack.TCPBeLiberal}
	addrs, err := hostnet.Addresses()
	if err != nil {
		return cfg, err
	}
	ports, err := hostnet.ResolveNodePorts(config.NodePortAddresses(c), primary(c, node, addrs), addrs)
	if err != nil {
		return cfg, err
	}
	cfg.NodeAddresses, cfg.NodePortAddresses = hostnet.Outward(addrs), ports.Addrs

	bit := c.IPTables.MasqueradeBit
	if c.Mode == modeNFTables {
		bit, cfg.MasqueradeAll = c.NFTables.MasqueradeBit, c.NFTables.MasqueradeAll
		cfg.LocalhostNodePorts = ports.Localhost && len(c.NodePortAddresses) > 0
	} else {
		cfg.MasqueradeAll = c.IPTables.MasqueradeAll
		cfg.LocalhostNodePorts = ports.Localhost && (c.IPTables.LocalhostNodePorts == nil || *c.IPTables.LocalhostNodePorts)
	}
	cfg.MasqueradeMark = defaultMasqueradeMark
	if bit != nil {
		cfg.MasqueradeMark = 1 << uint(*bit)
	}
	cfg.LocalDetector, err = localDetector(c, node)
	return cfg, err
}

// primary returns the node's primary address of each family: bindAddress, else what its Node object says, as in kube-proxy
// (detectNodeIPs in cmd/kube-proxy); without either, what the routes say.
func primary(c *kubeproxyconfig.KubeProxyConfiguration, node *corev1.Node, addrs []hostnet.Address) []netip.Addr {
	var found []netip.Addr
	add := func(a netip.Addr) {
		sameFamily := func(b netip.Addr) bool { return a.Is4() == b.Is4() }
		if a.IsValid() && !a.IsUnspecified() && !a.IsLoopback() && !slices.ContainsFunc(found, sameFamily) {
			found = append(found, a)
		}
	}
	bind, _ := netip.ParseAddr(c.BindAddress)
	add(bind)
	own := nodeAddresses(node)
	if len(own) == 0 {
		own = hostnet.Primary(addrs)
	}
	for _, a := range own {
		add(a)
	}
	return found
}

// nodeAddresses returns what a Node object, which may be nil, says of its addresses, the internal ones first.
func nodeAddresses(node *corev1.Node) []netip.Addr {
	if node == nil {
		return nil
	}
	var found []netip.Addr
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, na := range node.Status.Addresses {
			if a, err := netip.ParseAddr(na.Address); err == nil && na.Type == kind {
				found = append(found, a)
			}
		}
	}
	return found
}

// families returns what the kernel can do: IPv6 may have been turned off when it was booted.
func families() []backends.Family {
	if _, err := os.Stat("/proc/net/if_inet6"); err != nil {
		return []backends.Family{backends.IPv4}
	}
	return bothFamilies
}

// localDetector is how traffic of this node's pods is told from all other. What it needs and does not find is no error, as
// in kube-proxy: then nothing is masqueraded for where it comes from.
func localDetector(c *kubeproxyconfig.KubeProxyConfiguration, node *corev1.Node) (backends.LocalDetector, error) {
	switch c.DetectLocalMode {
	case config.LocalModeClusterCIDR, "":
		return cidrDetector("clusterCIDR", strings.Split(c.ClusterCIDR, ","))
	case config.LocalModeNodeCIDR:
		if node == nil {
			return backends.LocalDetector{}, nil
		}
		cidrs := node.Spec.PodCIDRs
		if len(cidrs) == 0 {
			cidrs = []string{node.Spec.PodCIDR}
		}
		return cidrDetector("Node "+node.Name+": spec.podCIDRs", cidrs)
	case config.LocalModeBridgeInterface:
		return backends.LocalDetector{Interface: c.DetectLocal.BridgeInterface}, nil
	case config.LocalModeInterfaceNamePrefix:
		return backends.LocalDetector{Interface: c.DetectLocal.InterfaceNamePrefix, Prefix: true}, nil
	}
	return backends.LocalDetector{}, fmt.Errorf("detectLocalMode %q is not known", c.DetectLocalMode)
}

func cidrDetector(what string, cidrs []string) (backends.LocalDetector, error) {
	var d backends.LocalDetector
	for _, s := range cidrs {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return d, fmt.Errorf("%s: %q is not a CIDR", what, s)
		}
		if p = p.Masked(); !slices.Contains(d.PodCIDRs, p) {
			d.PodCIDRs = append(d.PodCIDRs, p)
		}
	}
	return d, nil
}
