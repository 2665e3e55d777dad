package spec

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"weir/spec/probe"
)

// Templates is a map of templates by namespace and key.
type Templates = ByName[*Template]

// OnEachNode is the number of Replicas of a template that has one pod on each node.
const OnEachNode = -1

// Template is what a document such as a Deployment says about its pods, as far as Services have to do with it. It is
// immutable.
type Template struct {
	Kind, Namespace, Name string
	// Labels are those of the pods; there is at least one.
	Labels map[string]string
	// Replicas is how many pods there are to be.
	Replicas int
	// Ports are the named ports of the containers, and after them those of init containers that go on to run beside them.
	Ports []corev1.ContainerPort
	// Hostname and Subdomain are those of the pods. Ordered reports whether the name of each pod is its host name.
	Hostname, Subdomain string
	Ordered             bool
	// Probed reports whether a container has a readiness probe.
	Probed bool
	// Probes are the readiness probes of the containers. Their ports have numbers, unless a container has no port of the name.
	Probes []*probe.Probe
	// Lives reports whether a container has a liveness probe. Podman makes a health check of that, which says when to restart the
	// container and not whether it is ready.
	Lives bool
}

// Key returns the name of the Template among those of its namespace.
func (t *Template) Key() string { return t.Kind + "/" + t.Name }

// String returns "Deployment default/web".
func (t *Template) String() string { return fmt.Sprintf("%s %s/%s", t.Kind, t.Namespace, t.Name) }

// Promise returns what the Template promises: "Deployment default/web (3 replicas)".
func (t *Template) Promise() string {
	switch {
	case t.Kind == "Pod":
		return t.String()
	case t.Replicas == OnEachNode:
		return t.String() + " (one on each node)"
	case t.Replicas == 1:
		return t.String() + " (1 replica)"
	}
	return fmt.Sprintf("%s (%d replicas)", t, t.Replicas)
}
