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
	"weir/backends/dataplane"
	"weir/spec"
)

// Metrics holds every metric of weir in its own registry. It is safe for concurrent use.
//
// Metrics named kubeproxy_ have the same meaning as in kube-proxy. One round of weir covers both address families, so
// they have no ip_family label. What kube-proxy measures per rule or per chain is measured per Item.
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
	notices          *prometheus.GaugeVec
	reloadOK         prometheus.Gauge
	podSourcesAway   prometheus.Gauge
	reloads          *prometheus.CounterVec
	refusedSince     prometheus.Gauge
	kept             prometheus.Gauge
	services         prometheus.Gauge
	drift            prometheus.Counter
	applied          *prometheus.CounterVec
	heldBack         prometheus.Gauge
	items            *prometheus.GaugeVec
	rounds           *prometheus.CounterVec
	stages           *prometheus.HistogramVec
	mode             *prometheus.GaugeVec
	fallback         *prometheus.GaugeVec

	isRefused bool

	mu sync.Mutex
	// The Service ports that kubeproxy_sync_proxy_rules_no_local_endpoints_total counts.
	internalLocal, externalLocal map[dataplane.ServicePortName]struct{}
}

// The states of a revision.
const (
	revisionFound   = "found"   // the last one read, accepted or not
	revisionGood    = "good"    // the last one accepted
	revisionApplied = "applied" // the last one that is completely in force
)

// Build is the build of weir that runs. What is not known is "".
type Build struct{ Version, Commit, Date, GoVersion string }

// NewMetrics returns Metrics of a build of weir.
func NewMetrics(b Build) *Metrics {
	r := prometheus.NewRegistry()
	f := factory{r}
	buckets := prometheus.ExponentialBuckets(0.001, 2, 15)
	m := &Metrics{
		registry:      r,
		internalLocal: map[dataplane.ServicePortName]struct{}{},
		externalLocal: map[dataplane.ServicePortName]struct{}{},

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
		notices:          f.gauges("weir_notices", "Notices that hold and are not silenced, about the input and about what it means for this node.", "id"),
		podSourcesAway:   f.gauge("weir_pod_sources_away", "Sources of pods, such as container runtimes, that cannot be read at the moment."),
		reloadOK:         f.gauge("weir_config_last_reload_successful", "Whether the newest input was accepted."),
		reloads:          f.counters("weir_config_reloads_total", "Inputs read, by whether they were accepted.", "result"),
		refusedSince:     f.gauge("weir_input_refused_since_timestamp_seconds", "Since when the newest input cannot be used; 0 if it can."),
		kept:             f.gauge("weir_kept_revision_timestamp_seconds", "When an earlier run kept the last good state that this one uses; 0 if this run has read a good one."),
		services:         f.gauge("weir_services", "Services in the input in force."),
		drift:            f.counter("weir_drift_repaired_total", "Kernel objects that another process had changed or removed and that were repaired."),
		applied:          f.counters("weir_changes_applied_total", "Changes that the kernel confirmed.", "op"),
		heldBack:         f.gauge("weir_isolated_services", "Services that are held back: the kernel or the proxy mode refuses them, and they are retried on their own."),
		items:            f.gauges("weir_items", "Kernel objects that weir is responsible for.", "backend"),
		rounds:           f.counters("weir_rounds_total", "Rounds of the reconciler.", "result"),
		stages:           f.histograms("weir_stage_duration_seconds", "How long each stage of a round took.", buckets, "stage"),
		mode:             f.gauges("weir_proxy_mode_info", "The proxy mode in use.", "mode"),
		fallback:         f.gauges("weir_proxy_mode_fallback_info", "Why the proxy mode in use is not the one that was asked for.", "reason"),
	}
	f.gauges("weir_build_info", "The build of weir that runs.", "version", "commit", "date", "go_version").WithLabelValues(b.Version, b.Commit, b.Date, b.GoVersion).Set(1)
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	// Series that exist from the start allow alerts on the first event.
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

// Registry returns the registry, for further collectors and for tests.
func (m *Metrics) Registry() *prometheus.Registry { return m.registry }

// SetMode records the proxy mode in use, and the reason if another one was asked for.
func (m *Metrics) SetMode(mode, fallback string) {
	m.mode.Reset()
	m.mode.WithLabelValues(mode).Set(1)
	m.fallback.Reset()
	if fallback != "" {
		m.fallback.WithLabelValues(fallback).Set(1)
	}
}

// Input records an Update of a source at that time.
func (m *Metrics) Input(u spec.Update, at time.Time) {
	m.setRevision(revisionFound, u.Revision.String())
	if u.Err != nil {
		m.reloadOK.Set(0)
		m.reloads.WithLabelValues("failure").Inc()
		m.invalidDocuments.Set(float64(problemCount(u.Err)))
		if !m.isRefused {
			m.isRefused = true
			m.refusedSince.Set(seconds(at))
		}
		return
	}
	m.kept.Set(0)
	if kept := u.Snapshot.Kept; !kept.IsZero() {
		m.kept.Set(seconds(kept))
		m.lastGood.Set(seconds(kept))
	} else {
		m.reloadOK.Set(1)
		m.reloads.WithLabelValues("success").Inc()
		m.invalidDocuments.Set(0)
		m.lastGood.Set(seconds(at))
		if !u.Snapshot.Revision.Outdated { // otherwise the error follows
			m.isRefused = false
			m.refusedSince.Set(0)
		}
	}
	m.podSourcesAway.Set(float64(len(u.Snapshot.Away)))
	m.setRevision(revisionGood, u.Revision.String())
	m.services.Set(float64(u.Snapshot.Services.Len()))
	changes := len(u.Delta.Services)
	if u.Delta.All {
		changes = u.Snapshot.Services.Len()
	}
	if !u.Delta.Empty() {
		m.lastQueued.Set(seconds(at))
	}
	m.serviceChanges.Add(float64(changes))
	m.endpointChanges.Add(float64(changes))
	m.servicePending.Add(float64(changes))
	m.endpointPending.Add(float64(changes))
}

// SetNotices records how many notices of each kind hold. Every kind has a series, so that alerts see the first one.
func (m *Metrics) SetNotices(counts map[spec.NoticeID]int) {
	for _, k := range spec.NoticeKinds() {
		if !k.Compares || counts[k.ID] > 0 {
			m.notices.WithLabelValues(string(k.ID)).Set(float64(counts[k.ID]))
		}
	}
}

func (m *Metrics) setRevision(state, revision string) {
	m.revision.DeletePartialMatch(prometheus.Labels{"state": state})
	m.revision.WithLabelValues(revision, state).Set(1)
}

// problemCount returns the number of problems of an input; an input that could not be read counts as one.
func problemCount(err error) int {
	var p spec.Problems
	if errors.As(err, &p) {
		return len(p)
	}
	return 1
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// programmingBuckets returns kube-proxy's buckets, with finer ones before them, because weir's own part is much faster
// than a control plane.
func programmingBuckets() []float64 {
	b := []float64{0.005, 0.01, 0.025, 0.05, 0.1}
	b = append(b, prometheus.LinearBuckets(0.25, 0.25, 2)...)
	b = append(b, prometheus.LinearBuckets(1, 1, 59)...)
	b = append(b, prometheus.LinearBuckets(60, 5, 12)...)
	return append(b, prometheus.LinearBuckets(120, 30, 7)...)
}

// factory registers the metrics that it makes.
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
