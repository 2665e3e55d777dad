package health

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"weir/backends"
	"weir/spec"
)

// Metrics holds every metric of weir in a registry of its own. It is safe for concurrent use.
//
// Those named kubeproxy_ mean what they mean in kube-proxy. One round of weir covers both address families, so they carry
// no ip_family label. What kube-proxy measures per rule or per chain is measured per Item.
type Metrics struct {
	registry *prometheus.Registry

	syncAny, syncFull, syncPartial prometheus.Histogram
	programming                    prometheus.Histogram
	lastSync, lastQueued           prometheus.Gauge
	serviceChanges                 prometheus.Counter
	servicePending                 prometheus.Gauge
	endpointChanges                prometheus.Counter
	endpointPending                prometheus.Gauge
	restoreFailures                prometheus.Counter
	nftFailures                    prometheus.Counter
	noLocal                        *prometheus.GaugeVec
	flowSync                       prometheus.Histogram
	flows                          prometheus.Counter
	healthz, livez                 *prometheus.CounterVec

	revision         *prometheus.GaugeVec
	lastGood         prometheus.Gauge
	invalidDocuments prometheus.Gauge
	notices          prometheus.Gauge
	reloadOK         prometheus.Gauge
	reloads          *prometheus.CounterVec
	services         prometheus.Gauge
	drift            prometheus.Counter
	applied          *prometheus.CounterVec
	isolated         prometheus.Gauge
	items            *prometheus.GaugeVec
	rounds           *prometheus.CounterVec
	stages           *prometheus.HistogramVec
	mode             *prometheus.GaugeVec
	fallback         *prometheus.GaugeVec

	mu sync.Mutex
	// The Service ports that kubeproxy_sync_proxy_rules_no_local_endpoints_total counts.
	internalLocal, externalLocal map[backends.PortKey]struct{}
}

// The states of a revision.
const (
	revisionFound   = "found"   // what was read last, accepted or not
	revisionGood    = "good"    // the last that was accepted
	revisionApplied = "applied" // the last of which all is in force
)

// NewMetrics returns Metrics that carry weir's version.
func NewMetrics(version, commit, goVersion string) *Metrics {
	r := prometheus.NewRegistry()
	f := factory{r}
	buckets := prometheus.ExponentialBuckets(0.001, 2, 15)
	m := &Metrics{
		registry:      r,
		internalLocal: map[backends.PortKey]struct{}{},
		externalLocal: map[backends.PortKey]struct{}{},

		syncAny:         f.histogram("kubeproxy_sync_proxy_rules_duration_seconds", "How long one sync took.", buckets),
		syncFull:        f.histogram("kubeproxy_sync_full_proxy_rules_duration_seconds", "How long one sync took that read back all that the kernel holds.", buckets),
		syncPartial:     f.histogram("kubeproxy_sync_partial_proxy_rules_duration_seconds", "How long one sync took that dealt with what had changed only.", buckets),
		programming:     f.histogram("kubeproxy_network_programming_duration_seconds", "Time from when a change was noticed in the input until it was in force.", programmingBuckets()),
		lastSync:        f.gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When the last successful sync ended."),
		lastQueued:      f.gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a change was last queued to be synced."),
		serviceChanges:  f.counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of Services, those of their endpoints included, since a change is known by its Service."),
		servicePending:  f.gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Changes of Services that were not synced yet."),
		endpointChanges: f.counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of Services, those of their endpoints included, since a change is known by its Service."),
		endpointPending: f.gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Changes of Services that were not synced yet."),
		restoreFailures: f.counter("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "Times that iptables refused what it was given."),
		nftFailures:     f.counter("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "Times that nftables refused what it was given."),
		noLocal:         f.gauges("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "Service ports with a Local traffic policy that have endpoints, but none on this node.", "traffic_policy"),
		flowSync:        f.histogram("kubeproxy_conntrack_reconciler_sync_duration_seconds", "How long it took to look for stale conntrack entries and to remove them.", buckets),
		flows:           f.counter("kubeproxy_conntrack_reconciler_deleted_entries_total", "Stale conntrack entries that were removed."),
		healthz:         f.counters("kubeproxy_proxy_healthz_total", "Answers of /healthz.", "code"),
		livez:           f.counters("kubeproxy_proxy_livez_total", "Answers of /livez.", "code"),

		revision:         f.gauges("weir_revision_info", "The revision of the input: found is the last that was read, good the last that was accepted, applied the last of which all is in force.", "revision", "state"),
		lastGood:         f.gauge("weir_last_good_revision_timestamp_seconds", "When an input was last accepted."),
		invalidDocuments: f.gauge("weir_invalid_documents", "Problems for which the newest input was refused; 0 if it was accepted."),
		notices:          f.gauge("weir_notices", "Warnings about the input in force."),
		reloadOK:         f.gauge("weir_config_last_reload_successful", "Whether the newest input was accepted."),
		reloads:          f.counters("weir_config_reloads_total", "Inputs read, by whether they were accepted.", "result"),
		services:         f.gauge("weir_services", "Services in the input in force."),
		drift:            f.counter("weir_drift_repaired_total", "Kernel objects that somebody else had changed or removed and that were put right."),
		applied:          f.counters("weir_changes_applied_total", "Changes that the kernel confirmed.", "op"),
		isolated:         f.gauge("weir_isolated_services", "Services that cannot be programmed and are retried on their own."),
		items:            f.gauges("weir_items", "Kernel objects that weir is responsible for.", "backend"),
		rounds:           f.counters("weir_rounds_total", "Rounds of the reconciler.", "result"),
		stages:           f.histograms("weir_stage_duration_seconds", "How long each stage of a round took.", buckets, "stage"),
		mode:             f.gauges("weir_proxy_mode_info", "The proxy mode in use.", "mode"),
		fallback:         f.gauges("weir_proxy_mode_fallback_info", "Why the proxy mode in use is not the one that was asked for.", "reason"),
	}
	f.gauges("weir_build_info", "The build of weir that runs.", "version", "commit", "go_version").WithLabelValues(version, commit, goVersion).Set(1)
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	// Series that exist from the start can be alerted on before the first event.
	for _, op := range []backends.Op{backends.Create, backends.Update, backends.Delete} {
		m.applied.WithLabelValues(op.String())
	}
	for _, code := range []string{"200", "503"} {
		m.healthz.WithLabelValues(code)
		m.livez.WithLabelValues(code)
	}
	for _, result := range []string{"success", "failure"} {
		m.reloads.WithLabelValues(result)
		m.rounds.WithLabelValues(result)
	}
	for _, policy := range []string{"internal", "external"} {
		m.noLocal.WithLabelValues(policy)
	}
	return m
}

// Handler serves the metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry})
}

// Registry is for further collectors and for tests.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// SetMode says which proxy mode is in use, and why, if another one was asked for.
func (m *Metrics) SetMode(mode, fallback string) {
	m.mode.Reset()
	m.mode.WithLabelValues(mode).Set(1)
	m.fallback.Reset()
	if fallback != "" {
		m.fallback.WithLabelValues(fallback).Set(1)
	}
}

// Input records what a source said at that time.
func (m *Metrics) Input(u spec.Update, at time.Time) {
	m.setRevision(revisionFound, u.Revision.String())
	if u.Err != nil {
		m.reloadOK.Set(0)
		m.reloads.WithLabelValues("failure").Inc()
		m.invalidDocuments.Set(float64(problemCount(u.Err)))
		return
	}
	m.reloadOK.Set(1)
	m.reloads.WithLabelValues("success").Inc()
	m.invalidDocuments.Set(0)
	m.lastGood.Set(seconds(at))
	m.setRevision(revisionGood, u.Revision.String())
	m.services.Set(float64(u.Snapshot.Len()))
	if u.Delta.All {
		n := len(u.Snapshot.Notices)
		for svc := range u.Snapshot.Services() {
			n += len(svc.Notices)
		}
		m.notices.Set(float64(n))
	}
	changes := len(u.Delta.Services)
	if u.Delta.All {
		changes = u.Snapshot.Len()
	}
	if !u.Delta.Empty() {
		m.lastQueued.Set(seconds(at))
	}
	m.serviceChanges.Add(float64(changes))
	m.endpointChanges.Add(float64(changes))
	m.servicePending.Add(float64(changes))
	m.endpointPending.Add(float64(changes))
}

func (m *Metrics) setRevision(state, revision string) {
	m.revision.DeletePartialMatch(prometheus.Labels{"state": state})
	m.revision.WithLabelValues(revision, state).Set(1)
}

// problemCount is how many things are wrong with an input; an input that could not be read at all counts as one.
func problemCount(err error) int {
	var p spec.Problems
	if errors.As(err, &p) {
		return len(p)
	}
	return 1
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// programmingBuckets are kube-proxy's, with finer ones in front: weir's own part is much faster than a control plane.
func programmingBuckets() []float64 {
	b := []float64{0.005, 0.01, 0.025, 0.05, 0.1}
	b = append(b, prometheus.LinearBuckets(0.25, 0.25, 2)...)
	b = append(b, prometheus.LinearBuckets(1, 1, 59)...)
	b = append(b, prometheus.LinearBuckets(60, 5, 12)...)
	return append(b, prometheus.LinearBuckets(120, 30, 7)...)
}

// factory registers what it makes.
type factory struct{ r prometheus.Registerer }

func (f factory) counter(name, help string) prometheus.Counter {
	return register(f.r, prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help}))
}

func (f factory) counters(name, help string, labels ...string) *prometheus.CounterVec {
	return register(f.r, prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels))
}

func (f factory) gauge(name, help string) prometheus.Gauge {
	return register(f.r, prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help}))
}

func (f factory) gauges(name, help string, labels ...string) *prometheus.GaugeVec {
	return register(f.r, prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels))
}

func (f factory) histogram(name, help string, buckets []float64) prometheus.Histogram {
	return register(f.r, prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}))
}

func (f factory) histograms(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	return register(f.r, prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels))
}

func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	r.MustRegister(c)
	return c
}
