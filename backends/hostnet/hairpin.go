package hostnet

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weir/backends"
)

// hairpin is the hairpin mode of the bridge port that leads to an address, as an Item: the bridge sends frames back out of
// the port that they came in by.
type hairpin struct {
	addr netip.Addr
	// had reports whether the port had it without weir.
	had bool
}

const hairpinReason = "the pod may reach itself through a Service, and frames on the bridge pass through the packet filter"

// ID implements backends.Item.
func (h hairpin) ID() backends.ID { return backends.ID("hairpin " + h.addr.String()) }

// String implements backends.Item.
func (h hairpin) String() string {
	return fmt.Sprintf("hairpin on of the bridge port to %s, because %s", h.addr, hairpinReason)
}

// isHairpin reports whether a change is of the hairpin mode of a bridge port.
func isHairpin(c backends.Change) bool {
	_, now := c.New.(hairpin)
	_, before := c.Old.(hairpin)
	return now || before
}

// hairpinCommands returns the command that makes the change, if the port is known.
func hairpinCommands(c backends.Change, to map[netip.Addr]bridgePort) []backends.Command {
	old, _ := c.Old.(hairpin)
	now, set := c.New.(hairpin)
	addr, mode := old.addr, "off"
	if set {
		addr, mode = now.addr, "on"
	}
	port, known := to[addr]
	if !known || !set && old.had || port.hairpin == set {
		return nil
	}
	return []backends.Command{{Args: []string{"bridge", "link", "set", "dev", port.name, "hairpin", mode}}}
}

// portRecord is what the Keeper remembers of a bridge port. The file has it by the index of the interface, which the kernel
// does not give again soon, whereas podman gives the same names to other ports.
type portRecord struct {
	Name string `json:"name"`
	// Had reports whether the port had the hairpin mode before.
	Had bool `json:"had,omitempty"`
	// For are the addresses of the pod that need it.
	For []netip.Addr `json:"for"`
}

// resolveTime is how long setHairpins waits for the hardware address of a pod. Pods on the node answer at once; without an
// answer, there is no pod that could reach itself.
const resolveTime = 20 * time.Millisecond

// hairpins keeps the hairpin mode of bridge ports.
type hairpins struct {
	// wanted are the addresses, with the Backends that want them. A Backend that hands over to another one leaves its own.
	wanted map[netip.Addr]map[*Managed]struct{}
	ports  map[int]portRecord
	// failed are the indexes of the ports that cannot be set.
	failed map[int]struct{}

	// moved reports whether something about bridge ports changed since the last look.
	moved atomic.Bool
	// drifted reports whether a wanted address was found behind a port without hairpin mode.
	drifted bool

	mu sync.Mutex
	// unknown are the wanted addresses for which no port is known. They are in the file, so that other processes do not plan
	// what cannot be done.
	unknown map[netip.Addr]struct{}
}

func newHairpins() *hairpins {
	return &hairpins{wanted: map[netip.Addr]map[*Managed]struct{}{}, ports: map[int]portRecord{}, failed: map[int]struct{}{}, unknown: map[netip.Addr]struct{}{}}
}

// setHairpins sets the hairpin mode of the ports to addresses, and records those that did not have it. An address to which
// no port is known is looked for again when the kernel tells of a port or of a neighbour.
func (k *Keeper) setHairpins(b *Managed, addrs []netip.Addr) {
	h := k.hairpins
	for _, a := range addrs {
		if h.wanted[a] == nil {
			h.wanted[a] = map[*Managed]struct{}{}
		}
		h.wanted[a][b] = struct{}{}
	}
	ports, to, err := find(addrs, resolveTime)
	if err != nil {
		k.warn(err.Error())
		return
	}
	changed := false
	for _, a := range addrs {
		port, known := to[a]
		if !known {
			continue
		}
		port = ports[port.index] // which may have another address too
		changed = k.leaveOthers(a, port.index, ports) || changed
		r, recorded := h.ports[port.index]
		if !recorded {
			r = portRecord{Name: port.name, Had: port.hairpin}
		}
		if !slices.Contains(r.For, a) {
			r.For = append(slices.Clone(r.For), a)
			h.ports[port.index] = r
			changed = true
			k.save() // first, because this process may end in between
		}
		if port.hairpin {
			continue
		}
		if err := setHairpin(port, true); err != nil {
			h.failed[port.index] = struct{}{}
			k.warn(fmt.Sprintf("the hairpin mode of bridge port %s, which leads to %s, cannot be set: %v (needed because %s)", port.name, a, err, hairpinReason))
			continue
		}
		delete(h.failed, port.index)
		port.hairpin = true
		ports[port.index] = port
		if recorded && !r.Had {
			k.repaired.Inc()
			k.log.Warn("another process changed a bridge port: hairpin mode set again", "port", port.name, "address", a.String(), "reason", hairpinReason)
		} else {
			k.log.Info("hairpin mode of a bridge port set", "port", port.name, "address", a.String(), "reason", hairpinReason)
		}
	}
	if k.know(to) || changed {
		k.save()
	}
}

// find returns the ports, and the ports by the addresses that they lead to. It asks for those of the given addresses that are
// not known, and waits so long for them.
func find(addrs []netip.Addr, wait time.Duration) (map[int]bridgePort, map[netip.Addr]bridgePort, error) {
	asked := false
	for deadline := time.Now().Add(wait); ; time.Sleep(time.Millisecond) {
		ports, err := bridgePorts()
		if err != nil {
			return nil, nil, err
		}
		to, err := portsTo(ports)
		if err != nil {
			return nil, nil, err
		}
		unknown := slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { _, known := to[a]; return known })
		if len(unknown) == 0 || len(ports) == 0 || asked && time.Now().After(deadline) {
			return ports, to, nil
		}
		if !asked { // the answer is a notification too
			asked = true
			_ = eachBridge(func(l netlink.Link, p netip.Prefix) {
				for _, a := range unknown {
					if p.Contains(a) {
						_ = resolve(l.Attrs().Index, a) // what is not answered is not known
					}
				}
			})
			if wait == 0 {
				return ports, to, nil
			}
		}
	}
}

// leaveOthers takes an address from the ports that led to it before.
func (k *Keeper) leaveOthers(a netip.Addr, now int, ports map[int]bridgePort) (changed bool) {
	for index, r := range k.hairpins.ports {
		if index != now && slices.Contains(r.For, a) {
			changed = true
			if err := k.leavePort(a, index, ports); err != nil {
				k.warn(err.Error())
			}
		}
	}
	return changed
}

// leavePort takes an address from a port, and the hairpin mode if no other address needs it and weir set it.
func (k *Keeper) leavePort(a netip.Addr, index int, ports map[int]bridgePort) error {
	h := k.hairpins
	r := h.ports[index]
	rest := slices.DeleteFunc(slices.Clone(r.For), func(o netip.Addr) bool { return o == a })
	if len(rest) > 0 {
		r.For = rest
		h.ports[index] = r
		return nil
	}
	if port, exists := ports[index]; exists && port.hairpin && !r.Had {
		if err := setHairpin(port, false); err != nil {
			return fmt.Errorf("the hairpin mode of bridge port %s cannot be put back: %w", port.name, err)
		}
		k.log.Info("hairpin mode of a bridge port put back, because nothing of weir needs it any more", "port", port.name, "address", a.String())
	}
	delete(h.ports, index)
	return nil
}

// holdHairpin records that a Backend found the hairpin mode of the port to an address. Until it drops that, another Backend, whose
// mode is left, does not put it back.
func (k *Keeper) holdHairpin(b *Managed, a netip.Addr) {
	if b.below == nil { // a cleanup
		return
	}
	if k.hairpins.wanted[a] == nil {
		k.hairpins.wanted[a] = map[*Managed]struct{}{}
	}
	k.hairpins.wanted[a][b] = struct{}{}
}

// dropHairpins puts back what only these addresses need, unless another Backend wants them.
func (k *Keeper) dropHairpins(b *Managed, addrs []netip.Addr) (refused map[backends.ID]error) {
	h := k.hairpins
	ports, err := bridgePorts()
	changed := false
	for _, a := range addrs {
		if by := h.wanted[a]; by != nil {
			delete(by, b)
			if len(by) > 0 {
				continue
			}
			delete(h.wanted, a)
			h.mu.Lock()
			_, waited := h.unknown[a]
			delete(h.unknown, a)
			h.mu.Unlock()
			changed = changed || waited
		}
		for index, r := range h.ports {
			if !slices.Contains(r.For, a) {
				continue
			}
			failed := err
			if failed == nil {
				failed = k.leavePort(a, index, ports)
			}
			if failed != nil {
				if refused == nil {
					refused = map[backends.ID]error{}
				}
				refused[hairpin{addr: a}.ID()] = failed
				continue
			}
			changed = true
		}
	}
	if changed {
		k.save()
	}
	return refused
}

// lookHairpins returns the hairpin modes that are in force, of those that are wanted or that an earlier process set, and
// those that cannot be set. A cleanup leaves out those that ports had before.
func (k *Keeper) lookHairpins(cleanup bool) (list []hairpin) {
	h := k.hairpins
	h.drifted = false
	h.moved.Store(false)
	if !cleanup {
		for a := range h.unknown { // those of an earlier process
			if h.wanted[a] == nil {
				h.wanted[a] = map[*Managed]struct{}{}
			}
		}
	}
	if len(h.wanted) == 0 && len(h.ports) == 0 {
		return nil
	}
	ports, to, err := find(nil, 0)
	if err != nil {
		k.warn(err.Error())
		for a := range h.wanted {
			list = append(list, hairpin{addr: a})
		}
		return list
	}
	changed := k.know(to)
	for a := range h.wanted {
		if !h.missing(a, to) {
			list = append(list, hairpin{addr: a})
		}
	}
	for index, r := range h.ports {
		port, exists := ports[index]
		if !exists {
			delete(h.ports, index)
			changed = true
			continue
		}
		for _, a := range r.For {
			if h.wanted[a] != nil || !port.hairpin || cleanup && r.Had {
				continue
			}
			list = append(list, hairpin{addr: a, had: r.Had})
			h.wanted[a] = map[*Managed]struct{}{} // by the earlier process, until this one says otherwise
		}
	}
	if changed {
		k.unsaved = true // a process that only plans writes nothing
	}
	slices.SortFunc(list, func(a, b hairpin) int { return a.addr.Compare(b.addr) })
	return slices.CompactFunc(list, func(a, b hairpin) bool { return a.addr == b.addr })
}

// missing reports whether the port to an address lacks hairpin mode, and can have it.
func (h *hairpins) missing(a netip.Addr, to map[netip.Addr]bridgePort) bool {
	port, known := to[a]
	_, failed := h.failed[port.index]
	return known && !port.hairpin && !failed
}

// know records for which wanted addresses no port is known, and reports whether they are others than before.
func (k *Keeper) know(to map[netip.Addr]bridgePort) (changed bool) {
	h := k.hairpins
	unknown := map[netip.Addr]struct{}{}
	for a := range h.wanted {
		if _, known := to[a]; !known {
			unknown[a] = struct{}{}
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	changed = !maps.Equal(unknown, h.unknown)
	h.unknown = unknown
	return changed
}

// hairpinsDrifted reports whether a wanted address has come to be behind a port without hairpin mode. It looks only if the
// kernel told of a change.
func (k *Keeper) hairpinsDrifted() bool {
	h := k.hairpins
	if !h.drifted && h.moved.Swap(false) && len(h.wanted) > 0 {
		_, to, err := find(slices.Collect(maps.Keys(h.wanted)), 0)
		if err != nil {
			return false
		}
		if k.know(to) {
			k.unsaved = true
		}
		for a := range h.wanted {
			h.drifted = h.drifted || h.missing(a, to)
		}
	}
	return h.drifted
}

// hairpinItems adds the hairpin modes to what was read: those that are wanted and not in force are nil.
func (k *Keeper) hairpinItems(items map[backends.ID]backends.Item) {
	for a := range k.hairpins.wanted {
		items[hairpin{addr: a}.ID()] = nil
	}
	for _, h := range k.lookHairpins(false) {
		items[h.ID()] = h
	}
}

// watchHairpins calls changed whenever a port of a bridge or the host behind one may have changed, until ctx is done. If
// notifications are lost, it calls changed.
func (k *Keeper) watchHairpins(ctx context.Context, changed func()) {
	for ctx.Err() == nil {
		k.followHairpins(ctx, changed)
		select {
		case <-ctx.Done():
		case <-time.After(resubscribeDelay):
		}
	}
}

func (k *Keeper) followHairpins(ctx context.Context, changed func()) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	changed()
	for {
		messages, _, err := s.Receive()
		if ctx.Err() != nil {
			return
		}
		if err != nil && err != unix.ENOBUFS && err != unix.EINTR {
			return
		}
		relevant := err != nil
		for _, m := range messages {
			relevant = relevant || k.hairpins.concerns(m.Header.Type, m.Data)
		}
		if relevant {
			changed()
		}
	}
}

// concerns reports whether a notification may be about the port to a wanted address. The kernel tells of neighbours all
// the time, so only those count that are waited for.
func (h *hairpins) concerns(kind uint16, data []byte) bool {
	if len(data) == 0 {
		return false
	}
	family := data[0]
	switch kind {
	case unix.RTM_NEWLINK:
		return family == unix.AF_BRIDGE
	case unix.RTM_NEWNEIGH:
		if family == unix.AF_BRIDGE {
			return true
		}
		n, err := netlink.NeighDeserialize(data)
		if err != nil || n.State&(netlink.NUD_INCOMPLETE|netlink.NUD_FAILED) != 0 {
			return false
		}
		a, _ := netip.AddrFromSlice(n.IP)
		h.mu.Lock()
		defer h.mu.Unlock()
		_, waited := h.unknown[a.Unmap()]
		return waited
	}
	return false
}
