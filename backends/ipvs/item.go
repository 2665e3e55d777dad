package ipvs

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/xtables"
)

// Link is the dummy interface that holds the addresses of Services.
type Link struct{}

// LinkName is the name of the Link.
const LinkName = "weir-ipvs0"

// ID and String implement backends.Item.
func (Link) ID() backends.ID  { return "link " + LinkName }
func (l Link) String() string { return string(l.ID()) }

// Address is an address on the Link.
type Address struct {
	Addr netip.Addr
	// Leaving reports whether the address is deleted with the last connection through it.
	Leaving bool
}

// ID and String implement backends.Item.
func (a Address) ID() backends.ID { return backends.ID("addr " + a.Addr.String()) }
func (a Address) String() string  { return string(a.ID()) }

// ServerKey is the key by which the kernel finds a virtual server: the mark of a packet, or else its protocol, address
// and port.
type ServerKey struct {
	Family   dataplane.Family
	Mark     uint32
	Protocol dataplane.Protocol
	Addr     netip.AddrPort
}

// String returns "vs tcp 10.96.0.1:80" or "vs ip4 mark 0x80001234".
func (k ServerKey) String() string {
	if k.Mark != 0 {
		return fmt.Sprintf("vs %s mark %#x", xtables.Tag(k.Family), k.Mark)
	}
	return "vs " + xtables.ProtocolName(k.Protocol) + " " + k.Addr.String()
}

// Server is a virtual server.
type Server struct {
	ServerKey
	Scheduler string
	// Affinity is the number of seconds for which a client stays with its destination; 0 means no session affinity.
	Affinity uint32
	// Fallback lets a scheduler that hashes clients (sh, mh) choose another destination for clients whose destination
	// has weight 0, as a leaving one has. Otherwise those clients are refused.
	Fallback bool
	// Retake makes Put take over an existing virtual server that lacks weir's mark.
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

// Destination is an endpoint to which a virtual server sends connections.
type Destination struct {
	Server ServerKey
	Addr   netip.AddrPort
	Weight uint16
	// Until is the second, since 1970, at which a leaving destination is deleted; 0 for a destination that is not
	// leaving.
	Until uint32
	// Connections is the number of its connections when it was read.
	Connections int
	// Altered reports whether another program gave the destination settings that weir's do not have: another way of
	// forwarding than NAT, or a bound of its connections. Put corrects that.
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
	Family dataplane.Family
	// Marks reports whether members carry marks.
	Marks bool
}

// ID and String implement backends.Item.
func (s Set) ID() backends.ID { return backends.ID("set " + s.Name) }
func (s Set) String() string {
	text := "set " + s.Name + " " + s.Type
	if s.Family != 0 {
		text += " " + xtables.Tag(s.Family)
	}
	if s.Marks {
		text += " skbinfo"
	}
	return text
}

// Member is a member of a Set. Fields that the set's type does not have are zero.
type Member struct {
	Set      string
	Addr     netip.Addr
	Protocol dataplane.Protocol
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
			t = append(append(t, xtables.ProtocolName(m.Protocol)...), ':')
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

// Timeouts are how long IPVS keeps connections without traffic; 0 leaves the present value.
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

// only returns t with only the fields that are set in of.
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
