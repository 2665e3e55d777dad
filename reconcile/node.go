// Package reconcile decides what the kernel should hold and has it done.
//
// Data flows one way: Resolve turns a Service into Entries for this node, the backend renders them to items, the Tracker
// compares the items with what the kernel holds, and the Engine has the difference applied. The Loop alone knows time.
package reconcile

import (
	"slices"

	"weir/backends"
)

// Node is what Resolve needs to know of the node it resolves for.
type Node struct {
	// Name is compared with the nodeName of endpoints.
	Name string
	// Zone is the value of the node's topology.kubernetes.io/zone label, or "".
	Zone string
	// Families lists the address families that the node serves.
	Families []backends.Family
}

// Equal says whether both nodes resolve alike.
func (n Node) Equal(o Node) bool {
	return n.Name == o.Name && n.Zone == o.Zone && slices.Equal(n.Families, o.Families)
}
