package hostnet

import (
	"fmt"

	"weir/backends"
)

// routeLocalnet makes the kernel route the loopback addresses of IPv4. Rules of weir keep neighbours from them.
const routeLocalnet = "net.ipv4.conf.all.route_localnet"

// Parameter is a kernel parameter that weir needs to have a value.
type Parameter struct {
	Name, Value string
	// Reason says what needs the value.
	Reason string
	// Guarded reports whether rules limit the effect of the value. It is set after the rules, and put back before them.
	Guarded bool
}

// setting is a kernel parameter with its value, as an Item.
type setting struct {
	name, value string
	// reason is that of the Parameter, if the value is the needed one.
	reason string
	// was is the value to put back, of a parameter that nothing needs any more.
	was string
}

// setting returns the parameter with a value, which may be another one than the needed one.
func (p Parameter) setting(value string) setting {
	s := setting{name: p.Name, value: value}
	if value == p.Value {
		s.reason = p.Reason
	}
	return s
}

// ID implements backends.Item.
func (s setting) ID() backends.ID { return backends.ID("sysctl " + s.name) }

// String implements backends.Item.
func (s setting) String() string {
	text := "sysctl " + s.name + " = " + s.value
	if s.was != "" {
		text += ", which was " + s.was
	}
	if s.reason != "" {
		text += ", because " + s.reason
	}
	return text
}

// IsParameter reports whether an Item is a kernel parameter, a mode of a bridge port, a local route, or what has processes ask
// weir for names.
func IsParameter(i backends.Item) bool {
	switch i.(type) {
	case setting, hairpin, delivery, answerRoutes, nodeName:
		return true
	}
	return false
}

// Parameters returns the kernel parameters that forwarding depends on.
func (f Forwarding) Parameters() (list []Parameter) {
	if f.IPv4 {
		list = append(list, Parameter{Name: "net.ipv4.ip_forward", Value: "1", Reason: "packets are forwarded to endpoints"})
	}
	if f.Localhost {
		list = append(list, Parameter{Name: routeLocalnet, Value: "1", Reason: "node ports are served on loopback addresses", Guarded: true})
	}
	return list
}

// LoopbackWarning returns that neighbours can reach the loopback addresses, where no rule of weir guards them and the state
// directory has no record of the parameter. It returns "" if the kernel does not route these addresses.
func LoopbackWarning(s Sysctl, stateDir string) string {
	if value, err := s.Get(routeLocalnet); err != nil || value != "1" {
		return ""
	}
	return fmt.Sprintf("%s is 1, and %s has no record that weir set it: with it neighbours can reach servers on 127.0.0.1; unless something else needs it: sysctl -w %s=0", routeLocalnet, stateDir, routeLocalnet)
}
