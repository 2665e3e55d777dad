package iptables

import (
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
)

// Conflicts says who else programs Services on this node: the names of the chains that a kube-proxy made.
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

// findKubeProxy adds kube-proxy's entry chains to found. The kubelet has chains of its own that begin with KUBE- too.
func findKubeProxy(r io.Reader, found map[string]bool) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		name, _, _ := strings.Cut(strings.TrimPrefix(lines.Text(), ":"), " ")
		switch name {
		case "KUBE-SERVICES", "KUBE-NODEPORTS":
			found[name] = true
		}
	}
	return lines.Err()
}

// countRules counts the rules and the chains that somebody made in what iptables-save prints. The kubelet leaves a chain
// without rules as a hint of the mechanism it uses.
func countRules(r io.Reader) (n int) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		line := lines.Text()
		if strings.HasPrefix(line, "-A ") || strings.HasPrefix(line, ":") && strings.Contains(line, " - [") {
			n++
		}
	}
	return n
}
