package main

import (
	"context"
	"errors"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/dns"
	"weir/backends/doctor"
	"weir/reconcile"
	"weir/spec/nodeconfig"
)

const modeNames = "names"

// namesMode returns the mode of --dns-only, in which weir answers for names and another program has the data path. No
// configuration can ask for it.
func namesMode(*platform) mode {
	return mode{
		name:         modeNames,
		section:      nodeconfig.IPTables,
		leavesKernel: true,
		probe:        func(context.Context) error { return nil },
		open: func(context.Context, dataplane.Config, any) (backends.Backend, reconcile.Flows, error) {
			return dns.NoDataPath{}, nil, nil
		},
		leftovers: func(context.Context, dataplane.Config, bool) []leftover { return nil },
		checks:    func(context.Context) []doctor.Check { return nil },
	}
}

// namesOnly completes the flags for --dns-only.
func (f *nodeFlags) namesOnly() error {
	if f.mode != "" {
		return usageError{errors.New("--dns-only programs nothing: leave out --proxy-mode and --rootless, or give --dns")}
	}
	f.mode = modeNames
	return nil
}
