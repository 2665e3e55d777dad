package main

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/backends/dns"
	"weir/backends/hostnet"
	"weir/cmd/weir/internal/handover"
	"weir/reconcile"
	"weir/reconcile/tell/names"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/kubedns"
)

// nameServer is the Observer that answers questions for names, if the configuration or a flag asks for it. Its zone follows
// what is in force.
type nameServer struct {
	reconcile.NopObserver
	ctx context.Context
	log hclog.Logger

	up      *dns.Upstreams
	metrics *dns.Metrics
	latency *prometheus.HistogramVec
	allowed atomic.Pointer[allowed]
	own     atomic.Pointer[[]netip.AddrPort] // answered, from which the node asks there
	pods    atomic.Pointer[podNamespaces]

	// The rest belongs to the Loop's goroutine, but for answerEarly: mu guards it until something is in force.
	mu     sync.Mutex
	early  bool                         // nothing is in force, and the zone is empty
	zone   *names.Zone                  // nil while nothing is served
	shown  atomic.Pointer[dns.Resolver] // of zone, for weir dns lookup
	config spec.DNS                     // in force
	stop   func()                       // ends what answers, and waits for it
	// answered are the ClusterIPs at which weir answers itself, with the port, and families those of the node, which are empty
	// if the data path cannot deliver to weir.
	answered []netip.AddrPort
	families []dataplane.Family
	told     bool // that it cannot

	node *nodeResolver
	// sockets are where names are answered, by servers.
	sockets   *handover.Sockets
	serversMu sync.Mutex
	servers   map[*dns.Server]struct{}
}

// allowed are the addresses that may ask.
type allowed struct {
	addrs    []netip.Addr
	prefixes []netip.Prefix
}

func newNameServer(log hclog.Logger, r prometheus.Registerer, sockets *handover.Sockets) *nameServer {
	up := dns.NewUpstreams()
	n := &nameServer{sockets: sockets, servers: map[*dns.Server]struct{}{}, log: log.Named("dns"), up: up, metrics: &dns.Metrics{Upstreams: up}, stop: func() {}, node: newNodeResolver(log.Named("dns"))}
	n.latency = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "coredns_kubernetes_dns_programming_duration_seconds",
		Help:    "Time from when a change of one Service was noticed in the input until its names followed.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 20),
	}, []string{"service_kind"})
	r.MustRegister(n.metrics, n.latency)
	return n
}

// programmed counts a change of a Service, with the labels of the SLI of SIG Scalability.
func (n *nameServer) programmed(svc *spec.Service, took time.Duration) {
	kind := "cluster_ip"
	switch s := &svc.Object.Spec; {
	case s.Type == corev1.ServiceTypeExternalName:
		return
	case s.ClusterIP == corev1.ClusterIPNone && len(s.Selector) > 0:
		kind = "headless_with_selector"
	case s.ClusterIP == corev1.ClusterIPNone:
		kind = "headless_without_selector"
	}
	n.latency.WithLabelValues(kind).Observe(took.Seconds())
}

// newResolver returns a Resolver of the zone with these settings.
func newResolver(zone dns.Zone, c spec.DNS) *dns.Resolver {
	return &dns.Resolver{Zone: zone, Domain: c.ClusterDomain + ".", Pods: dns.PodNames(c.Pods), Hosts: c.Hosts, Rewrite: dns.NewRewriter(c.Rewrite)}
}

// Updated implements reconcile.Observer.
func (n *nameServer) Updated(u spec.Update) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if u.Err == nil && u.Snapshot != nil {
		n.pods.Store(&podNamespaces{found: u.Snapshot.Found})
	}
	if n.zone == nil {
		return
	}
	n.zone.Updated(u)
	if u.Snapshot == nil {
		return
	}
	if at := n.answeredIn(u.Snapshot); u.Err == nil && !slices.Equal(at, n.answered) {
		n.stop()
		n.answerAt(at)
		n.start()
	}
}

// answeredIn returns the addresses at which weir answers pods itself by a Snapshot.
func (n *nameServer) answeredIn(snap *spec.Snapshot) (at []netip.AddrPort) {
	svc := snap.Services.Get(kubedns.Name)
	if svc == nil || !svc.Answered {
		return nil
	}
	for _, text := range svc.Object.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(text); err == nil && slices.Contains(n.families, dataplane.FamilyOf(a)) {
			at = append(at, netip.AddrPortFrom(a, 53))
		}
	}
	return at
}

// answerAt has the next start answer at these ClusterIPs too.
func (n *nameServer) answerAt(at []netip.AddrPort) {
	n.answered = at
	n.own.Store(&at)
}

// RoundStarts implements reconcile.Observer.
func (n *nameServer) RoundStarts(r reconcile.Request) {
	if n.zone != nil {
		n.zone.RoundStarts(r)
	}
}

// Applied implements reconcile.Observer.
func (n *nameServer) Applied(r reconcile.Report) {
	if n.zone != nil {
		n.zone.Applied(r)
	}
}

// Configured implements reconcile.Observer. The node itself and its pods may ask.
func (n *nameServer) Configured(snap *spec.Snapshot, s reconcile.Settings) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, node := snap.Weir.DNS, s.From.(*nodeConfig)
	defer n.point(snap)
	n.families = nil
	if svc := snap.Services.Get(kubedns.Name); node.Node.Answers {
		n.families = node.DataPlane.Families
	} else if !n.told && svc != nil && svc.Answered {
		n.told = true
		if len(svc.Slices) > 0 {
			n.log.Info("questions to kube-system/kube-dns are translated and tracked, because this mode or kernel cannot leave them alone; weir doctor names what a kernel lacks")
		} else {
			n.log.Info("pods have no kube-dns to ask, because this mode or kernel cannot deliver what is for weir itself; for one, have weir listen at an address of the node that pods reach (--dns-listen)")
		}
	}
	answered := n.answeredIn(snap)
	n.allow(node, c.Allow)
	n.endEarly()
	if reflect.DeepEqual(c, n.config) && slices.Equal(answered, n.answered) {
		return
	}
	n.stop()
	n.config, n.stop = c, func() {}
	n.answerAt(answered)
	n.shown.Store(nil)
	switch {
	case !c.Serve:
		n.zone = nil
		return
	case n.zone == nil:
		n.zone = names.NewZone()
		n.zone.Programmed = n.programmed
		n.zone.Updated(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}})
	}
	n.start()
}

// answerEarly answers while nothing is in force: names of Services with SERVFAIL, so that clients ask again, and others as ever.
// It is not called after Configured.
func (n *nameServer) answerEarly(c spec.DNS) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.early && reflect.DeepEqual(c, n.config) || !n.early && n.zone != nil {
		return
	}
	n.endEarly()
	if c.Serve {
		n.early, n.config, n.zone = true, c, names.NewZone()
		n.start()
	}
}

// endEarly ends what answerEarly began.
func (n *nameServer) endEarly() {
	if n.early {
		n.stop()
		n.early, n.stop, n.zone, n.config = false, func() {}, nil, spec.DNS{}
		n.shown.Store(nil)
	}
}

// point has the processes of the node ask for names where they are answered, or nowhere.
func (n *nameServer) point(snap *spec.Snapshot) {
	if n.ctx.Err() != nil { // the start has failed
		return
	}
	n.node.follow(n.ctx, resolverWish{stateDir: snap.Weir.StateDir, zone: n.zone, wanted: namesWanted(snap, n.zone), others: n.answered, made: time.Now()})
}

// end takes the node back from asking weir, and ends what answers.
func (n *nameServer) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.node.stop()
	n.stop()
}

// serving records whether a server serves.
func (n *nameServer) serving(server *dns.Server, serves bool) {
	n.serversMu.Lock()
	defer n.serversMu.Unlock()
	if serves {
		n.servers[server] = struct{}{}
	} else {
		delete(n.servers, server)
	}
}

// leavePatience is how long questions that were read may take to be answered: as long as clients wait.
const leavePatience = 5 * time.Second

// leave ends what answers, and leaves the node asking, because another process answers at the same sockets.
func (n *nameServer) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leavePatience)
	defer cancel()
	var all sync.WaitGroup
	n.serversMu.Lock()
	for server := range n.servers {
		all.Go(func() { server.Leave(ctx) })
	}
	n.serversMu.Unlock()
	all.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stop()
}

// allow has the node, its pods and further ranges ask.
func (n *nameServer) allow(t *nodeConfig, ranges []netip.Prefix) {
	a := &allowed{addrs: t.DataPlane.NodeAddresses, prefixes: slices.Concat(ranges, t.DataPlane.LocalDetector.PodCIDRs)}
	a.prefixes = append(a.prefixes, networksBehind(t.DataPlane.LocalDetector)...)
	cidrs := strings.Split(t.Config.ClusterCIDR, ",")
	if t.Object != nil {
		cidrs = append(cidrs, t.Object.Spec.PodCIDRs...)
	}
	for _, text := range cidrs {
		if p, err := netip.ParsePrefix(strings.TrimSpace(text)); err == nil {
			a.prefixes = append(a.prefixes, p)
		}
	}
	n.allowed.Store(a)
}

// networksBehind returns the networks at the interfaces that traffic of pods comes in by.
func networksBehind(d dataplane.LocalDetector) (found []netip.Prefix) {
	if d.Interface == "" {
		return nil
	}
	all, _ := hostnet.Networks()
	for _, network := range all {
		if !network.Routed && (network.Interface == d.Interface || d.Prefix && strings.HasPrefix(network.Interface, d.Interface)) {
			found = append(found, network.Prefix)
		}
	}
	return found
}

// takenHere returns why weir must not answer for names at an address of this node, or of a network that it is in, or "".
func takenHere(ip netip.Addr) string {
	own, _ := hostnet.Addresses()
	if slices.Contains(own, ip) {
		return fmt.Sprintf("it is an address of this node: have weir listen there (--dns-listen %s)", netip.AddrPortFrom(ip, 53))
	}
	networks, _ := hostnet.Networks()
	for _, n := range networks {
		if n.Prefix.Contains(ip) && !n.Routed {
			return fmt.Sprintf("it is in %s, the network of %s, where another host may have it", n.Prefix, n.Interface)
		}
	}
	if resolvers, _ := (hostnet.Resolvers{}).Upstream(); slices.Contains(resolvers, ip) {
		return "it is a resolver of this node"
	}
	return ""
}

func (n *nameServer) mayAsk(addr netip.Addr) bool {
	a, own := n.allowed.Load(), n.own.Load()
	asksItself := own != nil && slices.ContainsFunc(*own, func(at netip.AddrPort) bool { return at.Addr() == addr })
	return addr.IsLoopback() || asksItself || a != nil && (slices.Contains(a.addrs, addr) ||
		slices.ContainsFunc(a.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) })) || n.pods.Load().runs(addr)
}

// lookUp answers weir dns lookup.
func (n *nameServer) lookUp(q status.NameQuestion) status.NameAnswer {
	r := n.shown.Load()
	if r == nil {
		return status.NameAnswer{Error: "this weir answers for no names: give weir run --dns, or a section dns in the WeirConfiguration"}
	}
	return lookUp(r, r.Zone.(*names.Zone), n.pods.Load(), q, func(name string, t dnsmessage.Type) ([]string, bool, error) {
		return n.up.Ask(n.ctx, name, t)
	})
}

// inForce returns the settings in force.
func (n *nameServer) inForce() spec.DNS {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.config
}

// all returns the names that are answered, each with its Service, without those of addresses; nil if none are.
func (n *nameServer) all() map[string]dataplane.ServiceName {
	r := n.shown.Load()
	if r == nil {
		return nil
	}
	zone, services := r.Zone.(*names.Zone).Copy()
	still := *r
	still.Zone = zone
	found := map[string]dataplane.ServiceName{}
	for _, name := range services {
		addNames(found, &still, zone.Service(name))
	}
	return found
}

// start answers with the settings in force until stop is called.
func (n *nameServer) start() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.ctx))
	var all sync.WaitGroup
	c, zone := n.config, n.zone
	n.shown.Store(newResolver(zone, c))
	answered := n.answered
	all.Go(func() { n.followResolvers(ctx, c, answered) })
	transfer := func(from netip.Addr) (dns.WholeZone, bool) {
		if !slices.ContainsFunc(c.Transfer, func(p netip.Prefix) bool { return p.Contains(from) }) {
			return dns.WholeZone{}, false
		}
		whole, services := zone.Copy()
		return dns.WholeZone{Zone: whole, Services: services}, true
	}
	var namespace func(netip.Addr) (string, bool)
	if c.Search {
		namespace = func(addr netip.Addr) (string, bool) { return n.pods.Load().of(addr, zone) }
	}
	for _, at := range slices.Concat(c.Listen, answered) {
		n.sockets.ReserveBoth(at)
	}
	for _, at := range c.Listen {
		all.Go(func() { n.serve(ctx, at, false, newResolver(zone, c), transfer, namespace) })
	}
	for _, at := range answered {
		all.Go(func() { n.serve(ctx, at, true, newResolver(zone, c), transfer, namespace) })
	}
	n.stop = func() { cancel(); all.Wait() }
}

// serve answers at an address until ctx is done. One that cannot be listened at is tried again, because it may come later.
// early has it listened at before the node has the address.
func (n *nameServer) serve(ctx context.Context, at netip.AddrPort, early bool, resolver *dns.Resolver, transfer func(netip.Addr) (dns.WholeZone, bool), namespace func(netip.Addr) (string, bool)) {
	if !at.Addr().IsUnspecified() {
		resolver.Servers = []netip.Addr{at.Addr()}
	}
	told := ""
	select { // until then a predecessor answers
	case <-n.sockets.Serving():
	case <-ctx.Done():
	}
	for ctx.Err() == nil {
		n.log.Debug("answering for names", "address", at.String(), "domain", resolver.Domain)
		server := &dns.Server{Resolver: resolver, Forwarder: n.up, Allowed: n.mayAsk, Early: early, Log: n.log, Metrics: n.metrics, Transfer: transfer, Namespace: namespace, Open: n.sockets.ListenBoth}
		n.serving(server, true)
		err := server.Serve(ctx, at)
		n.serving(server, false)
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			n.log.Error("names cannot be answered; trying again every second; another program may have the port: give another address (--dns-listen)", "address", at.String(), "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// followResolvers keeps the resolvers for other names as the configuration or the node say.
func (n *nameServer) followResolvers(ctx context.Context, c spec.DNS, answered []netip.AddrPort) {
	others := func(servers []netip.AddrPort) []netip.AddrPort {
		return slices.DeleteFunc(slices.Clone(servers), func(at netip.AddrPort) bool {
			itself := listensAt(slices.Concat(c.Listen, answered), at)
			if itself {
				n.log.Warn("a resolver for other names is weir itself, and is not asked", "address", at.String())
			}
			return itself
		})
	}
	routes := map[string][]netip.AddrPort{"": others(c.Upstreams)}
	for domain, servers := range c.Forward {
		routes[domain] = others(servers)
	}
	n.up.Set(routes)
	if len(c.Upstreams) > 0 {
		return
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	read := "never"
	for {
		if modified := (hostnet.Resolvers{}).Modified(); modified != read {
			read = modified
			// A file that is gone or empty for a moment is no reason to forget resolvers that may work.
			if servers := n.nodeResolvers(slices.Concat(c.Listen, answered)); len(servers) > 0 || len(routes[""]) == 0 {
				routes[""] = servers
				n.up.Set(routes)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// nodeResolvers returns the resolvers of the node, without weir itself.
func (n *nameServer) nodeResolvers(listen []netip.AddrPort) (servers []netip.AddrPort) {
	found, err := hostnet.Resolvers{}.Upstream()
	if err != nil {
		n.log.Warn("the resolvers of this node cannot be read; names that are not of Services fail", "error", err)
	}
	for _, a := range found {
		if at := netip.AddrPortFrom(a, 53); !listensAt(listen, at) {
			servers = append(servers, at)
		}
	}
	return servers
}

// listensAt reports whether a server at these addresses answers at the address of a resolver.
func listensAt(listen []netip.AddrPort, server netip.AddrPort) bool {
	own, _ := hostnet.Addresses()
	return slices.ContainsFunc(listen, func(at netip.AddrPort) bool {
		return at == server || at.Port() == server.Port() && at.Addr().IsUnspecified() && (server.Addr().IsLoopback() || slices.Contains(own, server.Addr()))
	})
}
