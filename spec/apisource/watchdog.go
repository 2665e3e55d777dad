package apisource

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"
)

// errSilent means that a peer keeps a connection open and sends nothing.
var errSilent = errors.New("nothing was heard for too long")

// watchdog gives up a request whose answer makes no progress, and reports connections that fail. client-go does
// neither: it retries by itself for minutes and treats a broken connection as the end of a watch.
//
// Silence is counted in bytes. A list may take as long as it needs over a slow line, and the bookmarks that an API
// server sends each minute keep a watch alive. HTTP/2 pings find a dead connection sooner. The watchdog also finds a
// connection that is alive although no server answers behind it.
type watchdog struct {
	patience time.Duration
	timer    *time.Timer
	failed   func(error)
	told     atomic.Bool // failed was called
	limit    int64       // of the answer, in bytes; 0 means none
}

type watchdogKey struct{}

func watchdogOf(ctx context.Context) *watchdog {
	d, _ := ctx.Value(watchdogKey{}).(*watchdog)
	return d
}

// guarded returns a context for one request. It ends with errSilent as its cause after that much silence. The time is
// lengthened at random by up to a quarter, so that a thousand nodes do not reconnect at the same moment. guarded calls
// failed for each connection that fails under the request. The answer may have limit bytes, or any number if that is 0.
func guarded(ctx context.Context, silence time.Duration, limit int64, failed func(error)) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	d := &watchdog{patience: silence + rand.N(silence/4+1), failed: failed, limit: limit}
	d.timer = time.AfterFunc(d.patience, func() { cancel(errSilent) })
	return context.WithValue(ctx, watchdogKey{}, d), func(cause error) {
		d.timer.Stop()
		cancel(cause)
	}
}

func (d *watchdog) calm() { d.timer.Reset(d.patience) }

func (d *watchdog) bark(ctx context.Context, err error) {
	if ctx.Err() == nil { // otherwise it was cancelled on purpose
		d.told.Store(true)
		d.failed(err)
	}
}

// overseen makes the watchdog of each request's context read the answer. It sends requests to one server only, because
// client-go adds the credentials to every request, also to one that follows a redirect.
type overseen struct {
	http.RoundTripper
	server *url.URL
}

// RoundTrip implements http.RoundTripper.
func (o overseen) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != o.server.Scheme || r.URL.Host != o.server.Host {
		return nil, fmt.Errorf("the server redirects to %q, where the credentials must not go; name the right server in the kubeconfig", r.URL.Scheme+"://"+r.URL.Host)
	}
	d := watchdogOf(r.Context())
	res, err := o.RoundTripper.RoundTrip(r)
	switch {
	case d == nil:
	case err != nil:
		d.bark(r.Context(), err)
	default:
		d.calm()
		if limit := d.limit; limit > 0 || res.StatusCode != http.StatusOK {
			res.Body = &boundedBody{res.Body, cmp.Or(limit, maxError)}
		}
		res.Body = overseenBody{res.Body, r.Context(), d}
	}
	return res, err
}

// WrappedRoundTripper lets client-go find the transport below.
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
	if err != nil && err != io.EOF && !errors.Is(err, errTooLarge) {
		b.dog.bark(b.ctx, err)
	}
	return n, err
}
