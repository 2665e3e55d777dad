package iptables

import (
	"bytes"
	"context"
	"testing"

	"weir/backends"
	"weir/backends/backendtest"
)

// layered runs the conformance suite on a Layer, next to a Backend in full: to each the other is foreign.
type layered struct{ harness }

func (h layered) Backend() backends.Backend {
	l := NewLayer(testConfig(), h.kernel)
	if _, err := h.kernel.Generation(context.Background()); err != nil {
		return struct{ backends.Backend }{l}
	}
	return l
}

func (h layered) AddForeign(t *testing.T) {
	h.harness.AddForeign(t)
	b := New(testConfig(), h.kernel)
	var plan backends.Plan
	seen := map[backends.ID]bool{}
	add := func(items []backends.Item) {
		for _, i := range items {
			if !seen[i.ID()] {
				seen[i.ID()] = true
				plan.Changes = append(plan.Changes, backends.Change{Op: backends.Create, ID: i.ID(), New: i})
			}
		}
	}
	add(b.Base())
	for _, e := range backendtest.Sample() {
		items, err := b.Render(e)
		if err != nil {
			t.Fatal(err)
		}
		add(items)
	}
	if r := b.Apply(t.Context(), plan); r.Err != nil {
		t.Fatal(r.Err)
	}
}

func (h layered) DumpForeign(t *testing.T) string {
	text := ""
	b := New(testConfig(), h.kernel)
	for i, err := range b.Observe(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		text += i.String() + "\n"
	}
	return text
}

func (h layered) Drifts() []backendtest.Drift {
	drift := func(name, table, lines string) backendtest.Drift {
		return backendtest.Drift{Name: name, Inject: func(t *testing.T) { restore(t, h.kernel, table, lines) }}
	}
	return []backendtest.Drift{
		drift("NATFlushed", "nat", "-F\n"),
		drift("DispatchFlushed", "nat", "-F WEIR-U-IP\n"),
		drift("HookGone", "nat", "-D OUTPUT -j WEIR-U-SERVICES\n"),
		drift("ForeignChain", "nat", ":WEIR-U-SVC-STALE - [0:0]\n-A WEIR-U-SVC-STALE -j RETURN\n"),
	}
}

func TestLayerConformance(t *testing.T) {
	for name, kernel := range map[string]func(*testing.T) Kernel{
		"nft":    func(t *testing.T) Kernel { return realKernel(t, NFT) },
		"legacy": func(t *testing.T) Kernel { return realKernel(t, Legacy) },
	} {
		t.Run(name, func(t *testing.T) {
			backendtest.Run(t, func(t *testing.T) backendtest.Harness {
				return layered{harness{&refusing{Kernel: kernel(t)}}}
			})
		})
	}
}

func TestLayerKeepsNamesApart(t *testing.T) {
	for _, i := range NewLayer(testConfig(), NewFake()).Base() {
		if bytes.Contains([]byte(outwardText(inwardText(i.String()))), []byte("WEIR-U-U-")) || outwardText(inwardText(i.String())) != i.String() {
			t.Errorf("%s is not the same there and back", i)
		}
	}
}
