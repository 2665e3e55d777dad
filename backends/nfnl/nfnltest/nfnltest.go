// Package nfnltest is the nf_tables of a network namespace in memory, as far as weir uses it, for tests.
//
// Kernel takes the same messages as the real kernel and answers in the same form. It applies a transaction to a copy,
// which replaces the ruleset only if no message was refused. TestAgreesWithTheKernel runs the same transactions here
// and in the real kernel and compares errors, contents, generation and notifications.
//
// The package does not model packets, timeouts, objects, flowtables, rules that are replaced or inserted, loops between
// chains, or the numbers of sets within a transaction. Of expressions it checks only the sets and chains that they
// name.
//
// Only tests import it.
package nfnltest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"weir/backends/nfnl"

	"golang.org/x/sys/unix"
)

// Kernel implements nfnl.Kernel. The zero value is an empty ruleset.
type Kernel struct {
	// RefuseElement, if set, returns an error for an element that the kernel refuses to add.
	RefuseElement func(table nfnl.Table, set string, x nfnl.Element) error

	mu        sync.Mutex
	rules     ruleset
	listeners map[*listener]bool
}

// Dump returns the contents of a table as text, "" if there is none.
func (k *Kernel) Dump(name nfnl.Table) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.rules.tables[name]
	if t == nil {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table %v %x %q\n", name, t.flags, t.userdata)
	for _, s := range sorted(t.sets) {
		fmt.Fprintf(&b, "set %+v\n", s.Set)
		for _, x := range sorted(s.elements) {
			fmt.Fprintf(&b, "  %x-%x %x %v %q\n", x.Key, x.End, x.Value, x.Verdict != nil && *x.Verdict != (nfnl.Verdict{}), x.Comment)
		}
	}
	for _, c := range sorted(t.chains) {
		fmt.Fprintf(&b, "chain %s %v %d %q\n", c.Name, c.Hook != nil, c.Policy, c.Userdata)
		for _, r := range c.rules {
			fmt.Fprintf(&b, "  %q\n", r.Canonical())
		}
	}
	return b.String()
}

// Dial implements nfnl.Kernel.
func (k *Kernel) Dial() (nfnl.Conn, error) { return &conn{k}, nil }

// conn implements nfnl.Conn.
type conn struct{ k *Kernel }

// MaxBatch implements nfnl.Conn.
func (c *conn) MaxBatch() int { return 8 << 20 }

// Close implements nfnl.Conn.
func (c *conn) Close() error { return nil }

// Commit implements nfnl.Conn.
func (c *conn) Commit(ctx context.Context, messages []nfnl.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.k.mu.Lock()
	defer c.k.mu.Unlock()
	t := transaction{ruleset: c.k.rules.clone(), refuse: c.k.RefuseElement}
	failed := map[int]error{}
	for i, m := range messages {
		if err := t.apply(m); err != nil {
			failed[i] = err
		}
	}
	if len(failed) > 0 {
		return nfnl.NewBatchError(messages, failed)
	}
	if !t.changed {
		return nil
	}
	t.generation++
	c.k.rules = t.ruleset
	for l := range c.k.listeners {
		if l.own != c {
			l.send(append(t.events, generationEvent(t.generation)))
		}
	}
	return nil
}

// Ask implements nfnl.Conn.
func (c *conn) Ask(ctx context.Context, r nfnl.Request, f func([]byte) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.k.mu.Lock()
	answers, err := c.k.rules.answer(r)
	c.k.mu.Unlock()
	if err != nil {
		return err
	}
	for _, a := range answers {
		if err := f(a); err != nil {
			return err
		}
	}
	return nil
}

// event is one notification.
type event struct {
	typ  uint16
	data []byte
}

func generationEvent(id uint32) event {
	return event{unix.NFT_MSG_NEWGEN, generationAnswer(id)}
}

// Listen implements nfnl.Kernel.
func (k *Kernel) Listen(own nfnl.Conn, arrived chan<- struct{}) (nfnl.Listener, error) {
	o, ok := own.(*conn)
	if !ok {
		return nil, fmt.Errorf("a %T is no connection of this Kernel", own)
	}
	l := &listener{k: k, own: o, arrived: arrived, more: make(chan struct{}, 1)}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.listeners == nil {
		k.listeners = map[*listener]bool{}
	}
	k.listeners[l] = true
	return l, nil
}

// listener implements nfnl.Listener. The mutex of the Kernel guards it.
type listener struct {
	k       *Kernel
	own     *conn
	arrived chan<- struct{}
	more    chan struct{} // receives when there may be events
	events  []event
	paused  bool
}

func (l *listener) send(events []event) {
	if l.paused {
		return
	}
	l.events = append(l.events, events...)
	for _, to := range []chan<- struct{}{l.arrived, l.more} {
		select {
		case to <- struct{}{}:
		default:
		}
	}
}

// Receive implements nfnl.Listener.
func (l *listener) Receive(timeout time.Duration, f func(nfnl.Notification)) error {
	for end := time.After(timeout); ; {
		l.k.mu.Lock()
		events := l.events
		l.events = nil
		l.k.mu.Unlock()
		for _, e := range events {
			f(nfnl.ParseNotification(e.typ, e.data))
		}
		if len(events) > 0 {
			return nil
		}
		select {
		case <-l.more:
		case <-end:
			return os.ErrDeadlineExceeded
		}
	}
}

// Pause implements nfnl.Listener.
func (l *listener) Pause() error { return l.pause(true) }

// Resume implements nfnl.Listener.
func (l *listener) Resume() error { return l.pause(false) }

func (l *listener) pause(on bool) error {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	l.paused = on
	return nil
}

// Close implements nfnl.Listener.
func (l *listener) Close() error {
	l.k.mu.Lock()
	defer l.k.mu.Unlock()
	delete(l.k.listeners, l)
	return nil
}
