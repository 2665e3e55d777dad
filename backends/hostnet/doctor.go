package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"

	"weir/backends/doctor"
)

// Doctor checks whether the node forwards packets. A parameter that Ensure sets is not a fault, unless it is set without the
// rule that guards the loopback addresses. guarded reports whether the kernel holds that rule.
func (f Forwarding) Doctor(s Sysctl, guarded func() (bool, error)) []doctor.Check {
	var checks []doctor.Check
	if f.IPv4 {
		for _, p := range (Forwarding{IPv4: true, Localhost: true}).Parameters() {
			c := s.planned(p)
			if value, err := s.Get(p.Name); p.Guarded && err == nil && value == p.Value {
				c = unguarded(c, p, guarded)
			}
			checks = append(checks, c)
		}
	}
	if f.IPv6 {
		checks = append(checks, s.examine("net.ipv6.conf.all.forwarding", "IPv6 packets are not forwarded to endpoints outside of the node's own processes"), examineAnswerRoutes())
	}
	return checks
}

// examineAnswerRoutes describes the local routes to ::1, which are no fault in themselves.
func examineAnswerRoutes() doctor.Check {
	c := doctor.Check{Name: answerRoutesID, State: doctor.OK}
	_, routes, err := lookLocalRoutes()
	switch {
	case err != nil:
		c.State, c.Detail = doctor.Advice, err.Error()
	case len(routes) > 0:
		c.Detail = fmt.Sprintf("weir made %d, so that answers to node ports at ::1 arrive", len(routes))
	default:
		c.Detail = "none but the kernel's own; weir run makes one at every interface where node ports are served at ::1"
	}
	return c
}

// planned describes a parameter that weir run sets where its reason applies, which is no fault unless it cannot be set.
func (s Sysctl) planned(p Parameter) doctor.Check {
	c := doctor.Check{Name: p.Name, State: doctor.OK}
	value, err := s.Get(p.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Detail = "not in this kernel, nothing to set"
	case err != nil:
		c.State, c.Detail = doctor.Advice, err.Error()
	case value == p.Value:
		c.Detail = fmt.Sprintf("%s, as weir run sets it where %s", value, p.Reason)
	case !s.writable(p.Name):
		c.State, c.Detail = doctor.Advice, fmt.Sprintf("%s, and cannot be set here: weir run needs %s where %s", value, p.Value, p.Reason)
		c.Mend = "sysctl -w " + p.Name + "=" + p.Value
	default:
		c.Detail = fmt.Sprintf("%s; weir run sets it to %s where %s", value, p.Value, p.Reason)
	}
	return c
}

// unguarded turns the check of a parameter that rules guard, and that is set, into advice if they are not there.
func unguarded(c doctor.Check, p Parameter, guarded func() (bool, error)) doctor.Check {
	held, err := guarded()
	switch {
	case err != nil:
		c.State, c.Detail = doctor.Advice, fmt.Sprintf("%s, and whether a rule of weir keeps neighbours from servers on 127.0.0.1 cannot be told: %v", p.Value, err)
	case !held:
		c.State, c.Detail = doctor.Advice, p.Value+", and no rule of weir keeps neighbours from servers on 127.0.0.1: set it to 0 unless something else needs it"
		c.Mend = "sysctl -w " + p.Name + "=0"
	}
	return c
}

// examine checks a parameter that should be 1. A parameter that the kernel does not have is not a fault.
func (s Sysctl) examine(name, effect string) doctor.Check {
	c := doctor.Check{Name: name, State: doctor.OK}
	value, err := s.Get(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Detail = "not in this kernel, nothing to set"
	case err != nil:
		c.State, c.Detail = doctor.Advice, err.Error()
	case value != "0":
		c.Detail = value
	default:
		c.State, c.Detail, c.Mend = doctor.Advice, "0: "+effect, "sysctl -w "+name+"=1"
		if name == "net.ipv6.conf.all.forwarding" {
			c.Detail += keepRouterAdvertisements
			c.Mend = "sysctl -w net.ipv6.conf.IFACE.accept_ra=2 " + name + "=1"
		}
	}
	return c
}

// BridgeChecks says of each network of a bridge what weir run does for the pods in it.
func BridgeChecks(s Sysctl) []doctor.Check {
	ports, err := bridgePorts()
	if err != nil {
		return []doctor.Check{{Name: "bridges", State: doctor.Advice, Detail: err.Error()}}
	}
	var checks []doctor.Check
	err = eachBridge(func(l netlink.Link, network netip.Prefix) {
		c := doctor.Check{Name: "bridge " + l.Attrs().Name + ", " + network.String(), State: doctor.OK}
		all, with := 0, 0
		for _, p := range ports {
			if p.bridge == l.Attrs().Index {
				all++
				if p.hairpin {
					with++
				}
			}
		}
		name := filtersParameter(network.Addr().Is4())
		if s.filtersBridges(network.Addr().Is4()) {
			c.Detail = fmt.Sprintf("its frames pass through the packet filter (%s is 1), so that a pod reaches itself through a Service only if its port has hairpin mode: %d of %d ports have it, and weir run sets it on those of endpoints, in every mode but userspace", name, with, all)
			if network.Addr().Is6() {
				c.Detail += "; connections to node ports at ::1 are carried by weir itself then"
			}
		} else {
			c.Detail = fmt.Sprintf("its frames do not pass through the packet filter (%s is not 1), so weir run masquerades connections to Services from one pod to another", name)
		}
		checks = append(checks, c)
	})
	if err != nil {
		checks = append(checks, doctor.Check{Name: "bridges", State: doctor.Advice, Detail: err.Error()})
	}
	return checks
}

// Recorded returns a check for each kernel parameter that the state directory says weir set since the last boot in this network
// namespace, with the value that it had.
func Recorded(s Sysctl, stateDir string) []doctor.Check {
	l, err := readLedger(filepath.Join(stateDir, ledgerFile))
	switch boot, ns := identity(); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return []doctor.Check{{Name: "kernel parameters that were set", State: doctor.Advice, Detail: "the values that they had are not known: " + err.Error()}}
	case l.Boot != boot || l.Namespace != ns:
		return nil
	}
	var checks []doctor.Check
	for _, name := range slices.Sorted(maps.Keys(l.Parameters)) {
		r := l.Parameters[name]
		c := doctor.Check{Name: name + ", kept", State: doctor.OK, Detail: fmt.Sprintf("weir set it to %s and puts %s back where nothing needs it any more", r.Set, r.Was)}
		if now, err := s.Get(name); err == nil && now != r.Set {
			c.State, c.Detail = doctor.Advice, fmt.Sprintf("%s, although weir set it to %s (it was %s before): something set it since", now, r.Set, r.Was)
		}
		checks = append(checks, c)
	}
	for _, index := range slices.Sorted(maps.Keys(l.Ports)) {
		if r := l.Ports[index]; !r.Had {
			checks = append(checks, doctor.Check{Name: "hairpin of " + r.Name + ", kept", State: doctor.OK,
				Detail: fmt.Sprintf("weir set it, because %s (%v), and puts it back where nothing needs it any more", hairpinReason, r.For)})
		}
	}
	return checks
}

// HasRecord reports whether a state directory has a record of what weir set on a node.
func HasRecord(stateDir string) bool {
	_, err := readLedger(filepath.Join(stateDir, ledgerFile))
	return err == nil
}

// HairpinPorts returns the names of the first ports of bridges in hairpin mode, whoever set it.
func HairpinPorts() (names []string) {
	ports, _ := bridgePorts() // of those that cannot be read, nothing can be told
	for _, p := range ports {
		if p.hairpin {
			names = append(names, p.name)
		}
	}
	if slices.Sort(names); len(names) > maxPortNames {
		names = append(names[:maxPortNames], "others")
	}
	return names
}

// maxPortNames is how many ports of bridges HairpinPorts names.
const maxPortNames = 5

// Remaining reports whether the state directory says that weir has set something on this node that is in force.
func Remaining(s Sysctl, stateDir string) bool {
	k := NewKeeper(hclog.NewNullLogger(), s)
	k.Remember(stateDir)
	ports, err := bridgePorts()
	for index, r := range k.hairpins.ports {
		if p, there := ports[index]; err == nil && there && p.name == r.Name && p.hairpin && !r.Had {
			return true
		}
	}
	return len(k.unneeded(nil)) > 0
}
