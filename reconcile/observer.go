package reconcile

import "weir/spec"

// Observer follows what the Loop does. Its methods are called from the Loop's goroutine, and must not call the Loop.
type Observer interface {
	// Updated is called for every Update, with Err set if Configure refused it. It is called once more, with Err nil,
	// when Configure accepts that Update later.
	Updated(spec.Update)
	// Configured is called with the Settings in use as soon as their snapshot is accepted, before its Updated. It is
	// the place to change sockets, sysctls and anything else besides Services.
	Configured(*spec.Snapshot, Settings)
	// RoundStarts is called before every round, and Applied after it.
	RoundStarts(Request)
	Applied(Report)
}

// NopObserver is an Observer that does nothing. A type that needs only some of the methods embeds it.
type NopObserver struct{}

// Updated implements Observer.
func (NopObserver) Updated(spec.Update) {}

// Configured implements Observer.
func (NopObserver) Configured(*spec.Snapshot, Settings) {}

// RoundStarts implements Observer.
func (NopObserver) RoundStarts(Request) {}

// Applied implements Observer.
func (NopObserver) Applied(Report) {}
