package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends"
	"weir/backends/conntrack"
	"weir/backends/hostnet"
)

// host sets what a KubeProxyConfiguration says about the node besides its Services, and notices when the node changes.
type host struct {
	log      hclog.Logger
	sysctl   hostnet.Sysctl
	oomScore *int32
	limits   conntrack.Limits
	told     map[string]struct{} // the warnings given
}

func newHost(log hclog.Logger) *host { return &host{log: log, told: map[string]struct{}{}} }

// apply sets the kernel parameters that the target needs. None of it is a reason not to program Services: what cannot be
// set, as in a container, is warned of, once.
func (h *host) apply(t *target) {
	if t.Rootless {
		return
	}
	cfg := t.BackendConfig
	changed, err := hostnet.Forwarding{
		IPv4:      slices.Contains(cfg.Families, backends.IPv4),
		IPv6:      slices.Contains(cfg.Families, backends.IPv6),
		Localhost: cfg.LocalhostNodePorts,
	}.Ensure(h.sysctl)
	if len(changed) > 0 {
		h.log.Info("kernel parameters set to 1", "sysctls", strings.Join(changed, " "))
	}
	errs := []error{err}
	if limits := limitsOf(t.Config); limits != h.limits {
		errs = append(errs, conntrack.ApplyLimits(h.sysctl, conntrack.HashTable{}, runtime.NumCPU(), limits))
		h.limits = limits
	}
	h.warn(errors.Join(errs...))
}

// warn tells each thing that is not yet known.
func (h *host) warn(err error) {
	if err == nil {
		return
	}
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		if _, told := h.told[line]; !told {
			h.told[line] = struct{}{}
			h.log.Warn(line)
		}
	}
}

// protect tells the kernel how soon to kill this process when memory runs out.
func (h *host) protect(c *kubeproxyconfig.KubeProxyConfiguration) {
	if c.OOMScoreAdj == nil || h.oomScore != nil && *h.oomScore == *c.OOMScoreAdj {
		return
	}
	h.oomScore = c.OOMScoreAdj
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(int(*c.OOMScoreAdj))), 0); err != nil {
		h.log.Warn("oomScoreAdj cannot be set", "value", *c.OOMScoreAdj, "error", err)
	}
}

// addressSettle gathers the changes that come together when an interface is set up.
const addressSettle = 200 * time.Millisecond

// watch tells of changes of the node's addresses until ctx is done, once for those that come together.
func (h *host) watch(ctx context.Context, changes chan<- struct{}) {
	tell := func() {
		select {
		case changes <- struct{}{}:
		default: // one is waiting to be heard
		}
	}
	timer := time.AfterFunc(addressSettle, tell)
	defer timer.Stop()
	// It ends with ctx only.
	_ = hostnet.Watch(ctx, func() { timer.Reset(addressSettle) })
}

func limitsOf(c *kubeproxyconfig.KubeProxyConfiguration) conntrack.Limits {
	l := conntrack.Limits{
		UDP:          c.Conntrack.UDPTimeout.Duration,
		UDPStream:    c.Conntrack.UDPStreamTimeout.Duration,
		TCPBeLiberal: c.Conntrack.TCPBeLiberal,
	}
	if p := c.Conntrack.MaxPerCore; p != nil {
		l.MaxPerCore = int(*p)
	}
	if p := c.Conntrack.Min; p != nil {
		l.Min = int(*p)
	}
	if p := c.Conntrack.TCPEstablishedTimeout; p != nil {
		l.TCPEstablished = p.Duration
	}
	if p := c.Conntrack.TCPCloseWaitTimeout; p != nil {
		l.TCPCloseWait = p.Duration
	}
	return l
}
