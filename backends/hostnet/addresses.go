// Package hostnet knows the node's side of the network that no backend owns: the addresses the node has, which of them
// serve node ports, and the kernel parameters that forwarding depends on.
package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Address is an address of the node.
type Address struct {
	Addr      netip.Addr
	Interface string
	Loopback  bool
}

// serviceInterfaces hold the addresses of Services, weir's and kube-proxy's, which are not the node's own.
var serviceInterfaces = []string{"weir-ipvs0", "kube-ipvs0"}

// dumpAttempts is how often a dump that the kernel interrupted is tried before it counts as failed.
const dumpAttempts = 5

// Addresses returns the addresses of the network namespace that it is called in, of both families, sorted and unique. It
// leaves out link-local addresses, which name no node without an interface, IPv6 addresses that are not usable yet or that
// another node turned out to have, and those of interfaces that hold the addresses of Services.
func Addresses() ([]Address, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	found, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var out []Address
	for _, f := range found {
		a, ok := netip.AddrFromSlice(f.IP)
		a = a.Unmap()
		name := names[f.LinkIndex]
		unusable := f.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && f.Flags&unix.IFA_F_OPTIMISTIC == 0
		if !ok || a.IsLinkLocalUnicast() || unusable || slices.Contains(serviceInterfaces, name) {
			continue
		}
		out = append(out, Address{Addr: a, Interface: name, Loopback: a.IsLoopback()})
	}
	slices.SortFunc(out, func(a, b Address) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Interface, b.Interface))
	})
	return slices.CompactFunc(out, func(a, b Address) bool { return a.Addr == b.Addr }), nil
}

func dump[T any](list func() ([]T, error)) (out []T, err error) {
	for range dumpAttempts {
		out, err = list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOBUFS) {
			break
		}
	}
	return out, err
}

// Outward returns the addresses without those of loopback, as backends.Config.NodeAddresses holds them.
func Outward(list []Address) []netip.Addr {
	out := []netip.Addr{}
	for _, a := range list {
		if !a.Loopback {
			out = append(out, a.Addr)
		}
	}
	return out
}

// farAway are addresses that are nobody's (RFC 5737, RFC 3849). Nothing is sent to them.
var farAway = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// Primary returns the node's primary address of each family that it has one of: the one that it would be seen under by a
// distant peer, or else the first that is not a loopback address. It stands in for the addresses of a Node object.
func Primary(list []Address) []netip.Addr {
	own := Outward(list)
	var out []netip.Addr
	for _, far := range farAway {
		sameFamily := func(a netip.Addr) bool { return a.Is4() == far.Is4() }
		if a, ok := sourceFor(far); ok && slices.Contains(own, a) {
			out = append(out, a)
		} else if i := slices.IndexFunc(own, sameFamily); i >= 0 {
			out = append(out, own[i])
		}
	}
	return out
}

// sourceFor returns the source address that the kernel would choose for a destination.
func sourceFor(dst netip.Addr) (netip.Addr, bool) {
	routes, err := netlink.RouteGet(dst.AsSlice())
	if err != nil || len(routes) == 0 {
		return netip.Addr{}, false // there is no route, which is an answer as well
	}
	a, ok := netip.AddrFromSlice(routes[0].Src)
	return a.Unmap(), ok
}
