// Package apisource is a spec.Source over a Kubernetes API. It lists and watches Services, EndpointSlices and this node's
// Node, and joins them into the same Snapshots that files give. New returns a Source, for Options.
//
// client-go's Reflectors keep three watches and hand over objects that are trimmed as they arrive. One goroutine joins
// them. The cost of a change depends on its size, not on the size of the cluster. Nothing is sent before all three lists
// are complete, and an object missing from an incomplete list is never taken for deleted. While the API does not answer,
// the last Snapshot stands and an Update with an Err reports it; the next Snapshot follows when it answers again.
//
// The package keeps nothing on disk; spec/lastgood does. cmd/weir imports it.
package apisource

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"weir/spec"
	"weir/spec/manifest"
	"weir/spec/stall"
)

// Source watches a Kubernetes API. It implements spec.Source; Load and Watch share nothing.
type Source struct {
	opts Options
}

var _ spec.Source = (*Source)(nil)

// New returns a Source. It neither reads files nor connects.
func New(o Options) *Source { return &Source{o.withDefaults()} }

// readingCredentials is what a hung read of the kubeconfig, or of a file that it names, is called.
const readingCredentials = "reading the kubeconfig or its credentials"

// Cluster returns an identifier of this API's cluster, or "" if the credentials cannot be read.
func (s *Source) Cluster() string {
	c, err := stall.Do(context.Background(), stall.Limit, readingCredentials, func() (*credentials, error) {
		return readCredentials(s.opts.Connection)
	})
	if err != nil {
		return ""
	}
	return c.cluster
}

// Load implements spec.Source. It returns an error at once if the API refuses a request or does not answer.
func (s *Source) Load(ctx context.Context) (*spec.Snapshot, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var first *spec.Update
	err := s.Watch(ctx, func(u spec.Update) {
		if first == nil {
			first = &u
			cancel()
		}
	})
	if first != nil {
		return first.Snapshot, first.Err
	}
	return nil, err
}

// Watch implements spec.Source.
func (s *Source) Watch(ctx context.Context, sink func(spec.Update)) error {
	l := &loop{
		Options: s.opts, sink: sink, events: make(chan event, 64), trim: manifest.NewTrimmer(),
		index: newIndex(s.opts.NodeName, s.opts.Headless), started: time.Now(),
	}
	defer l.disconnect()
	return l.run(ctx)
}

// loop is one Watch. Everything in it belongs to the goroutine that called run.
type loop struct {
	reading stall.Gate // of the credentials
	Options
	sink   func(spec.Update)
	events chan event
	trim   *manifest.Trimmer
	index  *index

	client  *client
	session int
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	started time.Time
	watches [resources]state
	refused error  // why there are no usable credentials; nil if there are
	unread  string // why new credentials cannot be used, "" if they can
	// held is the cost of the objects of each resource in the index.
	held [resources]atomic.Int64
	// empty is a complete list without any Service, which is not believed, or nil.
	empty *change
	// told is the last error that was sent, or "" if a Snapshot was sent after it.
	told  string
	first bool // a Snapshot was sent
}

// state is the state of the watch of one resource.
type state struct {
	listed bool // completely, at least once
	heard  time.Time
	err    error // why it is not being watched
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
				l.sink(spec.Update{Snapshot: l.index.last, Delta: spec.Delta{All: true}, Revision: l.index.last.Revision})
				l.told = ""
				l.tell()
			}
		}
	}
}

// reconnect starts a session with the current credentials, unless they are in use already.
func (l *loop) reconnect(ctx context.Context) {
	c, err := l.newClient(ctx)
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
		f := &feed{session: l.session, resource: r, node: l.NodeName, client: c.core, trim: l.trim, headless: l.Headless, stall: l.StallTimeout, events: l.events, done: ctx.Done(),
			maxAnswer: l.MaxAnswer, maxHeld: l.MaxHeld, held: &l.held[r]}
		if r == endpointSlices {
			f.client = c.discovery
		}
		l.wg.Go(func() { f.run(ctx) })
	}
}

// newClient returns a client, or nil if the credentials have not changed.
func (l *loop) newClient(ctx context.Context) (*client, error) {
	var read atomic.Pointer[credentials]
	err := l.reading.Do(ctx, stall.Limit, readingCredentials, func() error {
		cr, err := readCredentials(l.Connection)
		read.Store(cr)
		return err
	})
	cr := read.Load()
	if err != nil || l.client != nil && l.uses(cr) {
		return nil, err
	}
	return connect(cr)
}

// uses reports whether the client has these credentials, or will have them soon enough. client-go reads a new token by
// itself, so a new client is needed only if the server refuses the old token.
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

// takeAll takes an event and all that wait behind it, so that a burst becomes one Snapshot.
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
		l.takeChange(e.change)
	}
}

// takeChange applies a change. A list without any Service waits until the API names a Service.
func (l *loop) takeChange(c *change) {
	if c.resource == services {
		if c.complete && c.listed == 0 && !l.AllowEmpty {
			l.empty = c
			return
		}
		if l.empty != nil && !c.complete {
			l.apply(l.empty)
		}
		l.empty = nil
	}
	l.apply(c)
}

func (l *loop) apply(c *change) {
	l.index.apply(*c)
	l.held[c.resource].Store(l.index.bytes[c.resource])
	if c.complete {
		l.watches[c.resource].listed = true
		l.Metrics.lists.WithLabelValues(c.resource.String()).Inc()
	}
}

// tell sends the current Snapshot or error, if the receiver does not have it yet.
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
			l.sink(spec.Update{Snapshot: snap, Delta: delta, Revision: snap.Revision})
			l.told, l.first = "", true
		}
	} else if fault == nil && l.complete() {
		fault = fmt.Errorf("detectLocalMode is NodeCIDR, and Node %s has no podCIDRs yet", l.NodeName)
	}
	if fault != nil && fault.Error() != l.told {
		l.told = fault.Error()
		l.sink(spec.Update{Err: fault, Revision: spec.Revision{ID: l.index.revision()}})
	}
}

// errEmpty means that a cluster seems to have no Service, which is more likely a fault than the truth.
var errEmpty = errors.New("the Kubernetes API has no Service at all, not even its own, default/kubernetes; nothing is deleted on that account: " +
	"if it is meant, say so with --allow-empty")

// complete reports whether all resources were listed.
func (l *loop) complete() bool {
	for _, w := range l.watches {
		if !w.listed {
			return false
		}
	}
	return true
}

func (l *loop) waitsForPodCIDR() bool { return l.WaitForPodCIDR && !l.first && !l.index.podCIDRs() }

// fault returns why the API is not being watched: first what it refuses, which does not pass by itself. It returns nil if it is being
// watched, or if nothing is known yet.
func (l *loop) fault() error {
	if l.refused != nil {
		return l.refused
	}
	if l.empty != nil {
		return errEmpty
	}
	var silent error
	for r, w := range l.watches {
		switch {
		case w.err == nil:
		case apierrors.IsUnauthorized(w.err) || apierrors.IsForbidden(w.err):
			return fmt.Errorf("the Kubernetes API refuses %s: %w", resource(r), w.err)
		case silent == nil:
			silent = fmt.Errorf("the Kubernetes API does not answer for %s: %w", resource(r), w.err)
		}
	}
	return silent
}
