// Package spec knows what people write. It holds the values that flow from the sources (a directory of YAML, a
// Kubernetes API) to the reconciler: an immutable Snapshot of everything that was declared, and the Delta that says which
// Services changed since the one before. It knows nothing of any kernel.
package spec

import (
	"context"
	"iter"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
)

// Name is a namespaced name.
type Name struct {
	Namespace, Name string
}

// String returns "namespace/name".
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// Service is a Service with everything that is needed to resolve it. It is immutable and shared between Snapshots.
type Service struct {
	Name Name
	// Object has its defaults set and its ClusterIPs and node ports allocated, as if it came from an API server.
	Object *corev1.Service
	// Slices are the Service's EndpointSlices, sorted by name. Endpoints objects are converted to slices, unless the
	// Service has slices as well.
	Slices []*discoveryv1.EndpointSlice
	// Allocated are the values of Object that its author left to weir, in the order of the fields.
	Allocated []Allocation
	// Origin is where the Service was written.
	Origin Origin
	// Notices are what its author should know, for example that a selector selects nothing here.
	Notices []Problem
}

// Revision identifies a state of the input.
type Revision struct {
	// ID is the Git commit, the API's resourceVersion, or a hash of the content where there is neither.
	ID string
	// Dirty says that a Git work tree differs from its commit.
	Dirty bool
	// Stale says that it is what an earlier process kept, since the API does not answer.
	Stale bool
}

// String returns the ID, with "-dirty" appended if the work tree differs from it, and "-stale" if it was kept.
func (r Revision) String() string {
	s := r.ID
	if r.Dirty {
		s += "-dirty"
	}
	if r.Stale {
		s += "-stale"
	}
	return s
}

// Snapshot is everything that was declared at one moment: validated, complete, immutable.
type Snapshot struct {
	Revision Revision
	// Config has its defaults set.
	Config *kubeproxyconfig.KubeProxyConfiguration
	// UDPIdleTimeout is udpIdleTimeout, which Config's type no longer has; 0 means its default.
	UDPIdleTimeout time.Duration
	// ConfigOrigin is where Config was written; zero if it is all defaults.
	ConfigOrigin Origin
	// Weir has its defaults set, flags included.
	Weir WeirConfiguration
	// Nodes by name.
	Nodes map[string]*corev1.Node
	// Locks are where the AllocationLocks were written.
	Locks []Origin
	// Notices are warnings that belong to no single Service.
	Notices []Problem
	// Skipped counts the documents of kinds that mean nothing to weir, by kind.
	Skipped map[string]int

	// services is persistent: a new Snapshot shares all but the changed path with the one before, so that one change costs
	// O(log N).
	services *iradix.Tree[*Service]
}

// WithServices returns a copy of s that holds the given Services.
func (s Snapshot) WithServices(t *iradix.Tree[*Service]) *Snapshot {
	s.services = t
	return &s
}

// ServiceKey is the key of a Service in the tree given to WithServices.
func ServiceKey(n Name) []byte { return []byte(n.Namespace + "/" + n.Name) }

// Service returns the Service of that name, or nil.
func (s *Snapshot) Service(n Name) *Service {
	if s.services == nil {
		return nil
	}
	svc, _ := s.services.Get(ServiceKey(n))
	return svc
}

// Services yields all Services, ordered by namespace/name.
func (s *Snapshot) Services() iter.Seq[*Service] {
	return func(yield func(*Service) bool) {
		if s.services == nil {
			return
		}
		s.services.Root().Walk(func(_ []byte, svc *Service) bool { return !yield(svc) })
	}
}

// Len returns the number of Services.
func (s *Snapshot) Len() int {
	if s.services == nil {
		return 0
	}
	return s.services.Len()
}

// Delta says what differs between a Snapshot and the one its receiver was given before.
type Delta struct {
	// All says that everything may differ; the other fields then mean nothing.
	All bool
	// Services lists the Services that were added, changed or removed; a removed one is not in the Snapshot.
	Services []Name
	// Config and Nodes say that these parts of the Snapshot changed.
	Config, Nodes bool
}

// Empty says that nothing changed but, perhaps, the Revision.
func (d Delta) Empty() bool { return !d.All && len(d.Services) == 0 && !d.Config && !d.Nodes }

// Update is one piece of news from a Source: either a Snapshot with its Delta, or an Err that says why what was found
// cannot be used, in which case the receiver keeps what it has.
type Update struct {
	Snapshot *Snapshot
	Delta    Delta
	// Err is Problems if the input was read and found wrong.
	Err error
	// Revision is what was read, accepted or not.
	Revision Revision
}

// Source is a place that Snapshots come from.
type Source interface {
	// Load reads everything once. The error is Problems if the input was read and found wrong.
	Load(ctx context.Context) (*Snapshot, error)

	// Watch sends an Update for the state it finds at first, with Delta.All, and then for every change, until ctx is done.
	// It retries by itself whatever goes wrong, and returns only ctx's error. A receiver that is slow is sent the latest
	// Snapshot, with the Deltas merged.
	Watch(ctx context.Context, out chan<- Update) error
}
