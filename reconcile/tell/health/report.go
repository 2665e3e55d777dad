package health

import (
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/spec"
)

// Health combines the probes, metrics and health check servers. Configure, OnUpdate, OnReport and Close are called from
// one goroutine at a time.
type Health struct {
	proxy    *Proxy
	metrics  *Metrics
	server   *Server
	services *ServiceServers

	snap   *spec.Snapshot // the last one accepted
	delta  spec.Delta     // the changes since the last Sync of services
	queued time.Time      // when the oldest change not yet in force was noticed
}

// Node holds the facts about the node that health checks need.
type Node struct {
	Name string
	// Object is nil if there is none.
	Object *corev1.Node
	// NodePortAddresses are the addresses that answer healthCheckNodePorts, nil for all.
	NodePortAddresses []netip.Addr
}

// New returns a Health that serves nothing until Configure.
func New(m *Metrics, log hclog.Logger) *Health {
	p := &Proxy{}
	return &Health{proxy: p, metrics: m, server: NewServer(p, m, log), services: NewServiceServers(p, log)}
}

// Registry returns the registry, for metrics of other packages.
func (h *Health) Registry() prometheus.Registerer { return h.metrics.registry }

// Configure applies cfg and syncPeriod. As in kube-proxy, a change that is not in force after twice the syncPeriod
// makes the node unhealthy. The error is that of an address that could not be bound.
func (h *Health) Configure(cfg Config, node Node, syncPeriod time.Duration) error {
	h.proxy.SetTimeout(2 * syncPeriod)
	h.proxy.SetNode(node.Object)
	h.metrics.SetMode(cfg.Mode, cfg.Fallback)
	h.services.SetNode(node.Name, node.NodePortAddresses)
	h.delta.All = true
	return h.server.Configure(cfg)
}

// Listen serves at the addresses of cfg while no configuration is in force. An address that cannot be bound is tried
// again.
func (h *Health) Listen(cfg Config) {
	cfg.BindAddressHardFail = false
	_ = h.server.Configure(cfg) // only a hard failure is an error
}

// SetEarlier records what an earlier process left in force; "" means nothing.
func (h *Health) SetEarlier(what string) { h.proxy.SetEarlier(what) }

// SetNotices records how many notices of each kind hold.
func (h *Health) SetNotices(counts map[spec.NoticeID]int) { h.metrics.SetNotices(counts) }

// OnUpdate records an Update of a source.
func (h *Health) OnUpdate(u spec.Update) {
	now := time.Now()
	h.metrics.Input(u, now)
	if u.Err != nil || !u.Snapshot.Revision.Outdated { // after an outdated Snapshot the error follows
		h.proxy.SetInputError(u.Err, now)
	}
	if u.Err != nil {
		return
	}
	h.snap = u.Snapshot
	h.delta.All = h.delta.All || u.Delta.All
	h.delta.Services = append(h.delta.Services, u.Delta.Services...)
	if u.Delta.Empty() {
		return
	}
	h.proxy.Queued(now)
	if h.queued.IsZero() {
		h.queued = now
	}
}

// OnReport records the result of a round.
func (h *Health) OnReport(r reconcile.Report) {
	end := r.Start.Add(r.Stages.Total)
	h.metrics.Round(r)
	if r.Err != nil {
		h.proxy.Failed(r.Start)
		return
	}
	h.proxy.Applied(end, r.Revision)
	if !h.queued.IsZero() {
		h.metrics.programming.Observe(end.Sub(h.queued).Seconds())
		h.queued = time.Time{}
	}
	if h.snap != nil {
		h.services.Sync(h.snap, h.delta)
		h.delta = spec.Delta{}
	}
}

// OpenBy has sockets opened by a function in place of net.Listen. It is called before anything is served.
func (h *Health) OpenBy(listen func(network, address string) (net.Listener, error)) {
	h.server.healthz.listen, h.server.metrics.listen, h.services.listen = listen, listen, listen
}

// Leave is Close, but for the clients that have connected: they get their answers. Others find the process that has the same
// sockets.
func (h *Health) Leave() {
	h.services.Leave()
	h.server.Leave()
}

// Close stops serving.
func (h *Health) Close() {
	h.services.Close()
	h.server.Close()
}

// Round records the result of a round.
func (m *Metrics) Round(r reconcile.Report) {
	m.applied.WithLabelValues(backends.Create.String()).Add(float64(r.Created))
	m.applied.WithLabelValues(backends.Update.String()).Add(float64(r.Updated))
	m.applied.WithLabelValues(backends.Delete.String()).Add(float64(r.Deleted))
	m.drift.Add(float64(r.Repaired))
	m.flows.Add(float64(r.Flows))
	if r.Stages.Flows > 0 {
		m.flowSync.Observe(r.Stages.Flows.Seconds())
	}
	m.items.Reset()
	m.items.WithLabelValues(r.Mode).Set(float64(r.Items))
	m.heldBack.Set(float64(len(r.HeldBack)))
	m.followLocal(r)
	m.observeStages(r)
	if r.Err != nil {
		m.rounds.WithLabelValues("failure").Inc()
		if r.Stages.Apply > 0 {
			m.refused(r.Traits.FailureMetric)
		}
		return
	}
	m.rounds.WithLabelValues("success").Inc()
	m.lastSync.Set(seconds(r.Start.Add(r.Stages.Total)))
	m.servicePending.Set(0)
	m.endpointPending.Set(0)
	m.setRevision(revisionApplied, r.Revision)
}

func (m *Metrics) observeStages(r reconcile.Report) {
	total := r.Stages.Total.Seconds()
	m.syncAny.Observe(total)
	if r.Observed {
		m.syncFull.Observe(total)
	} else {
		m.syncPartial.Observe(total)
	}
	for stage, seconds := range r.Stages.Seconds() {
		if stage != "total" && seconds > 0 {
			m.stages.WithLabelValues(stage).Observe(seconds)
		}
	}
}

// refused counts a refused transaction under kube-proxy's name for it.
func (m *Metrics) refused(metric string) {
	switch metric {
	case "iptables":
		m.restoreFailures.Inc()
	case "nftables":
		m.nftFailures.Inc()
	}
}

// followLocal counts the Service ports that have a Local policy and no local endpoint.
func (m *Metrics) followLocal(r reconcile.Report) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range r.Gone {
		delete(m.internalLocal, key)
		delete(m.externalLocal, key)
	}
	for _, e := range r.Changed {
		none := e.HasEndpoints && len(e.LocalEndpoints()) == 0
		follow(m.internalLocal, e.Key, none && e.InternalLocal)
		follow(m.externalLocal, e.Key, none && e.ExternalLocal && e.External())
	}
	m.noLocal.WithLabelValues("internal").Set(float64(len(m.internalLocal)))
	m.noLocal.WithLabelValues("external").Set(float64(len(m.externalLocal)))
}

func follow(set map[dataplane.ServicePortName]struct{}, key dataplane.ServicePortName, in bool) {
	if in {
		set[key] = struct{}{}
	} else {
		delete(set, key)
	}
}
