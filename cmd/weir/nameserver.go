package main

import (
	"context"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/backends/dns"
	"weir/backends/hostnet"
	"weir/reconcile"
	"weir/reconcile/tell/names"
	"weir/reconcile/tell/status"
	"weir/spec"
)

// nameServer is the Observer that answers questions for names, if the configuration or a flag asks for it. Its zone follows
// what is in force.
type nameServer struct {
	reconcile.NopObserver
	ctx context.Context
	log hclog.Logger
	// refuse says why names cannot be served, or is "".
	refuse string

	up      *dns.Upstreams
	metrics *dns.Metrics
	latency *prometheus.HistogramVec
	allowed atomic.Pointer[allowed]

	// The rest belongs to the Loop's goroutine.
	zone   *names.Zone                  // nil while nothing is served
	shown  atomic.Pointer[dns.Resolver] // of zone, for weir dns lookup
	config spec.DNS                     // in force
	stop   func()                       // ends what answers, and waits for it
}

// allowed are the addresses that may ask.
type allowed struct {
	addrs    []netip.Addr
	prefixes []netip.Prefix
}

func newNameServer(log hclog.Logger, refuse string, r prometheus.Registerer) *nameServer {
	up := dns.NewUpstreams()
	n := &nameServer{log: log.Named("dns"), refuse: refuse, up: up, metrics: &dns.Metrics{Upstreams: up}, stop: func() {}}
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
	return &dns.Resolver{Zone: zone, Domain: c.ClusterDomain + ".", Pods: dns.PodNames(c.Pods), Hosts: c.Hosts}
}

// Updated implements reconcile.Observer.
func (n *nameServer) Updated(u spec.Update) {
	if n.zone == nil {
		return
	}
	n.zone.Updated(u)
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
	c := snap.Weir.DNS
	n.allow(s.From.(*nodeConfig), c.Allow)
	if reflect.DeepEqual(c, n.config) {
		return
	}
	n.stop()
	n.config, n.stop = c, func() {}
	n.shown.Store(nil)
	switch {
	case !c.Serve:
		n.zone = nil
		return
	case n.refuse != "":
		n.log.Error("names are not answered: " + n.refuse)
		return
	case n.zone == nil:
		n.zone = names.NewZone()
		n.zone.Programmed = n.programmed
		n.zone.Updated(spec.Update{Snapshot: snap, Delta: spec.Delta{All: true}})
	}
	n.start()
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

func (n *nameServer) mayAsk(addr netip.Addr) bool {
	a := n.allowed.Load()
	return addr.IsLoopback() || a != nil && (slices.Contains(a.addrs, addr) ||
		slices.ContainsFunc(a.prefixes, func(p netip.Prefix) bool { return p.Contains(addr) }))
}

// lookUp answers weir dns lookup.
func (n *nameServer) lookUp(name string, types []string) status.NameAnswer {
	r := n.shown.Load()
	if r == nil {
		return status.NameAnswer{Error: "this weir answers for no names: give weir run --dns, or a section dns in the WeirConfiguration"}
	}
	return lookUp(r, r.Zone.(*names.Zone), name, types)
}

// start answers with the settings in force until stop is called or the process ends.
func (n *nameServer) start() {
	ctx, cancel := context.WithCancel(n.ctx)
	var all sync.WaitGroup
	c, zone := n.config, n.zone
	n.shown.Store(newResolver(zone, c))
	all.Go(func() { n.followResolvers(ctx, c) })
	transfer := func(from netip.Addr) (dns.WholeZone, bool) {
		if !slices.ContainsFunc(c.Transfer, func(p netip.Prefix) bool { return p.Contains(from) }) {
			return dns.WholeZone{}, false
		}
		whole, services := zone.Copy()
		return dns.WholeZone{Zone: whole, Services: services}, true
	}
	for _, at := range c.Listen {
		all.Go(func() { n.serve(ctx, at, newResolver(zone, c), transfer) })
	}
	n.stop = func() { cancel(); all.Wait() }
}

// serve answers at an address until ctx is done. One that cannot be listened at is tried again, because it may come later.
func (n *nameServer) serve(ctx context.Context, at netip.AddrPort, resolver *dns.Resolver, transfer func(netip.Addr) (dns.WholeZone, bool)) {
	if !at.Addr().IsUnspecified() {
		resolver.Servers = []netip.Addr{at.Addr()}
	}
	told := ""
	for ctx.Err() == nil {
		n.log.Debug("answering for names", "address", at.String(), "domain", resolver.Domain)
		server := &dns.Server{Resolver: resolver, Forwarder: n.up, Allowed: n.mayAsk, Log: n.log, Metrics: n.metrics, Transfer: transfer}
		err := server.Serve(ctx, at)
		if err != nil && ctx.Err() == nil && err.Error() != told {
			told = err.Error()
			n.log.Error("names cannot be answered; trying again every second", "address", at.String(), "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// followResolvers keeps the resolvers for other names as the configuration or the node say.
func (n *nameServer) followResolvers(ctx context.Context, c spec.DNS) {
	routes := map[string][]netip.AddrPort{"": c.Upstreams}
	for domain, servers := range c.Forward {
		routes[domain] = servers
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
			routes[""] = n.nodeResolvers(c.Listen)
			n.up.Set(routes)
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
