// Package health tells the outside how weir is doing: /healthz and /livez, metrics, the proxy mode, profiles, and one
// small server for each Service that has a healthCheckNodePort. Everything it says is made from the values that flow
// through the reconciler (spec.Update, reconcile.Report); it never asks back and never holds a round up.
//
// Bodies, status codes and metric names are kube-proxy's wherever the meaning is the same, so that load balancers, probes
// and dashboards that know kube-proxy need no change.
package health

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

// toBeDeletedTaint is what the Cluster Autoscaler puts on a node that it is about to remove.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// Proxy knows whether the data path follows its input. The zero value is healthy, as kube-proxy is while it starts. It is
// safe for concurrent use.
type Proxy struct {
	mu         sync.Mutex
	timeout    time.Duration
	pending    time.Time // since when a change waits to be applied; zero if none does
	updated    time.Time // when the data path was last known to be as desired
	ineligible bool
	revision   string
	inputErr   string
}

// State is what a Proxy says at one moment.
type State struct {
	// Healthy says that no change has waited longer than the timeout.
	Healthy bool
	// NodeEligible is false for a node that is about to be removed.
	NodeEligible bool
	// LastUpdated is when the data path was last as desired; the current time if Healthy.
	LastUpdated, CurrentTime time.Time
	// Revision is the one in force, and InputError says why what was found since cannot be used; "" if it can.
	Revision, InputError string
}

// SetTimeout sets how long a change may wait before the data path counts as unhealthy. kube-proxy takes twice the
// syncPeriod. 0 means for ever.
func (p *Proxy) SetTimeout(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timeout = d
}

// SetNode says whether load balancers may send traffic to this node: not if it is being deleted, or carries the taint that
// the Cluster Autoscaler puts on a node before it removes it. A node that is not known is eligible.
func (p *Proxy) SetNode(node *corev1.Node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ineligible = false
	if node == nil {
		return
	}
	p.ineligible = !node.DeletionTimestamp.IsZero()
	for _, t := range node.Spec.Taints {
		p.ineligible = p.ineligible || t.Key == toBeDeletedTaint
	}
}

// Queued says that a change waits to be applied since at. The oldest one counts.
func (p *Proxy) Queued(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending.IsZero() {
		p.pending = at
	}
}

// Applied says that at that time the kernel held all of the revision.
func (p *Proxy) Applied(at time.Time, revision string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending, p.updated, p.revision = time.Time{}, at, revision
}

// SetInputError says why the newest input cannot be used; nil if it can. It does not make the Proxy unhealthy: the data
// path keeps serving the last good state.
func (p *Proxy) SetInputError(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inputErr = ""
	if err != nil {
		p.inputErr, _, _ = strings.Cut(err.Error(), "\n")
	}
}

// State returns what the Proxy has to say at that time.
func (p *Proxy) State(now time.Time) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := State{
		Healthy:      p.pending.IsZero() || p.timeout == 0 || now.Sub(p.pending) < p.timeout,
		NodeEligible: !p.ineligible,
		LastUpdated:  p.updated,
		CurrentTime:  now,
		Revision:     p.revision,
		InputError:   p.inputErr,
	}
	if s.Healthy {
		// Probes that were written for old releases of kube-proxy expect a healthy one to have been updated just now.
		s.LastUpdated = now
	}
	return s
}

// healthz is the body of /healthz. Its first three fields are kube-proxy's.
type healthz struct {
	LastUpdated  string `json:"lastUpdated"`
	CurrentTime  string `json:"currentTime"`
	NodeEligible *bool  `json:"nodeEligible,omitempty"`
	Revision     string `json:"revision,omitempty"`
	InputError   string `json:"inputError,omitempty"`
}

// serveHealthz answers whether load balancers may send traffic to this node.
func (p *Proxy) serveHealthz(total *prometheus.CounterVec) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		s := p.State(time.Now())
		body := healthz{stamp(s.LastUpdated), stamp(s.CurrentTime), &s.NodeEligible, s.Revision, s.InputError}
		writeHealth(w, s.Healthy && s.NodeEligible, body, total)
	}
}

// serveLivez answers whether weir works; what becomes of the node plays no part.
func (p *Proxy) serveLivez(total *prometheus.CounterVec) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		s := p.State(time.Now())
		writeHealth(w, s.Healthy, healthz{LastUpdated: stamp(s.LastUpdated), CurrentTime: stamp(s.CurrentTime)}, total)
	}
}

// stamp writes a time as kube-proxy's bodies do, which is Go's own form and not RFC 3339.
func stamp(t time.Time) string { return t.UTC().Round(0).String() }

func writeHealth(w http.ResponseWriter, ok bool, body any, total *prometheus.CounterVec) {
	code := http.StatusOK
	if !ok {
		code = http.StatusServiceUnavailable
	}
	if total != nil {
		total.WithLabelValues(strconv.Itoa(code)).Inc()
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	// The client may be gone; there is nobody left to tell.
	_ = json.NewEncoder(w).Encode(body)
}
