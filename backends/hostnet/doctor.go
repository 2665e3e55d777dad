package hostnet

import (
	"errors"
	"io/fs"

	"weir/backends/doctor"
)

// Doctor looks at what the node has to do with packets. What Ensure sets is no fault.
func (f Forwarding) Doctor(s Sysctl) []doctor.Check {
	var checks []doctor.Check
	if f.IPv4 {
		checks = append(checks, s.examine("net.ipv4.ip_forward", "packets are not forwarded to endpoints", true),
			s.examine("net.bridge.bridge-nf-call-iptables", "Services do not work between pods on one Linux bridge", false))
	}
	if f.IPv6 {
		checks = append(checks, s.examine("net.ipv6.conf.all.forwarding", "IPv6 packets are not forwarded to endpoints outside of the node's own processes", false),
			s.examine("net.bridge.bridge-nf-call-ip6tables", "IPv6 Services do not work between pods on one Linux bridge", false))
	}
	return checks
}

// examine is about a parameter that should be 1. Those that the kernel does not have cannot be in the way.
func (s Sysctl) examine(name, effect string, set bool) doctor.Check {
	c := doctor.Check{Name: name, State: doctor.OK}
	value, err := s.Get(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Detail = "not in this kernel, nothing to set"
	case err != nil:
		c.State, c.Detail = doctor.Advice, err.Error()
	case value != "0":
		c.Detail = value
	case set:
		c.Detail = "0; weir run sets it to 1"
	default:
		c.State, c.Detail, c.Mend = doctor.Advice, "0: "+effect, "sysctl -w "+name+"=1"
	}
	return c
}
