package ipvs

import (
	"fmt"
	"strings"

	"github.com/moby/ipvs"
	"github.com/vishvananda/netlink"

	"weir/backends/doctor"
	"weir/backends/hostnet"
)

// schedulers are all schedulers that kernels have.
var schedulers = []string{"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "mh", "fo", "ovf", "twos"}

// Doctor checks the requirements of the mode, with the given scheduler, on a kernel of the given version.
func Doctor(scheduler string, kernel [2]int) []doctor.Check {
	modules := doctor.Modules{}
	checks := []doctor.Check{doctor.NetAdmin()}
	for _, part := range parts {
		checks = append(checks, modules.CheckWork(part.does, part.module, part.probe()))
	}
	works := probeIPVS() == nil
	tracking := modules.Check("connection tracking", "nf_conntrack")
	if tracking.State == doctor.Advice && works {
		tracking.State = doctor.OK // no list of modules tells
	}
	checks = append(checks, tracking, checkSchedulers(modules, scheduler))
	if works {
		for _, s := range (Settings{Kernel: kernel}).Parameters() {
			checks = append(checks, checkSysctl(s))
		}
		checks = append(checks, checkServers())
	}
	future := doctor.Check{Name: "future", State: doctor.OK, Detail: "weir keeps this mode; kube-proxy has it only if asked from 1.40 on, and no more from 1.43 (KEP-5495)"}
	return append(checks, checkKubeProxy(), future)
}

// checkSchedulers checks the required scheduler, and lists the others.
func checkSchedulers(modules doctor.Modules, scheduler string) doctor.Check {
	c := modules.Check("scheduler "+scheduler, "ip_vs_"+scheduler)
	var have []string
	for _, s := range schedulers {
		switch modules.Find("ip_vs_" + s) {
		case doctor.Absent, doctor.Unknown:
		default:
			have = append(have, s)
		}
	}
	if len(have) > 0 {
		c.Detail += "; there are: " + strings.Join(have, " ")
	}
	return c
}

// checkSysctl checks a parameter that weir sets.
func checkSysctl(s hostnet.Parameter) doctor.Check {
	c := doctor.Check{Name: s.Name, State: doctor.OK}
	is, err := hostnet.Sysctl{}.Get(s.Name)
	switch {
	case err != nil:
		c.State, c.Detail = doctor.Advice, err.Error()
	case is == s.Value:
		c.Detail = is
	default:
		c.Detail = fmt.Sprintf("%s; weir sets it to %s", is, s.Value)
	}
	return c
}

// checkServers counts weir's virtual servers and those of other programs.
func checkServers() doctor.Check {
	c := doctor.Check{Name: "virtual servers", State: doctor.OK}
	handle, err := ipvs.New("")
	if err == nil {
		defer handle.Close()
		var services []*ipvs.Service
		if services, err = handle.GetServices(); err == nil {
			own := 0
			for _, s := range services {
				if owned(s) {
					own++
				}
			}
			others := len(services) - own
			c.Detail = fmt.Sprintf("of weir: %d, of others: %d", own, others)
			if others > 0 {
				c.State, c.Mend = doctor.Advice, "ipvsadm -Ln"
				c.Detail += ", which weir leaves alone; on an address and port of a Service they are in its way"
			}
			return c
		}
	}
	c.State, c.Detail = doctor.Missing, "cannot be listed: "+err.Error()
	return c
}

// checkKubeProxy checks whether a kube-proxy in its ipvs mode has programmed this node.
func checkKubeProxy() doctor.Check {
	found := map[string]bool{}
	if _, err := netlink.LinkByName("kube-ipvs0"); err == nil {
		found["kube-ipvs0"] = true
	}
	return doctor.KubeProxy("addresses of it", found)
}
