package nftables

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"weir/backends"
	"weir/backends/backendtest"
	"weir/backends/dataplane"
	"weir/backends/netlab"
	"weir/backends/nfnl"
	"weir/backends/nfnl/nfnltest"

	"golang.org/x/sys/unix"
)

// harness runs the conformance suite on a new lab.
type harness struct {
	r   *rig
	cfg dataplane.Config
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

// memoryHarness runs the suite on the nf_tables in memory.
type memoryHarness struct {
	t    *testing.T
	k    *nfnltest.Kernel
	name string // of the tables
}

func (h *memoryHarness) Backend() backends.Backend {
	b := newBackend(testConfig(), h.name, h.k)
	h.t.Cleanup(func() { _ = b.Close() })
	return b
}

// commit writes as another process would.
func (h *memoryHarness) commit(messages ...nfnl.Message) {
	h.t.Helper()
	c, err := h.k.Dial()
	if err == nil {
		err = c.Commit(context.Background(), messages)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// others are tables of other processes, one of them with weir's name in another family.
var others = []nfnl.Table{{Family: unix.NFPROTO_IPV4, Name: "nat"}, {Family: unix.NFPROTO_INET, Name: backendTable}}

func (h *memoryHarness) AddForeign(t *testing.T) {
	for _, table := range others {
		h.commit(nfnl.NewTable(table, nil), nfnl.NewChain(table, nfnl.Chain{Name: chainServices}))
	}
}

func (h *memoryHarness) DumpForeign(t *testing.T) string {
	return h.k.Dump(others[0]) + h.k.Dump(others[1])
}

func (h *memoryHarness) Drifts() []backendtest.Drift {
	ip := table{dataplane.IPv4, h.name}.kernel()
	front := addrFront(netip.MustParseAddr("10.96.0.1"), dataplane.TCP, 80)
	first := nfnl.DeleteFrom(ip, sets[endpoints].name)
	first.Append(element{elementKey: elementKey{set: endpoints}}.kernelElement(front.kernelKey()))
	drift := func(name string, m nfnl.Message) backendtest.Drift {
		return backendtest.Drift{Name: name, Inject: func(t *testing.T) { h.commit(m) }}
	}
	return []backendtest.Drift{
		drift("endpoint deleted", first.Messages()[0]),
		drift("chain flushed", nfnl.FlushChain(ip, chainServices)),
		drift("table deleted", nfnl.DeleteTable(ip)),
		drift("ruleset flushed", nfnl.Message{Type: unix.NFT_MSG_DELTABLE, Data: []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0}}),
	}
}

// Refuse implements backendtest.Refuser.
func (h *memoryHarness) Refuse(t *testing.T, key dataplane.ServicePortName) {
	h.k.RefuseElement = func(in nfnl.Table, _ string, x nfnl.Element) error {
		if in.Family == nfproto(key.Family) && x.Comment == comment(key) {
			return errors.New("refused by the test")
		}
		return nil
	}
}

func TestConformanceInMemory(t *testing.T) {
	for _, name := range []string{backendTable, redirectTable} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Harness { return &memoryHarness{t, &nfnltest.Kernel{}, name} })
		})
	}
}
