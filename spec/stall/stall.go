// Package stall bounds the time that a call to a file system may take. A read from a hung NFS or FUSE mount never comes
// back, and nothing can interrupt it. Do gives up the wait and names what was waited for; the call itself is left behind
// with its goroutine.
//
// The package knows no file. Every package that reads or writes files may import it.
package stall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// Limit is how long one call may take. Local disks and healthy network mounts answer within a fraction of it.
const Limit = 5 * time.Second

// ErrStalled means that a call has not come back.
var ErrStalled = errors.New("the file system does not answer")

// Error returns an ErrStalled that names the call.
func Error(what string, after time.Duration) error {
	return fmt.Errorf("%s has not come back for %v: %w; is a network mount hung?", what, after.Round(time.Second), ErrStalled)
}

// Do calls f and returns its result. If f takes longer than limit, or until ctx is done, Do returns an error and leaves f
// behind. f must not touch what its caller uses later, except through its result.
func Do[T any](ctx context.Context, limit time.Duration, what string, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		v, err := f()
		done <- result{v, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	var none T
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, ctx.Err()
	case <-timer.C:
		return none, Error(what, limit)
	}
}

// Gate lets one call at a time run. While a call has not come back, further ones fail at once, so that a hung mount costs
// one goroutine. The zero value is open.
type Gate struct{ busy atomic.Bool }

// Do is like the function Do, for a call that only returns an error.
func (g *Gate) Do(ctx context.Context, limit time.Duration, what string, f func() error) error {
	if !g.busy.CompareAndSwap(false, true) {
		return Error(what+", begun earlier,", limit)
	}
	_, err := Do(ctx, limit, what, func() (struct{}, error) {
		defer g.busy.Store(false)
		return struct{}{}, f()
	})
	return err
}

// maxRead bounds one read, so that a slow disk makes progress between two of them.
const maxRead = 1 << 20

// Reader returns a Reader over r in which each read is bounded by Limit.
func Reader(ctx context.Context, what string, r io.Reader) io.Reader {
	return &reader{ctx: ctx, what: what, r: r}
}

type reader struct {
	ctx  context.Context
	what string
	r    io.Reader
	err  error
}

// Read implements io.Reader. The buffer that the call fills belongs to that call, because it may be left behind.
func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	size := min(len(p), maxRead)
	data, err := Do(r.ctx, Limit, r.what, func() ([]byte, error) {
		b := make([]byte, size)
		n, err := r.r.Read(b)
		return b[:n], err
	})
	r.err = err
	return copy(p, data), err
}
