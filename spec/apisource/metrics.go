package apisource

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics reports the state of the connection to the API. It is safe for concurrent use.
type Metrics struct {
	connected prometheus.Gauge
	contact   *prometheus.GaugeVec
	lists     *prometheus.CounterVec
	failures  *prometheus.CounterVec
	stalls    prometheus.Counter
	sessions  prometheus.Counter

	mu     sync.Mutex
	silent time.Time // since when the API has been silent; zero if it answers
}

// NewMetrics registers the metrics; a nil Registerer exposes none.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{Name: "weir_api_connected", Help: "Whether Services, EndpointSlices and the Node are all being watched."}),
		contact: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "weir_api_last_contact_timestamp_seconds",
			Help: "When the API was last heard on a resource; a healthy watch is heard about once a minute."}, []string{"resource"}),
		lists: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_api_lists_total", Help: "Complete lists that were received."}, []string{"resource"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_api_failures_total",
			Help: "Requests that failed, and watches that broke or were given up."}, []string{"resource"}),
		stalls:   prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_api_stalls_total", Help: "Watches that were given up since nothing was heard."}),
		sessions: prometheus.NewCounter(prometheus.CounterOpts{Name: "weir_api_sessions_total", Help: "Times that credentials were read and used."}),
	}
	stale := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "weir_api_stale_seconds", Help: "For how long the API has not been heard; 0 while it is."}, m.stale)
	for _, r := range resourceNames {
		m.contact.WithLabelValues(r)
		m.lists.WithLabelValues(r)
		m.failures.WithLabelValues(r)
	}
	if r != nil {
		r.MustRegister(m.connected, m.contact, m.lists, m.failures, m.stalls, m.sessions, stale)
	}
	return m
}

func (m *Metrics) stale() float64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.silent.IsZero() {
		return 0
	}
	return time.Since(m.silent).Seconds()
}

func (m *Metrics) heard(r resource, at time.Time) {
	m.contact.WithLabelValues(r.String()).Set(float64(at.UnixNano()) / 1e9)
}

// setConnected records whether the API answers, and since when.
func (m *Metrics) setConnected(yes bool, since time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case yes:
		m.connected.Set(1)
		m.silent = time.Time{}
	case m.silent.IsZero():
		m.connected.Set(0)
		m.silent = since
	}
}
