package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weir/backends/userspace"
	"weir/reconcile"
	"weir/reconcile/health"
	"weir/reconcile/status"
	"weir/spec"
)

// cleanupTimeout bounds what --cleanup-on-exit may take; service managers kill after 90 s.
const cleanupTimeout = 60 * time.Second

// manyServices is from how many on a round that resolves them all, or reads what the kernel holds of them all, leaves
// enough garbage behind to give it back to the system at once.
const manyServices = 500

func newRun() *cobra.Command {
	var (
		input         inputFlags
		api           apiFlags
		node          nodeFlags
		logs          logFlags
		cleanupOnExit bool
	)
	cmd := &cobra.Command{
		Use:   "run -f DIR|FILE|-",
		Short: "Program this node, and keep it as the input says",
		Long: `Read the input, program this node, and do it again whenever a file changes, whenever somebody else changed what weir
programmed, and every syncPeriod. An input that is not valid changes nothing: the last good state stands until it heals.
The KubeProxyConfiguration is read live too: a change to any field takes effect without a restart, the mode and logging
included. Flags win over it.

SIGTERM and SIGINT end it and leave the kernel forwarding, unless --cleanup-on-exit is given. Only one weir can run in a
network namespace.

Served, on healthzBindAddress: /healthz, /livez. On metricsBindAddress: /metrics, /proxyMode, /configz, /healthz,
and /debug/pprof/ if enableProfiling is set. A service manager is notified (systemd: Type=notify or notify-reload).

Exit codes: 0 ended by a signal; 1 could not start; 2 the command line makes no sense.`,
		Example: `  weir run -f /etc/weir
  weir run -f /srv/git/cluster/current --hostname-override edge-7
  weir run -f /etc/weir/services --config /etc/weir/kube-proxy.yaml --log-format json
  weir run --config /var/lib/kube-proxy/config.conf --hostname-override edge-7   # as kube-proxy: from the Kubernetes API`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(node.check(), logs.check()); err != nil {
				return err
			}
			log := logs.liveLogger(cmd.ErrOrStderr())
			d := newDaemon(log, node)
			source, err := api.source(&input, &node, log, d.health.Registry())
			if err != nil {
				return err
			}
			release, err := lockNode(log)
			if err != nil {
				return err
			}
			defer release()
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return d.run(ctx, source, cleanupOnExit)
		},
	}
	input.add(cmd)
	api.add(cmd)
	node.add(cmd)
	logs.add(cmd, "info")
	cmd.Flags().BoolVar(&cleanupOnExit, "cleanup-on-exit", false, "at the end, remove everything that weir programmed")
	return cmd
}

// daemon ties the Loop to everything that listens to it. After newDaemon all its methods but run are called from the
// Loop's goroutine.
type daemon struct {
	log    *liveLogger
	wiring *wiring
	host   *host
	health *health.Health
	notify *notifier
	told   *changeLog
	engine *reconcile.Engine
	board  *status.Board
	socket *status.Server

	ctx        context.Context
	fail       context.CancelCauseFunc
	configured bool
	swept      bool
	current    *target
	snapshot   *spec.Snapshot
	// unsaved says that something was applied that the record does not have.
	unsaved bool
	record  recordFile
	// garbage says that a large round may have left some that could not be given back when it ended: the record of it was
	// being written, for one.
	garbage bool
}

func newDaemon(log *liveLogger, flags nodeFlags) *daemon {
	b := thisBuild()
	w := &wiring{log: log, flags: flags}
	w.proxy.listeners = userspace.NewListeners(userspace.Limits{})
	board := status.NewBoard()
	d := &daemon{
		board:  board,
		socket: status.NewServer(board),
		log:    log,
		wiring: w,
		host:   newHost(log),
		health: health.New(health.NewMetrics(b.Version, b.Commit, b.GoVersion), log.Named("health")),
		notify: &notifier{log: log},
		told:   newChangeLog(log),
		engine: reconcile.NewEngine(reconcile.Options{Flows: &w.flows, Log: log.Named("engine")}),
	}
	d.health.Registry().MustRegister(w.proxy.listeners)
	return d
}

// run works until ctx is done, or until something that cannot be repaired happens at the start.
func (d *daemon) run(ctx context.Context, source spec.Source, cleanup bool) error {
	setGarbage(startGarbage)
	b := thisBuild()
	d.log.Info("starting", "version", b.Version, "commit", b.Commit, "go", b.GoVersion, "pid", os.Getpid())
	d.ctx, d.fail = context.WithCancelCause(ctx)
	defer d.fail(nil)
	defer d.health.Close()
	defer d.socket.Close()

	updates, nodeChanges := make(chan spec.Update), make(chan struct{}, 1)
	loop := reconcile.NewLoop(reconcile.LoopOptions{
		Engine: d.engine, Updates: updates, NodeChanges: nodeChanges, Log: d.log.Named("loop"),
		Configure: d.configure, OnUpdate: d.onUpdate, OnRound: d.onRound, OnReport: d.onReport,
	})
	var wg sync.WaitGroup
	wg.Go(func() { d.must(source.Watch(d.ctx, updates)) })
	wg.Go(func() { d.host.watch(d.ctx, nodeChanges) })
	wg.Go(func() { d.wiring.awaitIPVS(d.ctx, nodeChanges) })
	wg.Go(func() { d.notify.watchdog(d.ctx) })
	d.must(loop.Run(d.ctx))
	d.notify.stopping()
	wg.Wait()
	d.record.writing.Wait()

	if ctx.Err() == nil {
		return context.Cause(d.ctx)
	}
	var err error
	switch {
	case cleanup:
		err = d.cleanup(context.WithoutCancel(ctx))
	case d.wiring.mode != modeUserspace:
		d.log.Info("stopped; the kernel keeps forwarding")
	}
	d.wiring.drain()
	return err
}

// must ends the daemon if a part of it that should run until ctx is done ends before.
func (d *daemon) must(err error) {
	if d.ctx.Err() == nil {
		d.fail(fmt.Errorf("stopped unexpectedly: %w", err))
	}
}

func (d *daemon) cleanup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	if d.wiring.backend == nil {
		return nil
	}
	r := d.engine.Cleanup(ctx)
	if r.Err != nil {
		return fmt.Errorf("cleanup: %w", r.Err)
	}
	d.log.Info("stopped; everything that was programmed is removed", "deleted", r.Deleted, "took", r.Stages.Total.String())
	return nil
}

// configure is the Loop's hook: it turns a snapshot into Settings and puts in force what is not a matter of Services.
func (d *daemon) configure(snap *spec.Snapshot) (reconcile.Settings, error) {
	t, err := d.wiring.target(d.ctx, snap)
	if err != nil {
		return reconcile.Settings{}, err
	}
	cfg := health.Config{
		HealthzBindAddress:  t.Config.HealthzBindAddress,
		MetricsBindAddress:  t.Config.MetricsBindAddress,
		BindAddressHardFail: t.Config.BindAddressHardFail,
		EnableProfiling:     t.Config.EnableProfiling,
		Mode:                t.Mode,
		Fallback:            t.Fallback,
		InForce:             t.Config,
	}
	node := health.Node{Name: t.Node.Name, Object: t.Object, NodePortAddresses: t.BackendConfig.NodePortAddresses}
	if err := d.health.Configure(cfg, node, t.SyncPeriod); err != nil {
		if !d.configured {
			// As in kube-proxy: bindAddressHardFail asks to find this out at the start.
			d.fail(err)
		}
		return reconcile.Settings{}, err
	}
	d.log.follow(&t.Config.Logging)
	d.host.apply(t)
	d.host.protect(t.Config)
	switch {
	case d.configured && !reflect.DeepEqual(t.Config, d.current.Config):
		// A round follows, and with it the verdict.
		d.notify.reloading()
	case !d.configured:
		d.log.Info("configured", "node", t.Node.Name, "zone", t.Node.Zone, "mode", t.Mode, "config", originOr(snap.ConfigOrigin, "defaults"),
			"sync_period", t.SyncPeriod.String(), "min_sync_period", t.MinSyncPeriod.String())
	}
	d.board.Configured(t.Node, modeReason(d.wiring.flags.mode, snap, t.Fallback))
	d.board.Metered(t.Backend)
	if err := d.socket.Listen(snap.Weir.StateDir); err != nil {
		d.log.Warn("weir status will not work", "error", err)
	}
	d.configured, d.current, d.snapshot = true, t, snap
	return t.Settings, nil
}

func (d *daemon) onUpdate(u spec.Update) {
	d.told.update(u)
	d.health.OnUpdate(u)
	d.board.Update(u, time.Now())
	if u.Err != nil {
		d.notify.verdict("The input cannot be used; the last good state stands: " + firstLine(u.Err))
	}
}

// onRound lets garbage pile up while a round may have to write everything again.
func (d *daemon) onRound(r reconcile.Request) {
	if d.swept && r.Full {
		setGarbage(repairGarbage)
	}
}

func (d *daemon) onReport(r reconcile.Report) {
	if d.swept {
		d.settleGarbage()
	}
	d.health.OnReport(r)
	d.board.Report(r)
	d.unsaved = d.unsaved || len(r.Changed)+len(r.Gone) > 0
	d.notify.round(d.current.SyncPeriod)
	if r.Err != nil {
		return
	}
	d.notify.verdict(fmt.Sprintf("%s, revision %s, %s", r.Mode, r.Revision, plural(r.Services, "Service")))
	if d.unsaved && r.Full {
		// With each full sync, and not with each change: it costs what there is, and only gives names to things.
		d.unsaved = !d.record.save(d.log, d.snapshot.Weir.StateDir, d.board.Record)
	}
	if !d.swept {
		d.swept = true
		d.sweep(r.Mode)
	}
	large := r.Resolved >= manyServices || r.Observed && !r.Touched && r.Services >= manyServices
	if large || d.garbage && r.Full {
		debug.FreeOSMemory()
		d.garbage = large
	}
	d.settleGarbage()
}

// sweep takes down what an earlier run in another mode left behind, once this mode is in force.
func (d *daemon) sweep(mode string) {
	if d.current.Rootless {
		return
	}
	cleanup(d.ctx, d.wiring.others(d.ctx, mode), func(name string, deleted int, err error) {
		switch {
		case err != nil:
			d.log.Warn("cannot tell or remove what an earlier run in another mode left", "from", name, "error", err)
		case deleted > 0:
			d.log.Info("removed what an earlier run in another mode left", "from", name, "deleted", deleted)
		}
	})
}

// How much garbage may come on top of what is in use before the collector runs, in percent. Go's default of 100 would have
// the heap double, and a node's memory belongs to its pods: GOGC wins. While everything is read and worked out, less than
// startGarbage would cost more time than it saves memory; afterwards there is little garbage. To write everything again takes
// no more memory than the start did. But userspace mode carries traffic, and collecting its small heap for every few
// kilobytes costs it half of its UDP packets.
const (
	startGarbage     = 25
	laterGarbage     = 10
	repairGarbage    = 50
	userspaceGarbage = 100
)

// settleGarbage sets the limit for as long as there is nothing much to do.
func (d *daemon) settleGarbage() {
	if d.wiring.mode == modeUserspace {
		setGarbage(userspaceGarbage)
	} else {
		setGarbage(laterGarbage)
	}
}

func setGarbage(percent int) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
	}
}

// modeReason says why this mode is in force.
func modeReason(flag string, snap *spec.Snapshot, fallback string) string {
	switch {
	case fallback != "":
		return fallback
	case flag != "":
		return "--proxy-mode"
	case snap.Config.Mode != "":
		return originOr(snap.ConfigOrigin, "configuration")
	}
	return "what this node has; no mode is configured"
}

func originOr(o spec.Origin, otherwise string) string {
	if s := o.String(); s != "" {
		return s
	}
	return otherwise
}

func firstLine(err error) string { return problemLines(err)[0] }
