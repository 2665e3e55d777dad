// Package conntrack removes flows that point at a wrong endpoint from the kernel's connection tracking table, and sets the
// limits of that table.
//
// The kernel chooses an endpoint for the first packet of a flow and keeps the choice as long as packets arrive. TCP
// notices a deleted endpoint, but a UDP client that keeps its port goes on sending to it. If the client began before
// there was any endpoint, it goes on sending to the Service's own address. A Cleaner removes only those flows. It never
// removes a flow to an endpoint that still serves, however often weir restarts.
//
// TCP notices too late if a client uses a port again whose last connection to the Service was never answered, or was reset by its
// server, as when a process dies: the kernel knows such a flow for two minutes, or for ten seconds, and sends the new connection
// to the same endpoint. So a Cleaner removes such flows when their endpoint leaves. The kernel itself forgets a connection that
// ended in the usual way, or that the client reset, as soon as the client uses its port again.
//
// The package does not decide when to clean. Only cmd/weir and tests may import it.
package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
)

// Flow holds the relevant fields of an entry in the connection tracking table.
type Flow struct {
	Protocol dataplane.Protocol
	Src      netip.Addr // of the first packet
	// Dst is the destination of the first packet, and ReplySrc the expected source of answers. They differ if the flow
	// has an endpoint.
	Dst, ReplySrc netip.AddrPort
	// Masqueraded reports whether the endpoint sees another source than Src.
	Masqueraded bool
	// ByIPVS reports whether IPVS, and no NAT rule, gave the flow its endpoint.
	ByIPVS bool
	// Unanswered reports whether no packet has come back.
	Unanswered bool
	// Closed reports whether a TCP connection was reset.
	Closed bool
}

// table is the kernel's connection tracking table.
type table interface {
	// dump yields the flows of a family and protocol, and only those with the ReplySrc from if it is valid. If the kernel cannot
	// filter, it yields others too. The handle is valid during the call only. An error means that the list is not complete.
	dump(f dataplane.Family, p dataplane.Protocol, from netip.AddrPort, yield func(flow Flow, handle []byte)) error
	// remove removes the flow that was dumped with the handle; false means that it no longer exists.
	remove(f dataplane.Family, handle []byte) (bool, error)
	close()
}

// Cleaner removes flows that point at a wrong endpoint.
type Cleaner struct {
	open     func() (table, error)
	anyAddr  bool
	ipvs     bool
	nodeAddr map[netip.Addr]bool
	cfg      dataplane.Config
}

// New returns a Cleaner. It recognises flows to a node port by the node's addresses in the Config: NodePortAddresses,
// or NodeAddresses if all addresses serve node ports. If those are unknown, every address counts.
func New(c dataplane.Config) *Cleaner {
	addrs := c.NodePortAddresses
	if addrs == nil {
		addrs = c.NodeAddresses
	}
	cl := &Cleaner{open: openKernel, anyAddr: addrs == nil, nodeAddr: make(map[netip.Addr]bool, len(addrs)), cfg: c}
	for _, a := range addrs {
		cl.nodeAddr[a] = true
	}
	return cl
}

// ForIPVS returns a Cleaner that keeps flows created by IPVS. For other Cleaners such flows are stale, because no mode
// forwards them.
func ForIPVS(c dataplane.Config) *Cleaner {
	cl := New(c)
	cl.ipvs = true
	return cl
}

// dumpAttempts bounds how often a dump that the kernel interrupted is repeated before it counts as failed.
const dumpAttempts = 5

// Clean removes the stale flows of the given ServicePorts: those that are in force now, and those that no longer are.
// It must be called after the kernel has the new endpoints, or the kernel makes the same flow again. It costs one pass
// over the UDP flows of each family that has a UDP ServicePort among them, and nothing if none has.
//
// It returns how many flows it removed. After an error some may be left, and calling it again is safe. It needs
// CAP_NET_ADMIN.
func (c *Cleaner) Clean(ctx context.Context, entries, gone []*dataplane.ServicePort) (deleted int, err error) {
	var sweeps []sweep
	for _, f := range families {
		if w := c.wanted(f, entries, gone); !w.empty() {
			sweeps = append(sweeps, sweep{family: f, protocol: dataplane.UDP, stale: w.stale})
		}
	}
	return c.sweep(ctx, sweeps)
}

var families = []dataplane.Family{dataplane.IPv4, dataplane.IPv6}

// sweep is one pass over the flows of a family and protocol, or those of one endpoint.
type sweep struct {
	family   dataplane.Family
	protocol dataplane.Protocol
	from     netip.AddrPort
	stale    func(Flow) bool
}

func (c *Cleaner) sweep(ctx context.Context, sweeps []sweep) (deleted int, err error) {
	if len(sweeps) == 0 {
		return 0, nil
	}
	t, err := c.open()
	if err != nil {
		return 0, explain(sweeps[0], err)
	}
	defer t.close()
	for _, s := range sweeps {
		n, err := s.run(ctx, t)
		deleted += n
		if err != nil {
			return deleted, explain(s, err)
		}
	}
	return deleted, nil
}

func (s sweep) run(ctx context.Context, t table) (deleted int, err error) {
	f := s.family
	for range dumpAttempts {
		if err := ctx.Err(); err != nil {
			return deleted, err
		}
		var stale [][]byte
		dumpErr := t.dump(f, s.protocol, s.from, func(flow Flow, handle []byte) {
			if flow.Protocol == s.protocol && s.stale(flow) {
				stale = append(stale, append([]byte(nil), handle...))
			}
		})
		// Flows in an incomplete dump exist, and are stale in any case.
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

func explain(s sweep, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("removing stale %s flows from connection tracking needs CAP_NET_ADMIN: %w", s.family, err)
	}
	return fmt.Errorf("removing stale %s flows from connection tracking: %w", s.family, err)
}

// serving is the set of endpoints that a flow to a frontend may point at. The value reports whether policy Local allows
// the endpoint.
type serving map[netip.AddrPort]bool

// front is what is known of a frontend: its endpoints, and whether its policy is Local.
type front struct {
	serving
	local bool
	// external reports whether the policy does not apply to clients on this node.
	external bool
	// sources are the clients that may use the frontend; empty means every client.
	sources []netip.Prefix
}

// excludes reports whether a new flow of the client would be dropped. The node may use an address that it has itself.
func (f front) excludes(flow Flow) bool {
	return len(f.sources) > 0 && flow.Src != flow.Dst.Addr() &&
		!slices.ContainsFunc(f.sources, func(p netip.Prefix) bool { return p.Contains(flow.Src) })
}

// servingOf returns every serving endpoint. Readiness and topology do not count, because they choose for new flows only.
func servingOf(e *dataplane.ServicePort) serving {
	s := make(serving, len(e.Endpoints)+len(e.Serving))
	for _, a := range e.Serving {
		s[a] = false
	}
	for _, a := range e.ServingLocal {
		s[a] = true
	}
	for _, ep := range e.Endpoints {
		s[ep.Addr] = s[ep.Addr] || ep.Local
	}
	return s
}

// wanted holds, for every address of UDP Services, the endpoints to which its flows may point.
type wanted struct {
	cleaner   *Cleaner
	fronts    map[netip.AddrPort]front
	nodePorts map[uint16]front
}

func (c *Cleaner) wanted(f dataplane.Family, entries, gone []*dataplane.ServicePort) wanted {
	w := wanted{cleaner: c, fronts: map[netip.AddrPort]front{}, nodePorts: map[uint16]front{}}
	// An address may have moved from one ServicePort to another. Those in force come last, so that they decide.
	for _, e := range gone {
		w.add(f, e, serving{})
	}
	for _, e := range entries {
		w.add(f, e, servingOf(e))
	}
	return w
}

func (w wanted) add(f dataplane.Family, e *dataplane.ServicePort, s serving) {
	if e.Key.Protocol != dataplane.UDP || e.Key.Family != f {
		return
	}
	w.fronts[netip.AddrPortFrom(e.ClusterIP, e.Port)] = front{serving: s, local: e.InternalLocal}
	external := front{serving: s, local: e.ExternalLocal, external: true}
	for _, a := range e.ExternalIPs {
		w.fronts[netip.AddrPortFrom(a, e.Port)] = external
	}
	restricted := external
	restricted.sources = e.SourceRanges
	for _, a := range e.LoadBalancerIPs {
		w.fronts[netip.AddrPortFrom(a, e.Port)] = restricted
	}
	if e.NodePort != 0 {
		w.nodePorts[e.NodePort] = external
	}
}

func (w wanted) empty() bool { return len(w.fronts) == 0 && len(w.nodePorts) == 0 }

// stale reports whether a flow belongs to one of the Services and points at none of its endpoints, or comes from a client
// that the Service excludes.
func (w wanted) stale(flow Flow) bool {
	if flow.Protocol != dataplane.UDP {
		return false
	}
	s, ok := w.fronts[flow.Dst]
	if !ok && w.cleaner.isNode(flow.Dst.Addr()) {
		s, ok = w.nodePorts[flow.Dst.Port()]
	}
	local, known := s.serving[flow.ReplySrc]
	switch {
	case !ok:
		return false
	case flow.ByIPVS && !w.cleaner.ipvs:
		return true
	case len(s.serving) == 0:
		// Without any endpoint, a flow that never had one is as good as a new one.
		return flow.ReplySrc != flow.Dst
	case s.excludes(flow):
		return true
	case s.local && known && !local:
		return !s.external || !w.cleaner.fromHere(flow)
	}
	return !known
}

// fromHere reports whether a flow may come from this node or one of its pods. Pods that are known only by their
// interface are told by what the policies do: policy Local masquerades only what comes from the node itself.
func (c *Cleaner) fromHere(f Flow) bool {
	if f.Src.IsLoopback() || slices.Contains(c.cfg.NodeAddresses, f.Src) {
		return true
	}
	if c.cfg.LocalDetector.Interface != "" {
		return !f.Masqueraded
	}
	p, ok := c.cfg.LocalDetector.PodCIDR(dataplane.FamilyOf(f.Src))
	return ok && p.Contains(f.Src)
}

func (c *Cleaner) isNode(a netip.Addr) bool { return c.anyAddr || c.nodeAddr[a] || a.IsLoopback() }
