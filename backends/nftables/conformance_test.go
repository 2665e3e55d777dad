package nftables

import (
	"testing"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/netlab"
)

// harness runs the conformance suite on a node of its own.
type harness struct {
	r   *rig
	cfg backends.Config
}

func newHarness(t *testing.T) *harness {
	needNFT(t)
	cfg := testConfig()
	return &harness{newRig(t, cfg, netlab.Topology{Pods: 1}), cfg}
}

func (h *harness) Backend() backends.Backend {
	h.r.use(h.cfg)
	return h.r.b
}

func (h *harness) AddForeign(t *testing.T) { h.r.addForeign() }

func (h *harness) DumpForeign(t *testing.T) string { return h.r.foreign() }

func (h *harness) Drifts() []backendtest.Drift {
	var drifts []backendtest.Drift
	for _, d := range [][2]string{
		{"endpoint deleted", "delete element ip weir endpoints { 10.96.0.1 . tcp . 80 . 0 }"},
		{"chain flushed", "flush chain ip weir services"},
		{"table deleted", "delete table ip weir"},
		{"ruleset flushed", "flush ruleset"},
	} {
		drifts = append(drifts, backendtest.Drift{Name: d[0], Inject: func(t *testing.T) { h.r.nft(d[1]) }})
	}
	return drifts
}

func TestConformance(t *testing.T) {
	backendtest.Run(t, func(t *testing.T) backendtest.Harness { return newHarness(t) })
}
