package conntrack

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"weir/backends/hostnet"
)

// Limits is the conntrack section of the KubeProxyConfiguration. The value 0 keeps the kernel's value.
type Limits struct {
	// MaxPerCore and Min bound the number of tracked flows: MaxPerCore for each CPU, but at least Min. Min alone does
	// nothing.
	MaxPerCore, Min int
	// The timeouts of idle flows. The kernel counts in seconds.
	TCPEstablished, TCPCloseWait, UDP, UDPStream time.Duration
	// TCPBeLiberal accepts packets outside of a connection's window. False keeps the kernel's setting.
	TCPBeLiberal bool
}

// HashSizer sets the number of buckets of the table of flows, which is not a sysctl.
type HashSizer interface {
	// EnsureHashSize grows the table to the number of buckets; it never shrinks it.
	EnsureHashSize(buckets int) error
}

// HashTable is the kernel's table of flows, which all network namespaces share. The zero value uses the module
// parameter in /sys.
type HashTable struct {
	// File replaces /sys/module/nf_conntrack/parameters/hashsize.
	File string
}

// EnsureHashSize grows the table to the number of buckets. The kernel allows it in the host's network namespace only.
func (h HashTable) EnsureHashSize(buckets int) error {
	file := cmp.Or(h.File, "/sys/module/nf_conntrack/parameters/hashsize")
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	is, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if is >= buckets {
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.Itoa(buckets))
	return errors.Join(err, f.Close())
}

// flowsPerBucket is the kernel's own ratio of nf_conntrack_max to hash buckets, which kube-proxy keeps.
const flowsPerBucket = 4

// Parameters returns the kernel parameters for the limits, as kube-proxy sets them, for a machine with the given number
// of CPUs.
func (l Limits) Parameters(cpus int) (list []hostnet.Parameter) {
	add := func(name string, value int) {
		if value > 0 {
			list = append(list, hostnet.Parameter{Name: "net.netfilter." + name, Value: strconv.Itoa(value), Reason: "the configuration's conntrack section asks for it"})
		}
	}
	add("nf_conntrack_max", l.Max(cpus))
	add("nf_conntrack_tcp_timeout_established", seconds(l.TCPEstablished))
	add("nf_conntrack_tcp_timeout_close_wait", seconds(l.TCPCloseWait))
	add("nf_conntrack_udp_timeout", seconds(l.UDP))
	add("nf_conntrack_udp_timeout_stream", seconds(l.UDPStream))
	if l.TCPBeLiberal {
		add("nf_conntrack_tcp_be_liberal", 1)
	}
	return list
}

// GrowTable gives the table of flows the buckets that the limits need. The error is a warning, since forwarding works
// without.
func (l Limits) GrowTable(h HashSizer, cpus int) error {
	most := l.Max(cpus)
	if most == 0 {
		return nil
	}
	if err := h.EnsureHashSize(most / flowsPerBucket); err != nil {
		return fmt.Errorf("conntrack hash size: %w", err)
	}
	return nil
}

// Max returns the number of flows to track on a machine with that many CPUs, or 0 for no change.
func (l Limits) Max(cpus int) int {
	if l.MaxPerCore <= 0 {
		return 0
	}
	return max(l.MaxPerCore*cpus, l.Min)
}

// seconds rounds up, so that a short timeout does not become 0.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
