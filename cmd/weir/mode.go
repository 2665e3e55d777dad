package main

import (
	"context"
	"reflect"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/backends"
	"weir/backends/dataplane"
	"weir/backends/doctor"
	"weir/backends/hostnet"
	"weir/backends/userspace"
	"weir/reconcile"
	"weir/spec"
	"weir/spec/nodeconfig"
)

// mode is one way to serve Services on this node. The rest of weir knows nothing else of a mode. A new mode is a file
// with a function that returns this value, and a line in the table (modeTable). Functions may be nil unless required.
// They look at nothing before they are called.
type mode struct {
	name   string
	traits backends.Traits

	// section reads the part of a KubeProxyConfiguration for the mode. Required.
	section func(*kubeproxyconfig.KubeProxyConfiguration) nodeconfig.Section
	// settings completes the Config with the mode's own settings, and returns what else open needs: a value that ==
	// compares.
	settings func(ctx context.Context, snap *spec.Snapshot, cfg *dataplane.Config) (any, error)
	// open makes a Backend and the cleaner of its flows. It changes nothing on the node, because the Loop may refuse
	// the Snapshot. Required.
	open func(ctx context.Context, cfg dataplane.Config, settings any) (backends.Backend, reconcile.Flows, error)
	// parameters returns the kernel parameters that the mode needs besides those of forwarding. It may be nil.
	parameters func(cfg dataplane.Config, settings any) []hostnet.Parameter
	// accepted is called when the Loop has accepted the result of open. Work that it starts ends with ctx.
	accepted func(ctx context.Context)

	// probe returns why this node cannot run the mode, or nil. Required.
	probe func(context.Context) error
	// fallback names the modes to use if probe fails; the first one that can run is used. Without any, the failure is
	// an error.
	fallback []string
	// appeared reports, at little cost, whether the reason for which probe failed may be gone. A mode with a fallback
	// needs it.
	appeared func() bool

	// redirection serves userspace mode, or is nil.
	redirection *redirection
	// needsOneOf names other modes, one of which this node must be able to run too.
	needsOneOf []string
	// hairpins reports whether a pod on a bridge whose frames pass through the packet filter reaches itself through a Service only
	// if its port has hairpin mode.
	hairpins bool
	// translates reports whether packets are translated from the node's own processes to endpoints, so that answers to ::1 come
	// by any interface.
	translates bool
	// answers reports whether the mode can leave packets to weir itself untranslated and untracked on this node. Nil stands for
	// a mode that cannot.
	answers func(context.Context) bool
	// holds reports whether the mode makes ClusterIPs addresses of the node, so that their packets are delivered here.
	holds bool
	// leavesKernel reports whether the mode programs nothing in the kernel.
	leavesKernel bool

	// leftovers returns a Backend for each mechanism in which earlier runs in this mode may have left something. If the
	// mode is in force, it leaves out those in use. Required.
	leftovers func(ctx context.Context, cfg dataplane.Config, inForce bool) []leftover
	// checks checks what the mode needs of the node, and changes nothing. Required.
	checks func(context.Context) []doctor.Check

	// metrics are the mode's own metrics, or nil.
	metrics prometheus.Collector
	// drain waits for the connections that the process carries.
	drain func()
	// listeners serve Services in this process; nil in a mode in which the kernel does.
	listeners *userspace.Listeners
}

// redirection sends the traffic of Services to listeners on this node. It shares no kernel object with the mode's own
// Backend, so that one can be set up before the other is taken down.
type redirection struct {
	open      func(ctx context.Context, cfg dataplane.Config) (backends.Backend, error)
	leftovers func(ctx context.Context, cfg dataplane.Config) []leftover
}

// leftover is a Backend that can remove what an earlier run left.
type leftover struct {
	name    string // for display, such as "iptables-legacy"
	backend backends.Backend
}

// openMode is a data path together with its inputs.
type openMode struct {
	path     reconcile.DataPath
	config   dataplane.Config
	settings any
	needs    []hostnet.Parameter
}

// fits reports whether the data path has this mode and these inputs.
func (o *openMode) fits(mode string, cfg dataplane.Config, settings any, needs []hostnet.Parameter) bool {
	return o != nil && o.path.Mode == mode && o.settings == settings && slices.Equal(o.needs, needs) && reflect.DeepEqual(o.config, cfg)
}
