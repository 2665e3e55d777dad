package main

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/hashicorp/go-hclog"
)

// notifier tells the service manager (systemd, with Type=notify or notify-reload) how the daemon is doing. Without one
// it does nothing.
type notifier struct {
	log   hclog.Logger
	ready bool
	// limit is how long a round may be overdue before the watchdog is left to bite, in nanoseconds; 0 before the first.
	limit atomic.Int64
	last  atomic.Int64 // when the last round ended, in Unix nanoseconds
}

func (n *notifier) send(state ...string) {
	if _, err := systemd.SdNotify(false, strings.Join(state, "\n")); err != nil {
		n.log.Warn("cannot notify the service manager", "error", err)
	}
}

// verdict says that an input was dealt with: put in force, or refused. The first one makes the service ready, so that what
// is started after weir finds its Services.
func (n *notifier) verdict(status string) {
	if n.ready {
		n.send("STATUS=" + status)
		return
	}
	n.ready = true
	n.send(systemd.SdNotifyReady, "STATUS="+status)
}

// reloading says that a new configuration is about to be put in force; the next verdict ends it.
func (n *notifier) reloading() {
	if n.ready {
		n.ready = false
		n.send(systemd.SdNotifyReloading, systemd.SdNotifyMonotonicUsec())
	}
}

func (n *notifier) stopping() { n.send(systemd.SdNotifyStopping) }

// round notes that the Loop lives. It makes a round at least every syncPeriod; a long round and a backoff are allowed for.
func (n *notifier) round(syncPeriod time.Duration) {
	n.last.Store(time.Now().UnixNano())
	n.limit.Store(int64(3*syncPeriod + 10*time.Minute))
}

// watchdog pets the service manager's watchdog until ctx is done, as long as the Loop lives. Having nothing to do yet, as
// when no input was valid so far, is not a reason for a restart.
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
