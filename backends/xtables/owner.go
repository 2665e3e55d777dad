package xtables

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
	"weir/backends/doctor"
	"weir/backends/nfnl"
)

// owned names the tables of iptables-nft that belong to another process, which alone can change them
// (NFT_TABLE_F_OWNER). It returns "" if there is none.
func owned(ctx context.Context, f dataplane.Family) string {
	c, err := nfnl.Netlink{}.Dial()
	if err != nil {
		return ""
	}
	defer func() { _ = c.Close() }()
	family, name := uint8(unix.NFPROTO_IPV4), "ip"
	if f == dataplane.IPv6 {
		family, name = unix.NFPROTO_IPV6, "ip6"
	}
	for _, table := range []string{"raw", "mangle", "nat", "filter"} {
		if owner := nfnl.OwnerName(ctx, c, nfnl.Table{Family: family, Name: table}); owner != "" {
			return fmt.Sprintf("table %s %s belongs to %s, and only that process can change it: end it", name, table, owner)
		}
	}
	return ""
}

// Refused implements backends.Refuser.
func (t *Tables) Refused(ctx context.Context) error {
	k, ok := t.kernel.(*programs)
	if !ok || k.mode != NFT {
		return nil
	}
	for _, f := range t.families {
		if problem := owned(ctx, f); problem != "" {
			return errors.New(problem)
		}
	}
	return nil
}

// checkOwners checks that no other process owns a table of iptables-nft.
func checkOwners(ctx context.Context, families []dataplane.Family) doctor.Check {
	check := doctor.Check{Name: "owner of the tables", State: doctor.OK, Detail: "no other process owns them"}
	for _, f := range families {
		if problem := owned(ctx, f); problem != "" {
			check.State, check.Detail = doctor.Missing, problem
		}
	}
	return check
}
