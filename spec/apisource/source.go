package apisource

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"weir/spec"
	"weir/spec/manifest"
)

// Source watches a Kubernetes API. It implements spec.Source; Load and Watch share nothing.
type Source struct {
	opts Options
}

var _ spec.Source = (*Source)(nil)

// New returns a Source. It touches nothing yet.
func New(o Options) *Source { return &Source{o.withDefaults()} }

// Cluster returns what tells this API's cluster from others, and "" if the credentials cannot be read.
func (s *Source) Cluster() string {
	c, err := readCredentials(s.opts.Connection)
	if err != nil {
		return ""
	}
	return c.cluster
}

// Load implements spec.Source. What the API refuses, or that it does not answer, is an error at once.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, ended := make(chan spec.Update), make(chan error, 1)
	go func() { ended <- s.Watch(ctx, out) }()
	select {
	case u := <-out:
		cancel()
		<-ended
		return u.Snapshot, u.Err
	case err := <-ended:
		return nil, err
	}
}

// Watch implements spec.Source.
func (s *Source) Watch(ctx context.Context, out chan<- spec.Update) error {
	l := &loop{
		Options: s.opts, out: out, events: make(chan event, 64), trim: manifest.NewTrimmer(),
		index: newIndex(s.opts.NodeName), started: time.Now(),
	}
	defer l.disconnect()
	return l.run(ctx)
}

// loop is one Watch. Everything in it belongs to the goroutine that called run.
type loop struct {
	Options
	out    chan<- spec.Update
	events chan event
	trim   *manifest.Trimmer
	index  *index
	box    spec.Outbox

	client  *client
	session int
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	started time.Time
	watches [resources]state
	refused error  // why there are no credentials to use; nil if there are
	unread  string // why new credentials cannot be used, "" if they can
	// told is the error that the receiver was told last, "" if it was told a Snapshot.
	told  string
	first bool // a Snapshot was sent
}

// state is what is known of the watch of one resource.
type state struct {
	listed bool // completely, at least once
	heard  time.Time
	err    error // why it is not heard
}

// run returns ctx's error.
func (l *loop) run(ctx context.Context) error {
	credentials := time.NewTicker(l.CheckCredentials)
	defer credentials.Stop()
	var resync <-chan time.Time
	if l.ResyncPeriod > 0 {
		t := time.NewTicker(l.ResyncPeriod)
		defer t.Stop()
		resync = t.C
	}
	l.reconnect(ctx)
	l.tell()
	for {
		out, news := l.box.Offer(l.out)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-l.events:
			l.takeAll(e)
			l.tell()
		case <-credentials.C:
			l.reconnect(ctx)
			l.tell()
		case <-resync:
			if l.first {
				l.box.Put(spec.Update{Snapshot: l.index.last, Delta: spec.Delta{All: true}, Revision: l.index.last.Revision})
				l.told = ""
				l.tell()
			}
		case out <- news:
			l.box.Sent()
		}
	}
}

// reconnect starts a session with the credentials of now, unless they are those in use.
func (l *loop) reconnect(ctx context.Context) {
	c, err := l.newClient()
	l.refused = nil
	switch {
	case err != nil && l.client == nil:
		l.refused = err
		return
	case err != nil:
		if err.Error() != l.unread {
			l.Log.Warn("the credentials for the Kubernetes API cannot be used; those known stay in use", "error", err)
		}
		l.unread = err.Error()
		return
	case c == nil:
		l.unread = ""
		return
	case l.client != nil:
		l.Log.Info("the credentials for the Kubernetes API have changed")
	}
	l.unread = ""
	l.disconnect()
	l.client = c
	l.session++
	l.Metrics.sessions.Inc()
	ctx, l.cancel = context.WithCancel(ctx)
	for r := range resources {
		f := &feed{session: l.session, resource: r, node: l.NodeName, client: c.core, trim: l.trim, stall: l.StallTimeout, events: l.events, done: ctx.Done()}
		if r == endpointSlices {
			f.client = c.discovery
		}
		l.wg.Go(func() { f.run(ctx) })
	}
}

// newClient returns nil if the credentials are those in use.
func (l *loop) newClient() (*client, error) {
	cr, err := readCredentials(l.Connection)
	if err != nil || l.client != nil && l.uses(cr) {
		return nil, err
	}
	return connect(cr)
}

// uses says whether the client has these credentials, or will have them soon enough: another token is waited for unless
// the one in use is refused.
func (l *loop) uses(cr *credentials) bool {
	used := l.client.credentials
	refused := slices.ContainsFunc(l.watches[:], func(s state) bool { return apierrors.IsUnauthorized(s.err) })
	return cr.sum == used.sum && (cr.token == used.token || !refused)
}

func (l *loop) disconnect() {
	if l.client == nil {
		return
	}
	l.cancel()
	l.client.close()
	l.wg.Wait()
}

// takeAll takes in an event and all that wait behind it, so that a burst becomes one Snapshot.
func (l *loop) takeAll(e event) {
	for range cap(l.events) {
		l.take(e)
		select {
		case e = <-l.events:
		default:
			return
		}
	}
	l.take(e)
}

func (l *loop) take(e event) {
	if e.session != l.session {
		return
	}
	w := &l.watches[e.resource]
	switch {
	case e.failed != nil:
		w.err = e.failed
		l.Metrics.failures.WithLabelValues(e.resource.String()).Inc()
	case e.heard:
		w.err, w.heard = nil, time.Now()
		l.Metrics.heard(e.resource, w.heard)
	}
	if e.stalled {
		l.Metrics.stalls.Inc()
	}
	if e.change != nil {
		l.index.apply(*e.change)
		if e.change.complete {
			w.listed = true
			l.Metrics.lists.WithLabelValues(e.resource.String()).Inc()
		}
	}
}

// tell puts what the receiver should know into the outbox.
func (l *loop) tell() {
	fault := l.fault()
	since := l.started
	for _, w := range l.watches {
		if w.heard.After(since) {
			since = w.heard
		}
	}
	l.Metrics.setConnected(fault == nil && l.complete(), since)
	if l.complete() && !l.waitsForPodCIDR() {
		snap, delta := l.index.current()
		if !delta.Empty() || fault == nil && l.told != "" {
			l.box.Put(spec.Update{Snapshot: snap, Delta: delta, Revision: snap.Revision})
			l.told, l.first = "", true
		}
	} else if fault == nil && l.complete() {
		fault = fmt.Errorf("detectLocalMode is NodeCIDR, and Node %s has no podCIDRs yet", l.NodeName)
	}
	if fault != nil && fault.Error() != l.told {
		l.told = fault.Error()
		l.box.Put(spec.Update{Err: fault, Revision: spec.Revision{ID: l.index.revision()}})
	}
}

// complete says that everything was listed.
func (l *loop) complete() bool {
	for _, w := range l.watches {
		if !w.listed {
			return false
		}
	}
	return true
}

func (l *loop) waitsForPodCIDR() bool { return l.WaitForPodCIDR && !l.first && !l.index.podCIDRs() }

// fault returns why the API is not heard; nil if it is, or if nothing is known yet.
func (l *loop) fault() error {
	if l.refused != nil {
		return l.refused
	}
	for r, w := range l.watches {
		switch {
		case w.err == nil:
		case apierrors.IsUnauthorized(w.err) || apierrors.IsForbidden(w.err):
			return fmt.Errorf("the Kubernetes API refuses %s: %w", resource(r), w.err)
		default:
			return fmt.Errorf("the Kubernetes API does not answer for %s: %w", resource(r), w.err)
		}
	}
	return nil
}
