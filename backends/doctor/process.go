package doctor

import (
	"maps"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Capable reports whether this process has a capability, such as unix.CAP_NET_ADMIN.
func Capable(capability int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&header, &data[0]) == nil && data[capability/32].Effective&(1<<(capability%32)) != 0
}

// NetAdmin checks the capability that every mode but a rootless one needs.
func NetAdmin() Check {
	c := Check{Name: "CAP_NET_ADMIN", State: OK, Detail: "this process has it"}
	if !Capable(unix.CAP_NET_ADMIN) {
		c.State, c.Detail = Missing, "this process does not have it: run it as root, or give its service AmbientCapabilities=CAP_NET_ADMIN"
		c.Mend = "weir doctor"
	}
	return c
}

// Kernel checks the version of the kernel and the user namespace of this process.
func Kernel() Check {
	c := Check{Name: "kernel", State: OK, Detail: KernelRelease()}
	if !InFirstUserNamespace() {
		c.State = Advice
		c.Detail += ", and this process is in a user namespace: it cannot load modules, nor set all parameters"
	}
	return c
}

// InFirstUserNamespace reports whether root of this user namespace is root of the system.
func InFirstUserNamespace() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	return err != nil || strings.Join(strings.Fields(string(data)), " ") == "0 0 4294967295"
}

// KubeProxy checks for objects of a kube-proxy, running or not, on this node.
func KubeProxy(what string, found map[string]bool) Check {
	c := Check{Name: "kube-proxy", State: OK, Detail: "nothing of it is here"}
	if len(found) > 0 {
		c.State, c.Mend = Advice, "kube-proxy --cleanup"
		c.Detail = what + " are here, and would serve Services as well: " + strings.Join(slices.Sorted(maps.Keys(found)), ", ")
	}
	return c
}

// Labels checks for labels of connections.
func Labels(has bool) Check {
	c := Check{Name: "connection labels", State: OK, Detail: "only connections of Services are masqueraded"}
	if !has {
		c.State, c.Mend = Advice, "modprobe xt_connlabel, or a kernel with CONFIG_NF_CONNTRACK_LABELS"
		c.Detail = "missing: what another program translates is masqueraded too if it has the masquerade mark"
	}
	return c
}
