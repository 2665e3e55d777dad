package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"weir/backends/userspace"
	"weir/cmd/weir/internal/handover"
	"weir/reconcile"
	"weir/reconcile/tell/status"
	"weir/spec"
)

// The patience of a weir with its successor. Together they are less than the 90 s that systemd gives a reload.
const (
	// ablePatience is for the successor to read its input, unless the request says otherwise. Everything goes on meanwhile.
	ablePatience = 45 * time.Second
	// readyPatience is for its first round. Connections go on meanwhile, and nothing else.
	readyPatience = 20 * time.Second
	// takePatience is for the predecessor to end its round and to make way.
	takePatience = time.Minute
	// servePatience is for what takes no time.
	servePatience = 5 * time.Second
)

// defaultDrain is how long a replaced weir keeps its connections unless the request says otherwise. IPVS mode gives those of a removed
// endpoint as long.
const defaultDrain = 15 * time.Minute

// errHandedOver ends the Loop of a daemon that another process has replaced.
var errHandedOver = errors.New("another process is in charge")

// succession has the daemon replaced by the program that is installed now, and has it replace another one. As an Observer it
// must be the first one, because a successor changes nothing before it has Configured.
type succession struct {
	reconcile.NopObserver
	d         *daemon
	lock      *nodeLock
	sockets   *handover.Sockets
	listeners *userspace.Listeners

	// program is the path by which this process was started, where another file may be now.
	program string
	// unable is why this process cannot be replaced, or "".
	unable string
	// answers reports whether this process answers questions for names.
	answers    atomic.Bool
	busy       sync.Mutex
	interludes chan func() bool // read by the Loop
	// successor is in charge, and this process may keep its connections for the drain time; nil before.
	successor *handover.Successor
	drain     time.Duration

	// predecessor is in charge, as long as it is not nil. taken reports whether it has made way, and flows are its flows.
	predecessor *handover.Predecessor
	taken       bool
	flows       []string
}

// newSuccession returns the succession of a daemon, which replaces the predecessor, if there is one.
func newSuccession(d *daemon, predecessor *handover.Predecessor, in *inputFlags) *succession {
	s := &succession{d: d, sockets: handover.NewSockets(), listeners: d.modes.listeners(), predecessor: predecessor, interludes: make(chan func() bool)}
	var err error
	switch s.program, err = startedBy(); {
	case err != nil:
		s.unable = err.Error()
	case os.Getpid() == 1:
		s.unable = "it is process 1 of its container, which ends with it: replace the container"
	case in.readsStdin():
		s.unable = "it has read its input from standard input, where a successor finds nothing more"
	}
	if predecessor != nil {
		s.sockets.Wait()
		d.notify.wait(predecessor.PID)
	}
	return s
}

// startedBy returns the path by which this process was started.
func startedBy() (string, error) {
	path, err := exec.LookPath(os.Args[0])
	if err != nil {
		if path, err = os.Executable(); err != nil {
			return "", fmt.Errorf("its program is not known: %w", err)
		}
	}
	return filepath.Abs(path)
}

// begin takes the lock of this network namespace, unless a predecessor has it.
func (s *succession) begin() (err error) {
	if s.predecessor == nil {
		if s.lock, err = lockNode(s.d.log); err == nil {
			s.lock.keep(s.sockets)
		}
	}
	return err
}

// end releases the lock.
func (s *succession) end() {
	if s.lock != nil {
		s.lock.release()
	}
}

// handOver answers weir handover.
func (s *succession) handOver(r status.HandoverRequest) status.HandoverAnswer {
	switch {
	case s.unable != "":
		return status.HandoverAnswer{Unable: s.unable}
	case r.OnlyIfNeeded && !s.answers.Load() && !s.listeners.Any():
		return status.HandoverAnswer{Unable: "it carries no connections and answers for no names, so that a restart interrupts nothing"}
	case !s.busy.TryLock():
		return status.HandoverAnswer{Error: "it is being replaced already"}
	}
	defer s.busy.Unlock()
	next, connections, err := s.replace(r)
	if err != nil && s.d.ctx.Err() != nil {
		return status.HandoverAnswer{Unable: "it is ending"}
	}
	if err != nil {
		s.d.log.Error("not replaced; going on", "program", s.program, "error", err)
		return status.HandoverAnswer{Error: err.Error()}
	}
	return status.HandoverAnswer{PID: next, Left: os.Getpid(), Connections: connections}
}

// replace starts the successor, and leaves it in charge. It returns its process, and the number of connections that stay here.
func (s *succession) replace(r status.HandoverRequest) (pid, connections int, err error) {
	s.d.log.Info("starting the program that is to take over", "program", s.program)
	next, err := handover.Start(s.program, os.Args)
	if err != nil {
		return 0, 0, fmt.Errorf("the new program cannot be started: %w", err)
	}
	ending := context.AfterFunc(s.d.ctx, next.Kill)
	if err := next.Able(r.Timeout); err != nil {
		ending()
		next.Kill()
		return 0, 0, err
	}
	result := make(chan error, 1)
	interlude := func() bool {
		err := s.pass(next)
		if !ending() && err == nil {
			err = errEnding
		}
		if err != nil {
			next.Kill()
			s.takeBack()
		} else {
			connections = s.listeners.Open()
			s.commit(next, r.Drain)
		}
		result <- err
		return err != nil
	}
	select {
	case s.interludes <- interlude:
		return next.PID(), connections, <-result
	case <-s.d.ctx.Done():
		next.Kill()
		return 0, 0, errEnding
	}
}

var errEnding = errors.New("weir is ending")

// pass hands over what this process has, and lets the successor work and serve. The Loop waits for it, and does nothing
// meanwhile.
func (s *succession) pass(next *handover.Successor) error {
	s.d.record.file.wait()
	s.d.names.node.leave()
	err := s.sockets.With(func(all []handover.Socket) error {
		return s.listeners.WithSockets(func(services []userspace.Socket, flows []string) error {
			for _, l := range services {
				all = append(all, handover.Socket(l))
			}
			return next.Give(servePatience, all, flows)
		})
	})
	if err != nil {
		return err
	}
	if err := next.Take(readyPatience); err != nil {
		return err
	}
	s.listeners.Pause()
	return next.Serve(servePatience)
}

// takeBack goes on as if there had been no successor. What it may have changed, the next round repairs.
func (s *succession) takeBack() {
	s.listeners.Resume()
	s.lock.claim()
	s.d.names.node.resume()
}

// commit leaves the successor alone in charge.
func (s *succession) commit(next *handover.Successor, drain time.Duration) {
	s.d.notify.handOver(next.PID())
	s.listeners.Leave(drain)
	s.lock.release()
	s.successor, s.drain = next, drain
	next.Release()
	s.d.fail(errHandedOver)
}

// Updated implements reconcile.Observer. An input that cannot be used is no reason to take over.
func (s *succession) Updated(u spec.Update) {
	if u.Err != nil && s.predecessor != nil && !s.taken {
		s.predecessor.Trouble("the input cannot be used: " + firstLine(u.Err))
	}
}

// Configured implements reconcile.Observer. A successor waits here until its predecessor makes way.
func (s *succession) Configured(snap *spec.Snapshot, settings reconcile.Settings) {
	s.answers.Store(snap.Weir.DNS.Serve)
	if s.predecessor == nil || s.taken || s.d.ctx.Err() != nil {
		return
	}
	var err error
	if snap.Revision.Stale {
		err = errors.New("only an earlier state of the input is known")
		s.predecessor.Trouble(err.Error())
	} else {
		err = s.take()
	}
	if err != nil {
		s.d.fail(fmt.Errorf("cannot take over: %w", err))
	}
}

// take waits for what the predecessor hands over.
func (s *succession) take() error {
	defer context.AfterFunc(s.d.ctx, s.predecessor.Close)()
	err := s.predecessor.Take(takePatience, func(name string, fd int) error {
		if strings.HasPrefix(name, "listen ") {
			return s.listeners.Inherit(name, fd)
		}
		return s.sockets.Inherit(name, fd)
	}, func(flow string) { s.flows = append(s.flows, flow) })
	switch {
	case errors.Is(err, handover.ErrGone) && s.d.ctx.Err() == nil:
		s.d.log.Warn("going on without the weir that was to be replaced", "error", err)
		dropLock(s.sockets)
		s.lock, err = lockNode(s.d.log)
	case err == nil:
		if s.lock, err = inheritLock(s.sockets); err == nil {
			s.lock.claim()
		}
	}
	if err != nil {
		return err
	}
	s.lock.keep(s.sockets)
	s.taken = true
	return nil
}

// successionEnd is an Observer that makes a successor serve. It must be the last one, so that the others have done their part of
// the first round.
type successionEnd struct {
	reconcile.NopObserver
	s *succession
}

// Applied implements reconcile.Observer.
func (o successionEnd) Applied(r reconcile.Report) {
	s := o.s
	switch {
	case s.predecessor == nil || s.d.ctx.Err() != nil:
		return
	case r.Err != nil:
		s.predecessor.Trouble("the first sync failed: " + firstLine(r.Err))
		return
	}
	stop := context.AfterFunc(s.d.ctx, s.predecessor.Close)
	if err := s.predecessor.Ready(servePatience); err != nil && (!errors.Is(err, handover.ErrGone) || s.d.ctx.Err() != nil) {
		stop()
		s.d.fail(fmt.Errorf("cannot take over: %w", err))
		return
	}
	s.listeners.Recall(s.flows)
	s.listeners.Serve()
	s.sockets.Serve()
	stop()
	s.predecessor.Serving(servePatience)
	s.d.log.Info("took over", "from", s.predecessor.PID)
	s.predecessor, s.flows = nil, nil
	s.d.notify.takeOver()
}

// linger keeps the connections of a process that was replaced. A signal leaves them the time that those of a deleted Service
// have, and a second one, or the end of the successor, none.
func (s *succession) linger(ctx context.Context) {
	bounded, cancel := context.WithTimeout(context.Background(), s.drain+time.Second)
	defer cancel()
	go func() {
		select {
		case <-ctx.Done(): // the first signal
		case <-bounded.Done():
			return
		}
		s.listeners.Hurry()
		again := make(chan os.Signal, 1)
		signal.Notify(again, syscall.SIGTERM, syscall.SIGINT)
		defer signal.Stop(again)
		select {
		case <-again:
		case <-s.successor.Ended(): // whatever starts the next weir may wait for this process
		case <-bounded.Done():
		}
		cancel()
	}()
	if n := s.listeners.Open(); n > 0 {
		s.d.log.Info("replaced; keeping open connections until they end", "connections", n, "at_most", s.drain.String(), "successor", s.successor.PID())
	}
	if left := s.listeners.Linger(bounded); left > 0 {
		s.d.log.Warn("open connections were cut off", "connections", left)
	}
	s.d.log.Info("stopped; another process is in charge", "pid", s.successor.PID())
}
