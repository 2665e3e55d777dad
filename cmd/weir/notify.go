package main

import (
	"context"
	"fmt"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/reconcile"
	"weir/spec"
)

// notifier reports the state of the daemon to the service manager (systemd, with Type=notify or notify-reload). Without
// one it does nothing.
type notifier struct {
	reconcile.NopObserver
	config     *kubeproxyconfig.KubeProxyConfiguration // in force
	syncPeriod time.Duration

	log   hclog.Logger
	ready bool
	away  string // what to add to the verdict of a round, of sources that are away
	// earlier reports whether an earlier run left something in force, and applied whether this one has put something in
	// force. The service is not ready before one of them is true. started is the same for other goroutines.
	earlier, applied bool
	started          atomic.Bool
	// limit is how long a round may be overdue before the watchdog is no longer served, in nanoseconds; 0 before the
	// first.
	limit atomic.Int64
	last  atomic.Int64 // when the last round ended, in Unix nanoseconds

	mu sync.Mutex
	// mute reports whether another process is the service manager's main process, the only one that may notify. held is the
	// last verdict meanwhile.
	mute bool
	held string
}

// wait leaves it to another process to notify, until takeOver. The watchdog is for this process then.
func (n *notifier) wait(main int) {
	n.mute = true
	if os.Getenv("WATCHDOG_PID") == strconv.Itoa(main) {
		_ = os.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid())) // a name and a number are valid
	}
}

// takeOver notifies, because the other process has named this one as the main process.
func (n *notifier) takeOver() {
	n.mu.Lock()
	n.mute = false
	held := n.held
	n.mu.Unlock()
	if held != "" {
		n.send(held)
	}
}

// handOver names another process as the main process. It notifies from now on.
func (n *notifier) handOver(pid int) {
	n.send(fmt.Sprintf("MAINPID=%d", pid))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mute = true
}

// Configured implements reconcile.Observer. A round follows each change, and its end is the verdict.
func (n *notifier) Configured(_ *spec.Snapshot, s reconcile.Settings) {
	config := s.From.(*nodeConfig).Config
	if n.config != nil && !reflect.DeepEqual(config, n.config) {
		n.reloading()
	}
	n.config, n.syncPeriod = config, s.SyncPeriod
}

// Updated implements reconcile.Observer.
func (n *notifier) Updated(u spec.Update) {
	if u.Err != nil {
		switch {
		case n.applied:
			n.verdict("The input cannot be used; the last good state stands: " + firstLine(u.Err))
		case n.earlier:
			n.verdict("The input cannot be used; what an earlier run programmed stands: " + firstLine(u.Err))
		default:
			n.send("STATUS=Nothing is in force, because the input cannot be used: " + firstLine(u.Err))
		}
		return
	}
	n.away = ""
	for _, a := range u.Snapshot.Away {
		n.away += "; " + spec.Clean(a.Source) + " is away"
	}
}

// Applied implements reconcile.Observer.
func (n *notifier) Applied(r reconcile.Report) {
	n.round(n.syncPeriod)
	if r.Err == nil {
		n.applied = true
		n.verdict(fmt.Sprintf("%s, revision %s, %s", r.Mode, r.Revision, plural(r.Services, "Service")) + n.away)
	}
}

func (n *notifier) send(state ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mute {
		if strings.HasPrefix(state[len(state)-1], "STATUS=") {
			n.held = strings.Join(append([]string{systemd.SdNotifyReady}, state[len(state)-1]), "\n")
		}
		return
	}
	if _, err := systemd.SdNotify(false, strings.Join(state, "\n")); err != nil {
		n.log.Warn("cannot notify the service manager", "error", err)
	}
}

// verdict reports that an input was put in force or refused. The first verdict makes the service ready, so that
// services started after weir find their Services.
func (n *notifier) verdict(status string) {
	if n.ready {
		n.send("STATUS=" + status)
		return
	}
	n.ready = true
	n.started.Store(true)
	n.send(systemd.SdNotifyReady, "STATUS="+status)
}

// reloading reports that a new configuration is about to be put in force; the next verdict ends it.
func (n *notifier) reloading() {
	if n.ready {
		n.ready = false
		n.send(systemd.SdNotifyReloading, systemd.SdNotifyMonotonicUsec())
	}
}

// A start that has nothing to put in force is not given up: every extendEvery it asks for another extendBy. Otherwise the
// service manager would kill it, and so start it again and again.
const (
	extendEvery = 10 * time.Second
	extendBy    = time.Minute
)

// extend asks the service manager for more time until the service is ready or ctx is done.
func (n *notifier) extend(ctx context.Context) {
	tick := time.NewTicker(extendEvery)
	defer tick.Stop()
	for !n.started.Load() {
		n.send(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extendBy.Microseconds()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (n *notifier) stopping() { n.send(systemd.SdNotifyStopping) }

// round records that the Loop is alive. It makes a round at least every syncPeriod; the limit allows for a long round
// and a backoff.
func (n *notifier) round(syncPeriod time.Duration) {
	n.last.Store(time.Now().UnixNano())
	n.limit.Store(int64(3*syncPeriod + 10*time.Minute))
}

// watchdog serves the service manager's watchdog until ctx is done, as long as the Loop is alive. A Loop that waits for
// its first valid input counts as alive.
func (n *notifier) watchdog(ctx context.Context) {
	every, err := systemd.SdWatchdogEnabled(false)
	if err != nil || every <= 0 {
		return
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		if limit := n.limit.Load(); limit == 0 || time.Now().UnixNano()-n.last.Load() < limit {
			n.send(systemd.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
