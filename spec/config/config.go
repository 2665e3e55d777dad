// Package config decodes, defaults and validates the two documents that configure weir. One is kube-proxy's
// KubeProxyConfiguration, also inside the ConfigMap that kubeadm makes of it. The other is weir's own
// WeirConfiguration. Decode and DecodeWeir are its entry points.
//
// Decoding is strict, because a silently dropped typo is worse than an error. All problems of a document are reported
// at once, each with its line. The package does not decide what a setting means for a node; spec/nodeconfig does. The
// sources of spec and cmd/weir import it.
package config

import (
	"bytes"
	"time"

	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"

	"weir/spec"
	"weir/spec/document"
)

// The apiVersion and kind of the two documents.
const (
	KubeProxyAPIVersion = "kubeproxy.config.k8s.io/v1alpha1"
	KubeProxyKind       = "KubeProxyConfiguration"
	WeirAPIVersion      = "weir/v1alpha1"
	WeirKind            = "WeirConfiguration"
)

// ConfigMapKey is the key of kubeadm's ConfigMap "kube-proxy" that holds the configuration.
const ConfigMapKey = "config.conf"

// IsKubeProxy reports whether a document of this kind is for Decode, whatever its apiVersion is. Decode explains what
// is wrong with an old one.
func IsKubeProxy(kind string) bool { return kind == KubeProxyKind }

// IsWeir reports whether a document of this kind is for DecodeWeir.
func IsWeir(kind string) bool { return kind == WeirKind }

// Doc is one YAML or JSON document.
type Doc struct {
	// File is the name of the file in problems.
	File string
	*document.Document
}

// KubeProxy is a KubeProxyConfiguration with its defaults set.
type KubeProxy struct {
	*kubeproxyconfig.KubeProxyConfiguration
	// UDPIdleTimeout is how long the userspace mode keeps an idle UDP flow (udpIdleTimeout, which the current type of
	// kube-proxy no longer has). Default: 250 ms, as in kube-proxy.
	UDPIdleTimeout time.Duration
	// MinSyncPeriodGiven reports whether minSyncPeriod was written for iptables or nftables mode.
	MinSyncPeriodGiven bool
}

// MasqueradesAll reports whether all traffic is masqueraded, wherever it comes from.
func MasqueradesAll(c *kubeproxyconfig.KubeProxyConfiguration) bool {
	if c.Mode == ModeNFTables {
		return c.NFTables.MasqueradeAll
	}
	return c.IPTables.MasqueradeAll
}

// Decode decodes a KubeProxyConfiguration, sets its defaults and validates it. The result is usable only if there are
// no errors. The warnings name fields that are accepted but have no effect.
func Decode(doc Doc) (c *KubeProxy, warnings []spec.Notice, errors []spec.Problem) {
	r := reporter{doc: doc, object: KubeProxyKind}
	var in written
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
	w := reporter{doc: doc, object: KubeProxyKind, id: spec.SettingIgnored}
	warn(&w, &in)
	if in.DetectLocalMode == LocalModeClusterCIDR && in.ClusterCIDR == "" && !MasqueradesAll(c.KubeProxyConfiguration) {
		w.id = spec.NoLocalDetection
		w.add("detectLocalMode", "is ClusterCIDR, and clusterCIDR is empty: nothing is masqueraded because it comes from elsewhere; set clusterCIDR to the pods' range, or leave detectLocalMode out")
	}
	if in.Mode == ModeIPVS {
		w.id = spec.Deprecated
		w.add("mode", "is ipvs, which kube-proxy deprecates: off unless asked for from 1.40, gone in 1.43 (KEP-5495); weir keeps it")
	}
	return c, w.sorted(), r.sorted()
}

// FromConfigMap returns the KubeProxyConfiguration in a ConfigMap, for example from "kubectl -n kube-system get
// configmap kube-proxy -o yaml". It returns false if the document is not a ConfigMap or holds none.
func FromConfigMap(doc Doc) (Doc, bool) {
	inner, text, ok := carried(doc)
	if !ok {
		return Doc{}, false
	}
	switch kind := inner.String("kind"); {
	case kind != "" && kind != KubeProxyKind:
		return Doc{}, false
	case kind == "" && !bytes.Contains(text.Data, []byte(KubeProxyKind)): // a broken document may still be a KubeProxyConfiguration
		return Doc{}, false
	}
	return inner, true
}

// Carried returns the document of any kind that a ConfigMap has where kubeadm's has the configuration. It returns false if
// there is none.
func Carried(doc Doc) (Doc, bool) {
	inner, _, ok := carried(doc)
	return inner, ok
}

func carried(doc Doc) (Doc, document.Text, bool) {
	if doc.String("kind") != "ConfigMap" {
		return Doc{}, document.Text{}, false
	}
	text, ok := doc.Embedded("data[" + ConfigMapKey + "]")
	if !ok {
		return Doc{}, document.Text{}, false
	}
	return Doc{doc.File, document.Parse(text)}, text, true
}
