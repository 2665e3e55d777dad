// Package backends declares what every backend and the reconciler share. An Item is one kernel object that weir owns, a
// Plan is the difference between the Items that should exist and those that do, and a Backend applies Plans to one
// kernel mechanism.
//
// The package does not program anything itself; the packages below it do. It is a leaf: it imports nothing of weir but
// dataplane, and knows no Kubernetes types, so that every package may import it.
package backends

import (
	"context"
	"iter"

	"weir/backends/dataplane"
)

// ID names an Item among all Items of one Backend. IDs sort in the order in which a plan is printed.
type ID string

// Item is one kernel object that weir owns: a chain with its rules, a rule in a shared chain, a virtual server, a set
// element. Items are immutable.
type Item interface {
	ID() ID
	// String is canonical: two Items are the same kernel object in the same state exactly if their strings are equal. A
	// plan prints this string.
	String() string
}

// Backend programs one kernel mechanism. Base, Render and Optional are pure and safe for concurrent use. Observe, Apply
// and Close are called from one goroutine at a time. A Backend is built from an immutable Config. When the Config
// changes, another Backend of the same mechanism takes over and observes the Items of its predecessor.
type Backend interface {
	// Base returns the Items that exist even if there are no Services.
	Base() []Item

	// Render returns the Items that the kernel holds for one ServicePort. Two ServicePorts may return equal Items with
	// the same ID. Such an Item is shared, and is deleted with the last ServicePort that returned it. If Render returns
	// an error, the reconciler holds the Service back. The error need not name the ServicePort.
	Render(p *dataplane.ServicePort) ([]Item, error)

	// Observe reads the objects of this mechanism that weir owns, and changes nothing. An error voids the whole pass,
	// because an Item that was not listed must not be taken for absent.
	Observe(ctx context.Context) iter.Seq2[Item, error]

	// Apply executes a Plan. It is the only writer. Deleting an absent object, and creating an object that exists with
	// the same content, succeed.
	Apply(ctx context.Context, p Plan) Result

	// Close releases the sockets once the Backend is no longer needed. The kernel keeps its objects.
	Close() error

	// Optional returns the optional capabilities of the Backend. The answer never changes.
	Optional() Optional
}

// Traits are the facts about a proxy mode that other packages depend on.
type Traits struct {
	// CarriesTraffic reports whether connections pass through this process. Such connections end with the process, and
	// a process that only plans cannot apply.
	CarriesTraffic bool
	// HandsOver reports whether open connections continue when another mode takes over.
	HandsOver bool
	// FailureMetric names the metric that counts the refused transactions of the mode, as kube-proxy has one for each
	// mode. It is "" if there is none.
	FailureMetric string
}

// Result is what the kernel confirmed of a Plan. There are three kinds:
//
//   - Err == nil: every Change that is not in Refused is in force. The objects of the Changes in Refused are unchanged.
//   - Err != nil, Refused empty: nothing is known; the next round has to Observe.
//   - Err != nil, Refused not empty: the kernel rejected the whole transaction because of the Changes in Refused, and
//     is unchanged. The other Changes can be applied without them.
type Result struct {
	Refused map[ID]error
	Err     error
}
