package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends"
	"weir/backends/iptables"
	"weir/backends/ipvs"
)

// ipvsFlags are the nodeFlags of ipvs mode.
type ipvsFlags struct{ noFallback bool }

func (f *ipvsFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.noFallback, "no-fallback", false, "do without iptables mode where ipvs mode is asked for and the node has no IPVS: it is an error then")
}

// virtual is what of ipvs mode outlives its backends.
type virtual struct {
	settings ipvs.Settings
	kernel   *ipvs.Linux // opened once
	// told is why IPVS cannot be used, as it was logged last.
	told string
	// missing says that ipvs mode is asked for and cannot be. It is read by whoever waits for IPVS to appear.
	missing atomic.Bool
}

// ipvsSettingsOf are what the backend is built from besides the backends.Config.
func ipvsSettingsOf(c *kubeproxyconfig.KubeProxyConfiguration) ipvs.Settings {
	return ipvs.Settings{
		Scheduler:     c.IPVS.Scheduler,
		StrictARP:     c.IPVS.StrictARP,
		TCPTimeout:    c.IPVS.TCPTimeout.Duration,
		TCPFinTimeout: c.IPVS.TCPFinTimeout.Duration,
		UDPTimeout:    c.IPVS.UDPTimeout.Duration,
		DrainLimit:    ipvs.DrainLimit,
	}
}

// ipvsOrFallback returns ipvs mode where the node has IPVS, else iptables mode with the reason, unless that is forbidden.
func (w *wiring) ipvsOrFallback(ctx context.Context) (mode, reason string, err error) {
	v := &w.virtual
	err = ipvs.Probe(ctx)
	v.missing.Store(err != nil)
	switch {
	case err == nil:
		if v.told != "" {
			w.log.Info("IPVS can be used now", "mode", modeIPVS)
		}
		v.told = ""
		return modeIPVS, "", nil
	case w.flags.noFallback:
		return "", "", fmt.Errorf("IPVS cannot be used, and --no-fallback is given: %w", err)
	}
	reason = "ipvs was asked for, but " + strings.ReplaceAll(err.Error(), "\n", "; ")
	if v.told != reason {
		v.told = reason
		w.log.Warn("IPVS CANNOT BE USED: falling back to iptables mode, until it can", "reason", err)
	}
	return modeIPTables, reason, nil
}

func (w *wiring) newIPVS(ctx context.Context, cfg backends.Config, s ipvs.Settings) (backends.Backend, error) {
	tables, err := w.probeIPTables(ctx)
	if err != nil {
		return nil, fmt.Errorf("ipvs mode has iptables do what IPVS cannot: %w", err)
	}
	for _, warning := range ipvs.Warnings(cfg) {
		w.log.Warn(warning)
	}
	if w.virtual.kernel == nil {
		if w.virtual.kernel, err = ipvs.Open(); err != nil {
			return nil, err
		}
	}
	return ipvsBackend(cfg, s, tables, w.virtual.kernel)
}

func ipvsBackend(cfg backends.Config, s ipvs.Settings, tables iptables.Kernel, kernel ipvs.Kernel) (*ipvs.Backend, error) {
	version, err := kernelVersion()
	if err != nil {
		return nil, err
	}
	s.Kernel, s.RandomFully = version, tables.Features().RandomFully
	return ipvs.New(cfg, s, tables, kernel), nil
}

// kernelVersion returns {6, 1} for a kernel 6.1.
func kernelVersion() (v [2]int, err error) {
	var u unix.Utsname
	if err = unix.Uname(&u); err == nil {
		release := unix.ByteSliceToString(u.Release[:])
		if n, _ := fmt.Sscanf(release, "%d.%d", &v[0], &v[1]); n != 2 {
			err = fmt.Errorf("cannot tell the version of the kernel from %q", release)
		}
	}
	return v, err
}

// ipvsWait is how often a node that should have IPVS is looked at for it.
const ipvsWait = 5 * time.Second

// awaitIPVS tells when IPVS has appeared where it was missing, until ctx is done.
func (w *wiring) awaitIPVS(ctx context.Context, appeared chan<- struct{}) {
	tick := time.NewTicker(ipvsWait)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !w.virtual.missing.Load() || !ipvs.Present() {
			continue
		}
		select {
		case appeared <- struct{}{}:
		default: // one is waiting to be heard
		}
	}
}
