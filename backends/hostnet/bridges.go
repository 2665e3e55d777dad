package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Bridges are the networks of the node's bridges, sorted.
type Bridges struct {
	// Past are those whose frames do not pass through the packet filter, because the module br_netfilter is not there or
	// bridge-nf-call-iptables is 0. An answer from one host of such a network to another is not translated back, since it
	// does not pass through the node.
	Past []netip.Prefix
	// Through are those whose frames do. A connection from a host to itself by way of a Service is translated as it passes
	// the bridge, which sends no frame back out of the port that it came in by.
	Through []netip.Prefix
}

// LookAtBridges returns the Bridges of the current network namespace.
func LookAtBridges(s Sysctl) (Bridges, error) {
	var b Bridges
	err := eachBridge(func(_ netlink.Link, p netip.Prefix) {
		if s.filtersBridges(p.Addr().Is4()) {
			b.Through = append(b.Through, p)
		} else {
			b.Past = append(b.Past, p)
		}
	})
	b.Past, b.Through = sortedPrefixes(b.Past), sortedPrefixes(b.Through)
	return b, err
}

// Equal reports whether both have the same networks.
func (b Bridges) Equal(o Bridges) bool {
	return slices.Equal(b.Past, o.Past) && slices.Equal(b.Through, o.Through)
}

// eachBridge calls f with the networks of each bridge.
func eachBridge(f func(bridge netlink.Link, network netip.Prefix)) error {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if l.Type() != "bridge" {
			continue
		}
		addrs, err := dump(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP)
			bits, _ := a.Mask.Size()
			p := netip.PrefixFrom(ip.Unmap(), bits).Masked()
			if p.IsValid() && !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() {
				f(l, p)
			}
		}
	}
	return nil
}

func sortedPrefixes(all []netip.Prefix) []netip.Prefix {
	slices.SortFunc(all, func(a, b netip.Prefix) int { return cmp.Or(a.Addr().Compare(b.Addr()), a.Bits()-b.Bits()) })
	return slices.Compact(all)
}

// filtersBridges reports whether bridged packets of a family pass through the packet filter.
func (s Sysctl) filtersBridges(v4 bool) bool {
	value, err := s.Get(filtersParameter(v4))
	return err == nil && value != "0"
}

func filtersParameter(v4 bool) string {
	if v4 {
		return "net.bridge.bridge-nf-call-iptables"
	}
	return "net.bridge.bridge-nf-call-ip6tables"
}

// bridgePort is a veth interface that is attached to a bridge.
type bridgePort struct {
	index  int
	name   string
	bridge int
	// hairpin reports whether the bridge sends frames back out of the port that they came in by.
	hairpin bool
}

// bridgePorts returns the ports of the bridges by their index. An interface of another kind may lead to more than one host,
// and a frame that is sent back there would be seen by all of them, so that it does not count.
func bridgePorts() (map[int]bridgePort, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	ports := map[int]bridgePort{}
	for _, l := range links {
		if a := l.Attrs(); l.Type() == "veth" && a.MasterIndex != 0 {
			ports[a.Index] = bridgePort{index: a.Index, name: a.Name, bridge: a.MasterIndex}
		}
	}
	if len(ports) == 0 {
		return ports, nil
	}
	messages, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, fmt.Errorf("list ports of bridges: %w", err)
	}
	bridged := map[int]bridgePort{}
	for _, m := range messages {
		l, err := netlink.LinkDeserialize(&unix.NlMsghdr{Type: unix.RTM_NEWLINK}, m)
		if err != nil {
			return nil, fmt.Errorf("list ports of bridges: %w", err)
		}
		if p, ok := ports[l.Attrs().Index]; ok && l.Attrs().Protinfo != nil {
			p.hairpin = l.Attrs().Protinfo.Hairpin
			bridged[p.index] = p
		}
	}
	return bridged, nil
}

// portsTo returns the ports of bridges by the addresses of the hosts that they lead to, as far as the node knows the
// hardware addresses of the hosts, and the bridges have seen them.
func portsTo(ports map[int]bridgePort) (map[netip.Addr]bridgePort, error) {
	type station struct {
		bridge int
		mac    string
	}
	at := map[station]int{}
	forwarding, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return nil, fmt.Errorf("list the hosts that bridges have seen: %w", err)
	}
	for _, n := range forwarding {
		if n.State&netlink.NUD_PERMANENT == 0 { // the rest are the node's own
			at[station{n.MasterIndex, n.HardwareAddr.String()}] = n.LinkIndex
		}
	}
	to := map[netip.Addr]bridgePort{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		neighbours, err := dump(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, family) })
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range neighbours {
			addr, _ := netip.AddrFromSlice(n.IP)
			if port, ok := ports[at[station{n.LinkIndex, n.HardwareAddr.String()}]]; ok && len(n.HardwareAddr) > 0 {
				to[addr.Unmap()] = port
			}
		}
	}
	return to, nil
}

// resolve has the kernel ask for the hardware address of a neighbour on a bridge, unless it knows it.
func resolve(bridge int, addr netip.Addr) error {
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	return netlink.NeighSet(&netlink.Neigh{LinkIndex: bridge, Family: family, IP: addr.AsSlice(), State: netlink.NUD_NONE, Flags: netlink.NTF_USE})
}

// setHairpin has a bridge send frames back out of a port, or not. It does nothing if there is no such port any more.
func setHairpin(p bridgePort, on bool) error {
	link, err := netlink.LinkByIndex(p.index)
	var gone netlink.LinkNotFoundError
	switch {
	case errors.As(err, &gone):
		return nil
	case err == nil:
		err = netlink.LinkSetHairpin(link, on)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}
