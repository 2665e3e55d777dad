package netlab

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Topology describes the hosts of a Lab. The zero value is the default: a node with the pods pod1, pod2, pod3 and
// client on separate veth interfaces, a host outside, and another node.
type Topology struct {
	// Pods is the number of backend pods, 3 if it is 0.
	Pods int
	// Bridge is the name of a bridge that the pods are attached to; "" routes to each pod's veth interface.
	Bridge string
	// VethPrefix begins the names of the node's ends of the pods' veth interfaces; "veth" if it is "".
	VethPrefix string
}

// Names of the hosts that every Lab has, besides pod1, pod2 and so on.
const (
	Node    = "node"
	Client  = "client"  // a pod on the node that serves nothing
	Outside = "outside" // a host that reaches everything through the node, 192.168.77.100
	Remote  = "remote"  // another node, 192.168.78.2, which holds the pod 10.244.2.1
)

// Addresses of the node and of its neighbours. The remote node is the node's default route: traffic to unknown
// addresses ends there, and is answered as unreachable. Packets that the remote node itself sends come from its pod's
// address.
var (
	PodCIDR4       = netip.MustParsePrefix("10.244.1.0/24")
	PodCIDR6       = netip.MustParsePrefix("fd00:244:1::/64")
	NodeIPv4       = netip.MustParseAddr("192.168.77.1")
	NodeIPv6       = netip.MustParseAddr("fd00:77::1")
	SecondNodeIPv4 = netip.MustParseAddr("192.168.78.1")
	SecondNodeIPv6 = netip.MustParseAddr("fd00:78::1")
	OutsideIPv4    = netip.MustParseAddr("192.168.77.100")
	OutsideIPv6    = netip.MustParseAddr("fd00:77::100")
	RemoteIPv4     = netip.MustParseAddr("192.168.78.2")
	RemoteIPv6     = netip.MustParseAddr("fd00:78::2")
	RemotePodIPv4  = netip.MustParseAddr("10.244.2.1")
	RemotePodIPv6  = netip.MustParseAddr("fd00:244:2::1")
)

// The gateway to which pods send. No host has the address; the neighbour entry alone makes it work.
var gateway4, gateway6 = netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1:1")

// Lab is a set of hosts that lives as long as its test. Labs are independent of each other and can be used in parallel.
type Lab struct {
	t     testing.TB
	hosts map[string]*Host
	dir   string
	links int
}

// New builds a Lab, or skips the test if that is not possible.
func New(t testing.TB, topo Topology) *Lab {
	t.Helper()
	Require(t)
	if topo.Pods == 0 {
		topo.Pods = 3
	}
	if topo.VethPrefix == "" {
		topo.VethPrefix = "veth"
	}
	l := &Lab{t: t, hosts: map[string]*Host{}, dir: t.TempDir()}
	node := l.add(Node, NodeIPv4, NodeIPv6)
	for _, s := range []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding"} {
		node.sysctl(t, s, "1")
	}
	l.joinOutside()
	l.joinRemote()
	for i := 1; i <= topo.Pods; i++ {
		l.addPod(topo, fmt.Sprintf("pod%d", i), PodIPv4(i), PodIPv6(i))
	}
	l.addPod(topo, Client, PodIPv4(100), PodIPv6(100))
	return l
}

// PodIPv4 returns the address of pod i, counted from 1. The client pod is number 100.
func PodIPv4(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}) }

// PodIPv6 returns the IPv6 address of pod i: fd00:244:1::i, i in hexadecimal.
func PodIPv6(i int) netip.Addr {
	a := PodCIDR6.Addr().As16()
	a[15] = byte(i)
	return netip.AddrFrom16(a)
}

// Host returns the host of that name, or ends the test.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	h, ok := l.hosts[name]
	if !ok {
		l.t.Fatalf("the lab has no host %q", name)
	}
	return h
}

// Has reports whether the lab has a host of that name.
func (l *Lab) Has(name string) bool { return l.hosts[name] != nil }

// Owned reports whether any host has the address.
func (l *Lab) Owned(a netip.Addr) bool {
	for _, h := range l.hosts {
		if h.Owns(a) {
			return true
		}
	}
	return false
}

// Node returns the node.
func (l *Lab) Node() *Host { return l.Host(Node) }

// XtablesLock returns the path of the lock that iptables programs started in the Lab take.
func (l *Lab) XtablesLock() string { return filepath.Join(l.dir, "xtables.lock") }

func (l *Lab) add(name string, v4, v6 netip.Addr) *Host {
	l.t.Helper()
	h := newHost(l.t, l, name)
	h.IPv4, h.IPv6 = v4, v6
	l.hosts[name] = h
	return h
}

// end is one end of a veth pair.
type end struct {
	host *Host
	link netlink.Link
	mac  net.HardwareAddr
}

// veth joins two hosts and returns both ends, which are up.
func (l *Lab) veth(a *Host, aName string, b *Host, bName string) (end, end) {
	l.t.Helper()
	l.links++
	macA := net.HardwareAddr{2, 0, 0, 0, byte(l.links), 1}
	macB := net.HardwareAddr{2, 0, 0, 0, byte(l.links), 2}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = aName, macA
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerHardwareAddr: macB, PeerNamespace: netlink.NsFd(b.ns)}
	l.must("join "+a.Name+" and "+b.Name, a.nl.LinkAdd(pair))
	return l.up(a, aName, macA), l.up(b, bName, macB)
}

func (l *Lab) up(h *Host, name string, mac net.HardwareAddr) end {
	l.t.Helper()
	link, err := h.nl.LinkByName(name)
	l.must("find "+name+" in "+h.Name, err)
	l.must("bring up "+name+" in "+h.Name, h.nl.LinkSetUp(link))
	return end{h, link, mac}
}

// addr gives an interface an address.
func (l *Lab) addr(e end, p netip.Prefix) {
	l.t.Helper()
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = ifaNoDAD
	}
	l.must(fmt.Sprintf("add %s to %s", p, e.host.Name), e.host.nl.AddrAdd(e.link, a))
	e.host.addrs = append(e.host.addrs, p.Addr())
}

// ifaNoDAD is IFA_F_NODAD: the address can be used at once.
const ifaNoDAD = 0x02

// neighbour sets the hardware address of an address on a link, so that nothing has to be resolved.
func (l *Lab) neighbour(e end, a netip.Addr, mac net.HardwareAddr) {
	l.t.Helper()
	l.must(fmt.Sprintf("add neighbour %s to %s", a, e.host.Name), e.host.nl.NeighSet(&netlink.Neigh{
		LinkIndex: e.link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
	}))
}

// route sends a prefix to a link, through a gateway if that is valid. The gateway need not be in any subnet of the
// link.
func (l *Lab) route(e end, p netip.Prefix, via netip.Addr) {
	l.t.Helper()
	r := &netlink.Route{LinkIndex: e.link.Attrs().Index, Dst: ipNet(p)}
	if via.IsValid() {
		r.Gw, r.Src = via.AsSlice(), e.host.Addr(via.Is6()).AsSlice()
		r.Flags = int(netlink.FLAG_ONLINK)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	l.must(fmt.Sprintf("add route to %s in %s", p, e.host.Name), e.host.nl.RouteReplace(r))
}

var default4, default6 = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")

func (l *Lab) joinOutside() {
	l.t.Helper()
	outside := l.add(Outside, OutsideIPv4, OutsideIPv6)
	n, o := l.veth(l.Node(), "eth0", outside, "eth0")
	l.subnet(n, o, NodeIPv4, OutsideIPv4, 24)
	l.subnet(n, o, NodeIPv6, OutsideIPv6, 64)
	l.route(o, default4, NodeIPv4)
	l.route(o, default6, NodeIPv6)
}

func (l *Lab) joinRemote() {
	l.t.Helper()
	remote := l.add(Remote, RemotePodIPv4, RemotePodIPv6)
	remote.sysctl(l.t, "net/ipv4/ip_forward", "1")
	remote.sysctl(l.t, "net/ipv6/conf/all/forwarding", "1")
	n, r := l.veth(l.Node(), "eth1", remote, "eth0")
	l.subnet(n, r, SecondNodeIPv4, RemoteIPv4, 24)
	l.subnet(n, r, SecondNodeIPv6, RemoteIPv6, 64)
	l.addr(r, netip.PrefixFrom(RemotePodIPv4, 32))
	l.addr(r, netip.PrefixFrom(RemotePodIPv6, 128))
	l.route(n, default4, RemoteIPv4)
	l.route(n, default6, RemoteIPv6)
	l.route(r, default4, SecondNodeIPv4)
	l.route(r, default6, SecondNodeIPv6)
	l.endOfTheWorld(r)
}

// transitTable is the routing table for packets that a host only forwards.
const transitTable = 100

// endOfTheWorld answers "unreachable" to all packets that arrive on a link and are not for the host itself.
func (l *Lab) endOfTheWorld(e end) {
	l.t.Helper()
	for family, all := range map[int]netip.Prefix{unix.AF_INET: default4, unix.AF_INET6: default6} {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.IifName, rule.Table = family, transitTable, e.link.Attrs().Name, transitTable
		l.must("add rule for transit", e.host.nl.RuleAdd(rule))
		l.must("add unreachable route", e.host.nl.RouteAdd(&netlink.Route{
			Family: family, Table: transitTable, Type: unix.RTN_UNREACHABLE, Dst: ipNet(all),
		}))
	}
}

// subnet puts both ends of a link into one subnet.
func (l *Lab) subnet(a, b end, addrA, addrB netip.Addr, bits int) {
	l.t.Helper()
	l.addr(a, netip.PrefixFrom(addrA, bits))
	l.addr(b, netip.PrefixFrom(addrB, bits))
	l.neighbour(a, addrB, b.mac)
	l.neighbour(b, addrA, a.mac)
}

// addPod attaches a pod to the node. A pod has nothing but its own address and a default route, so that all of its
// packets pass through the node's routing, on a bridge too.
func (l *Lab) addPod(topo Topology, name string, v4, v6 netip.Addr) *Host {
	l.t.Helper()
	pod := l.add(name, v4, v6)
	toPod, uplink := l.veth(l.Node(), topo.VethPrefix+name, pod, "eth0")
	if topo.Bridge != "" {
		toPod = l.attach(toPod, topo.Bridge)
	}
	for _, f := range []struct {
		pod, gateway netip.Addr
		all          netip.Prefix
	}{{v4, gateway4, default4}, {v6, gateway6, default6}} {
		own := netip.PrefixFrom(f.pod, f.pod.BitLen())
		l.addr(uplink, own)
		l.neighbour(uplink, f.gateway, toPod.mac)
		l.route(uplink, f.all, f.gateway)
		l.neighbour(toPod, f.pod, uplink.mac)
		l.route(toPod, own, netip.Addr{})
	}
	return pod
}

// attach makes a veth interface a port of the bridge, which it creates if need be, and returns the bridge's own end.
func (l *Lab) attach(port end, name string) end {
	l.t.Helper()
	node := port.host
	bridge, err := node.nl.LinkByName(name)
	if err != nil {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = name, net.HardwareAddr{2, 0, 0, 0, 0, 1}
		l.must("create bridge "+name, node.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
		bridge = l.up(node, name, nil).link
	}
	l.must("attach to bridge "+name, node.nl.LinkSetMaster(port.link, bridge))
	// Without it, bridge netfilter would lose packets that return to the pod that sent them.
	l.must("set hairpin mode", node.nl.LinkSetHairpin(port.link, true))
	return end{node, bridge, bridge.Attrs().HardwareAddr}
}

func (l *Lab) must(what string, err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("netlab: %s: %v", what, err)
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Vanish loses every packet to a pod that is not on a bridge, and nobody tells, as when a host loses its power. Appear ends that.
func (l *Lab) Vanish(t testing.TB, pod string) {
	t.Helper()
	l.setNeighbour(t, pod, func(*Host) (net.HardwareAddr, error) { return net.HardwareAddr{2, 0, 0, 0, 0xde, 0xad}, nil })
}

// Appear ends what Vanish began.
func (l *Lab) Appear(t testing.TB, pod string) {
	t.Helper()
	l.setNeighbour(t, pod, func(h *Host) (net.HardwareAddr, error) {
		uplink, err := h.nl.LinkByName("eth0")
		if err != nil {
			return nil, err
		}
		return uplink.Attrs().HardwareAddr, nil
	})
}

// setNeighbour sets the hardware address to which the node sends the packets of a pod.
func (l *Lab) setNeighbour(t testing.TB, pod string, of func(*Host) (net.HardwareAddr, error)) {
	t.Helper()
	h := l.Host(pod)
	mac, err := of(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{h.IPv4, h.IPv6} {
		routes, err := l.Node().nl.RouteGet(a.AsSlice())
		if err == nil {
			err = l.Node().nl.NeighSet(&netlink.Neigh{LinkIndex: routes[0].LinkIndex, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac})
		}
		if err != nil {
			t.Fatalf("netlab: neighbour %s of %s: %v", a, pod, err)
		}
	}
}
