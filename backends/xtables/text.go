package xtables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"weir/backends"
	"weir/backends/dataplane"
)

// Tag returns the name of a family, as IDs use it.
func Tag(f dataplane.Family) string {
	if f == dataplane.IPv6 {
		return "ip6"
	}
	return "ip4"
}

// ProtocolName returns the name of a protocol, as rules use it.
func ProtocolName(p dataplane.Protocol) string {
	switch p {
	case dataplane.TCP:
		return "tcp"
	case dataplane.UDP:
		return "udp"
	}
	return "sctp"
}

// ProtocolNamed returns the protocol with a name that rules use.
func ProtocolNamed(name string) (dataplane.Protocol, bool) {
	for _, p := range []dataplane.Protocol{dataplane.TCP, dataplane.UDP, dataplane.SCTP} {
		if ProtocolName(p) == name {
			return p, true
		}
	}
	return 0, false
}

// AppendAddr writes an address as iptables-save does. It follows inet_ntop, which differs from netip for IPv6 addresses
// that end in an IPv4 address after nothing but zeroes.
func AppendAddr(b []byte, a netip.Addr) []byte {
	if a.Is6() {
		raw := a.As16()
		if [12]byte(raw[:12]) == [12]byte{} && (raw[12] != 0 || raw[13] != 0) {
			return netip.AddrFrom4([4]byte(raw[12:])).AppendTo(append(b, "::"...))
		}
	}
	return a.AppendTo(b)
}

// AppendAddrPort writes an address with a port as iptables-save does.
func AppendAddrPort(b []byte, a netip.AddrPort) []byte {
	if a.Addr().Is4() {
		return a.AppendTo(b)
	}
	b = append(AppendAddr(append(b, '['), a.Addr()), "]:"...)
	return strconv.AppendInt(b, int64(a.Port()), 10)
}

// PrefixText writes a prefix as iptables-save does.
func PrefixText(p netip.Prefix) string {
	b := AppendAddr(make([]byte, 0, 48), p.Addr())
	return string(strconv.AppendInt(append(b, '/'), int64(p.Bits()), 10))
}

// HostText writes an address as a prefix of full length, as iptables-save does.
func HostText(a netip.Addr) string { return PrefixText(netip.PrefixFrom(a, a.BitLen())) }

// MarkText writes a packet mark of one bit with its mask.
func MarkText(mark uint32) string { return fmt.Sprintf("%#x/%#x", mark, mark) }

// SetMark returns the target that sets a packet mark of one bit, and ClearMark the one that clears it.
func SetMark(mark uint32) string { return "-j MARK --set-xmark " + MarkText(mark) }

// SetLabel returns the match that sets weir's label on the connection and then holds, and Labelled the one for
// connections that have it.
func SetLabel() string { return Labelled() + " --set" }

// Labelled is described at SetLabel.
func Labelled() string { return `-m connlabel --label "` + dataplane.ConnectionLabelText + `"` }

// ClearMark returns the target that clears a packet mark of one bit.
func ClearMark(mark uint32) string { return fmt.Sprintf("-j MARK --set-xmark %#x/0x0", mark) }

// Masquerade returns the target that masquerades, with random source ports if the node supports them.
func Masquerade(randomFully bool) string {
	if randomFully {
		return "-j MASQUERADE --random-fully"
	}
	return "-j MASQUERADE"
}

// PodMatch holds the matches for traffic that starts in a pod of this node, and for all other traffic. Both are empty
// if the local detector cannot tell one from the other.
type PodMatch struct{ From, NotFrom string }

// MatchPods returns the matches of a local detector.
func MatchPods(d dataplane.LocalDetector, f dataplane.Family) PodMatch {
	match := ""
	if p, ok := d.PodCIDR(f); ok {
		if p.Bits() == 0 {
			return PodMatch{}
		}
		match = "-s " + PrefixText(p.Masked())
	} else if d.Interface == "" {
		return PodMatch{}
	} else if match = "-i " + d.Interface; d.Prefix {
		match += "+"
	}
	return PodMatch{From: match, NotFrom: "! " + match}
}

// CheckDetector returns an error if a local detector names an impossible interface.
func CheckDetector(d dataplane.LocalDetector) error {
	if len(d.Interface) > 15 || strings.ContainsAny(d.Interface, " \t\r\n\"'\\/+!") {
		return fmt.Errorf("detectLocal: %q cannot be the name of an interface", d.Interface)
	}
	return nil
}

// LoopbackGuard drops what arrives from another host for the loopback addresses of IPv4, or as if from them: servers take
// such clients for local ones. The rules stand in a chain of PREROUTING, before any translation.
var LoopbackGuard = []string{"-d 127.0.0.0/8 ! -i lo -j DROP", "-s 127.0.0.0/8 ! -i lo -j DROP"}

// GuardsLoopback reports whether an Item is a chain that keeps neighbours from the loopback addresses of IPv4.
func GuardsLoopback(i backends.Item) bool {
	item, ok := i.(Item)
	return ok && strings.HasPrefix(string(item), At(dataplane.IPv4, "mangle")) && !slices.ContainsFunc(LoopbackGuard, func(rule string) bool {
		return !strings.Contains(string(item)+"\n", " "+rule+"\n")
	})
}

// InvalidReset drops the resets with which the node answers segments that conntrack considers invalid. Such a segment
// is not translated back. It arrives at the node if its connection is masqueraded, and no socket of the node knows it.
const InvalidReset = "-p tcp -m tcp --tcp-flags RST RST -m conntrack --ctstate INVALID -j DROP"
