package hostnet

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// resubscribeDelay is how long Watch waits before it subscribes again after the kernel ended its notifications.
const resubscribeDelay = time.Second

// Watch calls changed whenever the addresses of the current network namespace may have changed, until ctx is done. It
// returns ctx's error. Addresses of Services do not count. Watch calls changed once at the beginning, when it can no
// longer miss a change, and again if notifications were lost. There can be many calls for one change, and calls without
// a change, because the kernel also reports a renewed lifetime. The caller settles and compares; changed should return
// soon.
//
// If the calling thread is locked and in its own namespace, Watch stays on it.
func Watch(ctx context.Context, changed func()) error {
	return watch(ctx, addressGroups, changed)
}

// WatchRoutes is Watch for the routes, of which there may be many changes for as long as a routing protocol runs.
func WatchRoutes(ctx context.Context, changed func()) error {
	return watch(ctx, routeGroups, changed)
}

var (
	addressGroups = []uint{unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR}
	routeGroups   = []uint{unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE}
)

func watch(ctx context.Context, groups []uint, changed func()) error {
	for {
		follow(ctx, 0, groups, changed)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(resubscribeDelay):
		}
	}
}

// follow reports notifications until the subscription ends. A receive buffer of 0 bytes means the system's default.
func follow(ctx context.Context, buffer int, groups []uint, changed func()) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, groups...)
	if err != nil {
		return
	}
	defer context.AfterFunc(ctx, s.Close)()
	defer s.Close()
	if buffer > 0 && s.SetReceiveBufferSize(buffer, false) != nil {
		return
	}
	changed()
	services := map[uint32]bool{} // by index of the interface
	for {
		messages, _, err := s.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
			changed()
		case err != nil:
			return
		case slices.ContainsFunc(messages, func(m syscall.NetlinkMessage) bool { return !ofServices(m, services) }):
			changed()
		}
	}
}

// ofServices reports whether a notification is about an address on an interface that holds the addresses of Services.
func ofServices(m syscall.NetlinkMessage, known map[uint32]bool) bool {
	if isAddress := m.Header.Type == unix.RTM_NEWADDR || m.Header.Type == unix.RTM_DELADDR; !isAddress || len(m.Data) < unix.SizeofIfAddrmsg {
		return false
	}
	index := nl.DeserializeIfAddrmsg(m.Data).Index
	is, ok := known[index]
	if !ok {
		link, err := netlink.LinkByIndex(int(index))
		is = err == nil && slices.Contains(serviceInterfaces, link.Attrs().Name)
		known[index] = is
	}
	return is
}
