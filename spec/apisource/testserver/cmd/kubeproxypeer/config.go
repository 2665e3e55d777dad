package main

import (
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/logs/json/register" // logging.format json
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
	internal "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/apis/config/scheme"
	"k8s.io/kubernetes/pkg/proxy/apis/config/validation"
	"sigs.k8s.io/yaml"
)

func enableLogging() error { return logsapi.AddFeatureGates(utilfeature.DefaultMutableFeatureGate) }

// configure decodes a document, sets its defaults and validates it.
func configure(doc string) Answer {
	var c kubeproxyconfig.KubeProxyConfiguration
	if err := yaml.UnmarshalStrict([]byte(doc), &c); err != nil {
		return Answer{Refused: []string{err.Error()}}
	}
	scheme.Scheme.Default(&c)
	var i internal.KubeProxyConfiguration
	if err := scheme.Scheme.Convert(&c, &i, nil); err != nil {
		return Answer{Refused: []string{err.Error()}}
	}
	var a Answer
	for _, err := range validation.Validate(&i) {
		a.Refused = append(a.Refused, err.Error())
	}
	if a.Refused == nil {
		a.Config = &c
	}
	return a
}
