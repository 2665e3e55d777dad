package main

import (
	"context"
	"fmt"

	"weir/backends"
	"weir/backends/conntrack"
	"weir/backends/dataplane"
	"weir/backends/nftables"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/nodeconfig"
)

const modeNFTables = "nftables"

// nftablesMode returns the mode that programs tables of nf_tables.
func nftablesMode(*platform) mode {
	return mode{
		name:       modeNFTables,
		traits:     backends.Traits{HandsOver: true, FailureMetric: "nftables"},
		hairpins:   true,
		translates: true,
		answers:    func(context.Context) bool { return true },
		section:    nodeconfig.NFTables,
		settings: func(_ context.Context, snap *spec.Snapshot, cfg *dataplane.Config) (any, error) {
			if snap.Weir.ServiceCIDRsGiven {
				cfg.ServiceCIDRs = snap.Weir.ServiceCIDRs
			}
			return nil, nil
		},
		open: func(ctx context.Context, cfg dataplane.Config, _ any) (backends.Backend, reconcile.Flows, error) {
			return newNFTables(ctx, cfg), conntrack.New(cfg), nil
		},
		probe: probeNFTables,
		redirection: &redirection{
			open: func(ctx context.Context, cfg dataplane.Config) (backends.Backend, error) {
				return newNFTables(ctx, cfg, nftables.ToListeners()), nil
			},
			leftovers: func(ctx context.Context, cfg dataplane.Config) []leftover {
				if probeNFTables(ctx) != nil {
					return nil
				}
				return []leftover{{modeNFTables, nftables.New(cfg, nftables.ToListeners())}}
			},
		},
		leftovers: func(ctx context.Context, cfg dataplane.Config, inForce bool) []leftover {
			if inForce || probeNFTables(ctx) != nil {
				return nil
			}
			return []leftover{{modeNFTables, nftables.New(cfg)}}
		},
		checks: nftables.Doctor,
	}
}

// newNFTables returns a backend for what this kernel can do.
func newNFTables(ctx context.Context, cfg dataplane.Config, options ...nftables.Option) *nftables.Backend {
	if !nftables.CanLabel(ctx) {
		options = append(options, nftables.WithoutLabels())
	}
	return nftables.New(cfg, options...)
}

func probeNFTables(ctx context.Context) error {
	if err := nftables.Probe(ctx); err != nil {
		return fmt.Errorf("nftables cannot be used: %w", err)
	}
	return nil
}
