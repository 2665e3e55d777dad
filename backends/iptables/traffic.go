package iptables

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

var _ backends.ConnectionCounter = (*Backend)(nil)

// Connections implements backends.ConnectionCounter. Only the first packet of a connection passes the nat table, so
// that the counter of the rule for a Frontend counts connections.
func (b *Backend) Connections(ctx context.Context, entries []*dataplane.ServicePort) (map[dataplane.ServicePortName]uint64, error) {
	owners := map[frontKey]dataplane.ServicePortName{}
	for _, e := range entries {
		for _, f := range e.Frontends() {
			owners[frontKey{f.Family, f.Protocol, f.Addr, f.Port}] = e.Key
		}
	}
	counts := make(map[dataplane.ServicePortName]uint64, len(entries))
	for _, f := range b.cfg.Families {
		saved, err := b.kernel.Counters(ctx, f, "nat")
		if err != nil {
			return nil, err
		}
		err = b.readCounters(saved, f, func(front frontKey, n uint64) {
			if key, ok := owners[front]; ok {
				counts[key] += n
			}
		})
		if err := errors.Join(err, saved.Close()); err != nil {
			return nil, fmt.Errorf("cannot read the counters of %s: %w", f, err)
		}
	}
	return counts, nil
}

// readCounters parses the nat table as iptables-save -c prints it: "[packets:bytes] -A chain rule".
func (b *Backend) readCounters(r io.Reader, f dataplane.Family, emit func(frontKey, uint64)) error {
	lines := xtables.NewScanner(r)
	for lines.Scan() {
		counters, rest, ok := strings.Cut(lines.Text(), "] -A ")
		chain, rule, _ := strings.Cut(rest, " ")
		if !ok || !under(chain, b.names.addrRoot) && !under(chain, b.names.portRoot) {
			continue
		}
		packets, _, _ := strings.Cut(strings.TrimPrefix(counters, "["), ":")
		n, err := strconv.ParseUint(packets, 10, 64)
		words := parseWords(rule)
		front, isFront := frontOf(f, words)
		if err == nil && isFront && !b.names.shared(words["-j"]) {
			emit(front, n)
		}
	}
	return lines.Err()
}

// frontOf returns the Frontend of a rule at the bottom of a tree.
func frontOf(f dataplane.Family, words map[string]string) (frontKey, bool) {
	port, err := strconv.ParseUint(words["--dport"], 10, 16)
	protocol, ok := xtables.ProtocolNamed(words["-p"])
	if err != nil || !ok {
		return frontKey{}, false
	}
	k := frontKey{family: f, protocol: protocol, port: uint16(port)}
	if dst := words["-d"]; dst != "" {
		prefix, err := netip.ParsePrefix(dst)
		if err != nil || !prefix.IsSingleIP() {
			return frontKey{}, false
		}
		k.addr = prefix.Addr()
	}
	return k, true
}
