// Package config decodes, defaults and validates the two documents that configure weir: kube-proxy's
// KubeProxyConfiguration, also inside the ConfigMap that kubeadm makes of it, and weir's own WeirConfiguration.
//
// Decoding is strict, since a typo that is dropped silently is worse than an error. All problems of a document are
// reported at once, each with its line.
package config

import (
	"strings"
	"time"

	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/spec"
	"weir/spec/yamlpos"
)

// The apiVersion and kind of the two documents.
const (
	KubeProxyAPIVersion = "kubeproxy.config.k8s.io/v1alpha1"
	KubeProxyKind       = "KubeProxyConfiguration"
	WeirAPIVersion      = "weir/v1alpha1"
	WeirKind            = "WeirConfiguration"
)

// configMapKey is where kubeadm's ConfigMap "kube-proxy" holds the configuration.
const configMapKey = "config.conf"

// IsKubeProxy says whether a document of this kind is meant for Decode. Any apiVersion is: Decode says what is wrong with
// an old one.
func IsKubeProxy(kind string) bool { return kind == KubeProxyKind }

// IsWeir says whether a document of this kind is meant for DecodeWeir.
func IsWeir(kind string) bool { return kind == WeirKind }

// Doc is one YAML or JSON document.
type Doc struct {
	// File is the name that problems are reported under.
	File string
	// Line is the line of File on which Bytes begins, from 1.
	Line  int
	Bytes []byte
	// OneLine says that the document is written on one line of File, as a quoted string, though Bytes may have several.
	OneLine bool
}

// KubeProxy is a KubeProxyConfiguration with its defaults set.
type KubeProxy struct {
	*kubeproxyconfig.KubeProxyConfiguration
	// UDPIdleTimeout is how long the userspace mode keeps an idle UDP flow (udpIdleTimeout, a field that today's type no
	// longer has). Default: 250 ms, as it was.
	UDPIdleTimeout time.Duration
}

// Decode decodes a KubeProxyConfiguration, sets its defaults and validates it. The result is usable only if there are no
// errors; warnings name the fields that are accepted but do nothing here.
func Decode(doc Doc) (c *KubeProxy, warnings, errors []spec.Problem) {
	r := reporter{doc: doc, object: KubeProxyKind}
	var in document
	if !decodeStrict(&r, &in) {
		return nil, nil, r.sorted()
	}
	if got := in.TypeMeta.APIVersion; got != KubeProxyAPIVersion || in.TypeMeta.Kind != KubeProxyKind {
		r.add("apiVersion", "%q, kind %q: must be %s, kind %s", got, in.TypeMeta.Kind, KubeProxyAPIVersion, KubeProxyKind)
		return nil, nil, r.sorted()
	}
	c = in.config()
	SetDefaults(c.KubeProxyConfiguration)
	if c.UDPIdleTimeout == 0 {
		c.UDPIdleTimeout = defaultUDPIdleTimeout
	}
	validate(&r, c)
	w := reporter{doc: doc, object: KubeProxyKind}
	warn(&w, &in)
	return c, w.sorted(), r.sorted()
}

// FromConfigMap returns the KubeProxyConfiguration in a ConfigMap such as "kubectl -n kube-system get configmap kube-proxy
// -o yaml" prints, or false if the document is not a ConfigMap or holds none.
func FromConfigMap(doc Doc) (Doc, bool) {
	kind, _ := yamlpos.String(doc.Bytes, doc.Line, "kind")
	if kind.Value != "ConfigMap" {
		return Doc{}, false
	}
	text, ok := yamlpos.String(doc.Bytes, doc.Line, "data["+configMapKey+"]")
	if !ok {
		return Doc{}, false
	}
	inner := []byte(text.Value)
	switch innerKind, ok := yamlpos.String(inner, 1, "kind"); {
	case ok && innerKind.Value != KubeProxyKind:
		return Doc{}, false
	case !ok && !strings.Contains(text.Value, KubeProxyKind): // a broken document is one nevertheless
		return Doc{}, false
	}
	return Doc{File: doc.File, Line: text.Line, Bytes: inner, OneLine: doc.OneLine || !text.Literal}, true
}
