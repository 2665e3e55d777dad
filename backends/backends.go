// Package backends holds the words that every backend and the reconciler share: an Entry says what a Service port should
// do on this node, an Item is one kernel object that makes it so, a Plan is the difference between the Items that should
// exist and those that do, and a Backend turns one into the other.
//
// The package is a leaf. It speaks plain netip values, knows no Kubernetes types and imports nothing else of weir, so
// that everybody may import it.
package backends

import (
	"context"
	"iter"
)

// ID names an Item among all Items of one Backend. IDs sort in the order in which a plan is printed.
type ID string

// Item is one kernel object that weir owns: a chain with its rules, a rule in a shared chain, a virtual server, a set
// element. Items are immutable.
type Item interface {
	ID() ID
	// String is canonical: two Items are the same kernel object in the same state exactly if their strings are equal. It
	// is also what a plan prints.
	String() string
}

// Backend programs one kernel mechanism. Base and Render are pure and safe for concurrent use; Observe and Apply are
// called from one goroutine at a time. A Backend is built from an immutable Config: when the Config changes, another
// Backend of the same mechanism takes over, and what it observes is the work of its predecessor. One that is an io.Closer is
// closed when it is not needed any more: then it gives back its sockets, and what the kernel holds stays.
type Backend interface {
	// Base returns the constant scaffolding that is there even if there are no Services.
	Base() []Item

	// Render returns the Items that the kernel holds for one Entry. Two Entries may return equal Items with the same ID:
	// such an Item is shared, and goes when the last Entry that returned it goes. An error, which need not name the Entry, isolates it.
	Render(e *Entry) ([]Item, error)

	// Observe reads what the kernel holds of the objects that this mechanism of weir owns, and changes nothing. An error
	// voids the whole pass: what was not listed must not be taken for absent.
	Observe(ctx context.Context) iter.Seq2[Item, error]

	// Apply executes a Plan. It is the only writer. Deleting what is absent and creating what is there with the same
	// content succeed.
	Apply(ctx context.Context, p Plan) Result
}

// Generation is implemented by a Backend that can say in O(1) whether anybody else wrote.
type Generation interface {
	// Generation returns a number that moves whenever anybody but this Backend's own Apply may have changed what Observe
	// would read. The number itself means nothing, and an error means that it is not known.
	Generation(ctx context.Context) (uint64, error)
}

// Notifier is implemented by a Backend with a Generation that is told when somebody else writes, so that it need not be
// asked often.
type Notifier interface {
	// Notified returns a channel, always the same one, that receives when the Generation may have moved. What is told here
	// comes sooner than by asking; it may be told twice, or not at all.
	Notified() <-chan struct{}
}

// Held is what the kernel was last known to hold.
type Held interface {
	// Item returns nil if the kernel held nothing of the ID.
	Item(ID) Item
	// Items yields all Items, in no order.
	Items(yield func(Item) bool)
}

// Rereader is implemented by a Backend with a Generation that knows what others wrote, so that not everything has to be
// read again on account of it.
type Rereader interface {
	// Reread returns the Items that may differ from those held because somebody else wrote since the last Observe or
	// Reread, as the kernel holds them now: nil for one that is gone. It is false if everything has to be observed. An error
	// voids the pass.
	Reread(ctx context.Context, held Held) (map[ID]Item, bool, error)
}

// Drainer is implemented by a Backend that leaves in the kernel what connections still use, though no Item stands for it
// any more.
type Drainer interface {
	// Reap takes down what has lost its last connection or has reached its limit, and returns how much is left for later
	// calls. It does nothing before the first Observe or Apply.
	Reap(ctx context.Context) (left int, err error)
}

// Result is what the kernel confirmed of a Plan. There are three kinds:
//
//   - Err == nil: every Change that is not in Refused is in force, and those in Refused are as they were before.
//   - Err != nil, Refused empty: nothing is known; the next round has to Observe.
//   - Err != nil, Refused not empty: the transaction was rejected as a whole because of the Changes in Refused, and the
//     kernel is as it was before. The rest can be applied without them.
type Result struct {
	Refused map[ID]error
	Err     error
}
