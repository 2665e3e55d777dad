package xtables

import (
	"context"
	"errors"
	"fmt"
	"strings"

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
	family, name := netfilterFamily(f)
	for _, table := range []string{"raw", "mangle", "nat", "filter"} {
		if owner := nfnl.OwnerName(ctx, c, nfnl.Table{Family: family, Name: table}); owner != "" {
			return fmt.Sprintf("table %s %s belongs to %s, and only that process can change it: end it", name, table, owner)
		}
	}
	return ""
}

func netfilterFamily(f dataplane.Family) (number uint8, name string) {
	if f == dataplane.IPv6 {
		return unix.NFPROTO_IPV6, "ip6"
	}
	return unix.NFPROTO_IPV4, "ip"
}

// tableDormant is NFT_TABLE_F_DORMANT: the kernel runs no chain of the table.
const tableDormant = 1

// dormant names the tables of iptables-nft that are dormant, and what wakes them. weir does not, because other programs
// have rules there too. It returns "" if there is none.
func dormant(ctx context.Context, families []dataplane.Family, tables []string) string {
	c, err := nfnl.Netlink{}.Dial()
	if err != nil {
		return ""
	}
	defer func() { _ = c.Close() }()
	var found []string
	for _, f := range families {
		for _, table := range tables {
			number, name := netfilterFamily(f)
			flags, _, err := nfnl.ReadTable(ctx, c, nfnl.Table{Family: number, Name: table})
			if err == nil && flags&tableDormant != 0 {
				found = append(found, fmt.Sprintf("table %[1]s %[2]s is dormant, so that no rule in it works: nft add table %[1]s %[2]s", name, table))
			}
		}
	}
	return strings.Join(found, "; ")
}

// Ineffective implements backends.Refuser. It asks the kernel only after a commit, of this process or another, because
// making a table dormant is one.
func (t *Tables) Ineffective(ctx context.Context) error {
	k, ok := t.kernel.(*programs)
	if !ok || k.mode != NFT || t.known && t.awake == t.last && t.awakeOwn == t.own {
		return nil
	}
	if problem := dormant(ctx, t.families, t.layout.Names); problem != "" {
		return errors.New(problem)
	}
	t.awake, t.awakeOwn = t.last, t.own
	return nil
}

// checkDormant checks that no table is dormant.
func checkDormant(ctx context.Context, families []dataplane.Family) doctor.Check {
	if problem := dormant(ctx, families, []string{"raw", "mangle", "nat", "filter"}); problem != "" {
		return doctor.Check{Name: "dormant tables", State: doctor.Missing, Detail: problem}
	}
	return doctor.Check{Name: "dormant tables", State: doctor.OK, Detail: "none"}
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
