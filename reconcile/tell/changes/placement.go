package changes

import (
	"cmp"
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"weir/spec"
)

// Placement says where the endpoints of Services are, seen from one node.
type Placement struct {
	// Named counts the Services with endpoints that name a node, and Here those with an endpoint on this one.
	Named, Here int
	// Example is another node that an endpoint names.
	Example string
}

// PlacementOf returns the Placement of one Service for the node of that name.
func PlacementOf(svc *spec.Service, node string) (p Placement) {
	for _, slice := range svc.Slices {
		for i := range slice.Endpoints {
			name := slice.Endpoints[i].NodeName
			switch {
			case name == nil || *name == "":
				continue
			case *name == node:
				return Placement{Named: 1, Here: 1}
			}
			p.Named, p.Example = 1, *name
		}
	}
	return p
}

// Add adds another Placement so many times, which may be -1.
func (p *Placement) Add(o Placement, times int) {
	p.Named, p.Here, p.Example = p.Named+times*o.Named, p.Here+times*o.Here, cmp.Or(o.Example, p.Example)
}

// Notice returns the notice of a node, without a Node object, that no endpoint names although endpoints name others.
func (p Placement) Notice(node string, object *corev1.Node) []spec.Notice {
	if node == "" || object != nil || p.Named == 0 || p.Here > 0 {
		return nil
	}
	return []spec.Notice{spec.NodeNameUnmatched.Notice(spec.Origin{}, "Node "+node, "", fmt.Sprintf(
		"no endpoint is on a node of this name, but for instance on %s, so that all count as another node's: name this node as the endpoints do with --hostname-override, or write its Node", p.Example))}
}
