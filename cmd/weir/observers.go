package main

import (
	"context"
	"fmt"
	"time"

	"weir/backends/hostnet"
	"weir/reconcile"
	"weir/reconcile/tell/health"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/stall"
)

// healthObserver serves probes, metrics and health check ports.
type healthObserver struct {
	reconcile.NopObserver
	*health.Health
	ctx     context.Context
	fail    func(error) // ends the daemon
	started bool
}

// Configured implements reconcile.Observer. As in kube-proxy, bindAddressHardFail counts at the start. It does nothing if the start has
// failed.
func (o *healthObserver) Configured(_ *spec.Snapshot, s reconcile.Settings) {
	if o.ctx.Err() != nil {
		return
	}
	t := s.From.(*nodeConfig)
	cfg := health.Config{
		HealthzBindAddress:  t.Config.HealthzBindAddress,
		MetricsBindAddress:  t.Config.MetricsBindAddress,
		BindAddressHardFail: t.Config.BindAddressHardFail && !o.started,
		EnableProfiling:     t.Config.EnableProfiling,
		Mode:                t.Mode,
		Fallback:            t.Fallback,
		InForce:             t.Config,
	}
	node := health.Node{Name: t.Node.Name, Object: t.Object, NodePortAddresses: t.DataPlane.NodePortAddresses}
	if err := o.Configure(cfg, node, t.SyncPeriod); err != nil {
		o.fail(err)
	}
	o.started = true
}

// Updated implements reconcile.Observer.
func (o *healthObserver) Updated(u spec.Update) { o.OnUpdate(u) }

// Applied implements reconcile.Observer.
func (o *healthObserver) Applied(r reconcile.Report) { o.OnReport(r) }

// nodeObserver applies the settings that do not concern Services: logging, sysctls, the OOM score.
type nodeObserver struct {
	reconcile.NopObserver
	ctx     context.Context
	log     *liveLogger
	host    *host
	current *nodeConfig // nil before the first
	changes chan<- struct{}
}

// RoundStarts implements reconcile.Observer. Nothing tells that frames on bridges begin to pass through the packet filter, for
// instance because docker or the kubelet has started.
func (o *nodeObserver) RoundStarts(r reconcile.Request) {
	if o.current == nil || !r.Full || o.current.mode.leavesKernel {
		return
	}
	known := hostnet.Bridges{Past: o.current.DataPlane.Bridged, Through: o.current.DataPlane.BridgedThrough}
	if now, err := hostnet.LookAtBridges(hostnet.Sysctl{}); err != nil || now.Equal(known) {
		return
	}
	select {
	case o.changes <- struct{}{}:
	default: // a signal is pending
	}
}

// Configured implements reconcile.Observer. It does nothing if the start has failed.
func (o *nodeObserver) Configured(snap *spec.Snapshot, s reconcile.Settings) {
	if o.ctx.Err() != nil {
		return
	}
	t := s.From.(*nodeConfig)
	o.log.follow(&t.Config.Logging)
	o.host.apply(o.ctx, t)
	o.host.protect(t.Config)
	if o.current == nil {
		o.log.Info("configured", "node", t.Node.Name, "zone", t.Node.Zone, "mode", t.Mode, "config", originOr(snap.ConfigOrigin, "defaults"),
			"sync_period", t.SyncPeriod.String(), "min_sync_period", t.MinSyncPeriod.String())
	}
	if o.current == nil || o.current.Mode != t.Mode {
		o.log.Info(fmt.Sprintf("Using %s Proxier", t.Mode)) // kube-proxy's line, which its runbooks search for
	}
	o.current = t
}

// statusObserver feeds weir status.
type statusObserver struct {
	reconcile.NopObserver
	log    *liveLogger
	board  *status.Board
	socket *status.Server
	mode   string // the flag --proxy-mode

	ctx      context.Context
	gate     stall.Gate
	stateDir string
	told     string // the last logged error
}

// Configured implements reconcile.Observer. It does nothing if the start has failed.
func (o *statusObserver) Configured(snap *spec.Snapshot, s reconcile.Settings) {
	if o.ctx.Err() != nil {
		return
	}
	t := s.From.(*nodeConfig)
	o.board.Configured(t.Node, modeReason(o.mode, snap, t.Fallback))
	o.board.Metered(t.Backend.Optional().ConnectionCounter)
	o.follow(snap.Weir.StateDir)
}

// follow makes the socket in a state directory.
func (o *statusObserver) follow(stateDir string) {
	o.stateDir = stateDir
	o.listen()
}

// close removes the socket.
func (o *statusObserver) close() {
	// A directory that does not answer keeps its socket.
	_ = o.gate.Do(context.Background(), stall.Limit, "removing the socket", func() error { o.socket.Close(); return nil })
}

// listen ensures that weir status finds the socket, which another process may have removed.
func (o *statusObserver) listen() {
	text := ""
	dir := o.stateDir
	if err := o.gate.Do(o.ctx, stall.Limit, "making the socket in "+dir, func() error { return o.socket.Listen(dir) }); err != nil && o.ctx.Err() == nil {
		text = err.Error()
	}
	switch {
	case text == o.told:
	case text != "":
		o.log.Warn("weir status will not work; trying again with each sync", "error", text)
	default:
		o.log.Info("weir status works again")
	}
	o.told = text
}

// Updated implements reconcile.Observer.
func (o *statusObserver) Updated(u spec.Update) { o.board.Update(u, time.Now()) }

// Applied implements reconcile.Observer.
func (o *statusObserver) Applied(r reconcile.Report) {
	o.board.Report(r)
	o.listen()
}

// sweeper removes the leftovers of an earlier run in another mode, once this mode is in force.
type sweeper struct {
	reconcile.NopObserver
	ctx   context.Context
	log   *liveLogger
	modes *modeManager
	done  bool
	stale bool // what is in force is kept by an earlier run, and nothing is deleted because of it
}

// Configured implements reconcile.Observer.
func (o *sweeper) Configured(snap *spec.Snapshot, _ reconcile.Settings) {
	o.stale = snap.Revision.Stale
}

// Updated implements reconcile.Observer.
func (o *sweeper) Updated(u spec.Update) {
	if u.Err == nil {
		o.stale = u.Snapshot.Revision.Stale
	}
}

// Applied implements reconcile.Observer.
func (o *sweeper) Applied(r reconcile.Report) {
	if o.done || o.stale || r.Err != nil {
		return
	}
	o.done = true
	if m, err := o.modes.mode(r.Mode); err != nil || m.leavesKernel {
		return
	}
	cleanup(o.ctx, o.modes.staleDataPaths(o.ctx, r.Mode), func(name string, deleted int, err error) {
		switch {
		case err != nil:
			o.log.Warn("leftovers of an earlier run in another mode cannot be read or removed", "from", name, "error", err)
		case deleted > 0:
			o.log.Info("removed the leftovers of an earlier run in another mode", "from", name, "deleted", deleted)
		}
	})
}

// modeObserver tells the modeManager what the Loop has accepted.
type modeObserver struct {
	reconcile.NopObserver
	ctx   context.Context
	modes *modeManager
}

// Configured implements reconcile.Observer. It does nothing if the start has failed.
func (o *modeObserver) Configured(_ *spec.Snapshot, s reconcile.Settings) {
	if o.ctx.Err() != nil {
		return
	}
	o.modes.accept(o.ctx, s.From.(*nodeConfig))
}

// Updated implements reconcile.Observer.
func (o *modeObserver) Updated(u spec.Update) {
	if u.Err == nil {
		o.modes.network.follow(u)
	}
}
