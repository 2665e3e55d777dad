package health

import (
	"net/netip"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"weir/backends"
	"weir/reconcile"
	"weir/spec"
)

// Health is all of this package in one: feed it what the Loop reports. Configure, OnUpdate, OnReport and Close are called
// from one goroutine at a time.
type Health struct {
	proxy    *Proxy
	metrics  *Metrics
	server   *Server
	services *ServiceServers

	snap   *spec.Snapshot // the last that was accepted
	delta  spec.Delta     // what changed in it since services was last told
	queued time.Time      // when the oldest change that is not yet in force was noticed
}

// Node is what health checks need to know of the node.
type Node struct {
	Name string
	// Object is nil if there is none.
	Object *corev1.Node
	// NodePortAddresses are those on which to answer healthCheckNodePorts, nil for all.
	NodePortAddresses []netip.Addr
}

// New returns a Health that serves nothing until Configure.
func New(m *Metrics, log hclog.Logger) *Health {
	p := &Proxy{}
	return &Health{proxy: p, metrics: m, server: NewServer(p, m, log), services: NewServiceServers(p, log)}
}

// Registry is for the metrics of others, to be served with these.
func (h *Health) Registry() prometheus.Registerer { return h.metrics.registry }

// Configure serves what cfg says and judges by syncPeriod: as in kube-proxy, a change that is not in force after twice
// that time makes the node unhealthy. The error is that of an address that could not be bound.
func (h *Health) Configure(cfg Config, node Node, syncPeriod time.Duration) error {
	h.proxy.SetTimeout(2 * syncPeriod)
	h.proxy.SetNode(node.Object)
	h.metrics.SetMode(cfg.Mode, cfg.Fallback)
	h.services.SetNode(node.Name, node.NodePortAddresses)
	h.delta.All = true
	return h.server.Configure(cfg)
}

// OnUpdate takes note of what a source said.
func (h *Health) OnUpdate(u spec.Update) {
	now := time.Now()
	h.metrics.Input(u, now)
	h.proxy.SetInputError(u.Err)
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

// OnReport takes note of what a round did.
func (h *Health) OnReport(r reconcile.Report) {
	end := r.Start.Add(r.Stages.Total)
	h.metrics.Round(r)
	if r.Err != nil {
		// Even if nothing had changed, the data path is now not known to be as desired.
		h.proxy.Queued(r.Start)
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

// Close stops serving.
func (h *Health) Close() {
	h.services.Close()
	h.server.Close()
}

// Round records what a round did.
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
	m.isolated.Set(float64(len(r.Isolated)))
	m.followLocal(r)
	m.observeStages(r)
	if r.Err != nil {
		m.rounds.WithLabelValues("failure").Inc()
		if r.Stages.Apply > 0 {
			m.refused(r.Mode)
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

func (m *Metrics) refused(mode string) {
	switch mode {
	case "iptables":
		m.restoreFailures.Inc()
	case "nftables":
		m.nftFailures.Inc()
	}
}

// followLocal keeps the count of Service ports that have a Local policy and nothing local to send traffic to.
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

func follow(set map[backends.PortKey]struct{}, key backends.PortKey, in bool) {
	if in {
		set[key] = struct{}{}
	} else {
		delete(set, key)
	}
}
