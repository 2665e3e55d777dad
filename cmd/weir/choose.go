package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"
	"weir/spec/config"

	"weir/backends/dataplane"
	"weir/backends/hostnet"
	"weir/reconcile"
	"weir/spec"
)

// choose returns the mode that was asked for, or its fallback and the reason. If none was asked for, it returns the
// first of the defaultModes that the node can run; this choice holds while the process lives.
func (m *modeManager) choose(ctx context.Context, asked string) (chosen *mode, reason string, err error) {
	if asked == "" {
		m.available()
		if m.accepted != nil {
			chosen, err = m.mode(m.accepted.path.Mode)
		} else {
			chosen, err = m.firstUsable(ctx, defaultModes)
		}
		return chosen, "", err
	}
	if chosen, err = m.mode(asked); err != nil || len(chosen.fallback) == 0 {
		m.available()
		return chosen, "", err
	}
	err = chosen.probe(ctx)
	switch {
	case err == nil:
		if m.unavailable != "" {
			m.log.Info(chosen.name + " mode can be used now")
		}
		m.available()
		return chosen, "", nil
	case m.flags.noFallback:
		m.awaited.Store(chosen)
		return nil, "", fmt.Errorf("%s mode cannot be used, and --no-fallback is given: %w", asked, err)
	}
	m.awaited.Store(chosen)
	reason = asked + " was asked for, but " + strings.ReplaceAll(err.Error(), "\n", "; ")
	standIn, standInErr := m.firstUsable(ctx, chosen.fallback)
	if standInErr != nil {
		return nil, "", fmt.Errorf("%s mode cannot be used: %w; nor can what stands in for it: %w", asked, err, standInErr)
	}
	if m.unavailable != reason {
		m.unavailable = reason
		m.log.Warn(asked+" mode cannot be used: using "+standIn.name+" mode until it can", "reason", err)
	}
	return standIn, reason, nil
}

// available records that the mode that was asked for can be used, as far as is known.
func (m *modeManager) available() {
	m.unavailable = ""
	m.awaited.Store(nil)
}

// awaitPeriod is how often the node is checked for a mode that was asked for and cannot be used.
const awaitPeriod = 5 * time.Second

// await signals when the mode that was asked for may have become available, until ctx is done.
func (m *modeManager) await(ctx context.Context, appeared chan<- struct{}) {
	tick := time.NewTicker(awaitPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if awaited := m.awaited.Load(); awaited == nil || !awaited.appeared() {
			continue
		}
		select {
		case appeared <- struct{}{}:
		default: // a signal is pending
		}
	}
}

// openMode returns the data path of a mode. It makes a new one if any of its inputs differs from the accepted one. The
// accepted data path stays, because the Loop may refuse the Snapshot.
func (m *modeManager) openMode(ctx context.Context, chosen *mode, snap *spec.Snapshot, cfg *dataplane.Config) (o *openMode, err error) {
	var settings any
	if chosen.settings != nil {
		if settings, err = chosen.settings(ctx, snap, cfg); err != nil {
			return nil, err
		}
	}
	needs := chosen.needs(snap, *cfg, settings)
	for _, o := range []*openMode{m.accepted, m.candidate} {
		if o.fits(chosen.name, *cfg, settings, needs) {
			return o, nil
		}
	}
	b, flows, err := chosen.open(ctx, *cfg, settings)
	if err != nil {
		return nil, err
	}
	if chosen.translates {
		if b, err = m.loopbacks.Beside(b, *cfg); err != nil {
			return nil, err
		}
	}
	if !chosen.leavesKernel {
		m.keeper.Remember(snap.Weir.StateDir)
		managed := m.keeper.Manage(b, needs)
		if slices.ContainsFunc(b.Base(), guardsLoopback) {
			managed.Guarding()
		}
		if chosen.hairpins {
			managed.Hairpins(cfg.BridgedThrough, cfg.NodeAddresses)
		}
		if chosen.translates && cfg.LocalhostNodePortsIPv6 && slices.Contains(cfg.Families, dataplane.IPv6) {
			managed.Answers()
		}
		if chosen.holds {
			managed.Holding()
		}
		b = managed
	}
	m.discard()
	m.candidate = &openMode{
		path:   reconcile.DataPath{Mode: chosen.name, Traits: chosen.traits, Backend: b, Flows: flows},
		config: *cfg, settings: settings, needs: needs,
	}
	return m.candidate, nil
}

// needs returns the kernel parameters that the mode needs.
func (m *mode) needs(snap *spec.Snapshot, cfg dataplane.Config, settings any) []hostnet.Parameter {
	if m.leavesKernel {
		return nil
	}
	list := forwardingOf(cfg).Parameters()
	if m.parameters != nil {
		list = m.parameters(cfg, settings)
	}
	return append(list, limitsOf(snap.Config).Parameters(runtime.NumCPU())...)
}

// forwardingOf returns what forwarding depends on.
func forwardingOf(cfg dataplane.Config) hostnet.Forwarding {
	return hostnet.Forwarding{
		IPv4:      slices.Contains(cfg.Families, dataplane.IPv4),
		IPv6:      slices.Contains(cfg.Families, dataplane.IPv6),
		Localhost: cfg.LocalhostNodePorts,
	}
}

// discard closes the candidate, which was never used.
func (m *modeManager) discard() {
	if m.candidate != nil {
		if err := m.candidate.path.Backend.Close(); err != nil {
			m.log.Debug("close a backend that was not used", "error", err)
		}
	}
	m.candidate = nil
}

// accept records that the Loop accepted the result of resolve. Work that the mode then starts ends with ctx.
func (m *modeManager) accept(ctx context.Context, n *nodeConfig) {
	if n.Config.DetectLocalMode == config.LocalModeNodeCIDR && len(n.DataPlane.LocalDetector.PodCIDRs) > 0 {
		m.found = nodeRanges{n.Node.Name, n.DataPlane.LocalDetector.PodCIDRs}
	}
	if n.open != m.accepted {
		m.accepted, m.candidate = n.open, nil
		if n.mode.accepted != nil {
			n.mode.accepted(ctx)
		}
		if n.DataPlane.ProxiesLoopbackIPv6 && m.publish != nil {
			m.publish(ctx)
		}
	}
	m.discard()
}

// drain waits for the connections that this process carries.
func (m *modeManager) drain() {
	for _, mode := range m.modes {
		if mode.drain != nil {
			mode.drain()
		}
	}
}
