// Command kubeproxyconfig says what kube-proxy makes of a configuration: its defaults and its validation. Each line of
// its input is a document, as a JSON string, and each line of its output the Answer to it.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
	logsapi "k8s.io/component-base/logs/api/v1"
	_ "k8s.io/component-base/logs/json/register" // logging.format json
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
	internal "k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/apis/config/scheme"
	"k8s.io/kubernetes/pkg/proxy/apis/config/validation"
	"sigs.k8s.io/yaml"
)

// Answer is what kube-proxy makes of one document.
type Answer struct {
	// Refused holds what is wrong with the document, if anything is.
	Refused []string `json:"refused,omitempty"`
	// Config is the document with its defaults set.
	Config *kubeproxyconfig.KubeProxyConfiguration `json:"config,omitempty"`
}

func main() {
	if err := logsapi.AddFeatureGates(utilfeature.DefaultMutableFeatureGate); err != nil {
		fatal(err)
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var doc string
		if err := json.Unmarshal(in.Bytes(), &doc); err != nil {
			fatal(err)
		}
		if err := out.Encode(ask(doc)); err != nil {
			fatal(err)
		}
	}
	if err := in.Err(); err != nil {
		fatal(err)
	}
}

func ask(doc string) Answer {
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

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "kubeproxyconfig:", err)
	os.Exit(1)
}
