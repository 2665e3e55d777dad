package userspace

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weir/backends/dataplane"
)

// Two processes can have the same listening sockets. Connections and datagrams that no process has taken wait in the
// socket, so that none is lost while one process stops to take them and the other begins:
//
//	the running process            its successor
//	WithSockets                    Inherit, then the Backend's first Apply
//	Pause
//	                               Serve
//	Leave                          (or Resume in the running process, if the successor fails)
//
// Connections stay with the process that has accepted them. UDP has no connections, so a client's next datagram opens a
// new flow in the successor. It goes to the endpoint that the client had, which gets it from another port. An endpoint's
// answer to an earlier datagram still reaches the client through the process that sent it.

// Socket is a listening socket of this process.
type Socket struct {
	// Name says what the socket is for, to Inherit.
	Name string
	FD   int
}

// maxFlows bounds the flows that are told to a successor.
const maxFlows = 1 << 16

// WithSockets calls f with the sockets of the open listeners, and with the UDP flows: their listener, client and endpoint. They are
// valid until f returns. Lingering listeners are left out, since this process serves them to their end.
func (l *Listeners) WithSockets(f func(sockets []Socket, flows []string) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var sockets []Socket
	var flows []string
	for _, protocols := range l.open {
		for _, o := range protocols {
			if o.leaving != nil {
				continue
			}
			sockets = append(sockets, Socket{socketName(o.item), o.proxy.descriptor()})
			if u, ok := o.proxy.(*udpProxy); ok && len(flows) < maxFlows {
				flows = append(flows, u.named()...)
			}
		}
	}
	return f(sockets, flows)
}

// socketName is the beginning of the listener's text, as far as it concerns the socket.
func socketName(item *listen) string {
	name := string(item.ID()) + " for " + item.key.String()
	if item.local {
		name += " policy Local to"
	}
	return name
}

// named returns the flows for Listeners.Recall.
func (u *udpProxy) named() (flows []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for client, f := range u.flows {
		flows = append(flows, fmt.Sprint(u.item.Load().bind, " ", client, " ", f.to.Load().endpoint))
	}
	return flows
}

// Inherit takes a socket of the process that this one is about to replace, and closes it if it returns an error. Until Serve
// no client is served, neither by this socket nor by others. It must be called before Apply.
func (l *Listeners) Inherit(name string, fd int) error {
	p := publishedItem(name)
	use, _, ok := p.use()
	if !ok {
		unix.Close(fd)
		return fmt.Errorf("%q is no listener", name)
	}
	item := &listen{protocol: use.key.Protocol, key: use.key, local: use.local, inherited: true}
	bind, err := checkSocket(fd, item.protocol)
	if item.bind = bind; err == nil && item.ID() != p.ID() {
		err = fmt.Errorf("it is bound to %s", bind)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("the socket of %q: %w", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[bind][item.protocol] != nil {
		unix.Close(fd)
		return fmt.Errorf("%q was given twice", name)
	}
	l.paused = true
	l.put(&listener{item: item, pools: newPools(item), admit: &admission{parent: &l.all, limit: l.limits.PerListener}, proxy: inherited(fd), current: func(*listen) {}})
	return nil
}

// checkSocket returns the address of a socket that receives for a Service, and an error for any other descriptor.
func checkSocket(fd int, protocol dataplane.Protocol) (netip.AddrPort, error) {
	kind, listening := unix.SOCK_STREAM, 1
	if protocol == dataplane.UDP {
		kind, listening = unix.SOCK_DGRAM, 0
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	bind := addrPortOf(name)
	for _, want := range [...]struct{ option, value int }{{unix.SO_TYPE, kind}, {unix.SO_ACCEPTCONN, listening}} {
		if got, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, want.option); err != nil {
			return bind, err
		} else if got != want.value {
			return bind, fmt.Errorf("it does not receive %s", protocol)
		}
	}
	if !bind.IsValid() {
		return bind, fmt.Errorf("it has no address of IPv4 or IPv6")
	}
	return bind, unix.SetNonblock(fd, true)
}

// inherited is the socket of a listener that nothing is known of but its use.
type inherited int

func (inherited) endpointsChanged()           {}
func (s inherited) setMark(mark uint32) error { return setMark(int(s), mark) }
func (inherited) pause()                      {}
func (inherited) resume()                     {}
func (s inherited) close()                    { unix.Close(int(s)) }
func (s inherited) end(time.Duration)         { s.close() }
func (inherited) wait()                       {}
func (inherited) open() int                   { return 0 }
func (s inherited) descriptor() int           { return int(s) }

// FollowInherited makes Ports keep the ports of inherited listeners, because the kernel redirects to them.
func (l *Listeners) FollowInherited(p *Ports) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for bind, protocols := range l.open {
		for _, o := range protocols {
			if o.item.inherited {
				p.follow(o.item.use(), bind.Port())
			}
		}
	}
}

// Recall takes the flows of the process that this one replaces. It is called after the first Apply.
func (l *Listeners) Recall(flows []string) {
	former := map[netip.AddrPort]map[netip.AddrPort]netip.AddrPort{}
	for _, f := range flows {
		var a [3]netip.AddrPort
		fields := strings.Fields(f)
		if len(fields) != len(a) {
			continue
		}
		var err error
		for i := range a {
			if a[i], err = netip.ParseAddrPort(fields[i]); err != nil {
				break
			}
		}
		if err != nil {
			continue
		}
		if former[a[0]] == nil {
			former[a[0]] = map[netip.AddrPort]netip.AddrPort{}
		}
		former[a[0]][a[1]] = a[2]
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for bind, of := range former {
		o := l.open[bind][dataplane.UDP]
		if o == nil {
			continue
		}
		if u, ok := o.proxy.(*udpProxy); ok {
			u.recall(of)
		}
	}
}

// recall has the next flow of each client go to its former endpoint, as long as the former flow would have lasted.
func (u *udpProxy) recall(of map[netip.AddrPort]netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.former = maps.Clone(of)
	time.AfterFunc(max(u.item.Load().idle, answerTimeout), func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.former = nil
	})
}

// Pause stops to accept connections and to receive datagrams, until Resume or Leave. What has been accepted goes on.
func (l *Listeners) Pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = true
	for _, protocols := range l.open {
		for _, o := range protocols {
			if o.leaving == nil { // no other process serves a lingering one
				o.proxy.pause()
			}
		}
	}
}

// Resume goes on after Pause.
func (l *Listeners) Resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paused = false
	for _, protocols := range l.open {
		for _, o := range protocols {
			o.proxy.resume()
		}
	}
}

// Serve ends the wait of inherited listeners. It closes those that Apply has not used.
func (l *Listeners) Serve() {
	l.mu.Lock()
	for _, protocols := range maps.Clone(l.open) {
		for _, o := range maps.Clone(protocols) {
			if o.item.inherited {
				l.close(o)
			}
		}
	}
	l.mu.Unlock()
	l.Resume()
}

// Leave closes this process's part of the sockets that another process serves. Their connections have the grace time to
// end. After Leave only Hurry and Drain may be called.
func (l *Listeners) Leave(grace time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, protocols := range maps.Clone(l.open) {
		for _, o := range maps.Clone(protocols) {
			if o.leaving == nil {
				o.proxy.end(grace)
				l.leave(o)
				l.ended = append(l.ended, o)
			}
		}
	}
}

// Linger waits, after Leave, until the connections have ended or ctx is done, and returns how many have not.
func (l *Listeners) Linger(ctx context.Context) int { return l.drained(ctx) }

// Hurry gives the connections that are left after Leave no longer than those of a deleted Service have.
func (l *Listeners) Hurry() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, o := range l.ended {
		o.proxy.end(l.limits.Grace)
	}
}
