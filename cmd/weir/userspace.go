package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"weir/backends"
	"weir/backends/conntrack"
	"weir/backends/iptables"
	"weir/backends/nftables"
	"weir/backends/userspace"
	"weir/spec"
)

// userspaceFlags are the nodeFlags of userspace mode.
type userspaceFlags struct {
	rootless    bool
	bindAddress string
	bind        netip.Addr
}

func (f *userspaceFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.rootless, "rootless", false, "userspace mode without any kernel rules, and without privileges: listen on those addresses of Services that this node has")
	fs.StringVar(&f.bindAddress, "bind-address", "", "with --rootless: the address to listen on for every Service, at its port and node port")
}

// check completes the mode, which --rootless implies.
func (f *userspaceFlags) check(mode *string) error {
	if f.bindAddress != "" {
		addr, err := netip.ParseAddr(f.bindAddress)
		if err != nil {
			return usageError{fmt.Errorf("--bind-address: %q is not an IP address", f.bindAddress)}
		}
		f.bind = addr.Unmap()
	}
	switch {
	case f.rootless && *mode == "":
		*mode = modeUserspace
	case f.rootless && *mode != modeUserspace:
		return usageError{fmt.Errorf("--rootless is a form of userspace mode, not of %s", *mode)}
	case f.bindAddress != "" && !f.rootless:
		return usageError{errors.New("--bind-address needs --rootless")}
	}
	return nil
}

// userspaceSettings are what the userspace backend is built from besides the backends.Config.
type userspaceSettings struct {
	portRange                string // "" for the default
	nodePortMin, nodePortMax uint16
	udpIdle                  time.Duration
}

func userspaceSettingsOf(snap *spec.Snapshot) userspaceSettings {
	return userspaceSettings{snap.Config.PortRange, snap.Weir.NodePortMin, snap.Weir.NodePortMax, snap.UDPIdleTimeout}
}

// proxy is what of userspace mode outlives its backends.
type proxy struct {
	// listeners is nil in a process that only plans.
	listeners *userspace.Listeners
	publish   sync.Once

	settings userspaceSettings
	// overIPTables says what redirects to the listeners: iptables, rather than nftables.
	overIPTables bool
	ports        *userspace.Ports

	mu   sync.Mutex
	told map[string]struct{} // the warnings given
}

func (w *wiring) newUserspace(ctx context.Context, cfg backends.Config, s userspaceSettings) (*userspace.Backend, error) {
	p := &w.proxy
	o := userspace.Options{Listeners: p.listeners, UDPIdle: s.udpIdle, BindAddress: w.flags.bind, Warn: w.warnUnserved}
	if !w.flags.rootless {
		var err error
		if o.Redirect, err = w.redirection(ctx, cfg); err != nil {
			return nil, fmt.Errorf("userspace mode needs the kernel to redirect, unless --rootless is given: %w", err)
		}
		if p.ports == nil || p.settings.portRange != s.portRange || p.settings.nodePortMin != s.nodePortMin || p.settings.nodePortMax != s.nodePortMax {
			if p.ports, err = portsOf(s); err != nil {
				return nil, err
			}
		}
		o.Ports = p.ports
	}
	p.settings = s
	if p.listeners != nil {
		p.publish.Do(func() {
			go func() {
				if err := p.listeners.Publish(ctx); err != nil && ctx.Err() == nil {
					w.log.Warn("a dry run on this node will not know what is in force", "error", err)
				}
			}()
		})
	}
	return userspace.New(cfg, o), nil
}

// redirection is what sends the traffic of Services to the proxy: iptables where the node has it, else nftables.
func (w *wiring) redirection(ctx context.Context, cfg backends.Config) (backends.Backend, error) {
	kernel, errIPTables := w.probeIPTables(ctx)
	w.proxy.overIPTables = errIPTables == nil
	if w.proxy.overIPTables {
		return iptables.NewLayer(cfg, kernel), nil
	}
	if err := w.probeNFTables(ctx, errIPTables); err != nil {
		return nil, err
	}
	return nftables.NewLayer(cfg), nil
}

func portsOf(s userspaceSettings) (*userspace.Ports, error) {
	r, err := utilnet.ParsePortRange(s.portRange)
	if err != nil {
		return nil, fmt.Errorf("portRange: %w", err)
	}
	if r.Base == 0 || r.Size == 0 {
		return userspace.DefaultPorts(s.nodePortMin, s.nodePortMax), nil
	}
	return userspace.NewPorts(uint16(r.Base), uint16(r.Base+r.Size-1)), nil
}

// warnUnserved says once what of a Service cannot be served.
func (w *wiring) warnUnserved(key backends.PortKey, problem string) {
	text := key.Service.String() + ": " + problem
	w.proxy.mu.Lock()
	defer w.proxy.mu.Unlock()
	if _, told := w.proxy.told[text]; told {
		return
	}
	if w.proxy.told == nil {
		w.proxy.told = map[string]struct{}{}
	}
	w.proxy.told[text] = struct{}{}
	w.log.Warn("not served: "+problem, "service", key.Service.String())
}

// drain lets the connections of userspace mode end. A second signal cuts it short.
func (w *wiring) drain() {
	l := w.proxy.listeners
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if n := l.Open(); n > 0 {
		w.log.Info("listening no more; waiting for open connections to end", "connections", n)
	}
	if left := l.Drain(ctx); left > 0 {
		w.log.Warn("open connections were cut off", "connections", left)
	}
}

// liveFlows is the Cleaner of the backend in force.
type liveFlows struct {
	*conntrack.Cleaner
	proxy *userspace.Backend // nil in other modes
}

// Clean implements reconcile.Flows. In userspace mode the kernel's flows lead to listeners, or it has none of weir's.
func (f *liveFlows) Clean(ctx context.Context, current, gone []*backends.Entry) (int, error) {
	if f.proxy == nil {
		return f.Cleaner.Clean(ctx, current, gone)
	}
	if f.proxy.Redirect == nil {
		return 0, nil
	}
	redirected := make([]*backends.Entry, len(current))
	for i, e := range current {
		r, err := f.proxy.Redirected(e)
		if err != nil {
			return 0, err
		}
		redirected[i] = r
	}
	return f.Cleaner.Clean(ctx, redirected, gone)
}
