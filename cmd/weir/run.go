package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"weir/backends/dataplane"
	"weir/backends/hostnet"
	"weir/cmd/weir/internal/handover"
	"weir/reconcile"
	"weir/reconcile/tell/health"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/join"
	"weir/spec/liveness"
	"weir/spec/stall"
)

// cleanupTimeout limits the time of --cleanup-on-exit; service managers kill after 90 s.
const cleanupTimeout = 60 * time.Second

// runFlags are those of weir run.
type runFlags struct {
	input         inputFlags
	api           apiFlags
	pods          podFlags
	node          nodeFlags
	logs          logFlags
	names         dnsFlags
	cleanupOnExit bool
}

func newRun() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run -f DIR|FILE|-",
		Short: "Program this node, and keep it as the input says",
		Long: `Read the input and program this node. Repeat this when a file changes, when another process changed what weir programmed,
and every syncPeriod. An invalid input changes nothing: the last good state stands until the input is valid again. A
change to the KubeProxyConfiguration takes effect without a restart, for every field, including mode and logging. Flags
have precedence over it.

SIGTERM and SIGINT end weir. The kernel keeps forwarding, unless --cleanup-on-exit is given or the mode is userspace, in
which only a running weir serves. On SIGHUP weir reads the files again. Only one weir can run in a network namespace.
"weir handover" replaces a running weir by the program that is installed now, without a gap in any mode.

With --dns, or a section dns in the WeirConfiguration, weir answers for the names of Services at --dns-listen, over UDP and
TCP, as the Kubernetes DNS specification says, for this node and its pods. A name leads to an address once the kernel serves
it. weir asks --dns-upstream for all other names. While weir answers, it has the processes of this node ask it, as
--dns-node-resolver says: by systemd-resolved, /etc/resolv.conf or /etc/hosts. With --dns-only it programs nothing in the
kernel, and needs privileges only for ports below 1024 and for the files of the node.

weir serves, on healthzBindAddress: /healthz, /livez. On metricsBindAddress: /metrics, /proxyMode, /configz, /healthz,
and /debug/pprof/ if enableProfiling is set. weir notifies the service manager (systemd: Type=notify or notify-reload).

Exit codes: 0 a signal ended weir; 1 weir could not start; 2 the command line is wrong.`,
		Example: `  weir run -f /etc/weir
  weir run -f /srv/git/cluster/current --hostname-override edge-7
  weir run -f /etc/weir --dns --dns-listen 127.0.0.1:53 --dns-listen 10.244.0.1:53
  weir run -f /etc/weir/services --config /etc/weir/kube-proxy.yaml --log-format json
  weir run --config /var/lib/kube-proxy/config.conf --hostname-override edge-7   # as kube-proxy: from the Kubernetes API`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd) },
	}
	f.input.add(cmd)
	f.api.add(cmd)
	f.pods.add(cmd.Flags())
	f.node.add(cmd)
	f.logs.add(cmd, "info")
	f.names.add(cmd.Flags())
	cmd.Flags().BoolVar(&f.cleanupOnExit, "cleanup-on-exit", false, "at exit, remove everything that weir programmed")
	return cmd
}

func (f *runFlags) run(cmd *cobra.Command) error {
	predecessor, strange := handover.Inherit()
	if err := errors.Join(f.node.check(), f.logs.check()); err != nil {
		return err
	}
	if f.names.only {
		if err := f.node.namesOnly(); err != nil {
			return err
		}
	}
	out := newLogWriter(cmd.ErrOrStderr())
	defer out.close()
	log := f.logs.liveLogger(out)
	out.told = log.lossLine
	if strange != nil {
		log.Warn("starting as if nothing were to be replaced", "error", strange)
	}
	f.input.reread = outliveTerminal()
	f.input.more, f.input.serveDNS = func(in *config.WeirFields) { f.names.fields(in); f.pods.fields(in) }, f.names.given()
	d := newDaemon(log, f.node, f.pods.exec)
	d.succession = newSuccession(d, predecessor, &f.input)
	d.modes.sockets = d.succession.sockets
	d.health.OpenBy(d.succession.sockets.Listen)
	d.names = newNameServer(log, d.health.Registry(), d.succession.sockets)
	d.socket.HandOver = d.succession.handOver
	d.socket.Lookup = d.names.lookUp
	d.socket.Zone = func() status.ZoneAnswer {
		answer := status.ZoneAnswer{Names: d.names.all()}
		if answer.Names != nil {
			answer.InForce = new(d.names.inForce())
		}
		if given := f.names.given(); answer.Names != nil && given != nil && *given {
			answer.Given = new(d.names.inForce())
		}
		return answer
	}
	d.socket.Questions = func(name string) status.QuestionAnswer {
		return status.QuestionAnswer{Questions: d.liveness.Questions(name), Hosts: d.liveness.Hosts()}
	}
	f.input.usable = func(ctx context.Context, kept *spec.Snapshot) error {
		if predecessor != nil {
			return errors.New("what is in force may be newer: a weir takes over only with an input that can be used")
		}
		probed := func(svc *spec.Service) bool { return !svc.Probes.Empty() }
		if len(f.pods.inForce(ctx, kept.Weir)) > 0 || slices.ContainsFunc(slices.Collect(kept.Services.All()), probed) {
			return nil // the kernel holds what the runtimes and the probes said too, so it cannot be compared
		}
		return fitsKernel(ctx, log.Named("kept"), f.node, kept)
	}
	f.api.filters, f.api.taken = []join.Filter{d.liveness}, takenHere
	pods := f.pods.layers(cmd.Context(), &f.node, log)
	source, err := f.api.source(&f.input, &f.node, pods, log, d.health.Registry())
	if err != nil {
		return err
	}
	if err := d.succession.begin(); err != nil {
		return err
	}
	defer d.succession.end()
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	overrides, err := f.input.overrides()
	if err != nil {
		return usageError{err}
	}
	return d.run(ctx, source, overrides, f.cleanupOnExit)
}

// daemon connects the Loop with its observers.
type daemon struct {
	log    *liveLogger
	modes  *modeManager
	host   *host
	health *health.Health
	notify *notifier
	engine *reconcile.Engine
	board  *status.Board
	socket *status.Server
	status *statusObserver
	early  *earlyAnswers
	record *recorder
	node   *nodeObserver
	names  *nameServer
	// liveness is the layer that probes.
	liveness   *liveness.Layer
	succession *succession

	ctx  context.Context
	fail context.CancelCauseFunc
}

func newDaemon(log *liveLogger, flags nodeFlags, exec func(pod dataplane.ServiceName) liveness.Exec) *daemon {
	b := thisBuild()
	m := newModeManager(log, flags, true)
	board := status.NewBoard(b.Version)
	d := &daemon{
		board:  board,
		socket: status.NewServer(board),
		log:    log,
		modes:  m,
		host:   newHost(log),
		health: health.New(health.NewMetrics(health.Build{Version: b.Version, Commit: b.commit(), Date: b.Time, GoVersion: b.GoVersion}), log.Named("health")),
		notify: &notifier{log: log},
		record: &recorder{log: log, board: board},
		engine: reconcile.NewEngine(reconcile.Options{Log: log.Named("engine")}),

		liveness: liveness.New(liveness.Options{Log: log.Named("liveness"), Exec: exec}),
	}
	d.health.Registry().MustRegister(m.keeper, d.liveness)
	for _, mode := range m.platform.modes {
		if mode.metrics != nil {
			d.health.Registry().MustRegister(mode.metrics)
		}
	}
	return d
}

// run works until ctx is done, or until the start fails beyond repair.
func (d *daemon) run(ctx context.Context, source spec.Source, overrides spec.Overrides, cleanup bool) error {
	b := thisBuild()
	d.log.Info("starting", "version", b.Version, "commit", b.commit(), "date", b.Time, "go", b.GoVersion, "pid", os.Getpid())
	d.ctx, d.fail = context.WithCancelCause(ctx)
	defer d.fail(nil)
	nodeChanges := make(chan struct{}, 1)
	observers := d.observers(overrides, nodeChanges)
	defer d.health.Close()
	defer d.status.close()
	if d.succession.predecessor == nil {
		d.early.start()
	} else {
		d.early.never()
	}
	defer d.early.stop()

	updates := spec.NewOutbox()
	loop := reconcile.NewLoop(reconcile.LoopOptions{
		Engine: d.engine, Updates: updates, NodeChanges: nodeChanges, Log: d.log.Named("loop"),
		Configure: d.configure, Observers: observers, Interludes: d.succession.interludes,
	})
	var wg sync.WaitGroup
	wg.Go(func() { d.must(source.Watch(d.ctx, updates.Put)) })
	wg.Go(func() { d.host.watch(d.ctx, nodeChanges) })
	// WatchRoutes ends only with ctx.
	wg.Go(func() { _ = hostnet.WatchRoutes(d.ctx, func() { d.modes.network.moved.Store(true) }) })
	wg.Go(func() { d.modes.await(d.ctx, nodeChanges) })
	wg.Go(func() { d.notify.watchdog(d.ctx) })
	wg.Go(func() { d.notify.extend(d.ctx) })
	d.must(loop.Run(d.ctx))
	if d.succession.successor != nil {
		d.makeWay(&wg)
		d.succession.linger(ctx)
		return nil
	}
	d.notify.stopping()
	wg.Go(func() { d.names.end() })
	d.leave(&wg)
	d.record.file.wait()

	if ctx.Err() == nil {
		return context.Cause(d.ctx)
	}
	d.modes.drain()
	// Without this process, a redirection would lead clients to the next process that listens on its ports.
	if cleanup || d.node.current != nil && d.node.current.Traits.CarriesTraffic {
		return d.cleanup(context.WithoutCancel(ctx))
	}
	d.log.Info("stopped; the kernel keeps forwarding")
	return nil
}

// makeWay ends everything but the open connections, and takes nothing back, because another process is in charge.
func (d *daemon) makeWay(wg *sync.WaitGroup) {
	wg.Go(func() { d.names.leave() })
	wg.Go(d.health.Leave)
	wg.Go(d.status.close)
	d.leave(wg)
}

// endPatience is how long the end waits for everything that reads. Nothing can end a read from a hung mount.
const endPatience = 2 * stall.Limit

// leave waits for the daemon's goroutines to end, but not for ever.
func (d *daemon) leave(wg *sync.WaitGroup) {
	_, err := stall.Do(context.Background(), endPatience, "the end of a source", func() (struct{}, error) {
		wg.Wait()
		return struct{}{}, nil
	})
	if err != nil {
		d.log.Warn("ending without a part that does not end", "error", err)
	}
}

// must ends the daemon if a part of it ends before ctx is done.
func (d *daemon) must(err error) {
	if d.ctx.Err() == nil {
		d.fail(fmt.Errorf("stopped unexpectedly: %w", err))
	}
}

func (d *daemon) cleanup(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	if d.node.current == nil {
		return nil
	}
	r := d.engine.Cleanup(ctx)
	if r.Err != nil {
		return fmt.Errorf("cleanup: %w", r.Err)
	}
	d.log.Info("stopped; everything that was programmed is removed", "deleted", r.Deleted, "took", r.Stages.Total.String())
	return nil
}

// configure turns a snapshot into Settings. It changes nothing on the node, because the Loop may still refuse the
// snapshot.
func (d *daemon) configure(snap *spec.Snapshot) (reconcile.Settings, error) {
	t, err := d.modes.resolve(d.ctx, snap)
	if err != nil {
		return reconcile.Settings{}, err
	}
	return t.Settings, nil
}

// observers returns the observers of the Loop, in the order of their calls.
func (d *daemon) observers(overrides spec.Overrides, nodeChanges chan<- struct{}) []reconcile.Observer {
	d.early = &earlyAnswers{open: d.answerEarly, overrides: overrides}
	d.status = &statusObserver{ctx: d.ctx, log: d.log, board: d.board, socket: d.socket, mode: d.modes.flags.mode}
	d.record.ctx = d.ctx
	d.node = &nodeObserver{ctx: d.ctx, log: d.log, host: d.host, changes: nodeChanges}
	earlier := &earlierRun{ctx: d.ctx, modes: d.modes, stateDir: overrides.Apply(spec.DefaultWeirConfiguration()).StateDir, tell: func(what string) {
		d.health.SetEarlier(what)
		d.board.Earlier(what)
		d.notify.earlier = what != ""
	}}
	told := newChangeLog(d.log)
	told.count, told.look, told.ports = d.health.SetNotices, d.modes.networkNoticesNow, d.modes.loopbacks.NotServed
	d.board.Noticed(told.book.All)
	d.board.Probed(d.liveness.State)
	d.names.ctx = d.ctx
	return []reconcile.Observer{
		d.succession,
		d.early,
		earlier,
		&healthObserver{ctx: d.ctx, Health: d.health, fail: d.fail}, // first, because it may end the start before anything is changed
		&modeObserver{ctx: d.ctx, modes: d.modes},
		d.node,
		told,
		d.notify,
		d.status,
		d.names, // before what takes its time
		d.record,
		&sweeper{ctx: d.ctx, log: d.log, modes: d.modes},
		newMemory(),
		successionEnd{s: d.succession},
	}
}

// modeReason returns why this mode is in force.
func modeReason(flag string, snap *spec.Snapshot, fallback string) string {
	switch {
	case fallback != "":
		return fallback
	case flag == modeNames:
		return "--dns-only"
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
