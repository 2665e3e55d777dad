package health

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestProxyState(t *testing.T) {
	t0 := time.Unix(1_700_000_000, 0)
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	deleted := metav1.NewTime(t0)
	for _, tc := range []struct {
		name              string
		do                func(p *Proxy)
		healthy, eligible bool
		updated           time.Time
	}{
		{"starting", func(*Proxy) {}, true, true, at(100)},
		{"in step", func(p *Proxy) { p.Applied(at(1), "r1") }, true, true, at(100)},
		{"a change waits", func(p *Proxy) { p.Applied(at(1), "r1"); p.Queued(at(41)) }, true, true, at(100)},
		{"a change waits too long", func(p *Proxy) { p.Applied(at(1), "r1"); p.Queued(at(40)) }, false, true, at(1)},
		{"the oldest counts", func(p *Proxy) { p.Queued(at(1)); p.Queued(at(99)) }, false, true, time.Time{}},
		{"applied late", func(p *Proxy) { p.Queued(at(1)); p.Applied(at(90), "r1") }, true, true, at(100)},
		{"bad input alone", func(p *Proxy) { p.SetInputError(errors.New("a.yaml:1: no\nb.yaml:1: no"), at(1)) }, true, true, at(100)},
		{"node is being deleted", func(p *Proxy) {
			p.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &deleted}})
		}, true, false, at(100)},
		{"node is tainted", func(p *Proxy) {
			p.SetNode(&corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "x"}, {Key: toBeDeletedTaint}}}})
		}, true, false, at(100)},
		{"node is unknown again", func(p *Proxy) {
			p.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &deleted}})
			p.SetNode(nil)
		}, true, true, at(100)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var p Proxy
			p.SetTimeout(time.Minute)
			tc.do(&p)
			s := p.State(at(100))
			if s.Healthy != tc.healthy || s.NodeEligible != tc.eligible || !s.LastUpdated.Equal(tc.updated) {
				t.Errorf("got %+v", s)
			}
			if strings.Contains(s.InputError, "\n") {
				t.Errorf("InputError has several lines: %q", s.InputError)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	p, m := &Proxy{}, NewMetrics(Build{Version: "v1", Commit: "abc", Date: "2026-11-30T03:15:00Z", GoVersion: "go1"})
	p.SetTimeout(time.Minute)
	s := newTestServer(t, p, m)
	if err := s.Configure(Config{HealthzBindAddress: "127.0.0.1:0", MetricsBindAddress: "127.0.0.1:0", Mode: "iptables"}); err != nil {
		t.Fatal(err)
	}
	healthz, metrics := "http://"+s.HealthzAddr().String(), "http://"+s.MetricsAddr().String()

	code, body := get(t, healthz+"/healthz")
	var h map[string]any
	if err := json.Unmarshal([]byte(body), &h); err != nil || code != 200 || h["nodeEligible"] != true {
		t.Errorf("/healthz: %d %s %v", code, body, err)
	}
	for _, field := range []string{"lastUpdated", "currentTime"} {
		if _, err := time.Parse("2006-01-02 15:04:05.999999999 -0700 MST", fmt.Sprint(h[field])); err != nil {
			t.Errorf("/healthz: %s is not in kube-proxy's form: %v", field, err)
		}
	}
	if code, body = get(t, healthz+"/livez"); code != 200 || strings.Contains(body, "nodeEligible") {
		t.Errorf("/livez: %d %s", code, body)
	}
	if code, body = get(t, metrics+"/proxyMode"); code != 200 || body != "iptables" {
		t.Errorf("/proxyMode: %d %q", code, body)
	}
	if code, body = get(t, metrics+"/healthz"); code != 200 || body != "ok" {
		t.Errorf("/healthz on the metrics address: %d %q", code, body)
	}
	if code, _ = get(t, metrics+"/debug/pprof/cmdline"); code != 404 {
		t.Errorf("pprof is served though profiling is off: %d", code)
	}

	p.SetNode(&corev1.Node{Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: toBeDeletedTaint}}}})
	if code, _ = get(t, healthz+"/healthz"); code != 503 {
		t.Errorf("/healthz of a node that goes: %d", code)
	}
	if code, _ = get(t, healthz+"/livez"); code != 200 {
		t.Errorf("/livez of a node that goes: %d", code)
	}
	p.SetNode(nil)
	p.Queued(time.Now().Add(-2 * time.Minute))
	for _, path := range []string{"/healthz", "/livez"} {
		if code, _ = get(t, healthz+path); code != 503 {
			t.Errorf("%s while a change waits too long: %d", path, code)
		}
	}
	_, body = get(t, metrics+"/metrics")
	for _, line := range []string{
		`kubeproxy_proxy_healthz_total{code="503"} 2`,
		`kubeproxy_proxy_healthz_total{code="200"} 1`,
		`kubeproxy_proxy_livez_total{code="503"} 1`,
		`weir_build_info{commit="abc",date="2026-11-30T03:15:00Z",go_version="go1",version="v1"} 1`,
	} {
		if !strings.Contains(body, line+"\n") {
			t.Errorf("/metrics lacks %s", line)
		}
	}
}

func TestReconfigure(t *testing.T) {
	s := newTestServer(t, &Proxy{}, NewMetrics(Build{Version: "v1"}))
	set := func(c Config) {
		t.Helper()
		if err := s.Configure(c); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	first := Config{MetricsBindAddress: "127.0.0.1:" + port, Mode: "iptables"}
	set(first)
	ln := s.metrics.ln
	first.Mode, first.EnableProfiling = "nftables", true
	set(first)
	if s.metrics.ln != ln {
		t.Error("an address that did not change was bound again")
	}
	if _, body := get(t, "http://127.0.0.1:"+port+"/proxyMode"); body != "nftables" {
		t.Errorf("mode is %q", body)
	}
	if code, _ := get(t, "http://127.0.0.1:"+port+"/debug/pprof/cmdline"); code != 200 {
		t.Errorf("pprof: %d", code)
	}

	other := freePort(t)
	set(Config{MetricsBindAddress: "127.0.0.1:" + other})
	if code, _ := get(t, "http://127.0.0.1:"+other+"/metrics"); code != 200 {
		t.Errorf("the new address does not answer: %d", code)
	}
	refused(t, "127.0.0.1:"+port)

	// The wildcard and one address of the same port exclude each other.
	set(Config{MetricsBindAddress: "0.0.0.0:" + other})
	if code, _ := get(t, "http://127.0.0.1:"+other+"/metrics"); code != 200 {
		t.Errorf("the wildcard address does not answer: %d", code)
	}
	set(Config{})
	refused(t, "127.0.0.1:"+other)
}

func TestBindFailure(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := newTestServer(t, &Proxy{}, NewMetrics(Build{Version: "v1"}))
	if err := s.Configure(Config{HealthzBindAddress: "127.0.0.1:0"}); err != nil {
		t.Fatal(err)
	}
	old := s.HealthzAddr().String()

	err = s.Configure(Config{HealthzBindAddress: taken.Addr().String(), BindAddressHardFail: true})
	if err == nil || !strings.Contains(err.Error(), taken.Addr().String()) {
		t.Errorf("a taken address, hard: %v", err)
	}
	if code, _ := get(t, "http://"+old+"/healthz"); code != 200 {
		t.Errorf("the old address no longer answers: %d", code)
	}
	if err := s.Configure(Config{HealthzBindAddress: taken.Addr().String()}); err != nil {
		t.Errorf("a taken address, soft: %v", err)
	}
	if s.healthz.cancel == nil {
		t.Error("nothing tries again")
	}
	taken.Close()
	// A Configure that changes nothing tries again at once.
	if err := s.Configure(Config{HealthzBindAddress: taken.Addr().String()}); err != nil {
		t.Fatal(err)
	}
	if code, _ := get(t, "http://"+taken.Addr().String()+"/healthz"); code != 200 {
		t.Errorf("the freed address does not answer: %d", code)
	}
}

func newTestServer(t *testing.T, p *Proxy, m *Metrics) *Server {
	s := NewServer(p, m, hclog.NewNullLogger())
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	code, body, _ := getHeader(t, url)
	return code, body
}

func getHeader(t *testing.T, url string) (int, string, http.Header) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body), resp.Header
}

func refused(t *testing.T, addr string) {
	t.Helper()
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Errorf("%s still accepts connections", addr)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}
