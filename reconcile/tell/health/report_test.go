package health

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/spec"
)

// TestHealthFollows walks through the life of a daemon and looks at what it tells after each step.
func TestHealthFollows(t *testing.T) {
	m := NewMetrics(Build{Version: "v1", Commit: "abc", Date: "2026-11-30T03:15:00Z", GoVersion: "go1"})
	h := New(m, hclog.NewNullLogger())
	t.Cleanup(h.Close)
	port := freePort(t)
	node := Node{Name: "n1", NodePortAddresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}
	if err := h.Configure(Config{HealthzBindAddress: "127.0.0.1:0", Mode: "iptables"}, node, time.Minute); err != nil {
		t.Fatal(err)
	}
	healthz := "http://" + h.server.HealthzAddr().String() + "/healthz"
	web := lbService("web", port, endpoint("n1", "10.0.0.1"))
	accept := func(rev string, delta spec.Delta) {
		h.OnUpdate(spec.Update{Snapshot: snapshot(web), Delta: delta, Revision: spec.Revision{ID: rev}})
	}
	has := func(code int, text string) {
		t.Helper()
		if c, body := get(t, healthz); c != code || !strings.Contains(body, text) {
			t.Errorf("/healthz: %d %s, want %d and %s", c, body, code, text)
		}
	}

	accept("r1", spec.Delta{All: true})
	has(200, "nodeEligible")
	refused(t, "127.0.0.1:"+port) // not before the rules are there
	h.OnReport(reconcile.Report{Revision: "r1", Mode: "iptables", Start: time.Now(), Observed: true, Created: 7, Items: 7})
	expect(t, port, 200, 1)
	has(200, `"revision":"r1"`)

	h.OnUpdate(spec.Update{Revision: spec.Revision{ID: "r2"}, Err: spec.Problems{{Detail: "first"}, {Detail: "second"}}})
	has(200, `"inputError":"first"`)
	expectMetric(t, m, "weir_config_last_reload_successful", 0)
	expectMetric(t, m, "weir_invalid_documents", 2)
	expectText(t, m, `weir_revision_info{revision="r2",state="found"} 1`, `weir_revision_info{revision="r1",state="good"} 1`)

	accept("r3", spec.Delta{Services: []dataplane.ServiceName{web.Name}})
	expectMetric(t, m, "kubeproxy_sync_proxy_rules_service_changes_pending", 1)
	failed := reconcile.Report{Revision: "r3", Mode: "iptables", Traits: backends.Traits{FailureMetric: "iptables"}, Start: time.Now().Add(-time.Hour), Err: errors.New("refused")}
	failed.Stages.Apply = time.Millisecond
	h.OnReport(failed)
	expectMetric(t, m, "kubeproxy_sync_proxy_rules_iptables_restore_failures_total", 1)
	has(200, `"revision":"r1"`) // it has waited since the update, not since the round's forged start

	h.OnReport(reconcile.Report{Revision: "r3", Mode: "iptables", Start: time.Now(), Updated: 1, Drifted: 2, Repaired: 2})
	has(200, `"revision":"r3"`)
	expectMetric(t, m, "kubeproxy_sync_proxy_rules_service_changes_pending", 0)
	expectMetric(t, m, "kubeproxy_sync_proxy_rules_service_changes_total", 2)
	expectMetric(t, m, "weir_drift_repaired_total", 2)
	expectMetric(t, m, "weir_config_last_reload_successful", 1)
	expectText(t, m,
		`weir_changes_applied_total{op="create"} 7`,
		`weir_changes_applied_total{op="update"} 1`,
		`weir_revision_info{revision="r3",state="applied"} 1`,
		`kubeproxy_network_programming_duration_seconds_count 2`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_count 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count 2`,
		`weir_proxy_mode_info{mode="iptables"} 1`,
	)

	// A full sync that keeps failing makes the node unhealthy even if nothing has changed.
	failed.Revision = "r3"
	h.OnReport(failed)
	has(503, `"revision":"r3"`)
	// A Service that is held back does not.
	h.OnReport(reconcile.Report{Revision: "r3", Mode: "iptables", Start: time.Now(), HeldBack: []reconcile.HeldBack{{Service: web.Name}}})
	has(200, `"revision":"r3"`)
}

func TestNoLocalEndpoints(t *testing.T) {
	m := NewMetrics(Build{Version: "v1"})
	entry := func(name string, local bool) *dataplane.ServicePort {
		return &dataplane.ServicePort{
			Key:           dataplane.ServicePortName{Service: dataplane.ServiceName{Namespace: "default", Name: name}},
			InternalLocal: true, ExternalLocal: true, NodePort: 30000, HasEndpoints: true,
			Endpoints: []dataplane.Endpoint{{Cluster: true, Local: local}},
		}
	}
	count := func(want float64) {
		t.Helper()
		for _, policy := range []string{"internal", "external"} {
			if got := testutil.ToFloat64(m.noLocal.WithLabelValues(policy)); got != want {
				t.Errorf("%s: %v, want %v", policy, got, want)
			}
		}
	}
	m.Round(reconcile.Report{Changed: []*dataplane.ServicePort{entry("a", false), entry("b", true), entry("c", false)}})
	count(2)
	m.Round(reconcile.Report{Changed: []*dataplane.ServicePort{entry("a", true)}})
	count(1)
	m.Round(reconcile.Report{Gone: []dataplane.ServicePortName{entry("c", false).Key}})
	count(0)
}

// TestLint holds weir's own names to Prometheus's rules. kube-proxy's names are what they are.
func TestLint(t *testing.T) {
	m := NewMetrics(Build{Version: "v1", Commit: "abc", Date: "2026-11-30T03:15:00Z", GoVersion: "go1"})
	m.SetMode("iptables", "the kernel lacks ip_vs")
	m.Input(spec.Update{Snapshot: snapshot(), Revision: spec.Revision{ID: "r1"}}, time.Now())
	m.Round(reconcile.Report{Stages: reconcile.Stages{Apply: 1}})
	problems, err := testutil.GatherAndLint(m.registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.Metric, "kubeproxy_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func expectMetric(t *testing.T, m *Metrics, name string, want float64) {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		x := f.GetMetric()[0]
		if got := x.GetGauge().GetValue() + x.GetCounter().GetValue(); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
		return
	}
	t.Errorf("there is no %s", name)
}

func expectText(t *testing.T, m *Metrics, lines ...string) {
	t.Helper()
	s := NewServer(&Proxy{}, m, hclog.NewNullLogger())
	defer s.Close()
	if err := s.Configure(Config{MetricsBindAddress: "127.0.0.1:0"}); err != nil {
		t.Fatal(err)
	}
	_, body := get(t, "http://"+s.MetricsAddr().String()+"/metrics")
	for _, line := range lines {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("/metrics lacks %s", line)
		}
	}
}
