package ipvs

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"weir/backends"
)

// Link is the dummy interface that holds the addresses of Services.
type Link struct{}

// LinkName is its name.
const LinkName = "weir-ipvs0"

// ID and String implement backends.Item.
func (Link) ID() backends.ID  { return "link " + LinkName }
func (l Link) String() string { return string(l.ID()) }

// Address is an address on the Link.
type Address struct {
	Addr netip.Addr
	// Leaving says that the address goes with the last connections through it.
	Leaving bool
}

// ID and String implement backends.Item.
func (a Address) ID() backends.ID { return backends.ID("addr " + a.Addr.String()) }
func (a Address) String() string  { return string(a.ID()) }

// ServerKey is what the kernel finds a virtual server by: the mark of a packet, or else its protocol, address and port.
type ServerKey struct {
	Family   backends.Family
	Mark     uint32
	Protocol backends.Protocol
	Addr     netip.AddrPort
}

// String returns "vs tcp 10.96.0.1:80" or "vs ip4 mark 0x80001234".
func (k ServerKey) String() string {
	if k.Mark != 0 {
		return fmt.Sprintf("vs %s mark %#x", tag(k.Family), k.Mark)
	}
	return "vs " + protocol(k.Protocol) + " " + k.Addr.String()
}

// Server is a virtual server.
type Server struct {
	ServerKey
	Scheduler string
	// Affinity is for how many seconds a client stays with its destination; 0 means that it does not.
	Affinity uint32
	// Fallback has a scheduler that hashes clients (sh, mh) find another destination for those that belong to one with
	// weight 0, as one that leaves has. Else they are refused.
	Fallback bool
	// Retake has Put take a virtual server that is there without weir's mark for weir's.
	Retake bool
}

// ID and String implement backends.Item.
func (s Server) ID() backends.ID { return backends.ID(s.ServerKey.String()) }
func (s Server) String() string {
	text := s.ServerKey.String() + " " + s.Scheduler
	if s.Affinity > 0 {
		text += " persistent " + strconv.FormatUint(uint64(s.Affinity), 10)
	}
	if s.Fallback {
		text += " fallback"
	}
	return text
}

// Destination is where a virtual server sends connections.
type Destination struct {
	Server ServerKey
	Addr   netip.AddrPort
	Weight uint16
	// Until is the second at which a leaving destination goes, since 1970; 0 for one that is not leaving.
	Until uint32
	// Connections is how many it has, as it was read.
	Connections int
	// Altered says that somebody gave it what those of weir do not have: another way of forwarding than NAT, or a bound of
	// its connections. Put puts that right.
	Altered bool
}

// ID and String implement backends.Item.
func (d Destination) ID() backends.ID {
	return backends.ID(d.Server.String() + " -> " + d.Addr.String())
}
func (d Destination) String() string {
	text := string(d.ID()) + " weight " + strconv.Itoa(int(d.Weight))
	if d.Altered {
		text += " altered"
	}
	return text
}

// Set is an ipset.
type Set struct {
	Name, Type string
	// Family is 0 for sets that hold no addresses.
	Family backends.Family
	// Marks says that members carry marks.
	Marks bool
}

// ID and String implement backends.Item.
func (s Set) ID() backends.ID { return backends.ID("set " + s.Name) }
func (s Set) String() string {
	text := "set " + s.Name + " " + s.Type
	if s.Family != 0 {
		text += " " + tag(s.Family)
	}
	if s.Marks {
		text += " skbinfo"
	}
	return text
}

// Member is a member of a Set. What the set's type does not have is zero.
type Member struct {
	Set      string
	Addr     netip.Addr
	Protocol backends.Protocol
	Port     uint16
	Other    netip.Prefix
	Mark     uint32
}

// ID and String implement backends.Item.
func (m Member) ID() backends.ID {
	var buf [128]byte
	t := append(append(buf[:0], "set "...), m.Set...)
	t = append(t, ' ')
	if m.Addr.IsValid() {
		t = m.Addr.AppendTo(t)
	}
	if m.Port != 0 {
		if m.Addr.IsValid() {
			t = append(t, ',')
		}
		if m.Protocol != 0 {
			t = append(append(t, protocol(m.Protocol)...), ':')
		}
		t = strconv.AppendUint(t, uint64(m.Port), 10)
	}
	if m.Other.IsValid() {
		t = m.Other.AppendTo(append(t, ','))
	}
	return backends.ID(t)
}
func (m Member) String() string {
	if m.Mark != 0 {
		return string(m.ID()) + fmt.Sprintf(" mark %#x", m.Mark)
	}
	return string(m.ID())
}

// Timeouts are how long IPVS keeps connections on which nothing is sent; 0 leaves what there is.
type Timeouts struct{ TCP, TCPFin, UDP time.Duration }

// ID and String implement backends.Item.
func (Timeouts) ID() backends.ID { return "timeouts" }
func (t Timeouts) String() string {
	text := "timeouts"
	for _, v := range []struct {
		name  string
		value time.Duration
	}{{"tcp", t.TCP}, {"tcpfin", t.TCPFin}, {"udp", t.UDP}} {
		if v.value > 0 {
			text += fmt.Sprintf(" %s %d", v.name, int64(v.value/time.Second))
		}
	}
	return text
}

// only keeps the fields that of has.
func (t Timeouts) only(of Timeouts) Timeouts {
	if of.TCP == 0 {
		t.TCP = 0
	}
	if of.TCPFin == 0 {
		t.TCPFin = 0
	}
	if of.UDP == 0 {
		t.UDP = 0
	}
	return t
}

// Sysctl is a kernel parameter. It is only changed, never put back: it is not known who else relies on it.
type Sysctl struct{ Name, Value string }

// ID and String implement backends.Item.
func (s Sysctl) ID() backends.ID { return backends.ID("sysctl " + s.Name) }
func (s Sysctl) String() string  { return "sysctl " + s.Name + " = " + s.Value }

// Rules is a chain with its rules in order, or a hook: a rule in a built-in chain, ahead of all rules that would keep packets
// from it. Its text is that of iptables-save:
//
//	ip4 nat WEIR-IPVS-SERVICES
//	-A WEIR-IPVS-SERVICES …
//
//	ip4 nat PREROUTING -j WEIR-IPVS-SERVICES
type Rules string

// ID implements backends.Item.
func (r Rules) ID() backends.ID {
	id, _, _ := strings.Cut(string(r), "\n")
	return backends.ID(id)
}

// String implements backends.Item.
func (r Rules) String() string { return string(r) }

// tag is how items name a family.
func tag(f backends.Family) string {
	if f == backends.IPv6 {
		return "ip6"
	}
	return "ip4"
}

func protocol(p backends.Protocol) string {
	switch p {
	case backends.TCP:
		return "tcp"
	case backends.UDP:
		return "udp"
	case backends.SCTP:
		return "sctp"
	}
	return strings.ToLower(p.String())
}
