// Package spec holds the values that flow from the sources (a directory of YAML, a Kubernetes API) to the reconciler.
// Snapshot is an immutable set of everything that was declared. Delta lists the Services that changed since the
// Snapshot before. Source is the interface that produces both, and Notice is a remark for the author of the input.
//
// The package reads no files and no API; the packages below it do. It knows nothing of the kernel, so it imports
// neither a backend nor the reconciler. Every other package may import it.
package spec

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends/dataplane"
)

// Service is a Service with everything that is needed to resolve it. It is immutable and shared between Snapshots.
type Service struct {
	Name dataplane.ServiceName
	// Object has its defaults set and its ClusterIPs and node ports allocated, as if an API server had returned it. It
	// keeps its selector.
	Object *corev1.Service
	// Slices are the Service's EndpointSlices, sorted by name. Endpoints objects are converted to slices, unless the
	// Service has slices as well.
	Slices []*discoveryv1.EndpointSlice
	// SliceFiles are the files of the Slices as the source read them, before any join; the last one counts for the Slices
	// that follow. Nil means that of the Service. SliceFile returns one.
	SliceFiles []string
	// OfPods reports whether the Slices were made of the pods that the selector selects.
	OfPods bool
	// Allocated holds the values of Object that weir allocated, in the order of the fields.
	Allocated []Allocation
	// Origin is the place where the Service was written.
	Origin Origin
	// Asked names the runtimes that were asked for the pods that the selector selects, if it selects none.
	Asked string
	// Hint says, if the selector selects none, which templates make such pods, or which pod or template is nearest to it.
	Hint string
	// Promised names the templates of the pods that the selector selects, if the Snapshot is for a plan, for which no runtime
	// is asked.
	Promised string
	// Answered reports whether weir itself can answer at the ClusterIPs, at port 53, instead of the endpoints.
	Answered bool
	// Probes say what tells whether the endpoints work; nil if nothing is asked.
	Probes *Probes
	// Notices hold for the Service with any slices. AllNotices also returns those that depend on the slices.
	Notices []Notice
}

// Revision identifies a state of the input.
type Revision struct {
	// ID is the Git commit, the API's resourceVersion, or a hash of the content where there is neither.
	ID string
	// Dirty reports whether a Git work tree differs from its commit.
	Dirty bool
	// Signer is the principal that signed the commit, if that is demanded.
	Signer string
	// Stale reports whether this is the kept state of an earlier process, used because the input cannot be read or is
	// invalid. Nothing is deleted because of it.
	Stale bool
	// Outdated reports whether a source cannot read its input, or a part of it, at the moment, so that what it last read
	// stands in.
	Outdated bool
	// Away reports the same of a source of pods. No Err follows for that, since the Snapshot has the source in Away.
	Away bool
	// ProxyOnly reports whether headless Services are left out, as a proxy needs none. Their names are then not known.
	ProxyOnly bool
}

// String returns the ID, with "-dirty" appended if the work tree differs from it, and "-stale" if it is Stale,
// Outdated or Away.
func (r Revision) String() string {
	s := r.ID
	if r.Dirty {
		s += "-dirty"
	}
	if r.Stale || r.Outdated || r.Away {
		s += "-stale"
	}
	return s
}

// Snapshot is everything that was declared at one moment: validated, complete, immutable.
type Snapshot struct {
	Revision Revision
	// Kept is when an earlier process kept this state, if it is Stale.
	Kept time.Time
	// Config has its defaults set.
	Config *kubeproxyconfig.KubeProxyConfiguration
	// UDPIdleTimeout is udpIdleTimeout, which Config's type no longer has; 0 means its default.
	UDPIdleTimeout time.Duration
	// MinSyncPeriodGiven reports whether the configuration sets minSyncPeriod for iptables or nftables mode.
	MinSyncPeriodGiven bool
	// ConfigOrigin is the place where Config was written; zero if all of it is defaults.
	ConfigOrigin Origin
	// Weir has its defaults set, flags included. WeirOrigin is the place where it was written; zero if all of it is defaults.
	Weir       WeirConfiguration
	WeirOrigin Origin
	// Services that were declared.
	Services Services
	// Slices holds the slices of Services that are not in Services, by the name of the Service. The join adds them to
	// the Service if another source declares it.
	Slices ByName[Slices]
	// Pods that a source found or was given, by namespace and name. The join makes the slices of Services of them, and leaves
	// them out of its own Snapshot.
	Pods Pods
	// Templates of pods that were declared. The join completes pods by them, and leaves them out of its own Snapshot.
	Templates Templates
	// Found are the Pods of each layer, after the join.
	Found []Pods
	// Away are the sources of pods that cannot be read at the moment, after the join.
	Away []Away
	// Nodes by name.
	Nodes map[string]*corev1.Node
	// Locks are the places where the AllocationLocks were written.
	Locks []Origin
	// Notices belong to no single Service. AllNotices also returns those about Slices.
	Notices []Notice
	// Silenced holds the lists of notices that comments at the head of files accept, by file.
	Silenced map[string]string
	// Skipped counts the documents that were left out, by Counted. SkippedDocuments has each of them, and SkippedFiles counts
	// the files of which nothing was used.
	Skipped          map[string]int
	SkippedDocuments SkippedDocuments
	SkippedFiles     SkippedFiles
}
