package apisource

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"
)

// errSilent says that a peer keeps a connection open and says nothing.
var errSilent = errors.New("nothing was heard for too long")

// watchdog gives up a request whose answer makes no progress, and tells of connections that fail. client-go does neither:
// it tries again by itself for minutes and takes what broke for the end of a watch.
//
// Silence is counted in bytes: a list may take as long as it needs over a slow line, and a watch is kept alive by the
// bookmarks that an API server sends each minute. HTTP/2 pings find a dead connection sooner; this also finds a living one
// behind which nobody answers.
type watchdog struct {
	patience time.Duration
	timer    *time.Timer
	failed   func(error)
	told     atomic.Bool // failed was called
}

type watchdogKey struct{}

func watchdogOf(ctx context.Context) *watchdog {
	d, _ := ctx.Value(watchdogKey{}).(*watchdog)
	return d
}

// guarded returns a context for one request, which ends with errSilent as its cause after that much silence. The time is
// lengthened at random by up to a quarter, so that a thousand nodes do not come back at the same moment. failed is told
// of each connection that fails under the request.
func guarded(ctx context.Context, silence time.Duration, failed func(error)) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	d := &watchdog{patience: silence + rand.N(silence/4+1), failed: failed}
	d.timer = time.AfterFunc(d.patience, func() { cancel(errSilent) })
	return context.WithValue(ctx, watchdogKey{}, d), func(cause error) {
		d.timer.Stop()
		cancel(cause)
	}
}

func (d *watchdog) calm() { d.timer.Reset(d.patience) }

func (d *watchdog) bark(ctx context.Context, err error) {
	if ctx.Err() == nil { // else it was given up on purpose
		d.told.Store(true)
		d.failed(err)
	}
}

// overseen has the watchdog of each request's context look after it.
type overseen struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (o overseen) RoundTrip(r *http.Request) (*http.Response, error) {
	d := watchdogOf(r.Context())
	res, err := o.RoundTripper.RoundTrip(r)
	switch {
	case d == nil:
	case err != nil:
		d.bark(r.Context(), err)
	default:
		d.calm()
		res.Body = overseenBody{res.Body, r.Context(), d}
	}
	return res, err
}

// WrappedRoundTripper lets client-go find what it looks for below.
func (o overseen) WrappedRoundTripper() http.RoundTripper { return o.RoundTripper }

type overseenBody struct {
	io.ReadCloser
	ctx context.Context
	dog *watchdog
}

// Read implements io.Reader.
func (b overseenBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.dog.calm()
	}
	if err != nil && err != io.EOF {
		b.dog.bark(b.ctx, err)
	}
	return n, err
}
