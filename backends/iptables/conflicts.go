package iptables

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	"weir/backends/xtables"
)

// Conflicts returns the names of the chains that a kube-proxy made on this node.
func (b *Backend) Conflicts(ctx context.Context) ([]string, error) {
	found := make(map[string]bool)
	for _, f := range b.cfg.Families {
		saved, err := b.kernel.Save(ctx, f, "nat")
		if err != nil {
			return nil, err
		}
		if err := errors.Join(findKubeProxy(saved, found), saved.Close()); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(found)), nil
}

// findKubeProxy adds kube-proxy's entry chains to found. Chains of the kubelet begin with KUBE- too, and do not count.
func findKubeProxy(r io.Reader, found map[string]bool) error {
	lines := xtables.NewScanner(r)
	for lines.Scan() {
		name, _, _ := strings.Cut(strings.TrimPrefix(lines.Text(), ":"), " ")
		switch name {
		case "KUBE-SERVICES", "KUBE-NODEPORTS":
			found[name] = true
		}
	}
	return lines.Err()
}
