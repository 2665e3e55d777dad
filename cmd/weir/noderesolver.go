package main

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"weir/backends"
	"weir/backends/dns"
	"weir/backends/hostnet"
	"weir/reconcile/tell/names"
	"weir/spec"
)

const (
	// resolverSoon is when a weir that does not answer yet is asked again first.
	resolverSoon = 20 * time.Millisecond
	// resolverElsewhere is how long weir has to answer where processes are to ask, before they ask elsewhere.
	resolverElsewhere = 3 * time.Second
	// resolverTick is how often the files of the node are looked at for changes by others.
	resolverTick = time.Second
	// resolverPeace is how long others must leave them alone for a repair to be made at once again. Until then each repair
	// waits twice as long as the one before, up to resolverWait.
	resolverPeace = 5 * time.Minute
	resolverWait  = time.Minute
)

// nodeResolver has the processes of the node ask weir for names, as long as weir answers.
type nodeResolver struct {
	log    hclog.Logger
	wishes chan resolverWish // holds the last one that is not taken yet
	end    context.CancelCauseFunc
	ended  chan struct{}
	last   *resolverWish // nil before the first
}

// errLeft ends run with everything left in force, because another process is in charge of it.
var errLeft = errors.New("another process is in charge")

// resolverWish is what shall be in force.
type resolverWish struct {
	stateDir string
	wanted   *hostnet.NamesWanted // nil: nothing
	zone     *names.Zone
	// others are where weir answers too, and made is when it was wished.
	others []netip.AddrPort
	made   time.Time
}

func newNodeResolver(log hclog.Logger) *nodeResolver {
	return &nodeResolver{log: log, wishes: make(chan resolverWish, 1)}
}

// follow has the wish in force from now on, in place of any before. Only one goroutine may call it and stop.
func (r *nodeResolver) follow(ctx context.Context, w resolverWish) {
	select {
	case <-r.wishes:
	default:
	}
	r.wishes <- w
	r.last = &w
	if r.end == nil {
		ctx, r.end = context.WithCancelCause(context.WithoutCancel(ctx))
		r.ended = make(chan struct{})
		go func() {
			defer close(r.ended)
			r.run(ctx)
		}()
	}
}

// stop takes back what is in force, so that nothing of the node asks a weir that has ended.
func (r *nodeResolver) stop() {
	if r.end != nil {
		r.end(nil)
		<-r.ended
	}
}

// leave leaves to another process what is in force. Neither follow nor stop may be called then, but resume.
func (r *nodeResolver) leave() {
	if r.end != nil {
		r.end(errLeft)
		<-r.ended
		r.end = nil
	}
}

// resume goes on after leave.
func (r *nodeResolver) resume() {
	if r.last != nil {
		r.follow(context.Background(), *r.last)
	}
}

// resolverState is what run knows of the node.
type resolverState struct {
	*hostnet.NodeNames
	wish resolverWish
	// applied reports whether the wish is in force, as of modified and serial.
	applied  bool
	modified string
	serial   uint32
	// told is the error that was logged last.
	told string
	// wait is how long the next repair waits, since the last one at repaired.
	wait     time.Duration
	repaired time.Time
}

func (r *nodeResolver) run(ctx context.Context) {
	var s *resolverState
	pause := resolverSoon
	for {
		select {
		case <-ctx.Done():
			if s != nil && context.Cause(ctx) != errLeft {
				s.Want(nil)
				r.ensure(context.WithoutCancel(ctx), s)
			}
			return
		case w := <-r.wishes:
			if s == nil || s.wish.stateDir != w.stateDir {
				s = &resolverState{NodeNames: hostnet.NewNodeNames(r.log, w.stateDir)}
			}
			s.wish, s.applied = w, false
			s.Want(w.wanted)
			pause = resolverSoon
		case <-time.After(pause):
		}
		if s != nil {
			r.look(ctx, s)
		}
		pause = min(2*pause, resolverTick)
	}
}

// look makes the node as wished, if that may have to be done.
func (r *nodeResolver) look(ctx context.Context, s *resolverState) {
	w := s.wish.wanted
	if w != nil {
		w.Answers = func(server netip.AddrPort) bool { return dns.AnswersFor(ctx, server, w.Domain) }
	}
	switch {
	case w == nil && s.applied:
		return
	case !s.applied:
		// Processes must not ask weir before it answers.
		if w != nil && w.Way != hostnet.WayNone && w.Way != hostnet.WayHosts && !s.answers(ctx, w) {
			return
		}
		if w != nil && s.wish.zone.Serial() == 0 {
			return
		}
	case s.modified == s.Modified() && s.serial == s.wish.zone.Serial():
		return
	case s.modified != s.Modified() && time.Since(s.repaired) < s.wait:
		return
	}
	r.ensure(ctx, s)
}

// answers reports whether weir answers where processes are to ask. If it does not after a while, because another program has the port
// there, they are to ask where else it answers.
func (s *resolverState) answers(ctx context.Context, w *hostnet.NamesWanted) bool {
	if dns.AnswersFor(ctx, w.At, w.Domain) {
		return true
	}
	if time.Since(s.wish.made) < resolverElsewhere {
		return false
	}
	for _, at := range s.wish.others {
		if dns.AnswersFor(ctx, at, w.Domain) {
			w.At = at
			return true
		}
	}
	return false
}

// ensure makes the node as wished, and tells what it changed.
func (r *nodeResolver) ensure(ctx context.Context, s *resolverState) {
	if w := s.wish.wanted; w != nil {
		s.serial = s.wish.zone.Serial()
	}
	drift := s.applied && s.modified != s.Modified()
	if drift {
		s.Retry()
	}
	changed, err := s.Ensure(ctx)
	for _, c := range changed {
		switch {
		case c.Op == backends.Delete:
			r.log.Info("taken back from the node", "what", c.Old.String())
		case drift:
			r.log.Warn("another process changed how this node finds names: set again", "what", c.New.String())
		default:
			r.log.Info("set on the node", "what", c.New.String())
		}
	}
	if ctx.Err() != nil {
		return
	}
	if drift && len(changed) > 0 {
		if time.Since(s.repaired) > resolverPeace {
			s.wait = 0
		}
		s.wait = min(max(2*s.wait, resolverTick), resolverWait)
		s.repaired = time.Now()
	}
	text := ""
	if err != nil {
		text = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	if text != s.told && text != "" {
		r.log.Warn("the processes of this node may not find the names of Services; weir doctor says what to set", "error", text)
	}
	s.told = text
	s.applied, s.modified = true, s.Modified()
	if err == nil && len(changed) > 0 && !s.Plan(ctx).Empty() { // another process changed it meanwhile
		s.modified = ""
	}
}

// namesWanted returns what the processes of the node shall find, or nil.
func namesWanted(snap *spec.Snapshot, zone *names.Zone) *hostnet.NamesWanted {
	c := snap.Weir.DNS
	if !c.Serve || hostnet.Way(c.NodeResolver) == hostnet.WayNone {
		return nil
	}
	var ranges []netip.Prefix
	if snap.Weir.ServiceCIDRsGiven {
		ranges = snap.Weir.ServiceCIDRs
	}
	return &hostnet.NamesWanted{
		Way: hostnet.Way(c.NodeResolver), At: askedAt(c.Listen), Domain: c.ClusterDomain, Ranges: snap.Weir.ServiceCIDRs,
		Hosts: func() []hostnet.HostNames { return hostNames(zone, c.ClusterDomain, ranges) },
	}
}

// askedAt returns the address, of those that weir listens at, that processes of the node are to ask: one with port 53, which is
// the only one that a resolv.conf can name, and of those a loopback address.
func askedAt(listen []netip.AddrPort) netip.AddrPort {
	var best netip.AddrPort
	rank := func(at netip.AddrPort) (n int) {
		if at.Port() == 53 {
			n += 2
		}
		if at.Addr().IsLoopback() {
			n++
		}
		return n
	}
	for _, at := range listen {
		switch {
		case !at.Addr().IsUnspecified():
		case at.Addr().Is4():
			at = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
		default:
			at = netip.AddrPortFrom(netip.IPv6Loopback(), at.Port())
		}
		if !best.IsValid() || rank(at) > rank(best) {
			best = at
		}
	}
	return best
}

// hostNames returns the names of the Services in force that have ClusterIPs, in the ranges if there are any.
func hostNames(zone *names.Zone, domain string, ranges []netip.Prefix) (list []hostnet.HostNames) {
	whole, services := zone.Copy()
	for _, name := range services {
		n := whole.Names(name)
		if n == nil {
			continue
		}
		addrs := slices.DeleteFunc(slices.Clone(n.ClusterIPs), func(a netip.Addr) bool {
			return len(ranges) > 0 && !slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Contains(a) })
		})
		if len(addrs) > 0 {
			list = append(list, hostnet.HostNames{Name: name.Name + "." + name.Namespace + ".svc." + domain, Addrs: addrs})
		}
	}
	return list
}
