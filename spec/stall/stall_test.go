package stall

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestDo has a call that comes back, one that does not, and one whose caller gives up.
func TestDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		defer close(never)
		hang := func() (int, error) { <-never; return 1, nil }
		if v, err := Do(t.Context(), Limit, "the read", func() (int, error) { return 7, nil }); v != 7 || err != nil {
			t.Errorf("%d, %v", v, err)
		}
		began := time.Now()
		v, err := Do(t.Context(), Limit, "the read", hang)
		if v != 0 || !errors.Is(err, ErrStalled) || !strings.Contains(err.Error(), "the read has not come back for 5s") || time.Since(began) != Limit {
			t.Errorf("%d, %v after %v", v, err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Do(ctx, Limit, "the read", hang); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// TestGate asks again while a call hangs, and after it has come back.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		back := make(chan struct{})
		if err := g.Do(t.Context(), Limit, "the write", func() error { <-back; return nil }); !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
		called := false
		call := func() error { called = true; return io.EOF }
		began := time.Now()
		if err := g.Do(t.Context(), Limit, "the write", call); !errors.Is(err, ErrStalled) || called || time.Since(began) != 0 {
			t.Errorf("while a call hangs: %v, called %v, after %v", err, called, time.Since(began))
		}
		close(back)
		synctest.Wait()
		if err := g.Do(t.Context(), Limit, "the write", call); err != io.EOF {
			t.Error(err)
		}
	})
}

// slow delivers one byte after each pause.
type slow struct {
	text  string
	pause time.Duration
}

func (s *slow) Read(p []byte) (int, error) {
	time.Sleep(s.pause)
	if s.text == "" {
		return 0, io.EOF
	}
	n := copy(p[:1], s.text)
	s.text = s.text[n:]
	return n, nil
}

// TestReader reads from what is slow, and from what hangs.
func TestReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		all, err := io.ReadAll(Reader(t.Context(), "the read", &slow{"slow but sure", Limit - 1}))
		if string(all) != "slow but sure" || err != nil {
			t.Errorf("%q, %v", all, err)
		}
		if _, err := io.ReadAll(Reader(t.Context(), "the read", &slow{"x", Limit + 1})); !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
		time.Sleep(time.Minute) // until the call that was left behind has come back
	})
}
