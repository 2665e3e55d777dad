package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/hostnet"
	"weir/backends/userspace"
	"weir/cmd/weir/internal/handover"
)

// modeTable lists the modes, in the order in which they are offered. A new mode is a line here.
var modeTable = []func(*platform) mode{
	iptablesMode,
	ipvsMode,
	nftablesMode,
	userspaceMode,
}

// defaultModes are the modes to use if none is asked for: the first that the node can run.
var defaultModes = []string{modeIPTables, modeNFTables}

// platform holds what the modes find on this node and share. One goroutine at a time may use it.
type platform struct {
	log   hclog.Logger
	flags nodeFlags
	// serves reports whether this process runs for as long as Services are served. Other processes only plan, or
	// program the kernel.
	serves bool

	// sockets are those that a successor gets; nil in a process that has none.
	sockets *handover.Sockets

	// keeper sets the kernel parameters of all modes.
	keeper *hostnet.Keeper

	modes    []mode
	iptables iptablesPrograms

	// loopbacks serve node ports at ::1 beside modes that leave the rest to the kernel, and publish tells other processes of
	// listeners; nil in a process that only plans.
	loopbacks *userspace.Loopbacks
	publish   func(context.Context)
}

// newPlatform makes the modes of the table. It does not look at the node.
func newPlatform(log hclog.Logger, flags nodeFlags, serves bool) *platform {
	p := &platform{log: log, flags: flags, serves: serves, keeper: hostnet.NewKeeper(log, hostnet.Sysctl{})}
	if serves {
		p.keeper.Last()
	}
	for _, newMode := range modeTable {
		p.modes = append(p.modes, newMode(p))
	}
	if flags.mode == modeNames {
		p.modes = append(p.modes, namesMode(p))
	}
	var listeners *userspace.Listeners
	if serves {
		listeners = p.listeners()
	}
	p.loopbacks = userspace.NewLoopbacks(listeners, log)
	return p
}

// listeners returns those by which this process serves Services.
func (p *platform) listeners() *userspace.Listeners {
	for _, m := range p.modes {
		if m.listeners != nil {
			return m.listeners
		}
	}
	return userspace.NewListeners(userspace.Limits{}) // none is open
}

// knownModes returns the modes without a node: only their names and traits are usable.
func knownModes() *platform { return newPlatform(hclog.NewNullLogger(), nodeFlags{}, false) }

// names returns the names of all modes.
func (p *platform) names() []string {
	names := make([]string, len(p.modes))
	for i, m := range p.modes {
		names[i] = m.name
	}
	return names
}

// mode returns the mode of that name, or an error that lists the valid ones.
func (p *platform) mode(name string) (*mode, error) {
	if i := slices.Index(p.names(), name); i >= 0 {
		return &p.modes[i], nil
	}
	return nil, fmt.Errorf("mode %q is not known; use %s", name, orList(p.names()))
}

// firstUsable returns the first of the named modes that this node can run.
func (p *platform) firstUsable(ctx context.Context, names []string) (*mode, error) {
	var errs []error
	for _, name := range names {
		m, err := p.mode(name)
		if err != nil {
			return nil, err
		}
		if err = m.probe(ctx); err == nil {
			if len(errs) > 0 {
				p.log.Warn("using "+name+", since "+strings.Join(names[:len(errs)], " and ")+" cannot be used", "error", errors.Join(errs...))
			}
			return m, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// traitsOf returns the traits of a mode by its name. An unknown mode has none.
func traitsOf(name string) backends.Traits {
	m, err := knownModes().mode(name)
	if err != nil {
		return backends.Traits{}
	}
	return m.traits
}

// orList joins names as in "a, b or c".
func orList(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	last := len(names) - 1
	return strings.Join(names[:last], ", ") + " or " + names[last]
}
