package ipvs

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weir/backends"
)

// DrainLimit is how long a destination that is not wanted any more keeps its connections: as long as kube-proxy lets it.
const DrainLimit = 15 * time.Minute

// deleteDestination deletes a destination that has no connections, and has any other leave. UDP has no connections worth
// waiting for.
func (b *Backend) deleteDestination(d Destination) error {
	if !b.drains(d.Server) {
		return b.kernel.Delete(d)
	}
	now, err := b.find(d)
	if err != nil || now == nil {
		return err
	}
	if now.Until == 0 {
		// No new connections from here on, so that the count can only fall.
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

// drains says whether connections of the virtual server are waited for.
func (b *Backend) drains(k ServerKey) bool {
	insists := b.known[k]
	return !insists && b.set.DrainLimit > 0 && k.Protocol != backends.UDP && k.Mark&b.datagrams == 0
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

// deleteServer deletes a virtual server, unless it has leaving destinations: then it leaves with the last of them.
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

// deleteAddress deletes an address, unless connections through it are waited for.
func (b *Backend) deleteAddress(a netip.Addr, teardown bool) error {
	if !teardown && b.drainsThrough(a) {
		b.leaving[a] = struct{}{}
		return b.kernel.Put(Address{Addr: a, Leaving: true})
	}
	delete(b.leaving, a)
	return b.kernel.Delete(Address{Addr: a})
}

// guardsLeaving says whether a member keeps what listens on all addresses of the node from being reached at one that is
// leaving. It goes with that.
func (b *Backend) guardsLeaving(m Member) bool {
	_, leaving := b.leaving[m.Addr]
	return leaving && strings.HasPrefix(m.Set, addrSet)
}

// drainsThrough says whether packets for the address may belong to a leaving destination. Those of a virtual server that is
// found by a mark may have any address.
func (b *Backend) drainsThrough(a netip.Addr) bool {
	for k := range b.draining {
		if k.Mark != 0 && k.Family == backends.FamilyOf(a) || k.Addr.Addr() == a {
			return true
		}
	}
	return false
}

// Reap deletes the leaving destinations that have no connections any more or have reached their limit, and what left with
// them. It returns how many are still leaving, and does nothing before the first Observe. It may be called at any time.
func (b *Backend) Reap(ctx context.Context) (left int, err error) {
	now := uint32(b.now().Unix())
	for key := range b.draining {
		if err := ctx.Err(); err != nil {
			return left, err
		}
		n, err := b.reapServer(key, now)
		if err != nil {
			return left, fmt.Errorf("%s: %w", key, err)
		}
		left += n
	}
	for a := range b.leaving {
		if !b.drainsThrough(a) {
			guard := Member{Set: named(addrSet, backends.FamilyOf(a)), Addr: a}
			if err := errors.Join(b.kernel.Delete(Address{Addr: a}), b.kernel.Delete(guard)); err != nil {
				return left, err
			}
			delete(b.leaving, a)
		}
	}
	return left, nil
}

func (b *Backend) reapServer(key ServerKey, now uint32) (left int, err error) {
	list, err := b.kernel.Destinations(key)
	if err != nil {
		return 0, err
	}
	kept := 0
	for _, d := range list {
		if d.Until > 0 && (d.Connections == 0 || d.Until <= now) {
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
		// One that is wanted has a destination that is not leaving.
		delete(b.known, key)
		return 0, b.kernel.Delete(Server{ServerKey: key})
	}
	return left, nil
}
