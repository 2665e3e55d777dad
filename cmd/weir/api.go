package main

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/reconcile/review"
	"weir/spec"
	"weir/spec/apisource"
	"weir/spec/config"
	"weir/spec/filesource"
	"weir/spec/lastgood"
	"weir/spec/union"
)

// apiFlags say whether to read from a Kubernetes API as well.
type apiFlags struct {
	on         bool
	kubeconfig string
	master     string
}

func (f *apiFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVar(&f.on, "api", false, "read Services from the Kubernetes API too, with clientConnection's kubeconfig or a pod's own credentials (default: if there is no -f)")
	fs.StringVar(&f.kubeconfig, "kubeconfig", "", "file that says how to reach the Kubernetes API; implies --api (default: clientConnection's)")
	fs.StringVar(&f.master, "master", "", "URL of the Kubernetes API server, which wins over the kubeconfig's; implies --api")
}

// asked says whether a flag wants the API, whatever else is read.
func (f *apiFlags) asked() bool { return f.on || f.kubeconfig != "" || f.master != "" }

// source returns the source that the flags name: files, a Kubernetes API, or both. Mistakes in the flags are usage errors.
func (f *apiFlags) source(input *inputFlags, node *nodeFlags, log hclog.Logger, metrics prometheus.Registerer) (spec.Source, error) {
	only := len(input.files) == 0
	if !f.asked() && (!only || input.config == "") {
		return input.source(log.Named("files"))
	}
	api := f.follow(node, log.Named("api"), apisource.NewMetrics(metrics))
	if !only {
		files, err := input.source(log.Named("files"))
		if err != nil {
			return nil, err
		}
		return union.New(files, api), nil
	}
	weir, err := input.weir()
	if err != nil {
		return nil, usageError{err}
	}
	if input.config == "" {
		return union.New(union.Static(weir), api), nil
	}
	files := filesource.New(filesource.Options{Config: input.config, Log: log.Named("files"), Weir: func(c *spec.WeirConfiguration) {
		weir(c)
		c.AllowEmpty = true // of the file: it is there for its configuration
	}})
	return union.New(files, api), nil
}

// described names what source reads.
func (f *apiFlags) described(input *inputFlags, snap *spec.Snapshot) review.Input {
	in := review.Input{Kind: "files", Name: strings.Join(input.files, ", "), Revision: snap.Revision.String()}
	switch {
	case len(input.files) == 0:
		in.Kind = "api"
	case f.asked():
		in.Name += " and the Kubernetes API"
	}
	return in
}

// follow returns what makes the API's source for a configuration, and the same one again while that says the same.
func (f *apiFlags) follow(node *nodeFlags, log hclog.Logger, metrics *apisource.Metrics) func(*spec.Snapshot) (spec.Source, error) {
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
			Metrics:        metrics,
			Log:            log,
		}}
		if t.ResyncPeriod < 0 {
			return nil, errors.New("configSyncPeriod is negative")
		}
		if source == nil || t != current {
			api := apisource.New(t.Options)
			current = t
			source = lastgood.New(lastgood.Options{Source: api, File: filepath.Join(t.stateDir, "api-snapshot"), Cluster: api.Cluster, Node: name, Log: log})
		}
		return source, nil
	}
}

func (f *apiFlags) connection(c *kubeproxyconfig.KubeProxyConfiguration) apisource.Connection {
	cc := &c.ClientConnection
	conn := apisource.Connection{
		Kubeconfig: cc.Kubeconfig, Server: f.master, ContentType: cc.ContentType, AcceptContentTypes: cc.AcceptContentTypes,
		QPS: cc.QPS, Burst: int(cc.Burst), UserAgent: "weir/" + thisBuild().Version,
	}
	if f.kubeconfig != "" {
		conn.Kubeconfig = f.kubeconfig
	}
	return conn
}
