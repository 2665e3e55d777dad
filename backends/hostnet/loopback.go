package hostnet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weir/backends"
)

// answerRoutes are local routes to ::1 at the interfaces by which answers come from endpoints, as one Item. A process that
// connects to a node port at ::1 has that source address, and an answer is translated back to it as it arrives. The kernel
// takes ::1 for its own only at an interface that a route names, and has such a route for lo alone. It drops packets that
// have ::1 on the wire before any translation, so that the routes open nothing to neighbours.
type answerRoutes struct {
	// missing are the names of interfaces that lack the route, for people.
	missing string
}

// answerRoutesID is the ID of the Item, and its name among what a Backend needs.
const answerRoutesID = "local routes to ::1"

// ID implements backends.Item.
func (answerRoutes) ID() backends.ID { return answerRoutesID }

// String implements backends.Item.
func (r answerRoutes) String() string {
	text := "local routes to ::1 at every interface, because node ports are served on loopback addresses"
	if r.missing != "" {
		text += "; there is none at " + r.missing
	}
	return text
}

// answerRoute returns the route of one interface.
func answerRoute(index int) *netlink.Route {
	return &netlink.Route{
		LinkIndex: index, Dst: &net.IPNet{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
		Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Protocol: deliveryProtocol,
	}
}

// answerKeeper keeps the routes. Once they are there, it makes those of interfaces that come up later by itself, because a new
// interface is no drift. Its sockets belong to the network namespace in which they were opened.
type answerKeeper struct {
	sysctl Sysctl

	mu sync.Mutex
	// made are the interfaces that have had the route since they came up, by index.
	made map[int]struct{}
	// missing are the interfaces that lacked it at the last look.
	missing map[int]string
	// end ends the watch, and is nil unless there is one.
	end context.CancelFunc
}

// look compares the routes that there are with the interfaces, and reports whether the Item exists. While the keeper watches, an
// interface that never had the route is left to it.
func (k *answerKeeper) look(routes map[int]struct{}) (item answerRoutes, exists bool, err error) {
	interfaces, err := outwardInterfaces()
	if err != nil {
		return item, false, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	missing := map[int]string{}
	for index, name := range interfaces {
		_, has := routes[index]
		_, had := k.made[index]
		if !has && (had || k.end == nil) && k.sysctl.speaksIPv6(name) {
			missing[index] = name
		}
	}
	for index := range k.made {
		if _, has := routes[index]; !has && missing[index] == "" {
			delete(k.made, index) // down, or without IPv6
		}
	}
	for index := range routes {
		k.made[index] = struct{}{}
	}
	k.missing = missing
	return answerRoutes{missing: shortList(slices.Sorted(maps.Values(missing)))}, len(routes) > 0 || len(missing) == 0, nil
}

// shortList joins names, of which it leaves out those beyond maxPortNames.
func shortList(names []string) string {
	if more := len(names) - maxPortNames; more > 0 {
		return strings.Join(names[:maxPortNames], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// set makes the routes that were missing at the last look.
func (k *answerKeeper) set() (err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for index, name := range k.missing {
		if e := k.add(netlink.RouteAppend, index); e != nil {
			err = errors.Join(err, fmt.Errorf("the local route to ::1 at %s cannot be made, by which answers to node ports on ::1 come: %w", name, e))
		}
	}
	return err
}

// add makes one route, unless the interface has gone or speaks no IPv6.
func (k *answerKeeper) add(route func(*netlink.Route) error, index int) error {
	err := route(answerRoute(index))
	switch {
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.EINVAL):
		return nil
	case err != nil && !errors.Is(err, unix.EEXIST):
		return err
	}
	k.made[index] = struct{}{}
	delete(k.missing, index)
	return nil
}

// remove deletes the routes, and ends the watch, which would make them again.
func (k *answerKeeper) remove() error {
	k.stop()
	_, routes, err := lookLocalRoutes()
	for index := range routes {
		if e := netlink.RouteDel(answerRoute(index)); e != nil && !errors.Is(e, unix.ESRCH) && !errors.Is(e, unix.ENODEV) {
			err = errors.Join(err, fmt.Errorf("a local route to ::1 cannot be deleted: %w", e))
		}
	}
	return err
}

// stop ends the watch.
func (k *answerKeeper) stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.end != nil {
		k.end()
	}
	k.end = nil
	clear(k.made)
}

// follow begins the watch, unless there is one: the keeper makes the routes of interfaces that come up. Without a watch a full
// sync finds them missing.
func (k *answerKeeper) follow() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.end != nil {
		return nil
	}
	events, err := nl.Subscribe(unix.NETLINK_ROUTE, answerGroups...)
	if err != nil {
		return fmt.Errorf("the kernel does not tell of new interfaces: %w", err)
	}
	requests, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		events.Close()
		return fmt.Errorf("the kernel takes no requests for routes: %w", err)
	}
	ctx, end := context.WithCancel(context.Background())
	k.end = end
	context.AfterFunc(ctx, events.Close)
	go func() {
		defer requests.Close()
		for ctx.Err() == nil {
			k.receive(ctx, events, requests)
			select {
			case <-ctx.Done():
				return
			case <-time.After(resubscribeDelay):
			}
			if again, err := nl.Subscribe(unix.NETLINK_ROUTE, answerGroups...); err == nil {
				events.Close()
				events = again
				context.AfterFunc(ctx, again.Close)
			}
		}
	}()
	return nil
}

// An interface on which IPv6 is enabled later is told of by its first address.
var answerGroups = []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV6_IFADDR}

// receive makes the routes of interfaces that the kernel tells of, until the subscription ends. It begins with those that came
// before the subscription, and looks at all again if notifications were lost.
func (k *answerKeeper) receive(ctx context.Context, events *nl.NetlinkSocket, requests *netlink.Handle) {
	k.catchUp(requests)
	for {
		messages, _, err := events.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
			k.catchUp(requests)
			continue
		case err != nil:
			return
		}
		for _, m := range messages {
			k.told(m.Header.Type, m.Data, requests)
		}
	}
}

// told takes one notification.
func (k *answerKeeper) told(kind uint16, data []byte, requests *netlink.Handle) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.end == nil {
		return
	}
	switch {
	case kind == unix.RTM_NEWADDR && len(data) >= unix.SizeofIfAddrmsg:
		index := int(nl.DeserializeIfAddrmsg(data).Index)
		if _, has := k.made[index]; has {
			return
		}
		if l, err := requests.LinkByIndex(index); err == nil && isOutward(l.Attrs().RawFlags, l.Attrs().MasterIndex, l.Attrs().Name) {
			_ = k.add(requests.RouteAppend, index) // what the kernel refuses is found missing at the next full sync
		}
	case (kind == unix.RTM_NEWLINK || kind == unix.RTM_DELLINK) && len(data) >= unix.SizeofIfInfomsg && data[0] == unix.AF_UNSPEC:
		i, ok := parseInterface(data)
		if _, has := k.made[i.index]; ok && kind == unix.RTM_NEWLINK && isOutward(i.flags, i.master, i.name) {
			if !has {
				_ = k.add(requests.RouteAppend, i.index)
			}
		} else if kind == unix.RTM_DELLINK || i.flags&unix.IFF_UP == 0 {
			delete(k.made, i.index) // its routes are gone with it
		}
	}
}

// catchUp makes the routes of all interfaces that have none.
func (k *answerKeeper) catchUp(requests *netlink.Handle) {
	links, err := dump(requests.LinkList)
	if err != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, l := range links {
		a := l.Attrs()
		if _, has := k.made[a.Index]; !has && k.end != nil && isOutward(a.RawFlags, a.MasterIndex, a.Name) {
			_ = k.add(requests.RouteAppend, a.Index)
		}
	}
}

// isOutward reports whether packets can come from elsewhere by an interface: not lo, nor one that hands them to its master.
func isOutward(flags uint32, master int, name string) bool {
	return flags&unix.IFF_UP != 0 && flags&unix.IFF_LOOPBACK == 0 && master == 0 && !slices.Contains(serviceInterfaces, name)
}

// networkInterface is what a message of the kernel says of an interface.
type networkInterface struct {
	index, master int
	flags         uint32
	name          string
}

// parseInterface reads a message about an interface. netlink's own parser takes several times as long.
func parseInterface(data []byte) (i networkInterface, ok bool) {
	msg := nl.DeserializeIfInfomsg(data)
	i.index, i.flags = int(msg.Index), msg.Flags
	attrs, err := nl.ParseRouteAttr(data[msg.Len():])
	if err != nil {
		return i, false
	}
	for _, a := range attrs {
		switch {
		case a.Attr.Type == unix.IFLA_IFNAME:
			i.name = unix.ByteSliceToString(a.Value)
		case a.Attr.Type == unix.IFLA_MASTER && len(a.Value) >= 4:
			i.master = int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	return i, true
}

// outwardInterfaces returns the interfaces by which answers can come, by index.
func outwardInterfaces() (map[int]string, error) {
	const skipStatistics = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	messages, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStatistics)))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	found := map[int]string{}
	for _, m := range messages {
		if len(m) < unix.SizeofIfInfomsg {
			continue
		}
		if i, ok := parseInterface(m); ok && isOutward(i.flags, i.master, i.name) {
			found[i.index] = i.name
		}
	}
	return found, nil
}

// speaksIPv6 reports whether IPv6 is enabled on an interface.
func (s Sysctl) speaksIPv6(name string) bool {
	value, err := s.Get("net/ipv6/conf/" + name + "/disable_ipv6")
	return err == nil && value == "0"
}

// lacking returns the names of the interfaces that lacked the route at the last look.
func (k *answerKeeper) lacking() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Sorted(maps.Values(k.missing))
}

// holding returns the names of the interfaces that have the route.
func (k *answerKeeper) holding() (names []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for index := range k.made {
		if l, err := netlink.LinkByIndex(index); err == nil { // else its route is gone with it
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names
}

// answerCommands returns the commands that make or delete the routes at interfaces.
func answerCommands(verb string, at []string) (list []backends.Command) {
	for _, name := range at {
		list = append(list, backends.Command{Args: []string{"ip", "-6", "route", verb, "local", "::1", "dev", name, "table", "local", "proto", fmt.Sprint(deliveryProtocol)}})
	}
	return list
}
