// Package conntrack keeps the kernel's connection tracking in step with the endpoints.
//
// The kernel chooses an endpoint for the first packet of a flow and remembers the choice for as long as packets come. TCP
// notices that its endpoint has gone; a UDP client that keeps its port goes on sending into the void, or, if it began
// before there was any endpoint, to the Service's own address. So those flows, and only those, are removed: a flow that
// points at an endpoint that still serves is never touched, however often weir restarts.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/backends"
)

// Flow is what matters of an entry in the connection tracking table.
type Flow struct {
	Protocol backends.Protocol
	// Dst is where the first packet was sent, ReplySrc where answers are expected from. They differ if the flow was given
	// to an endpoint.
	Dst, ReplySrc netip.AddrPort
	// ByIPVS says that no NAT rule gave the flow to its endpoint: IPVS did.
	ByIPVS bool
}

// table is the kernel's connection tracking table.
type table interface {
	// dump yields the flows of a family and protocol, and of others too where the kernel cannot filter. The handle is
	// valid during the call only. An error means that the list is not complete.
	dump(f backends.Family, p backends.Protocol, yield func(flow Flow, handle []byte)) error
	// remove removes the flow that was dumped with the handle; false means that it is gone already.
	remove(f backends.Family, handle []byte) (bool, error)
	close()
}

// Cleaner removes UDP flows that point at a wrong endpoint.
type Cleaner struct {
	open     func() (table, error)
	anyAddr  bool
	ipvs     bool
	nodeAddr map[netip.Addr]bool
}

// New returns a Cleaner. Flows to a node port are recognised by the node's addresses in the Config: NodePortAddresses, or
// NodeAddresses if node ports are served on all; if those are not known, every address counts.
func New(c backends.Config) *Cleaner {
	addrs := c.NodePortAddresses
	if addrs == nil {
		addrs = c.NodeAddresses
	}
	cl := &Cleaner{open: openKernel, anyAddr: addrs == nil, nodeAddr: make(map[netip.Addr]bool, len(addrs))}
	for _, a := range addrs {
		cl.nodeAddr[a] = true
	}
	return cl
}

// ForIPVS returns a Cleaner to which flows are as good that IPVS gave to their endpoints. To others these are stale: nobody
// carries them on.
func ForIPVS(c backends.Config) *Cleaner {
	cl := New(c)
	cl.ipvs = true
	return cl
}

// dumpAttempts is how often a dump that the kernel interrupted is tried before it counts as failed.
const dumpAttempts = 5

// Clean removes the stale flows of the given Entries: those that are in force now, and those that no longer are. It must be
// called after the kernel was given the new endpoints, or the flow is made again as it was. It costs one pass over the UDP
// flows of each family that has a UDP Entry among them, and nothing if none has.
//
// It returns how many flows it removed. On an error some may be left, and calling it again is safe. It needs CAP_NET_ADMIN.
func (c *Cleaner) Clean(ctx context.Context, entries, gone []*backends.Entry) (deleted int, err error) {
	var t table
	for _, f := range []backends.Family{backends.IPv4, backends.IPv6} {
		w := c.wanted(f, entries, gone)
		if w.empty() {
			continue
		}
		if t == nil {
			if t, err = c.open(); err != nil {
				return 0, explain(f, err)
			}
			defer t.close()
		}
		n, err := cleanFamily(ctx, t, f, w)
		deleted += n
		if err != nil {
			return deleted, explain(f, err)
		}
	}
	return deleted, nil
}

func cleanFamily(ctx context.Context, t table, f backends.Family, w wanted) (deleted int, err error) {
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return deleted, err
		}
		var stale [][]byte
		dumpErr := t.dump(f, backends.UDP, func(flow Flow, handle []byte) {
			if w.stale(flow) {
				stale = append(stale, append([]byte(nil), handle...))
			}
		})
		// What an incomplete dump did list is there, and as stale as it would be otherwise.
		for _, handle := range stale {
			removed, err := t.remove(f, handle)
			if err != nil {
				return deleted, err
			}
			if removed {
				deleted++
			}
		}
		if !temporary(dumpErr) {
			return deleted, dumpErr
		}
		err = dumpErr
	}
	return deleted, err
}

func temporary(err error) bool {
	return errors.Is(err, netlink.ErrDumpInterrupted) || errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOBUFS)
}

func explain(f backends.Family, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("removing stale %s flows from connection tracking needs CAP_NET_ADMIN: %w", f, err)
	}
	return fmt.Errorf("removing stale %s flows from connection tracking: %w", f, err)
}

// serving is the set of endpoints that a flow may point at.
type serving map[netip.AddrPort]bool

// servingOf takes every endpoint, whatever the traffic policies say now: they decide over new flows.
func servingOf(e *backends.Entry) serving {
	s := make(serving, len(e.Endpoints)+len(e.Serving))
	for _, ep := range e.Endpoints {
		s[ep.Addr] = true
	}
	for _, a := range e.Serving {
		s[a] = true
	}
	return s
}

// wanted says, for every address that UDP Services have, which endpoints its flows may point at.
type wanted struct {
	cleaner   *Cleaner
	fronts    map[netip.AddrPort]serving
	nodePorts map[uint16]serving
}

func (c *Cleaner) wanted(f backends.Family, entries, gone []*backends.Entry) wanted {
	w := wanted{cleaner: c, fronts: map[netip.AddrPort]serving{}, nodePorts: map[uint16]serving{}}
	// An address may have passed from one Entry to another: what is in force decides, so it comes last.
	for _, e := range gone {
		w.add(f, e, serving{})
	}
	for _, e := range entries {
		w.add(f, e, servingOf(e))
	}
	return w
}

func (w wanted) add(f backends.Family, e *backends.Entry, s serving) {
	if e.Key.Protocol != backends.UDP || e.Key.Family != f {
		return
	}
	w.fronts[netip.AddrPortFrom(e.ClusterIP, e.Port)] = s
	for _, addrs := range [][]netip.Addr{e.ExternalIPs, e.LoadBalancerIPs} {
		for _, a := range addrs {
			w.fronts[netip.AddrPortFrom(a, e.Port)] = s
		}
	}
	if e.NodePort != 0 {
		w.nodePorts[e.NodePort] = s
	}
}

func (w wanted) empty() bool { return len(w.fronts) == 0 && len(w.nodePorts) == 0 }

// stale says whether a flow belongs to one of the Services and points at none of its endpoints.
func (w wanted) stale(flow Flow) bool {
	if flow.Protocol != backends.UDP {
		return false
	}
	s, ok := w.fronts[flow.Dst]
	if !ok && w.cleaner.isNode(flow.Dst.Addr()) {
		s, ok = w.nodePorts[flow.Dst.Port()]
	}
	switch {
	case !ok:
		return false
	case flow.ByIPVS && !w.cleaner.ipvs:
		return true
	case len(s) == 0:
		// With no endpoint to go to, a flow that was never given to one is as good as a new one would be.
		return flow.ReplySrc != flow.Dst
	}
	return !s[flow.ReplySrc]
}

func (c *Cleaner) isNode(a netip.Addr) bool { return c.anyAddr || c.nodeAddr[a] || a.IsLoopback() }
