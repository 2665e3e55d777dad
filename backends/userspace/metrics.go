package userspace

import (
	"context"

	"weir/backends/dataplane"

	"github.com/prometheus/client_golang/prometheus"
)

var (
	openDesc = prometheus.NewDesc("weir_userspace_connections", "Open connections and UDP flows of the userspace proxy.", nil, nil)
	refDesc  = prometheus.NewDesc("weir_userspace_refused_total", "Connections and UDP flows refused because of a limit.", []string{"service"}, nil)
	failDesc = prometheus.NewDesc("weir_userspace_failed_total", "Connections refused because no endpoint answered.", []string{"service"}, nil)
)

// Describe implements prometheus.Collector.
func (l *Listeners) Describe(ch chan<- *prometheus.Desc) {
	ch <- openDesc
	ch <- refDesc
	ch <- failDesc
}

// admitted returns how many connections each Service port received since its listener was opened.
func (l *Listeners) admitted() map[dataplane.ServicePortName]uint64 {
	counts := map[dataplane.ServicePortName]uint64{}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, protocols := range l.open {
		for _, o := range protocols {
			counts[o.item.key] += uint64(o.admit.admitted.Load())
		}
	}
	return counts
}

// Connections implements backends.ConnectionCounter.
func (b *Backend) Connections(context.Context, []*dataplane.ServicePort) (map[dataplane.ServicePortName]uint64, error) {
	if b.Listeners == nil {
		return nil, ErrPlansOnly
	}
	return b.Listeners.admitted(), nil
}

// Collect implements prometheus.Collector. The counters of a Service disappear with its last listener.
func (l *Listeners) Collect(ch chan<- prometheus.Metric) {
	type counts struct{ refused, failed int64 }
	services := map[string]counts{}
	l.mu.Lock()
	for _, protocols := range l.open {
		for _, o := range protocols {
			name := o.item.key.Service.String()
			c := services[name]
			services[name] = counts{c.refused + o.admit.refused.Load(), c.failed + o.admit.failed.Load()}
		}
	}
	l.mu.Unlock()
	ch <- prometheus.MustNewConstMetric(openDesc, prometheus.GaugeValue, float64(l.all.open.Load()))
	for name, c := range services {
		ch <- prometheus.MustNewConstMetric(refDesc, prometheus.CounterValue, float64(c.refused), name)
		ch <- prometheus.MustNewConstMetric(failDesc, prometheus.CounterValue, float64(c.failed), name)
	}
}
