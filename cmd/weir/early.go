package main

import (
	"context"
	"sync"
	"time"

	"weir/reconcile"
	"weir/reconcile/tell/health"
	"weir/spec"
	"weir/spec/config"
)

// earlyAfter is how long a start waits for its configuration before it answers at the default addresses.
const earlyAfter = time.Second

// earlyAnswers is an Observer that lets probes, metrics and weir status answer while no configuration is in force: because
// the input is refused, or because nothing has been read yet. It must be the first Observer, since what it opens is
// configured by others later.
type earlyAnswers struct {
	reconcile.NopObserver
	// open starts to answer. The settings are those of the refused input, or defaults.
	open func(settings *spec.Snapshot)
	// overrides are the flags that win over any settings.
	overrides spec.Overrides

	mu    sync.Mutex
	timer *time.Timer
	last  *spec.Snapshot // the settings that were known last
	done  bool           // a configuration is in force, or the process ends
}

// start opens after earlyAfter, unless something else happens before.
func (e *earlyAnswers) start() {
	e.timer = time.AfterFunc(earlyAfter, func() { e.answer(nil) })
}

// never has nothing opened, because another process answers.
func (e *earlyAnswers) never() {
	e.timer = time.NewTimer(0)
	e.stop()
}

// answer opens with the settings, if they are known, until a configuration is in force.
func (e *earlyAnswers) answer(settings *spec.Snapshot) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		return
	}
	if settings == nil {
		settings = e.last
	}
	e.last = settings
	if settings == nil {
		settings = &spec.Snapshot{Config: config.Default().KubeProxyConfiguration, Weir: e.overrides.Apply(spec.DefaultWeirConfiguration())}
	}
	e.open(settings)
}

// stop ends the early answers. Nothing is opened afterwards.
func (e *earlyAnswers) stop() {
	e.timer.Stop()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done = true
}

// Updated implements reconcile.Observer.
func (e *earlyAnswers) Updated(u spec.Update) {
	if u.Err != nil {
		e.timer.Stop() // what it would open is open now
		e.answer(u.Settings)
	}
}

// Configured implements reconcile.Observer.
func (e *earlyAnswers) Configured(*spec.Snapshot, reconcile.Settings) { e.stop() }

// answerEarly opens the health server and the socket of weir status, and answers questions for names.
func (d *daemon) answerEarly(settings *spec.Snapshot) {
	d.health.Listen(health.Config{
		HealthzBindAddress: settings.Config.HealthzBindAddress,
		MetricsBindAddress: settings.Config.MetricsBindAddress,
		InForce:            settings.Config,
	})
	d.status.follow(settings.Weir.StateDir)
	d.names.answerEarly(settings.Weir.DNS)
}

// earlierRun is an Observer that finds out, when an input is refused while this process has put nothing in force, what an
// earlier run left in force. It tells the others.
type earlierRun struct {
	reconcile.NopObserver
	ctx   context.Context
	modes *modeManager
	// stateDir is the state directory if the input does not say which.
	stateDir string
	tell     func(what string) // "" means nothing
	looked   bool
	// what is the answer.
	what string
}

// Updated implements reconcile.Observer.
func (e *earlierRun) Updated(u spec.Update) {
	if u.Err == nil || e.looked {
		return
	}
	e.looked = true
	dir := e.stateDir
	if u.Settings != nil {
		dir = u.Settings.Weir.StateDir
	}
	e.what = e.modes.leftInForce(e.ctx, dir)
	e.tell(e.what)
}

// Configured implements reconcile.Observer. From now on the rounds say what is in force.
func (e *earlierRun) Configured(*spec.Snapshot, reconcile.Settings) { e.looked = true }
