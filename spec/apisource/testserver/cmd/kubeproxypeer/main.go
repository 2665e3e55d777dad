// Command kubeproxypeer says what kube-proxy's own code makes of a configuration, and of a Service with its endpoints. Each
// line of its input is a Question in JSON, and each line of its output the Answer to it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
)

// Question asks one of two things.
type Question struct {
	// Document is a configuration.
	Document string `json:"document,omitempty"`
	// Service is one of an API server, with its endpoints and the node.
	Service *Service `json:"service,omitempty"`
}

// Answer is what kube-proxy makes of it.
type Answer struct {
	// Refused holds what is wrong with the document, if anything is.
	Refused []string `json:"refused,omitempty"`
	// Config is the document with its defaults set.
	Config *kubeproxyconfig.KubeProxyConfiguration `json:"config,omitempty"`
	// Ports are those of the Service, in each family that it has a ClusterIP of, in no order.
	Ports []Port `json:"ports,omitempty"`
}

func main() {
	if err := answer(json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)); err != nil {
		fmt.Fprintln(os.Stderr, "kubeproxypeer:", err)
		os.Exit(1)
	}
}

func answer(in *json.Decoder, out *json.Encoder) error {
	if err := enableLogging(); err != nil {
		return err
	}
	for {
		var q Question
		if err := in.Decode(&q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a := Answer{}
		if q.Service != nil {
			a.Ports = q.Service.ports()
		} else {
			a = configure(q.Document)
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}
