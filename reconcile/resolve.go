package reconcile

import (
	"weir/backends"
	"weir/spec"
)

// Resolve works out what this node should do for a Service: one Entry for each port and address family, sorted by key,
// and notices for whoever wrote it. It is pure.
func Resolve(svc *spec.Service, node *Node) ([]*backends.Entry, []spec.Problem) { return nil, nil }
