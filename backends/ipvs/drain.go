package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/backends/dataplane"
)

// DrainLimit is how long a destination that is no longer wanted keeps its connections, as in kube-proxy.
//
// The kernel holds the state of draining, so that it survives a restart. An unwanted destination with connections gets
// weight 0, and so it is leaving. Its upper threshold, which has no effect at weight 0, holds the second at which it is
// deleted even so. A virtual server is leaving if all of its destinations are, and an address is leaving if it is
// deprecated. Observe skips leaving objects, and Reap deletes them.
const DrainLimit = 15 * time.Minute

// deleteDestination deletes a destination that has no connections. A destination with connections begins to leave. UDP
// has no connections worth waiting for.
func (b *Backend) deleteDestination(d Destination) error {
	if !b.drains(d.Server) {
		return b.kernel.Delete(d)
	}
	now, err := b.find(d)
	if err != nil || now == nil {
		return err
	}
	if now.Until == 0 {
		// The destination gets no new connections from here on, so that the count can only fall.
		now.Weight, now.Until = 0, uint32(b.now().Add(b.set.DrainLimit).Unix())
		if err := b.kernel.Put(*now); err != nil {
			return err
		}
		if now, err = b.find(d); err != nil || now == nil {
			return err
		}
	}
	if now.Connections == 0 {
		return b.kernel.Delete(*now)
	}
	b.draining[d.Server] = struct{}{}
	return nil
}

// drains reports whether the virtual server waits for its connections.
func (b *Backend) drains(k ServerKey) bool {
	ignoresZeroWeight := b.known[k]
	return !ignoresZeroWeight && b.set.DrainLimit > 0 && k.Protocol != dataplane.UDP && k.Mark&b.datagrams == 0
}

func (b *Backend) find(d Destination) (*Destination, error) {
	list, err := b.kernel.Destinations(d.Server)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(list, func(o Destination) bool { return o.Addr == d.Addr }); i >= 0 {
		return &list[i], nil
	}
	return nil, nil
}

// deleteServer deletes a virtual server, unless it has leaving destinations. Then it leaves with the last of them.
func (b *Backend) deleteServer(s Server) error {
	if _, ok := b.draining[s.ServerKey]; ok {
		list, err := b.kernel.Destinations(s.ServerKey)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(list, func(d Destination) bool { return d.Until > 0 }) {
			return nil
		}
		delete(b.draining, s.ServerKey)
	}
	delete(b.known, s.ServerKey)
	return b.kernel.Delete(s)
}

// deleteAddress deletes an address, unless a connection through it is still waited for.
func (b *Backend) deleteAddress(a netip.Addr, teardown bool) error {
	if !teardown && b.drainsThrough(a) {
		b.leaving[a] = struct{}{}
		return b.kernel.Put(Address{Addr: a, Leaving: true})
	}
	delete(b.leaving, a)
	return b.kernel.Delete(Address{Addr: a})
}

// guardsLeaving reports whether a member protects a leaving address: it keeps servers that listen on all addresses of
// the node from being reached there. The member is deleted together with the address.
func (b *Backend) guardsLeaving(m Member) bool {
	_, leaving := b.leaving[m.Addr]
	return leaving && strings.HasPrefix(m.Set, addrSet)
}

// drainsThrough reports whether packets for the address may belong to a leaving destination. Packets for a virtual
// server that is found by a mark may have any address.
func (b *Backend) drainsThrough(a netip.Addr) bool {
	for k := range b.draining {
		if k.Mark != 0 && k.Family == dataplane.FamilyOf(a) || k.Addr.Addr() == a {
			return true
		}
	}
	return false
}

// Reap implements backends.Drainer. It deletes the leaving destinations that have no connections or are past their
// limit, and the virtual servers, addresses and members that leave with them. It returns how many destinations are
// still leaving. It does nothing before the first Observe, and may be called at any time.
func (b *Backend) Reap(ctx context.Context) (left int, err error) {
	now := uint32(b.now().Unix())
	over := func(d Destination) bool { return d.Connections == 0 || d.Until <= now }
	for key := range b.draining {
		if err := ctx.Err(); err != nil {
			return left, err
		}
		n, err := b.reapServer(key, over)
		if err != nil {
			return left, fmt.Errorf("%s: %w", key, err)
		}
		left += n
	}
	for a := range b.leaving {
		if !b.drainsThrough(a) {
			guard := Member{Set: named(addrSet, dataplane.FamilyOf(a)), Addr: a}
			if err := errors.Join(b.kernel.Delete(Address{Addr: a}), b.kernel.Delete(guard)); err != nil {
				return left, err
			}
			delete(b.leaving, a)
		}
	}
	return left, nil
}

// Abandon deletes the leaving destinations whose connections are to be reset. Each ServicePort has as Endpoints those that left it;
// with Reset, all but those that are Serving end. The kernel then forgets each of their connections at its next packet, and the node
// resets it (net.ipv4.vs.expire_nodest_conn).
func (b *Backend) Abandon(left []*dataplane.ServicePort) error {
	for _, p := range left {
		if !p.Reset {
			continue
		}
		ends := func(d Destination) bool {
			return !slices.Contains(p.Serving, d.Addr) &&
				slices.ContainsFunc(p.Endpoints, func(e dataplane.Endpoint) bool { return e.Addr == d.Addr })
		}
		for _, key := range b.servers(p) {
			if _, ok := b.draining[key]; !ok {
				continue
			}
			if _, err := b.reapServer(key, ends); err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
		}
	}
	return nil
}

// reapServer deletes the leaving destinations of a virtual server whose time is over, and returns how many are still leaving. It
// deletes the virtual server with the last of them.
func (b *Backend) reapServer(key ServerKey, over func(Destination) bool) (left int, err error) {
	list, err := b.kernel.Destinations(key)
	if err != nil {
		return 0, err
	}
	kept := 0
	for _, d := range list {
		if d.Until > 0 && over(d) {
			if err := b.kernel.Delete(d); err != nil {
				return left, err
			}
			continue
		}
		kept++
		if d.Until > 0 {
			left++
		}
	}
	if left == 0 {
		delete(b.draining, key)
	}
	if len(list) > 0 && kept == 0 {
		// A wanted virtual server has a destination that is not leaving.
		delete(b.known, key)
		return 0, b.kernel.Delete(Server{ServerKey: key})
	}
	return left, nil
}
