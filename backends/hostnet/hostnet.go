// Package hostnet reads and sets the parts of the node's network that no backend owns: the addresses of the node, and
// the kernel parameters that forwarding depends on. Addresses and Watch return and watch the addresses; Sysctl reads
// and writes parameters, and Forwarding holds those that forwarding needs.
//
// The package knows no Services and makes no rules. It imports nothing of weir but the vocabulary of examinations.
// Backends and cmd/weir may import it.
package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// serviceInterfaces hold the addresses of Services, of weir and of kube-proxy, which are not the node's own, and the one that
// only makes systemd-resolved use a link.
var serviceInterfaces = []string{"weir-ipvs0", "kube-ipvs0", namesLink}

// dumpAttempts bounds how often a dump that the kernel interrupted is repeated before it counts as failed.
const dumpAttempts = 5

// Addresses returns the addresses of the current network namespace, of both families, sorted and unique. It leaves out
// link-local addresses, which name no node without an interface. It leaves out IPv6 addresses that are not usable yet,
// or that another node turned out to have. It also leaves out the addresses of interfaces that hold the addresses of
// Services.
func Addresses() ([]netip.Addr, error) {
	found, names, err := listAddresses()
	if err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, f := range found {
		a, ok := netip.AddrFromSlice(f.IP)
		a = a.Unmap()
		unusable := f.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && f.Flags&unix.IFA_F_OPTIMISTIC == 0
		if !ok || a.IsLinkLocalUnicast() || unusable || slices.Contains(serviceInterfaces, names[f.LinkIndex]) {
			continue
		}
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}

// listAddresses returns the addresses of the current network namespace, and the names of its interfaces by their index.
func listAddresses() (addrs []netlink.Addr, names map[int]string, err error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, nil, fmt.Errorf("list interfaces: %w", err)
	}
	names = map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	addrs, err = dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	return addrs, names, nil
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

// farAway are documentation addresses (RFC 5737, RFC 3849), which no host has. Nothing is sent to them.
var farAway = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// Primary returns the node's primary address of each family that it has: the source address for a distant peer, or else
// the first that is not a loopback address. It stands in for the addresses of a Node object.
func Primary(list []netip.Addr) []netip.Addr {
	own := slices.DeleteFunc(slices.Clone(list), netip.Addr.IsLoopback)
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
		return netip.Addr{}, false // there is no route, which is an answer too
	}
	a, ok := netip.AddrFromSlice(routes[0].Src)
	return a.Unmap(), ok
}
