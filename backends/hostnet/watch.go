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

// resubscribeDelay is how long Watch waits before it tries again after the kernel gave it no more notifications.
const resubscribeDelay = time.Second

// Watch calls changed whenever the addresses of the network namespace that it is called in may have changed, until ctx is
// done, and returns ctx's error. Those of Services do not count. It calls it once at first, when it will no longer miss anything, and again when
// notifications were lost. There can be many calls for one change, and calls for none: the kernel also reports a lifetime
// that was renewed. The caller settles and compares; changed should return soon.
//
// If it is called on a locked thread that is in a namespace of its own, it stays on it.
func Watch(ctx context.Context, changed func()) error {
	for {
		follow(ctx, 0, changed)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(resubscribeDelay):
		}
	}
}

// follow reports notifications until there can be no more. A receive buffer of 0 bytes means the system's default.
func follow(ctx context.Context, buffer int, changed func()) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR)
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

// ofServices says whether a notification is of an address on an interface that holds those of Services.
func ofServices(m syscall.NetlinkMessage, known map[uint32]bool) bool {
	if len(m.Data) < unix.SizeofIfAddrmsg {
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
