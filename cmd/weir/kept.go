package main

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/reconcile"
	"weir/reconcile/tell/status"
	"weir/spec"
	"weir/spec/kubedns"
)

// fitsKernel returns why a kept Snapshot must not be served, or nil. The kernel may hold something newer, for example if
// the disk has been full since the Snapshot was kept. So a kept Snapshot is served only if it adds to what the kernel
// holds, as after a reboot, or is equal to it.
func fitsKernel(ctx context.Context, log hclog.Logger, flags nodeFlags, kept *spec.Snapshot) error {
	m := newModeManager(log, flags, false)
	defer m.discard()
	kept = kubedns.Added(kept, takenHere) // weir serves it too, and the kernel holds it
	n, err := m.resolve(ctx, kept)
	if err != nil || n.Traits.CarriesTraffic {
		return nil // the Loop refuses it with the same error; nothing works without a process that carries the traffic
	}
	if other := m.standing(ctx, n.Mode); other != "" {
		return fmt.Errorf("the kernel holds what weir programmed in %s mode, and the kept state is for %s mode; what the kernel holds stays", other, n.Mode)
	}
	engine := reconcile.NewEngine(reconcile.Options{DataPath: n.DataPath, Node: n.Node, Log: log})
	engine.SetSnapshot(kept, spec.Delta{All: true})
	plan, err := engine.Plan(ctx, "the kept state")
	if err != nil {
		return nil // the first round fails with the same error
	}
	differ := 0
	for _, c := range plan.Changes {
		if c.Op != backends.Create {
			differ++
		}
	}
	if differ > 0 {
		return fmt.Errorf("the kernel holds something else of weir's, which may be newer (%s would change or go); what the kernel holds stays", plural(differ, "object"))
	}
	return nil
}

// standing returns the mode in which the kernel holds something of weir's that works without a process, other than the
// mode in force; "" if there is none.
func (p *platform) standing(ctx context.Context, inForce string) string {
	for _, s := range p.staleDataPaths(ctx, inForce) {
		plan, err := s.engine.PlanCleanup(ctx)
		if err != nil || plan.Empty() {
			continue
		}
		if m, err := p.mode(plan.Backend); err == nil && !m.traits.CarriesTraffic {
			return plan.Backend
		}
	}
	return ""
}

// leftInForce returns what an earlier run left in force: a description, or "" for nothing.
func (p *platform) leftInForce(ctx context.Context, stateDir string) string {
	mode := p.standing(ctx, "")
	if mode == "" {
		return ""
	}
	text := "what an earlier run programmed in " + mode + " mode"
	if rec, err := status.LoadRecord(ctx, stateDir); err == nil && rec.Mode == mode && rec.Revision != "" {
		text += ", revision " + rec.Revision
	}
	return text
}
