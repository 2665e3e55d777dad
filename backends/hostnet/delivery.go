package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/backends"
)

// delivery is a local route to the ClusterIP of a Service that weir answers for itself, as an Item. The kernel delivers what is
// sent there to this node, as if the node had the address. It is no address of an interface, so that nothing takes it for one
// of the node's own.
type delivery struct{ addr netip.Addr }

// deliveryProtocol is the protocol of weir's routes, by which it knows them again. No other program is known to use the number.
const deliveryProtocol = 119

// ID implements backends.Item.
func (d delivery) ID() backends.ID { return backends.ID("local route " + d.addr.String()) }

// String implements backends.Item.
func (d delivery) String() string {
	return fmt.Sprintf("local route to %s, because weir itself answers there", d.addr)
}

func (d delivery) route(loopback int) *netlink.Route {
	return &netlink.Route{
		LinkIndex: loopback, Dst: &net.IPNet{IP: d.addr.AsSlice(), Mask: net.CIDRMask(d.addr.BitLen(), d.addr.BitLen())},
		Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Protocol: deliveryProtocol,
	}
}

// set makes the route. One of another program to the same address stays.
func (d delivery) set() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.RouteAppend(d.route(lo.Attrs().Index))
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("the route by which packets for %s are delivered to weir cannot be made: %w", d.addr, err)
	}
	return nil
}

// remove deletes the route.
func (d delivery) remove() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.RouteDel(d.route(lo.Attrs().Index))
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("the local route to %s cannot be deleted: %w", d.addr, err)
	}
	return nil
}

// command returns the command that makes the route, or deletes it.
func (d delivery) command(verb string) backends.Command {
	return backends.Command{Args: []string{"ip", "route", verb, "local", d.addr.String(), "dev", "lo", "table", "local", "proto", fmt.Sprint(deliveryProtocol)}}
}

// lookLocalRoutes returns the routes that exist: those to addresses, sorted, and the interfaces that have one to ::1.
func lookLocalRoutes() (list []delivery, answers map[int]struct{}, err error) {
	answers = map[int]struct{}{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Protocol: deliveryProtocol}
		routes, err := dump(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_PROTOCOL)
		})
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the local routes cannot be read: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil {
				continue
			}
			if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && a == netip.IPv6Loopback() {
				answers[r.LinkIndex] = struct{}{}
			} else if ok {
				list = append(list, delivery{a.Unmap()})
			}
		}
	}
	slices.SortFunc(list, func(a, b delivery) int { return a.addr.Compare(b.addr) })
	return slices.Compact(list), answers, nil
}
