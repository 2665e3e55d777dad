package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends/conntrack"
	"weir/backends/firewall"
	"weir/backends/hostnet"
)

// host applies the settings of a KubeProxyConfiguration that do not concern Services, and notices changes of the node.
type host struct {
	log      hclog.Logger
	sysctl   hostnet.Sysctl
	oomScore *int32
	firewall string // the mode for which the firewalls of others were last looked at
	limits   conntrack.Limits
	told     map[string]struct{} // warnings already logged
}

func newHost(log hclog.Logger) *host { return &host{log: log, told: map[string]struct{}{}} }

// apply checks the kernel parameters that weir does not set itself, and grows the table of flows. What is wrong does not
// prevent Services from being programmed, and is logged once.
func (h *host) apply(ctx context.Context, n *nodeConfig) {
	if n.mode.leavesKernel {
		return
	}
	errs := []error{forwardingOf(n.DataPlane).Check(h.sysctl)}
	if limits := limitsOf(n.Config); limits != h.limits {
		errs = append(errs, limits.GrowTable(conntrack.HashTable{}, runtime.NumCPU()))
		h.limits = limits
	}
	h.warn(errors.Join(errs...))
	if h.firewall != n.Mode {
		h.firewall = n.Mode
		h.warnFirewall(ctx, n)
	}
}

// warnFirewall says where another program drops what is forwarded. A proxy's connections come from the node itself.
func (h *host) warnFirewall(ctx context.Context, n *nodeConfig) {
	if n.Traits.CarriesTraffic {
		return
	}
	found, err := firewall.Dropping(ctx)
	if err != nil {
		h.log.Debug("the firewalls of others cannot be read", "error", err)
	}
	for _, c := range found {
		h.log.Warn("a firewall may drop the traffic of Services: "+c.Effect(n.opening), "remedy", firewall.Remedy)
	}
}

// warn logs each error once.
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

// protect sets the OOM score of this process.
func (h *host) protect(c *kubeproxyconfig.KubeProxyConfiguration) {
	if c.OOMScoreAdj == nil || h.oomScore != nil && *h.oomScore == *c.OOMScoreAdj {
		return
	}
	h.oomScore = c.OOMScoreAdj
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(int(*c.OOMScoreAdj))), 0); err != nil {
		h.log.Warn("oomScoreAdj cannot be set", "value", *c.OOMScoreAdj, "error", err)
	}
}

// addressSettle collects the changes that come together when an interface is set up.
const addressSettle = 200 * time.Millisecond

// watch signals changes of the node's addresses until ctx is done, once for changes that come together.
func (h *host) watch(ctx context.Context, changes chan<- struct{}) {
	tell := func() {
		select {
		case changes <- struct{}{}:
		default: // a signal is pending
		}
	}
	timer := time.AfterFunc(addressSettle, tell)
	defer timer.Stop()
	// Watch ends only with ctx.
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
