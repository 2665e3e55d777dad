package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/conntrack"
	"weir/backends/dataplane"
	"weir/backends/doctor"
	"weir/backends/hostnet"
	"weir/backends/ipvs"
	"weir/backends/xtables"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/nodeconfig"
)

const modeIPVS = "ipvs"

// ipvsMode returns the mode in which IPVS chooses the endpoints, and iptables with sets does what IPVS cannot.
func ipvsMode(p *platform) mode {
	m := &ipvsOnNode{platform: p}
	return mode{
		name:     modeIPVS,
		section:  nodeconfig.IPVS,
		hairpins: true,
		answers:  p.untracked,
		holds:    true,
		settings: m.settings,
		open:     m.open,
		parameters: func(cfg dataplane.Config, settings any) []hostnet.Parameter {
			cfg.LocalhostNodePorts = false // IPVS cannot serve them
			s := settings.(ipvs.Settings)
			s.Kernel, _ = kernelVersion() // open fails without it
			return append(forwardingOf(cfg).Parameters(), s.Parameters()...)
		},
		probe:      ipvs.Probe,
		fallback:   []string{modeIPTables},
		appeared:   ipvs.Present,
		needsOneOf: []string{modeIPTables},
		leftovers:  m.leftovers,
		checks: func(context.Context) []doctor.Check {
			kernel, _ := kernelVersion()
			return ipvs.Doctor(p.flags.scheduler, kernel)
		},
	}
}

// ipvsFlags are the nodeFlags of ipvs mode.
type ipvsFlags struct {
	noFallback bool
	scheduler  string // for doctor
}

func (f *ipvsFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.noFallback, "no-fallback", false, "fail, instead of using iptables mode, if ipvs mode is configured and the node has no IPVS")
}

func (f *ipvsFlags) addScheduler(fs *pflag.FlagSet) {
	fs.StringVar(&f.scheduler, "scheduler", "rr", "the scheduler of ipvs mode")
}

// ipvsOnNode is the state of ipvs mode that outlives its backends.
type ipvsOnNode struct {
	*platform
	kernel *ipvs.Linux // opened once
}

func (m *ipvsOnNode) settings(ctx context.Context, snap *spec.Snapshot, cfg *dataplane.Config) (any, error) {
	tables, err := m.probeIPTables(ctx)
	if err != nil {
		return nil, fmt.Errorf("ipvs mode has iptables do what IPVS cannot: %w", err)
	}
	cfg.Families = tables.Features().Families
	c := snap.Config.IPVS
	return ipvs.Settings{
		Scheduler:     c.Scheduler,
		StrictARP:     c.StrictARP,
		TCPTimeout:    c.TCPTimeout.Duration,
		TCPFinTimeout: c.TCPFinTimeout.Duration,
		UDPTimeout:    c.UDPTimeout.Duration,
		DrainLimit:    ipvs.DrainLimit,
	}, nil
}

func (m *ipvsOnNode) open(ctx context.Context, cfg dataplane.Config, settings any) (backends.Backend, reconcile.Flows, error) {
	tables, err := m.probeIPTables(ctx)
	if err != nil {
		return nil, nil, err
	}
	if m.kernel == nil {
		if m.kernel, err = ipvs.Open(); err != nil {
			return nil, nil, err
		}
	}
	b, err := ipvsBackend(cfg, settings.(ipvs.Settings), tables, m.kernel)
	if err != nil {
		return nil, nil, err
	}
	for _, warning := range ipvs.Warnings(cfg) {
		m.log.Warn(warning)
	}
	return b, ipvsFlows{conntrack.ForIPVS(cfg), b}, nil
}

// ipvsFlows are the flows of ipvs mode. A TCP connection is known to IPVS as well as to connection tracking.
type ipvsFlows struct {
	*conntrack.Cleaner
	backend *ipvs.Backend
}

// Leave implements reconcile.Leavers.
func (f ipvsFlows) Leave(ctx context.Context, left []*dataplane.ServicePort) (int, error) {
	err := f.backend.Abandon(left)
	n, err2 := f.Cleaner.Leave(ctx, left)
	return n, errors.Join(err, err2)
}

func (m *ipvsOnNode) leftovers(ctx context.Context, cfg dataplane.Config, inForce bool) []leftover {
	kernel, err := ipvs.Open()
	if inForce || err != nil {
		return nil // without IPVS there is nothing left in it
	}
	var all []leftover
	for _, v := range m.iptablesVariants(ctx) {
		if b, err := ipvsBackend(cfg, ipvs.Settings{}, v.kernel, kernel); err == nil {
			all = append(all, leftover{"ipvs with " + v.String(), b})
		}
	}
	return all
}

func ipvsBackend(cfg dataplane.Config, s ipvs.Settings, tables xtables.Kernel, kernel ipvs.Kernel) (*ipvs.Backend, error) {
	version, err := kernelVersion()
	if err != nil {
		return nil, err
	}
	s.Kernel, s.RandomFully, s.MatchTranslated = version, tables.Features().RandomFully, ipvs.CanMatchTranslated()
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
