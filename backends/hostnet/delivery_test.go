package hostnet

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/netlab"
)

// TestDeliveries makes local routes, loses one to another process, and deletes them, next to one of another program.
func TestDeliveries(t *testing.T) {
	lab := netlab.New(t, netlab.Topology{})
	four, six := delivery{netip.MustParseAddr("10.96.0.10")}, delivery{netip.MustParseAddr("fd00:10:96::a")}
	err := lab.Node().Do(func() error {
		k := NewKeeper(hclog.NewNullLogger(), Sysctl{Root: t.TempDir()})
		b := k.Manage(nil, nil)
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		others := func() int {
			found, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: 120}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
			if err != nil {
				t.Fatal(err)
			}
			return len(found)
		}
		foreign := four.route(lo.Attrs().Index)
		foreign.Dst, foreign.Protocol = &net.IPNet{IP: net.IPv4(10, 96, 0, 11), Mask: net.CIDRMask(32, 32)}, 120
		if err := netlink.RouteAdd(foreign); err != nil {
			return err
		}
		apply := func(b *Managed, changes ...backends.Change) {
			t.Helper()
			if r := b.Apply(t.Context(), backends.Plan{Changes: changes}); r.Err != nil || len(r.Refused) > 0 {
				t.Fatalf("%+v", r)
			}
		}
		expect := func(b *Managed, when string, want ...backends.Item) {
			t.Helper()
			var got []backends.Item
			for i, err := range b.Observe(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, i)
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: %v, not %v", when, got, want)
			}
		}
		create := func(d delivery) backends.Change { return backends.Change{Op: backends.Create, ID: d.ID(), New: d} }
		remove := func(d delivery) backends.Change { return backends.Change{Op: backends.Delete, ID: d.ID(), Old: d} }
		expect(b, "at first")
		apply(b, create(four), create(six))
		apply(b, create(four))
		expect(b, "made", four, six)
		if err := four.remove(); err != nil {
			return err
		}
		items, err := b.ReadUnwatched(t.Context())
		if i, read := items[four.ID()]; err != nil || !read || i != nil || items[six.ID()] != six {
			t.Errorf("one was deleted: %v %v", items, err)
		}
		apply(b, create(four))
		next := NewKeeper(hclog.NewNullLogger(), Sysctl{Root: t.TempDir()}).Manage(nil, nil)
		expect(next, "by the next process", four, six)
		apply(b, remove(six))
		expect(next, "dropped by one process", four)
		apply(next, remove(four), remove(six), remove(six))
		expect(next, "deleted")

		apply(b, create(four), create(six))
		taker := k.Manage(nil, nil) // of another mode
		expect(taker, "handed over", four, six)
		apply(taker, remove(six))
		apply(b, remove(four), remove(six))
		expect(taker, "left by the mode before, and needed by this one", four)
		apply(taker, remove(four))
		expect(taker, "needed by none")
		if n := others(); n != 1 {
			t.Errorf("%d routes of another program", n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
