// Package health exposes the state of weir: /healthz and /livez, metrics, the proxy mode, profiles, and one small
// server for each Service with a healthCheckNodePort. Health combines them. It is fed with the values that flow through
// the reconciler (spec.Update, reconcile.Report); it never calls back and never delays a round.
//
// Bodies, status codes and metric names are kube-proxy's wherever the meaning is the same, so that load balancers,
// probes and dashboards for kube-proxy need no change. cmd/weir imports the package.
package health

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
)

// toBeDeletedTaint is the taint that the Cluster Autoscaler sets on a node before it removes the node.
const toBeDeletedTaint = "ToBeDeletedByClusterAutoscaler"

// Proxy tracks whether the data path follows its input. The zero value is healthy, like kube-proxy during its start. It
// is safe for concurrent use.
type Proxy struct {
	mu         sync.Mutex
	timeout    time.Duration
	pending    time.Time // since when a change waits to be applied; zero if none waits
	updated    time.Time // when the data path was last known to hold the desired state
	ineligible bool
	revision   string
	applied    bool   // this process has put something in force
	failed     bool   // a round failed
	earlier    string // what an earlier process left in force, or ""
	inputErr   string
	refused    time.Time // since when the input cannot be used; zero if it can
}

// State is the state of a Proxy at one moment.
type State struct {
	// Healthy reports whether no change has waited longer than the timeout.
	Healthy bool
	// Serving reports whether something is in force, or may soon be, because no input was refused and no round failed yet.
	Serving bool
	// NodeEligible is false for a node that is about to be removed.
	NodeEligible bool
	// LastUpdated is when the data path last held the desired state; the current time if Healthy.
	LastUpdated, CurrentTime time.Time
	// InForce says what is in force; Revision is its revision, if this process put it in force.
	InForce, Revision string
	// InputError is why newer input cannot be used, or "", and Refused since when.
	InputError string
	Refused    time.Time
}

// Nothing is the word for a node on which nothing is in force.
const Nothing = "nothing"

// SetTimeout sets how long a change may wait before the data path counts as unhealthy. kube-proxy uses twice the
// syncPeriod. 0 means no limit.
func (p *Proxy) SetTimeout(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timeout = d
}

// SetNode sets whether load balancers may send traffic to this node. They may not if the node is being deleted, or has
// the taint of the Cluster Autoscaler. An unknown node is eligible.
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

// Queued records that a change has been waiting since at. The oldest one counts.
func (p *Proxy) Queued(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pending.IsZero() {
		p.pending = at
	}
}

// Applied records that the kernel held the whole revision at that time.
func (p *Proxy) Applied(at time.Time, revision string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pending, p.updated, p.revision, p.applied = time.Time{}, at, revision, true
}

// Failed records that a round failed that began at that time. Even without a change, the data path is not known to hold
// the desired state since. It makes the Proxy unhealthy at once if nothing is in force.
func (p *Proxy) Failed(at time.Time) {
	p.Queued(at)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failed = true
}

// SetEarlier records what an earlier process left in force, until this one applies something; "" means nothing.
func (p *Proxy) SetEarlier(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.earlier = what
}

// SetInputError records at that time why the newest input cannot be used; nil if it can. It does not make the Proxy
// unhealthy if anything is in force, because the data path keeps serving the last good state.
func (p *Proxy) SetInputError(err error, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.inputErr, p.refused = "", time.Time{}
		return
	}
	p.inputErr, _, _ = strings.Cut(err.Error(), "\n")
	if p.refused.IsZero() {
		p.refused = at
	}
}

// inForce says what is in force.
func (p *Proxy) inForce() string {
	switch {
	case p.applied:
		return "revision " + p.revision
	case p.earlier != "":
		return p.earlier
	}
	return Nothing
}

// State returns the state at that time.
func (p *Proxy) State(now time.Time) State {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := State{
		Healthy:      p.pending.IsZero() || p.timeout == 0 || now.Sub(p.pending) < p.timeout,
		Serving:      p.applied || p.earlier != "" || p.inputErr == "" && !p.failed,
		NodeEligible: !p.ineligible,
		LastUpdated:  p.updated,
		CurrentTime:  now,
		InForce:      p.inForce(),
		Revision:     p.revision,
		InputError:   p.inputErr,
		Refused:      p.refused,
	}
	if s.Healthy {
		// Probes for old releases of kube-proxy expect a healthy one to have a recent update.
		s.LastUpdated = now
	}
	return s
}

// healthz is the body of /healthz and /livez. Its first three fields are kube-proxy's.
type healthz struct {
	LastUpdated  string `json:"lastUpdated"`
	CurrentTime  string `json:"currentTime"`
	NodeEligible *bool  `json:"nodeEligible,omitempty"` // /healthz only
	InForce      string `json:"inForce"`
	Revision     string `json:"revision,omitempty"`
	RefusedSince string `json:"refusedSince,omitempty"`
	InputError   string `json:"inputError,omitempty"`
}

// body returns the body for an answer. Only clients on this node see the error, because it may quote the input.
func (s *State) body(r *http.Request) healthz {
	b := healthz{LastUpdated: stamp(s.LastUpdated), CurrentTime: stamp(s.CurrentTime), InForce: s.InForce, Revision: s.Revision}
	if !s.Refused.IsZero() {
		b.RefusedSince = s.Refused.UTC().Format(time.RFC3339)
	}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil && from.Addr().Unmap().IsLoopback() {
		b.InputError = s.InputError
	}
	return b
}

// serveHealthz reports whether load balancers may send traffic to this node.
func (p *Proxy) serveHealthz(total *prometheus.CounterVec) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := p.State(time.Now())
		body := s.body(r)
		body.NodeEligible = &s.NodeEligible
		writeHealth(w, s.Healthy && s.Serving && s.NodeEligible, body, total)
	}
}

// serveLivez reports whether weir works, regardless of the node and of the input: a restart mends neither.
func (p *Proxy) serveLivez(total *prometheus.CounterVec) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s := p.State(time.Now())
		writeHealth(w, s.Healthy, s.body(r), total)
	}
}

// stamp formats a time as kube-proxy's bodies do, in Go's own form instead of RFC 3339.
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
	// The only error is that the client is gone.
	_ = json.NewEncoder(w).Encode(body)
}
