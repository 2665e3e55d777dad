package iptables

import (
	"bytes"
	"context"
	"testing"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// harness runs the conformance suite on one Kernel.
type harness struct{ kernel *refusing }

// refusing is a Kernel that adds an unknown match to the rules for one address, so that iptables refuses them.
type refusing struct {
	xtables.Kernel
	to string
}

func (k *refusing) Restore(ctx context.Context, f dataplane.Family, input []byte) error {
	if k.to != "" {
		input = bytes.ReplaceAll(input, []byte(" -d "+k.to+" "), []byte(" -m nonesuch -d "+k.to+" "))
	}
	return k.Kernel.Restore(ctx, f, input)
}

// Refuse implements backendtest.Refuser.
func (h harness) Refuse(t *testing.T, key dataplane.ServicePortName) {
	for _, e := range backendtest.Sample() {
		if e.Key == key {
			h.kernel.to = xtables.HostText(e.ClusterIP)
		}
	}
	if f, ok := h.kernel.Kernel.(*xtables.Fake); ok {
		f.Unsupported = []string{"nonesuch"}
	}
}

func (h harness) Backend() backends.Backend { return New(testConfig(), h.kernel) }

func (h harness) AddForeign(t *testing.T) {
	restore(t, h.kernel, "nat", foreign["nat"])
	restore(t, h.kernel, "filter", foreign["filter"])
}

func (h harness) DumpForeign(t *testing.T) string {
	return saved(t, h.kernel, "nat", true) + saved(t, h.kernel, "filter", true)
}

func (h harness) Drifts() []backendtest.Drift {
	drift := func(name, table, lines string) backendtest.Drift {
		return backendtest.Drift{Name: name, Inject: func(t *testing.T) { restore(t, h.kernel, table, lines) }}
	}
	return []backendtest.Drift{
		drift("NATFlushed", "nat", "-F\n"),
		drift("FilterFlushed", "filter", "-F\n"),
		drift("ForwardFlushed", "filter", "-F FORWARD\n"),
		drift("ServicesFlushed", "nat", "-F WEIR-SERVICES\n"),
		drift("DispatchFlushed", "nat", "-F WEIR-IP\n"),
		drift("HookGone", "nat", "-D OUTPUT -m mark ! --mark 0x1070 -j WEIR-SERVICES\n"),
		drift("HookShadowed", "nat", "-I PREROUTING 1 -j ACCEPT\n"),
		drift("ForeignRuleInDispatch", "nat", "-A WEIR-IP -j RETURN\n"),
		drift("ForeignRuleInBase", "filter", "-I WEIR-FORWARD 1 -j RETURN\n"),
		drift("ForeignChain", "nat", ":WEIR-SVC-STALE - [0:0]\n-A WEIR-SVC-STALE -j RETURN\n"),
	}
}

// TestConformance runs the suite of all backends.
func TestConformance(t *testing.T) {
	for name, kernel := range map[string]func(*testing.T) xtables.Kernel{
		"nft":    func(t *testing.T) xtables.Kernel { return realKernel(t, xtables.NFT) },
		"legacy": func(t *testing.T) xtables.Kernel { return realKernel(t, xtables.Legacy) },
		"fake":   func(*testing.T) xtables.Kernel { return xtables.NewFake() },
		"fake-legacy": func(*testing.T) xtables.Kernel {
			k := xtables.NewFake()
			k.NoGeneration, k.WithoutBPF = true, true
			return k
		},
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Harness {
				k := kernel(t)
				if _, err := k.Generation(t.Context()); err != nil {
					return quiet{harness{&refusing{Kernel: k}}}
				}
				return harness{&refusing{Kernel: k}}
			})
		})
	}
}

// quiet hides the Watcher of a Backend that cannot tell whether another process wrote.
type quiet struct{ harness }

func (q quiet) Backend() backends.Backend { return unwatched{q.harness.Backend()} }

type unwatched struct{ backends.Backend }

func (u unwatched) Optional() backends.Optional {
	o := u.Backend.Optional()
	o.Watcher = nil
	return o
}
