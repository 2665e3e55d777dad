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
	"weir/backends/dataplane"
	"weir/backends/doctor"
	"weir/backends/userspace"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/nodeconfig"
)

const modeUserspace = "userspace"

// redirectModes are the modes that can redirect the traffic of Services to the listeners of userspace mode. The first
// one that the node can run is used.
var redirectModes = []string{modeIPTables, modeNFTables}

// userspaceMode returns the mode in which this process carries the connections. With --rootless it needs no kernel
// rules.
func userspaceMode(p *platform) mode {
	u := &userspaceOnNode{platform: p, ports: map[portRange]*userspace.Ports{}, warned: map[string]struct{}{}}
	m := mode{
		name:         modeUserspace,
		traits:       backends.Traits{CarriesTraffic: true},
		section:      nodeconfig.IPTables,
		answers:      u.answers,
		settings:     u.settings,
		open:         u.open,
		probe:        u.probe,
		needsOneOf:   redirectModes,
		leavesKernel: p.flags.rootless,
		leftovers:    u.leftovers,
		checks:       func(context.Context) []doctor.Check { return userspace.Doctor() },
	}
	if p.serves {
		u.listeners = userspace.NewListeners(userspace.Limits{})
		m.accepted, m.metrics, m.drain, m.listeners = u.publish, u.listeners, u.drain, u.listeners
		p.publish = u.publish
	}
	return m
}

// userspaceFlags are the nodeFlags of userspace mode.
type userspaceFlags struct {
	rootless    bool
	bindAddress string
	bind        netip.Addr
}

func (f *userspaceFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.rootless, "rootless", false, "userspace mode without kernel rules and without privileges: listen on the addresses of Services that this node has")
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

// userspaceOnNode is the state of userspace mode that outlives its backends.
type userspaceOnNode struct {
	*platform
	// listeners is nil in a process that only plans.
	listeners *userspace.Listeners
	published sync.Once
	// ports holds the Ports of each range that was used, so that a Service port keeps its own port.
	ports map[portRange]*userspace.Ports

	mu     sync.Mutex
	warned map[string]struct{} // warnings already logged
}

// userspaceSettings are the inputs of the Backend besides the dataplane.Config.
type userspaceSettings struct {
	ports   portRange
	udpIdle time.Duration
}

// portRange is the range of ports on which the redirecting form listens.
type portRange struct {
	given                    string // "" means the widest range without node ports
	nodePortMin, nodePortMax uint16
}

func (u *userspaceOnNode) settings(_ context.Context, snap *spec.Snapshot, _ *dataplane.Config) (any, error) {
	return userspaceSettings{
		ports:   portRange{snap.Config.PortRange, snap.Weir.NodePortMin, snap.Weir.NodePortMax},
		udpIdle: snap.UDPIdleTimeout,
	}, nil
}

// probe finds a mode that can redirect. Only the rootless form needs none.
func (u *userspaceOnNode) probe(ctx context.Context) error {
	if u.flags.rootless {
		return nil
	}
	_, err := u.redirector(ctx)
	return err
}

// answers reports whether the mode that redirects can leave packets to weir itself.
func (u *userspaceOnNode) answers(ctx context.Context) bool {
	if u.flags.rootless {
		return false
	}
	m, err := u.redirector(ctx)
	return err == nil && m.answers(ctx)
}

func (u *userspaceOnNode) redirector(ctx context.Context) (*mode, error) {
	m, err := u.firstUsable(ctx, redirectModes)
	if err != nil {
		return nil, fmt.Errorf("userspace mode needs the kernel to redirect, unless --rootless is given: %w", err)
	}
	return m, nil
}

func (u *userspaceOnNode) open(ctx context.Context, cfg dataplane.Config, settings any) (backends.Backend, reconcile.Flows, error) {
	s := settings.(userspaceSettings)
	o := userspace.Options{Listeners: u.listeners, UDPIdle: s.udpIdle, BindAddress: u.flags.bind, Warn: u.warnUnserved}
	if u.flags.rootless {
		return userspace.New(cfg, o), nil, nil
	}
	m, err := u.redirector(ctx)
	if err != nil {
		return nil, nil, err
	}
	if o.Ports, err = u.portsOf(s.ports); err != nil {
		return nil, nil, err
	}
	if o.Redirect, err = m.redirection.open(ctx, cfg); err != nil {
		return nil, nil, err
	}
	b := userspace.New(cfg, o)
	return b, redirectedFlows{conntrack.New(cfg), b}, nil
}

func (u *userspaceOnNode) portsOf(r portRange) (*userspace.Ports, error) {
	if u.ports[r] == nil {
		given, err := utilnet.ParsePortRange(r.given)
		switch {
		case err != nil:
			return nil, fmt.Errorf("portRange: %w", err)
		case given.Base == 0 || given.Size == 0:
			u.ports[r] = userspace.DefaultPorts(r.nodePortMin, r.nodePortMax)
		default:
			u.ports[r] = userspace.NewPorts(uint16(given.Base), uint16(given.Base+given.Size-1))
		}
		if u.listeners != nil {
			u.listeners.FollowInherited(u.ports[r])
		}
	}
	return u.ports[r], nil
}

// redirectedFlows cleans the flows of the redirecting form. They lead to listeners instead of endpoints.
type redirectedFlows struct {
	cleaner *conntrack.Cleaner
	proxy   *userspace.Backend
}

// Clean implements reconcile.Flows.
func (f redirectedFlows) Clean(ctx context.Context, current, gone []*dataplane.ServicePort) (int, error) {
	redirected := make([]*dataplane.ServicePort, 0, len(current))
	for _, p := range current {
		if r, err := f.proxy.Redirected(p); err == nil { // else it is not redirected, and has no flows
			redirected = append(redirected, r)
		}
	}
	return f.cleaner.Clean(ctx, redirected, gone)
}

// leftovers returns the redirections. Listeners disappear with their process.
func (u *userspaceOnNode) leftovers(ctx context.Context, cfg dataplane.Config, inForce bool) []leftover {
	var inUse string
	if m, err := u.redirector(ctx); inForce && err == nil {
		inUse = m.name
	}
	var all []leftover
	for _, m := range u.modes {
		if m.redirection == nil || m.name == inUse {
			continue
		}
		for _, l := range m.redirection.leftovers(ctx, cfg) {
			all = append(all, leftover{"userspace over " + l.name, l.backend})
		}
	}
	return all
}

// publish tells other weir processes which listeners exist, until ctx is done.
func (u *userspaceOnNode) publish(ctx context.Context) {
	u.published.Do(func() {
		go func() {
			if err := u.listeners.Publish(ctx, u.sockets.ListenUnix); err != nil && ctx.Err() == nil {
				u.log.Warn("the list of listeners cannot be written; a dry run on this node will not know the state in force", "error", err)
			}
		}()
	})
}

// warnUnserved logs once which part of a Service cannot be served.
func (u *userspaceOnNode) warnUnserved(key dataplane.ServicePortName, problem string) {
	text := key.Service.String() + ": " + problem
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, known := u.warned[text]; known {
		return
	}
	u.warned[text] = struct{}{}
	u.log.Warn("not served: "+problem, "service", key.Service.String())
}

// drain waits until the connections end. A second signal ends the wait.
func (u *userspaceOnNode) drain() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if n := u.listeners.Open(); n > 0 {
		u.log.Info("closed the listeners; waiting for open connections to end", "connections", n)
	}
	if left := u.listeners.Drain(ctx); left > 0 {
		u.log.Warn("open connections were cut off", "connections", left)
	}
}
