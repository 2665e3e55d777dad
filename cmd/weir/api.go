package main

import (
	"errors"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/reconcile/tell/changes"
	"weir/spec"
	"weir/spec/apisource"
	"weir/spec/config"
	"weir/spec/filesource"
	"weir/spec/join"
	"weir/spec/kubedns"
	"weir/spec/lastgood"
)

// apiFlags say whether to read from a Kubernetes API.
type apiFlags struct {
	on         bool
	kubeconfig string
	master     string
	// named has headless Services read too, whatever the configuration says of names.
	named bool
	// planned has Services planned with what templates of pods promise.
	planned bool
	// taken, if set, returns why weir must not answer names at an address of this node.
	taken kubedns.Taken
	// filters change the slices of all Services.
	filters []join.Filter
}

func (f *apiFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&f.on, "api", false, "read Services from the Kubernetes API too, with clientConnection's kubeconfig or a pod's own credentials (default: if there is no -f)")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "kubeconfig file for the Kubernetes API; implies --api (default: clientConnection's)")
	fs.StringVar(&f.master, "master", "", "URL of the Kubernetes API server, used instead of the kubeconfig's; implies --api")
}

// asked reports whether a flag asks for the API, whatever else is read.
func (f *apiFlags) asked() bool { return f.on || f.kubeconfig != "" || f.master != "" }

// source returns the source that the flags name: files with the pods of runtimes, a Kubernetes API, or all of them, with the
// Service of weir's own names. Invalid flags are usage errors.
func (f *apiFlags) source(input *inputFlags, node *nodeFlags, pods []join.Layer, log hclog.Logger, metrics prometheus.Registerer) (spec.Source, error) {
	source, err := f.declared(input, node, pods, log, metrics)
	if err != nil {
		return nil, err
	}
	return kubedns.New(source, log.Named("dns"), f.taken), nil
}

func (f *apiFlags) declared(input *inputFlags, node *nodeFlags, pods []join.Layer, log hclog.Logger, metrics prometheus.Registerer) (spec.Source, error) {
	only := input.none()
	if f.asked() || only {
		input.usable = nil // the kernel holds what the others said too, so it cannot be compared
	}
	if !f.asked() && (!only || input.config == "") {
		files, err := input.source(log.Named("files"))
		if err != nil {
			return nil, err
		}
		return f.join(files, pods...), nil
	}
	allowEmpty := func(files *spec.Snapshot) bool {
		return input.allowEmpty || !only && files.Weir.AllowEmpty // with --config alone it is set below, for files
	}
	api := join.Layer{Name: "the Kubernetes API", Source: f.follow(node, log.Named("api"), apisource.NewMetrics(metrics), allowEmpty)}
	if !only {
		files, err := input.source(log.Named("files"))
		if err != nil {
			return nil, err
		}
		return f.join(files, append(pods, api)...), nil
	}
	overrides, err := input.overrides()
	if err != nil {
		return nil, usageError{err}
	}
	if input.config == "" {
		return f.join(join.Static(overrides), api), nil
	}
	files := filesource.New(filesource.Options{Config: input.config, Log: log.Named("files"), Reread: input.reread,
		Overrides: overrides.AllowingEmpty()}) // the file is only needed for its configuration
	return f.join(input.keeping(files, overrides, log.Named("files")), api), nil
}

// join joins the files with the layers above them.
func (f *apiFlags) join(files spec.Source, layers ...join.Layer) spec.Source {
	s := join.New(files, layers...).Filtered(f.filters...)
	if f.planned {
		return s.Planned()
	}
	return s
}

// described returns a description of source, for a plan.
func (f *apiFlags) described(input *inputFlags, snap *spec.Snapshot) changes.Input {
	in := changes.Input{Kind: "files", Name: input.names(), Revision: snap.Revision.String()}
	switch {
	case input.none():
		in.Kind = "api"
	case f.asked():
		in.Name += " and the Kubernetes API"
	}
	return in
}

// follow returns a function that makes the API's source for a configuration. It returns the same source while the
// connection settings are equal.
func (f *apiFlags) follow(node *nodeFlags, log hclog.Logger, metrics *apisource.Metrics, allowEmpty func(*spec.Snapshot) bool) func(*spec.Snapshot) (spec.Source, error) {
	type target struct {
		apisource.Options
		stateDir string
	}
	var current target
	var source spec.Source
	return func(files *spec.Snapshot) (spec.Source, error) {
		name, err := nodeName(node.hostname, files.Config.HostnameOverride)
		if err != nil {
			return nil, err
		}
		t := target{stateDir: files.Weir.StateDir, Options: apisource.Options{
			Connection:     f.connection(files.Config),
			NodeName:       name,
			WaitForPodCIDR: files.Config.DetectLocalMode == config.LocalModeNodeCIDR,
			ResyncPeriod:   files.Config.ConfigSyncPeriod.Duration,
			AllowEmpty:     allowEmpty(files),
			Headless:       files.Weir.DNS.Serve || f.named,
			Metrics:        metrics,
			Log:            log,
		}}
		if t.ResyncPeriod < 0 {
			return nil, errors.New("configSyncPeriod is negative")
		}
		if source == nil || t != current {
			api := apisource.New(t.Options)
			current = t
			file := func(*spec.Snapshot) string { return filepath.Join(t.stateDir, "api-snapshot") }
			source = lastgood.New(lastgood.Options{Source: api, Input: "the Kubernetes API", File: file, Cluster: api.Cluster, Node: name, Appends: true, Log: log})
		}
		return source, nil
	}
}

func (f *apiFlags) connection(c *kubeproxyconfig.KubeProxyConfiguration) apisource.Connection {
	cc := &c.ClientConnection
	conn := apisource.Connection{
		Kubeconfig: cc.Kubeconfig, Server: f.master, ContentType: cc.ContentType, AcceptContentTypes: cc.AcceptContentTypes,
		QPS: cc.QPS, Burst: int(cc.Burst), UserAgent: thisBuild().userAgent(),
	}
	if f.kubeconfig != "" {
		conn.Kubeconfig = f.kubeconfig
	}
	return conn
}
