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
	d.names = newNameServer(log, d.health.Registry())
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
