package iptables

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"weir/backends"
)

var _ backends.Meter = (*Backend)(nil)

// Traffic implements backends.Meter. A packet in the nat table is the first of a connection, so that the counter of the
// rule for a front counts connections.
func (b *Backend) Traffic(ctx context.Context, entries []*backends.Entry) (map[backends.PortKey]uint64, error) {
	k, ok := b.kernel.(*programs)
	if !ok {
		return nil, errors.New("only the programs of iptables have counters")
	}
	owners := map[frontKey]backends.PortKey{}
	for _, e := range entries {
		for _, f := range e.Fronts() {
			owners[frontKey{f.Family, f.Protocol, f.Addr, f.Port}] = e.Key
		}
	}
	counts := make(map[backends.PortKey]uint64, len(entries))
	for _, f := range b.cfg.Families {
		if k.mode == Legacy && !legacyTable(f, "nat") {
			continue // nothing is there to count
		}
		saved, err := k.save(ctx, f, "-c", "-t", "nat")
		if err != nil {
			return nil, err
		}
		err = readCounters(saved, f, func(front frontKey, n uint64) {
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

// readCounters reads what iptables-save -c prints of the nat table: "[packets:bytes] -A chain rule".
func readCounters(r io.Reader, f backends.Family, emit func(frontKey, uint64)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	for lines.Scan() {
		counters, rest, ok := strings.Cut(lines.Text(), "] -A ")
		chain, rule, _ := strings.Cut(rest, " ")
		if !ok || !strings.HasPrefix(chain, addrRoot) && !strings.HasPrefix(chain, portRoot) {
			continue
		}
		packets, _, _ := strings.Cut(strings.TrimPrefix(counters, "["), ":")
		n, err := strconv.ParseUint(packets, 10, 64)
		words := parseWords(rule)
		front, isFront := frontOf(f, words)
		if err == nil && isFront && !shared(words["-j"]) {
			emit(front, n)
		}
	}
	return lines.Err()
}

// frontOf returns the front that a rule at the bottom of a tree is for.
func frontOf(f backends.Family, words map[string]string) (frontKey, bool) {
	port, err := strconv.ParseUint(words["--dport"], 10, 16)
	protocol, ok := protocolNamed(words["-p"])
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
