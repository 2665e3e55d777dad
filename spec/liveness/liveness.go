// Package liveness has a layer that finds out which endpoints work. It asks the probes of Services, and sets the conditions of
// endpoints by what they answer. Everything downstream sees EndpointSlices as if a control plane had judged them.
//
// Layer is a join.Filter. It goes by the thresholds of the kubelet. An endpoint that comes gets no connections before its first
// success. Below the least number of endpoints that must work, all are kept as their slices say, because then it is more likely
// that the probes are wrong. Verdicts are kept in the state directory, so that a restart changes nothing.
//
// A probe leaves the node as any connection of the node does, with one exception: it has dataplane.ProbeMark, and the rules of
// iptables, nftables and userspace mode translate no connection with that. Otherwise a probe of an endpoint whose address is one
// of a Service, such as a node port on the node's own address, would be answered by the endpoints of that Service. Rules that
// drop hold for probes too, where they hold for the clients of the endpoint. IPVS looks a connection up before any rule could spare
// it, so that in ipvs mode, and without privileges, such a probe is answered by that Service.
//
// The package does not ask: package probe does. cmd/weir puts the Layer above the sources.
package liveness

import (
	"container/heap"
	"context"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	discoveryv1 "k8s.io/api/discovery/v1"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/probe"
)

const (
	// maxRunning is how many probes run at once. A probe of an endpoint that does not answer takes its whole timeout.
	maxRunning = 1024
	// maxTurn is how many probes are started in a row before verdicts are told.
	maxTurn = 64
	// maxIdle is how many workers wait for more.
	maxIdle = 32
	// maxPace is how many checks may begin in a second. When many endpoints come together, it spreads their first probes, and
	// so all that follow.
	maxPace = 2000
	// firstRetry is how soon an endpoint that comes is asked again if it does not work yet. It doubles up to the period.
	firstRetry = 200 * time.Millisecond
	// jitter is the part of a period by which a probe may come early. None comes late, so that thresholds bound how long a dead
	// endpoint stays.
	jitter = 0.1
	// grain is how much earlier than planned a probe may run, so that several share a wake-up: the wake-ups of a process cost more
	// than a TCP probe. A period has at least minGrains of them.
	grain     = 20 * time.Millisecond
	minGrains = 50
)

// Options are the inputs of a Layer.
type Options struct {
	// Log may be nil.
	Log hclog.Logger
	// Remembered has only the verdicts of an earlier process count, for a plan: what has come since is as its slice says. Watch is
	// not to be called.
	Remembered bool
	// Exec returns a function that runs commands in the containers of a pod, or nil if that is not possible. It may be nil.
	Exec func(pod dataplane.ServiceName) Exec
}

// Exec runs a command in a container of a pod.
type Exec func(ctx context.Context, container string, command []string) (exit int, output []byte, err error)

// Layer judges endpoints. Its methods are safe for concurrent use.
//
// Goals: a change costs what it is about. While nothing is probed, a Layer costs nothing. One verdict leads to one change of
// its Services, however many endpoints they have.
//
// All state is guarded by one lock, which is never held while a probe runs, a file is written or the join is called.
type Layer struct {
	log  hclog.Logger
	past bool // only the verdicts of an earlier process count
	exec func(dataplane.ServiceName) Exec
	// start is Probe.Start; tests replace it.
	start func(*probe.Probe, probe.Target) (probe.Result, func(context.Context) probe.Result)
	kept  *kept

	mu       sync.Mutex
	updates  int // how many the join has made
	off      bool
	policy   *probe.Policy
	services map[dataplane.ServiceName]*service
	// unasked are the Services with probes while the Layer is off.
	unasked map[dataplane.ServiceName]struct{}
	checks  map[netip.AddrPort][]*check
	queue   queue
	begun   time.Time // grains are counted from then on
	running int
	starved bool          // a check is due and waits for others to end
	idle    []chan asking // workers that wait for more
	paced   time.Time     // when the next check may begin
	// judged are the Services of which a verdict changed that the join has not been told.
	judged map[dataplane.ServiceName]struct{}
	wake   chan struct{}
}

// New returns a Layer that asks nothing before Watch.
func New(o Options) *Layer {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return &Layer{
		log: o.Log, past: o.Remembered, exec: o.Exec, kept: newKept(o.Log),
		start: (*probe.Probe).Start, begun: time.Now(),
		services: map[dataplane.ServiceName]*service{},
		unasked:  map[dataplane.ServiceName]struct{}{},
		checks:   map[netip.AddrPort][]*check{},
		judged:   map[dataplane.ServiceName]struct{}{},
		wake:     make(chan struct{}, 1),
	}
}

// Configure implements join.Configurable.
func (l *Layer) Configure(base *spec.Snapshot) []dataplane.ServiceName {
	l.kept.use(base.Weir.StateDir)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.updates++
	l.policy = base.Weir.Liveness.Hosts
	if l.off == base.Weir.Liveness.Disabled {
		return nil
	}
	l.off = !l.off
	if l.off {
		return slices.Collect(maps.Keys(l.services))
	}
	return slices.Collect(maps.Keys(l.unasked))
}

// Slices implements join.Filter.
func (l *Layer) Slices(name dataplane.ServiceName, svc, before *spec.Service) []*discoveryv1.EndpointSlice {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.services[name]
	delete(l.unasked, name)
	if svc == nil || svc.Probes.Empty() || l.off || svc.Object.Spec.PublishNotReadyAddresses {
		if l.off && svc != nil && !svc.Probes.Empty() {
			l.unasked[name] = struct{}{}
		}
		if s != nil {
			l.replace(s, nil)
			delete(l.services, name)
		}
		if svc == nil {
			return nil
		}
		return svc.Slices
	}
	if s == nil {
		s = &service{name: name}
		l.services[name] = s
	}
	if s.probes == nil || !s.probes.Equal(svc.Probes) || !slices.Equal(s.in, svc.Slices) {
		s.probes, s.in = svc.Probes, svc.Slices
		l.learn(s, before)
		s.outdated = true
	}
	if s.outdated {
		s.outdated = false
		s.evaluate()
		s.tell(l.log)
	}
	return s.out
}

// learn finds the checks that a Service needs, begins those that are new, and ends those that it does not need any more.
func (l *Layer) learn(s *service, before *spec.Service) {
	now := time.Now()
	needed := map[*check]struct{}{}
	var fresh []*check
	ready, restored := readyAddresses(before), false
	s.cells = make([][]cell, len(s.in))
	for i, slice := range s.in {
		s.cells[i] = make([]cell, len(slice.Endpoints))
	}
	prints := prints{}
	eachProbe(s.probes, s.in, func(a at, p *probe.Probe, to probe.Target) {
		e := &s.in[a.slice].Endpoints[a.endpoint]
		if p.Kind == probe.Exec {
			to.Exec = l.execOf(s.name.Namespace, e)
		}
		c := l.check(p, to)
		if c == nil {
			c = &check{probe: p, to: to, pod: podOf(s.name.Namespace, e), key: keyOf(p, to), print: prints.of(p)}
			if like := l.like(c); like != nil {
				c.follow(like)
			} else if l.kept.restore(c) {
				restored = true
			} else if _, served := ready[e.Addresses[0]]; !served && !l.past {
				c.awaited = true
				fresh = append(fresh, c)
			}
			l.begin(c, now)
		} else if c.restored {
			restored = true
		}
		s.cells[a.slice][a.endpoint].add(a.port, c)
		needed[c] = struct{}{}
	})
	// What an earlier process never judged of a Service stands as its slices say, so that a start takes nothing out of service.
	if before == nil && l.updates <= 1 && !restored {
		for _, c := range fresh {
			c.awaited = false
		}
	}
	for c := range needed {
		if !c.noted {
			l.kept.note(c)
		}
	}
	l.replace(s, needed)
	l.awake()
}

// readyAddresses returns the addresses of the endpoints of a Service, which may be nil, that get connections.
func readyAddresses(svc *spec.Service) map[string]struct{} {
	ready := map[string]struct{}{}
	if svc != nil {
		for _, slice := range svc.Slices {
			for i := range slice.Endpoints {
				if e := &slice.Endpoints[i]; said(e) && len(e.Addresses) > 0 {
					ready[e.Addresses[0]] = struct{}{}
				}
			}
		}
	}
	return ready
}

func (l *Layer) execOf(namespace string, e *discoveryv1.Endpoint) Exec {
	if pod := podOf(namespace, e); l.exec != nil && pod.Name != "" {
		return l.exec(pod)
	}
	return nil
}

// replace makes these the checks of a Service.
func (l *Layer) replace(s *service, needed map[*check]struct{}) {
	for c := range needed {
		if _, had := s.checks[c]; !had {
			c.users = append(c.users, s)
		}
	}
	for c := range s.checks {
		if _, needs := needed[c]; needs {
			continue
		}
		if c.users = slices.DeleteFunc(c.users, func(u *service) bool { return u == s }); len(c.users) == 0 {
			l.end(c)
		}
	}
	s.checks = needed
}

// check returns the check that asks this already, or nil.
func (l *Layer) check(p *probe.Probe, to probe.Target) *check {
	for _, c := range l.checks[keyOf(p, to)] {
		if c.probe == p || c.probe.Equal(p) {
			return c
		}
	}
	return nil
}

// like returns a check with a verdict that asks the same at other times or with other thresholds, or nil.
func (l *Layer) like(c *check) *check {
	i := slices.IndexFunc(l.checks[c.key], func(o *check) bool { return o.verdict != unjudged && o.print.question == c.print.question })
	if i < 0 {
		return nil
	}
	return l.checks[c.key][i]
}

// keyOf returns the address that a check is about. That of a command is the endpoint itself.
func keyOf(p *probe.Probe, to probe.Target) netip.AddrPort {
	if p.Kind == probe.Exec {
		return netip.AddrPortFrom(to.Address.Addr(), 0)
	}
	return p.Address(to)
}

// Hosts returns which hosts besides endpoints probes may connect to.
func (l *Layer) Hosts() *probe.Policy {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.policy
}

// begin plans the first probe of a check.
func (l *Layer) begin(c *check, now time.Time) {
	l.checks[c.key] = append(l.checks[c.key], c)
	if c.next = now.Add(c.probe.InitialDelay); c.verdict != unjudged || c.probe.InitialDelay == 0 {
		if l.paced.Before(now) {
			l.paced = now
		}
		c.next = l.grained(l.paced, c.probe.Period)
		l.paced = l.paced.Add(time.Second / maxPace)
	}
	heap.Push(&l.queue, c)
}

// grained returns the beginning of the grain that a time is in.
func (l *Layer) grained(t time.Time, period time.Duration) time.Time {
	return l.begun.Add(t.Sub(l.begun).Truncate(min(grain, period/minGrains)))
}

// end ends a check that no Service needs.
func (l *Layer) end(c *check) {
	c.ended = true
	if c.at >= 0 {
		heap.Remove(&l.queue, c.at)
	}
	rest := slices.DeleteFunc(l.checks[c.key], func(o *check) bool { return o == c })
	if l.checks[c.key] = rest; len(rest) == 0 {
		delete(l.checks, c.key)
	}
	l.kept.forget(c)
}

func (l *Layer) awake() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Watch implements join.Filter. It runs the probes.
func (l *Layer) Watch(ctx context.Context, changed func(...dataplane.ServiceName)) {
	var probes sync.WaitGroup
	defer probes.Wait()
	probes.Go(func() { l.kept.write(ctx, l.records) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		judged, next := l.turn(ctx, &probes)
		if len(judged) > 0 {
			changed(judged...)
			continue
		}
		var due <-chan time.Time
		if !next.IsZero() {
			timer.Reset(time.Until(next))
			due = timer.C
		}
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-due:
		}
	}
}

// turn starts the checks that are due. It returns the Services with new verdicts, and when the next check is due. What is
// answered at once needs no worker: most TCP probes of this node's pods.
func (l *Layer) turn(ctx context.Context, probes *sync.WaitGroup) (judged []dataplane.ServiceName, next time.Time) {
	due := l.due()
	for i := range due {
		a := &due[i]
		a.began = time.Now()
		a.result, a.wait = l.start(a.check.probe, a.to)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range due {
		last := len(l.idle) - 1
		switch {
		case a.wait == nil:
			l.finish(a)
		case last >= 0:
			l.idle[last] <- a
			l.idle = l.idle[:last]
		default:
			probes.Go(func() { l.work(ctx, a) })
		}
	}
	if len(l.queue) > 0 && !l.starved {
		next = l.queue[0].next
	}
	for name := range l.judged {
		judged = append(judged, name)
	}
	if len(judged) > 0 {
		l.judged = map[dataplane.ServiceName]struct{}{}
	}
	return judged, next
}

// asking is a check that runs.
type asking struct {
	check  *check
	to     probe.Target
	began  time.Time
	result probe.Result
	wait   func(context.Context) probe.Result // returns the result, unless that is there already
}

// due takes the checks that are due, as many as may run.
func (l *Layer) due() (due []asking) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.starved = false
	now := time.Now()
	for len(l.queue) > 0 && !l.queue[0].next.After(now) && len(due) < maxTurn {
		if l.starved = l.running >= maxRunning; l.starved {
			return due
		}
		c := heap.Pop(&l.queue).(*check)
		l.running++
		to := c.to
		to.Policy = l.policy
		due = append(due, asking{check: c, to: to})
	}
	return due
}

// work waits for the result of one check after the other: a goroutine, and a context that shares no lock, cost as much as a
// probe does.
func (l *Layer) work(ctx context.Context, a asking) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	more := make(chan asking, 1)
	for {
		a.result = a.wait(ctx)
		if ctx.Err() != nil || !l.finishAndIdle(a, more) {
			return
		}
		select {
		case a = <-more:
		case <-ctx.Done():
			return
		}
	}
}

// finishAndIdle takes the result of a check. It reports whether the worker waits for more.
func (l *Layer) finishAndIdle(a asking, more chan asking) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.finish(a)
	if len(l.idle) >= maxIdle {
		return false
	}
	l.idle = append(l.idle, more)
	return true
}

// finish takes the result of a check, and has the Layer wake when that is to be asked again.
func (l *Layer) finish(a asking) {
	l.running--
	if !a.check.ended {
		l.take(a.check, a.began, a.result)
		heap.Push(&l.queue, a.check)
	}
	if l.starved || !a.check.ended && a.check.at == 0 { // the Layer plans when to wake
		l.awake()
	}
}

// take takes the result of a check, and plans its next probe.
func (l *Layer) take(c *check, start time.Time, r probe.Result) {
	if c.asked.IsZero() {
		c.began = start
	}
	if r.Message == c.result.Message {
		r.Message = c.result.Message // one copy
	}
	c.asked, c.result = start, r
	for _, s := range c.users {
		s.results[r.Verdict]++
		if r.Verdict == probe.Unknown && s.unknown != r.Message {
			s.unknown = r.Message
			l.log.Warn("a probe says nothing: endpoints that come get no connections until it does", "service", s.name.String(),
				"endpoint", c.to.Address.String(), "probe", From(c.probe), "because", r.Message)
		}
	}
	period := c.probe.Period
	if c.awaited && r.Verdict != probe.Success {
		if r.Verdict == probe.Unknown || start.Sub(c.began) < period*time.Duration(c.probe.FailureThreshold-1) {
			c.judge = judge{}
			c.next = start.Add(min(period, firstRetry<<min(c.tries, 20)))
			c.tries++
			return
		}
		c.judge = judge{probe.Failure, c.probe.FailureThreshold - 1} // retries in between count for nothing
	}
	if c.judge.add(r.Verdict, c.probe) {
		v := healthy
		if r.Verdict == probe.Failure {
			v = unhealthy
		}
		l.judgeAs(c, v)
	}
	c.next = start.Add(period - time.Duration(rand.Float64()*jitter*float64(period)))
	if !c.phased && c.verdict != unjudged {
		c.phased = true // the second probe is at random within the period, so that checks that began together part
		c.next = start.Add(time.Duration((0.1 + 0.9*rand.Float64()) * float64(period)))
	}
	c.next = l.grained(c.next, period)
	if now := time.Now(); c.next.Before(now) {
		c.next = now
	}
}

// judgeAs notes the verdict on a check, and has its Services told.
func (l *Layer) judgeAs(c *check, v verdict) {
	stays := c.verdict == unjudged && !c.awaited && v == healthy // it is served already
	c.awaited = false
	if c.verdict == v {
		return
	}
	now := time.Now()
	c.verdict, c.since, c.lasted = v, now, now.Sub(c.since)
	l.kept.note(c)
	if stays {
		return
	}
	for _, s := range c.users {
		s.outdated = true
		l.judged[s.name] = struct{}{}
	}
	l.awake()
}
