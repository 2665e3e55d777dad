// Package apisource is a spec.Source over a Kubernetes API: it lists and watches Services, EndpointSlices and this node's
// Node, and joins them into the same Snapshots that files give.
//
// client-go's Reflectors keep up three watches and hand over objects that are trimmed as they arrive. One goroutine joins
// them, at a cost that grows with what changed and not with what there is. Nothing is sent before all three lists are
// complete, and what an incomplete list lacks is never taken for deleted. While the API does not answer, the last Snapshot
// stands; an Update with an Err says so, and another Snapshot follows when it answers again.
package apisource

import (
	"time"

	"github.com/hashicorp/go-hclog"
)

// Options say which API to watch, and for whom.
type Options struct {
	Connection Connection
	// NodeName is the name of this node, whose Node is watched.
	NodeName string
	// WaitForPodCIDR holds the first Snapshot back until the Node has its podCIDRs, as detectLocalMode NodeCIDR needs.
	WaitForPodCIDR bool
	// ResyncPeriod is configSyncPeriod: how often everything that is known is handed over once more, as an informer does,
	// without asking the API. 0 is for never.
	ResyncPeriod time.Duration
	// StallTimeout is how long not a byte of an answer may come before the request is given up. An API server sends a
	// bookmark on each watch about once a minute. Default: 2 min.
	StallTimeout time.Duration
	// CheckCredentials is how often the kubeconfig and the files that it names are looked at. Default: 10 s.
	CheckCredentials time.Duration
	// Metrics may be nil.
	Metrics *Metrics
	// Log may be nil.
	Log hclog.Logger
}

// Connection is a KubeProxyConfiguration's clientConnection.
type Connection struct {
	// Kubeconfig is a file; "" for the credentials that a pod is given.
	Kubeconfig string
	// Server is the API server's URL, which wins over the kubeconfig's; "" for what that says.
	Server string
	// ContentType and AcceptContentTypes are media types; "" for protobuf.
	ContentType, AcceptContentTypes string
	// QPS and Burst limit the requests of this process, per second; 0 is for client-go's defaults, and less for no limit.
	QPS   float32
	Burst int
	// UserAgent is how requests name their sender; "" for client-go's default.
	UserAgent string
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.StallTimeout <= 0 {
		o.StallTimeout = 2 * time.Minute
	}
	if o.CheckCredentials <= 0 {
		o.CheckCredentials = 10 * time.Second
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return o
}
