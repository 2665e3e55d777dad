// Package ipvs programs Services as virtual servers of the kernel's IPVS, which finds the one for a packet by hashing and
// offers a choice of schedulers.
//
// Every address of a Service is put on the dummy interface weir-ipvs0, so that the kernel takes packets for it as its own,
// and every address and port is a virtual server with a destination for each endpoint:
//
//	PREROUTING → INPUT  ┐
//	                    ├→ virtual server → destination → POSTROUTING
//	OUTPUT ─────────────┘
//
// What IPVS cannot do is left to a constant handful of iptables rules, in chains that begin with WEIR-IPVS-, and to ipsets
// that they match: which connections are masqueraded, whose source may not connect, what is refused. Nothing but set
// members is added for another Service.
//
// Traffic policy Local: the virtual server holds this node's endpoints. What starts on this node or in its pods may use all
// endpoints: the set of such addresses gives these packets a mark, and a second virtual server, found by that mark, holds
// all endpoints.
//
// A Service port without endpoints has no virtual server: its address is in the set of those that are rejected, or dropped
// where policy Local says so.
//
// Whose a virtual server is can be seen in the kernel: the top byte of its flags, of which the kernel uses only the lowest
// bits and keeps the others, holds a mark. So a lost state directory loses nothing, `weir cleanup` needs none, and there is
// no moment in which a crash could leave a virtual server that nobody owns. Virtual servers without the mark are never
// touched, wherever they are: the field excludeCIDRs asks for what holds of all addresses. One that ipvsadm edits loses its
// mark. A process that knew it as weir's takes it back.
//
// Graceful termination is kept in the kernel too. A destination that is not wanted any more but has connections gets weight
// 0, and its upper threshold, which means nothing then, holds the second at which it goes even so. Virtual servers all of
// whose destinations leave are leaving themselves, and so is an address that is deprecated. Observe passes over what is
// leaving, and Reap takes it down.
//
// What IPVS cannot do at all: node ports on loopback addresses (it lets nothing that comes from 127.0.0.1 leave the node).
package ipvs

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/backends"
	"weir/backends/hostnet"
)

// Settings are what the ipvs section of a KubeProxyConfiguration says, and what the node can do.
type Settings struct {
	// Scheduler is for Services that name none; "" means rr.
	Scheduler string
	// StrictARP keeps the node from answering ARP requests for addresses that it has on weir-ipvs0 only.
	StrictARP bool
	// The timeouts of connections, in whole seconds; 0 leaves the kernel's.
	TCPTimeout, TCPFinTimeout, UDPTimeout time.Duration
	// DrainLimit is how long a destination that is not wanted any more may keep its connections; 0 deletes it at once.
	DrainLimit time.Duration
	// RandomFully says that MASQUERADE can choose source ports at random.
	RandomFully bool
	// Kernel is the version of the kernel, such as {6, 1}.
	Kernel [2]int
}

// Warnings says in which points this backend cannot do what the configuration asks.
func Warnings(cfg backends.Config) []string {
	if cfg.LocalhostNodePorts && slices.Contains(cfg.Families, backends.IPv4) {
		return []string{"ipvs mode serves no node ports on loopback addresses, as kube-proxy's does not: " +
			"use another address of the node, or set iptables.localhostNodePorts to false to silence this"}
	}
	return nil
}

// Tables is what the backend needs of iptables: iptables-save, of all tables if none is named, and iptables-restore --noflush.
type Tables interface {
	Save(ctx context.Context, f backends.Family, table string) (io.ReadCloser, error)
	Restore(ctx context.Context, f backends.Family, input []byte) error
}

// Backend implements backends.Backend and backends.Drainer.
type Backend struct {
	cfg    backends.Config
	set    Settings
	tables Tables
	kernel Kernel
	sysctl hostnet.Sysctl
	pods   map[backends.Family]source
	// inside is the bit of the packet mark that all marks of virtual servers have, and datagrams the one that those for UDP
	// have besides.
	inside, datagrams uint32

	// draining holds the virtual servers that have leaving destinations, and leaving the addresses that go when theirs are
	// gone. Both are nil until they are read.
	draining map[ServerKey]struct{}
	leaving  map[netip.Addr]struct{}
	// known holds the virtual servers that were weir's when this Backend saw or made them, and whether they insist.
	known map[ServerKey]bool
	now   func() time.Time
}

// New returns a Backend that programs the families of cfg.
func New(cfg backends.Config, set Settings, tables Tables, kernel Kernel) *Backend {
	if set.Scheduler == "" {
		set.Scheduler = "rr"
	}
	b := &Backend{cfg: cfg, set: set, tables: tables, kernel: kernel, pods: map[backends.Family]source{}, known: map[ServerKey]bool{}, inside: 1 << 31, datagrams: 1, now: time.Now}
	switch cfg.MasqueradeMark {
	case b.inside:
		b.inside = 1 << 30
	case b.datagrams:
		b.datagrams = 1 << 1
	}
	for _, f := range cfg.Families {
		b.pods[f] = podSource(cfg.LocalDetector, f)
	}
	return b
}

// source holds the matches for traffic that starts in a pod of this node, and for all other; both are empty if there is no
// telling.
type source struct{ yes, no string }

func podSource(d backends.LocalDetector, f backends.Family) source {
	if p, ok := d.PodCIDR(f); ok {
		if p.Bits() == 0 {
			return source{}
		}
		match := "-s " + p.Masked().String()
		return source{match, "! " + match}
	}
	if d.Interface == "" {
		return source{}
	}
	match := "-i " + d.Interface
	if d.Prefix {
		match += "+"
	}
	return source{match, "! " + match}
}

// checkInterface says whether the local detector names what can be an interface.
func checkInterface(name string) error {
	if len(name) > 15 || strings.ContainsAny(name, " \t\r\n\"'\\/+!") {
		return fmt.Errorf("detectLocal: %q cannot be the name of an interface", name)
	}
	return nil
}

// nodePortAddresses are the addresses of the node that serve node ports.
func (b *Backend) nodePortAddresses(f backends.Family) []netip.Addr {
	list := b.cfg.NodePortAddresses
	if list == nil {
		list = b.cfg.NodeAddresses
	}
	return slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool {
		return backends.FamilyOf(a) != f || a.IsLoopback()
	})
}
