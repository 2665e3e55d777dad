package apisource

import (
	"time"

	"github.com/hashicorp/go-hclog"
)

// Options say which API to watch, and for which node.
type Options struct {
	Connection Connection
	// NodeName is the name of this node. Its Node object is watched.
	NodeName string
	// WaitForPodCIDR delays the first Snapshot until the Node has its podCIDRs, as detectLocalMode NodeCIDR needs.
	WaitForPodCIDR bool
	// Headless adds headless Services and their endpoints, which have names but no proxy.
	Headless bool
	// ResyncPeriod is configSyncPeriod: the interval at which the whole state is sent again, as an informer does,
	// without a request to the API. 0 means never.
	ResyncPeriod time.Duration
	// StallTimeout is how long an answer may make no progress before the request is given up. An API server sends a
	// bookmark on each watch about once a minute. Default: 2 min.
	StallTimeout time.Duration
	// CheckCredentials is how often the kubeconfig and the files that it names are checked. Default: 10 s.
	CheckCredentials time.Duration
	// AllowEmpty accepts a list without any Service. Otherwise such a list deletes nothing: each cluster has a Service.
	AllowEmpty bool
	// MaxAnswer is how many bytes an answer to a list may have. Default: 64 MiB. MaxHeld is how much memory the objects of
	// one resource may take, by an estimate. Default: 256 MiB, which is about 100,000 Services.
	MaxAnswer, MaxHeld int64
	// Metrics may be nil.
	Metrics *Metrics
	// Log may be nil.
	Log hclog.Logger
}

// Connection is a KubeProxyConfiguration's clientConnection.
type Connection struct {
	// Kubeconfig is a file; "" means the credentials that a pod is given.
	Kubeconfig string
	// Server is the API server's URL, which wins over the kubeconfig's; "" means the kubeconfig's.
	Server string
	// ContentType and AcceptContentTypes are media types; "" means protobuf.
	ContentType, AcceptContentTypes string
	// QPS and Burst limit the requests of this process, per second; 0 means client-go's defaults, negative means no
	// limit.
	QPS   float32
	Burst int
	// UserAgent is the name of the client in requests; "" means client-go's default.
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
	if o.MaxAnswer <= 0 {
		o.MaxAnswer = defaultMaxAnswer
	}
	if o.MaxHeld <= 0 {
		o.MaxHeld = defaultMaxHeld
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
	return o
}
