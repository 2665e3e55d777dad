package backends

import (
	"context"

	"weir/backends/dataplane"
)

// Optional holds the optional capabilities of a Backend; a field is nil if the Backend lacks it. A Backend that wraps
// another edits the struct that the other returned, so that it drops a capability only explicitly.
type Optional struct {
	Watcher           Watcher
	Unwatched         Unwatched
	Drainer           Drainer
	Describer         Describer
	CommandLister     CommandLister
	ConnectionCounter ConnectionCounter
	Refuser           Refuser
}

// Watcher detects what other processes wrote among the objects that the Backend owns.
type Watcher interface {
	// Wake returns a channel, always the same one, that receives when Moved should be called. It may receive twice, or
	// not at all, so callers also call Moved from time to time. The channel is nil if the Watcher can only be polled.
	Wake() <-chan struct{}

	// Moved reports in O(1) whether another process may have written since the last Observe or Reread began. It returns
	// true if there was no Observe yet. The Backend's own Apply does not count. An error means that the answer is
	// unknown. After a failed Observe or Reread the answer means nothing.
	Moved(ctx context.Context) (bool, error)

	// Reread returns the Items, as the kernel holds them now, that may differ from the last observed ones because
	// another process wrote since. An Item that no longer exists is nil. Reread returns false if only Observe can tell,
	// for example because the Backend knows that other processes wrote but not what. An error voids the pass.
	Reread(ctx context.Context, last LastObserved) (items map[ID]Item, ok bool, err error)
}

// Unwatched reads the Items whose changes the Watcher does not detect. They are few.
type Unwatched interface {
	// ReadUnwatched returns them as the kernel holds them now. It is called at each full sync at which the Watcher has
	// detected nothing.
	ReadUnwatched(ctx context.Context) (map[ID]Item, error)
}

// Refuser knows when the kernel refuses every change, or ignores what it holds.
type Refuser interface {
	// Refused returns the reason why the kernel would refuse every Apply now: another process owns a table. It returns nil
	// if there is none, or if that cannot be told. It only reads.
	Refused(ctx context.Context) error

	// Ineffective returns the reason why the kernel runs nothing of what the Backend has in it, and the Backend does not
	// repair that: another process made a shared table dormant. It only reads. It is called in every round.
	Ineffective(ctx context.Context) error
}

// LastObserved is what the kernel was last known to hold.
type LastObserved interface {
	// Item returns nil if the kernel did not hold the ID.
	Item(ID) Item
	// Items yields all Items, in no order.
	Items(yield func(Item) bool)
}

// Drainer deletes the drained objects that the Backend keeps in the kernel for open connections, although no Item
// stands for them any more.
type Drainer interface {
	// Reap deletes drained objects that have no connections or are past their drain limit, and returns how many remain.
	// It does nothing before the first Observe or Apply.
	Reap(ctx context.Context) (left int, err error)
}

// Describer translates Items back into the Frontends of Services.
type Describer interface {
	// Describe returns the Frontends that the Items make: either all observed Items or all desired ones. It is pure. It
	// leaves out what it cannot interpret, such as the rules of another process.
	Describe(items []Item) []ProgrammedFrontend
}

// ProgrammedFrontend is a Frontend as the kernel has it.
type ProgrammedFrontend struct {
	dataplane.Frontend
	// Own lists the Items that exist for this Frontend alone, and Shared those that exist for others as well.
	Own, Shared []ID
}

// CommandLister lists the commands that Apply would run.
type CommandLister interface {
	// Commands returns the commands, in order, that Apply runs for a Plan that was just computed. It reads the kernel
	// and changes nothing.
	Commands(p Plan) ([]Command, error)
}

// Command is one run of a program.
type Command struct {
	// Args begins with the name of the program.
	Args  []string `json:"args"`
	Stdin string   `json:"input"`
}

// ConnectionCounter counts the connections that Services received.
type ConnectionCounter interface {
	// Connections returns the number of connections that each Service port received since its kernel objects, or its
	// listener, were made. It leaves out the ports whose count is unknown. It only reads, at the cost of a full read,
	// and may be called at any time.
	Connections(ctx context.Context, ports []*dataplane.ServicePort) (map[dataplane.ServicePortName]uint64, error)
}
