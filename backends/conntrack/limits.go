package conntrack

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Limits is the conntrack section of the KubeProxyConfiguration. A value of 0 leaves the kernel's as it is.
type Limits struct {
	// MaxPerCore and Min bound the number of tracked flows: MaxPerCore for each CPU, but at least Min. Min alone does
	// nothing.
	MaxPerCore, Min int
	// The timeouts of idle flows. The kernel counts in seconds.
	TCPEstablished, TCPCloseWait, UDP, UDPStream time.Duration
	// TCPBeLiberal accepts packets that are outside of a connection's window. False leaves the kernel's setting as it is.
	TCPBeLiberal bool
}

// Sysctls sets kernel parameters.
type Sysctls interface {
	// Ensure writes the value unless it is there already, and says whether it wrote.
	Ensure(name, value string) (changed bool, err error)
}

// HashSizer sets the number of buckets of the table of flows, which is not a sysctl.
type HashSizer interface {
	// EnsureHashSize grows the table to the number of buckets; it never shrinks it.
	EnsureHashSize(buckets int) error
}

// HashTable is the kernel's table of flows, which all network namespaces share. The zero value uses the module parameter in
// /sys.
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

// ApplyLimits writes the limits as kube-proxy does, for a machine with the given number of CPUs. In a container /proc/sys
// is often read-only, and in a network namespace some of it belongs to the host: each limit that cannot be set is an error
// in the result, which is a warning, since forwarding works without. The others are set all the same. A nil HashSizer
// leaves the hash table alone.
func ApplyLimits(s Sysctls, h HashSizer, cpus int, l Limits) error {
	var errs []error
	set := func(name string, value int) {
		if value <= 0 {
			return
		}
		if _, err := s.Ensure("net.netfilter."+name, strconv.Itoa(value)); err != nil {
			errs = append(errs, fmt.Errorf("conntrack limit: %w", err))
		}
	}
	most := l.Max(cpus)
	set("nf_conntrack_max", most)
	if most > 0 && h != nil {
		if err := h.EnsureHashSize(most / flowsPerBucket); err != nil {
			errs = append(errs, fmt.Errorf("conntrack hash size: %w", err))
		}
	}
	set("nf_conntrack_tcp_timeout_established", seconds(l.TCPEstablished))
	set("nf_conntrack_tcp_timeout_close_wait", seconds(l.TCPCloseWait))
	set("nf_conntrack_udp_timeout", seconds(l.UDP))
	set("nf_conntrack_udp_timeout_stream", seconds(l.UDPStream))
	if l.TCPBeLiberal {
		set("nf_conntrack_tcp_be_liberal", 1)
	}
	return errors.Join(errs...)
}

// Max returns the number of flows that may be tracked on a machine with that many CPUs, or 0 for no change.
func (l Limits) Max(cpus int) int {
	if l.MaxPerCore <= 0 {
		return 0
	}
	return max(l.MaxPerCore*cpus, l.Min)
}

// seconds rounds up, so that a short timeout does not become none.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }
