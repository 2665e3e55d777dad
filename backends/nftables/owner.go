package nftables

import (
	"context"
	"fmt"

	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
	"weir/backends/doctor"
	"weir/backends/nfnl"
)

// owned returns an error if another process owns a table of this Backend, so that the kernel refuses every change of it.
func (b *Backend) owned(ctx context.Context, c nfnl.Conn) error {
	for _, f := range b.cfg.Families {
		if owner := nfnl.OwnerName(ctx, c, table{f, b.name}.kernel()); owner != "" {
			return fmt.Errorf("table %s %s belongs to %s, and only that process can change it: %w; end it, and weir makes the table again",
				familyName(f), b.name, owner, unix.EPERM)
		}
	}
	return nil
}

// Refused implements backends.Refuser.
func (b *Backend) Refused(ctx context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	c, err := b.open()
	if err != nil {
		return nil
	}
	return b.owned(ctx, c)
}

// Ineffective implements backends.Refuser. A dormant table of weir's is repaired like any other drift.
func (b *Backend) Ineffective(context.Context) error { return nil }

// checkOwners checks that no other process owns a table of weir's. Without the table of the redirections this mode works,
// and userspace mode does not.
func checkOwners(ctx context.Context) []doctor.Check {
	checks := []doctor.Check{{Name: "owner of the tables", State: doctor.OK, Detail: "no other process owns them"}}
	c, err := nfnl.Netlink{}.Dial()
	if err != nil {
		return checks // the check of nf_tables says so
	}
	defer func() { _ = c.Close() }()
	for _, f := range []dataplane.Family{dataplane.IPv4, dataplane.IPv6} {
		owned := func(name string) (detail string, found bool) {
			owner := nfnl.OwnerName(ctx, c, table{f, name}.kernel())
			return fmt.Sprintf("table %s %s belongs to %s, and only that process can change it: end it", familyName(f), name, owner), owner != ""
		}
		if detail, found := owned(backendTable); found {
			checks[0].State, checks[0].Detail = doctor.Missing, detail
		}
		if detail, found := owned(redirectTable); found {
			checks = append(checks, doctor.Check{Name: "owner of the redirections", State: doctor.Advice, Detail: detail})
		}
	}
	return checks
}
