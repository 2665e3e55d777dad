package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/reconcile"
	"weir/spec"
)

// TestRefusedSnapshotIsNotConfigured shows that no Observer, and so no sysctl, socket or log level, follows a snapshot before
// it is accepted.
func TestRefusedSnapshotIsNotConfigured(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told observed
		updates := spec.NewOutbox()
		loop := reconcile.NewLoop(reconcile.LoopOptions{
			Engine: reconcile.NewEngine(reconcile.Options{}), Updates: updates, Observers: []reconcile.Observer{&told},
			Configure: func(*spec.Snapshot) (reconcile.Settings, error) { return reconcile.Settings{}, errors.New("refused") },
		})
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		defer stop()
		updates.Put(spec.Update{Snapshot: &spec.Snapshot{}, Delta: spec.Delta{All: true}})
		_ = loop.Run(ctx) // ends with ctx
		if told.configured != 0 || told.refused == 0 {
			t.Errorf("configured %d times, refused %d times", told.configured, told.refused)
		}
	})
}

type observed struct {
	reconcile.NopObserver
	configured, refused int
}

func (o *observed) Configured(*spec.Snapshot, reconcile.Settings) { o.configured++ }

func (o *observed) Updated(u spec.Update) {
	if u.Err != nil {
		o.refused++
	}
}

// TestFailedStartChangesNothing configures a node after the daemon was ended, as bindAddressHardFail does.
func TestFailedStartChangesNothing(t *testing.T) {
	var out bytes.Buffer
	flags := logFlags{format: "text", level: "info"}
	log := flags.liveLogger(&out)
	before := log.inForce
	o := &nodeObserver{ctx: t.Context(), log: log, host: newHost(log)}
	ended, end := context.WithCancel(t.Context())
	end()
	o.ctx = ended
	o.Configured(&spec.Snapshot{}, reconcile.Settings{})
	d := newDaemon(log, nodeFlags{}, nil)
	d.ctx = ended
	d.succession = newSuccession(d, nil, &inputFlags{})
	d.names = newNameServer(log, d.health.Registry(), d.succession.sockets)
	var order []string
	for _, observer := range d.observers(spec.Overrides{}, make(chan struct{}, 1)) {
		order = append(order, fmt.Sprintf("%T", observer))
		switch observer := observer.(type) {
		case *modeObserver, *statusObserver:
			observer.Configured(&spec.Snapshot{Weir: spec.WeirConfiguration{StateDir: t.TempDir() + "/state"}},
				reconcile.Settings{From: &nodeConfig{open: &openMode{}, mode: &mode{}}})
		}
	}
	if d.modes.accepted != nil || d.modes.candidate != nil {
		t.Error("the mode was accepted")
	}
	if slices.Index(order, "*main.healthObserver") > slices.Index(order, "*main.modeObserver") {
		t.Errorf("the server that can end the start comes after what changes the node: %v", order)
	}
	if log.inForce != before || o.current != nil || out.Len() > 0 {
		t.Errorf("a start that failed is followed: %s", out.String())
	}
}

// TestClusterIPsAreGatheredForNewOnes: a change of endpoints costs no look at all Services.
func TestClusterIPsAreGatheredForNewOnes(t *testing.T) {
	web := &corev1.Service{Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1"}}}
	moved := web.DeepCopy()
	moved.Spec.ClusterIPs[0] = "10.96.0.2"
	name := dataplane.ServiceName{Name: "web"}
	of := func(object *corev1.Service) *spec.Snapshot {
		if object == nil {
			return &spec.Snapshot{}
		}
		return &spec.Snapshot{Services: spec.ServicesOf(&spec.Service{Name: name, Object: object})}
	}
	changed := spec.Delta{Services: []dataplane.ServiceName{name}}
	var l networkLook
	last := of(web)
	for i, c := range []struct {
		snap   *spec.Snapshot
		delta  spec.Delta
		gather bool
	}{
		{last, spec.Delta{All: true}, true}, {of(web), changed, false}, {of(web), changed, false}, {of(moved), changed, true}, {of(moved), changed, false},
		{of(nil), changed, true}, {of(nil), changed, false}, {of(web), changed, true}, {of(web), spec.Delta{Config: true}, true}, {of(web), spec.Delta{}, false},
	} {
		l.follow(spec.Update{Snapshot: c.snap, Delta: c.delta})
		if (l.snap != c.snap) != c.gather {
			t.Errorf("change %d: gathered again: %v, want %v", i, l.snap != c.snap, c.gather)
		}
		l.snap = c.snap
	}
}
