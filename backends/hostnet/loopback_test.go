package hostnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/backends"
	"weir/backends/netlab"
)

// answersAt returns the names of the interfaces with a route of weir's to ::1, and whether lo comes first for the node itself.
func answersAt(t *testing.T) (names []string) {
	t.Helper()
	_, at, err := lookLocalRoutes()
	if err != nil {
		t.Fatal(err)
	}
	for index := range at {
		l, err := netlink.LinkByIndex(index)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	own, err := netlink.RouteGet(net.IPv6loopback)
	if err != nil || len(own) != 1 || own[0].Protocol != unix.RTPROT_KERNEL {
		t.Errorf("::1 is reached by %v, %v", own, err)
	}
	return names
}

// awaitAnswers waits until exactly these interfaces have the route.
func awaitAnswers(t *testing.T, when string, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if got = answersAt(t); slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("%s: routes at %v, want %v", when, got, want)
}

// answering returns a Keeper, and a Managed of it that has answers to ::1 come in.
func answering(t *testing.T) (*Keeper, *Managed) {
	k := NewKeeper(hclog.NewNullLogger(), Sysctl{})
	k.Last()
	b := k.Manage(nil, nil)
	b.Answers()
	t.Cleanup(k.answers.stop)
	return k, b
}

// TestAnswerRoutes makes the routes to ::1, has interfaces come, go, and lose IPv6, loses a route to another process, and hands
// the routes over, next to one of another program.
func TestAnswerRoutes(t *testing.T) {
	lab := netlab.New(t, netlab.Topology{Pods: 1})
	first := []string{"eth0", "eth1", "vethpod1", "vethclient"}
	err := lab.Node().Do(func() error {
		k, b := answering(t)
		observe := func(b *Managed) string {
			t.Helper()
			for i, err := range b.Observe(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if i.ID() == answerRoutesID {
					return i.String()
				}
			}
			return ""
		}
		apply := func(b *Managed, c backends.Change) {
			t.Helper()
			if r := b.Apply(t.Context(), backends.Plan{Changes: []backends.Change{c}}); r.Err != nil || len(r.Refused) > 0 {
				t.Fatalf("%+v", r)
			}
		}
		sysctl := func(name, key, value string) {
			t.Helper()
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/"+key, []byte(value), 0); err != nil {
				t.Fatal(err)
			}
		}
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		foreign := answerRoute(eth0.Attrs().Index)
		foreign.Protocol, foreign.Priority = 120, 77
		if err := netlink.RouteAppend(foreign); err != nil {
			return err
		}
		make, remove := backends.Change{ID: answerRoutesID, New: answerRoutes{}}, backends.Change{ID: answerRoutesID, Old: answerRoutes{}}
		complete := answerRoutes{}.String()

		if got := observe(b); got != "" {
			t.Errorf("at first: %s", got)
		}
		apply(b, make)
		awaitAnswers(t, "made", first...)
		if got := observe(b); got != complete {
			t.Errorf("made: %s", got)
		}

		late := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "late", MTU: 1500}, PeerName: "peer"}
		if err := netlink.LinkAdd(late); err != nil {
			return err
		}
		awaitAnswers(t, "an interface that is down", first...)
		if err := netlink.LinkSetUp(late); err != nil {
			return err
		}
		awaitAnswers(t, "an interface comes", append(first, "late")...)
		if got := observe(b); got != complete {
			t.Errorf("an interface came: %s", got)
		}
		if err := errors.Join(netlink.LinkSetDown(late), netlink.LinkSetUp(late)); err != nil {
			return err
		}
		awaitAnswers(t, "down and up", append(first, "late")...)
		sysctl("late", "disable_ipv6", "1")
		awaitAnswers(t, "without IPv6", first...)
		if got := observe(b); got != complete {
			t.Errorf("without IPv6: %s", got)
		}
		peer, err := netlink.LinkByName("peer")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(peer); err != nil { // the kernel gives an interface without a carrier no address
			return err
		}
		awaitAnswers(t, "the other end is up", append(first, "peer")...)
		sysctl("late", "disable_ipv6", "0")
		awaitAnswers(t, "with IPv6 again", append(first, "late", "peer")...)
		if err := netlink.LinkDel(late); err != nil {
			return err
		}
		awaitAnswers(t, "an interface goes", first...)

		if err := netlink.RouteDel(answerRoute(eth0.Attrs().Index)); err != nil {
			return err
		}
		items, err := b.ReadUnwatched(t.Context())
		if got := fmt.Sprint(items[answerRoutesID]); err != nil || got != complete+"; there is none at eth0" {
			t.Errorf("another process deleted one: %s, %v", got, err)
		}
		apply(b, make)
		awaitAnswers(t, "repaired", first...)

		if got := observe(NewKeeper(hclog.NewNullLogger(), Sysctl{}).Manage(nil, nil)); got != complete {
			t.Errorf("for a cleanup: %s", got)
		}
		other := k.Manage(nil, nil) // of a mode that needs none
		observe(other)
		apply(other, remove)
		awaitAnswers(t, "left by one of two", first...)
		apply(b, remove)
		awaitAnswers(t, "needed by none")
		if err := netlink.LinkAdd(late); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(late); err != nil {
			return err
		}
		if got := observe(b); got != "" {
			t.Errorf("removed: %s", got)
		}
		if k.answers.end != nil {
			t.Error("a keeper that is needed by none goes on to watch")
		}
		awaitAnswers(t, "an interface comes to none")
		others, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Protocol: 120}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		if err != nil || len(others) != 1 {
			t.Errorf("the route of another program: %v, %v", others, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestAnswerRoutesAmongMany counts what many interfaces cost.
func TestAnswerRoutesAmongMany(t *testing.T) {
	netlab.RequireFull(t)
	lab := netlab.New(t, netlab.Topology{Pods: 1})
	err := lab.Node().Do(func() error {
		_, b := answering(t)
		look := func() (took time.Duration) {
			t.Helper()
			start := time.Now()
			if _, err := b.ReadUnwatched(t.Context()); err != nil {
				t.Fatal(err)
			}
			return time.Since(start)
		}
		look()
		b.Apply(t.Context(), backends.Plan{Changes: []backends.Change{{ID: answerRoutesID, New: answerRoutes{}}}})
		before := look()
		const many = 1000
		for i := range many / 2 {
			l := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("a%d", i), MTU: 1500, Flags: net.FlagUp}, PeerName: fmt.Sprintf("b%d", i)}
			if err := netlink.LinkAdd(l); err != nil {
				return err
			}
			peer, err := netlink.LinkByName(l.PeerName)
			if err == nil {
				err = errors.Join(netlink.LinkSetUp(l), netlink.LinkSetUp(peer))
			}
			if err != nil {
				return err
			}
		}
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			_, at, err := lookLocalRoutes()
			if err != nil {
				return err
			}
			if len(at) == many+4 {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%d interfaces have routes, want %d", len(at), many+4)
			}
		}
		after := min(look(), look(), look())
		t.Logf("a look took %v, and takes %v among %d interfaces", before, after, many)
		if after > 200*time.Millisecond {
			t.Errorf("a look takes %v", after)
		}
		return nil
	})
	if err != nil && !strings.Contains(err.Error(), "file exists") {
		t.Fatal(err)
	}
}
