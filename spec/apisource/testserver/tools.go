//go:build tools

// Package testserver pins the kube-apiserver and the etcd that the tests of apisource run, and the kube-proxy that
// configurations, and in benchmarks all of weir, are compared with. It is a module of its own, so that weir does not depend on
// them.
package testserver

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-proxy"
)
