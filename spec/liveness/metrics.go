package liveness

import (
	"github.com/prometheus/client_golang/prometheus"

	"weir/backends/dataplane"
	"weir/spec/probe"
)

var (
	endpointsDesc = prometheus.NewDesc("weir_probed_endpoints", "Endpoints of Services with probes, by what their probes say: healthy, unhealthy, awaited before their first success, or unknown for those that are served and were never judged.",
		[]string{"namespace", "service", "state"}, nil)
	panicDesc = prometheus.NewDesc("weir_probes_panic", "Whether too few endpoints of a Service work, so that all are kept as their slices say.",
		[]string{"namespace", "service"}, nil)
	probesDesc  = prometheus.NewDesc("weir_probes_total", "Probes of a Service's endpoints, by result.", []string{"namespace", "service", "result"}, nil)
	runningDesc = prometheus.NewDesc("weir_probes_running", "Probes that wait for an answer.", nil, nil)
)

// Describe implements prometheus.Collector.
func (l *Layer) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{endpointsDesc, panicDesc, probesDesc, runningDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (l *Layer) Collect(out chan<- prometheus.Metric) {
	type sample struct {
		name    dataplane.ServiceName
		counts  Counts
		results [3]uint64
	}
	l.mu.Lock()
	samples := make([]sample, 0, len(l.services))
	for name, s := range l.services {
		samples = append(samples, sample{name, s.counts(), s.results})
	}
	running := l.running
	l.mu.Unlock()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(runningDesc, float64(running))
	for _, s := range samples {
		panics := 0.0
		if s.counts.Panic {
			panics = 1
		}
		ns, n := s.name.Namespace, s.name.Name
		gauge(endpointsDesc, float64(s.counts.Healthy), ns, n, "healthy")
		gauge(endpointsDesc, float64(s.counts.Unhealthy), ns, n, "unhealthy")
		gauge(endpointsDesc, float64(s.counts.Awaited), ns, n, "awaited")
		gauge(endpointsDesc, float64(s.counts.Unknown), ns, n, "unknown")
		gauge(panicDesc, panics, ns, n)
		for v, count := range s.results {
			out <- prometheus.MustNewConstMetric(probesDesc, prometheus.CounterValue, float64(count), ns, n, probe.Verdict(v).String())
		}
	}
}
