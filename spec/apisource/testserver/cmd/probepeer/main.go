// Command probepeer says what the kubelet's own code makes of probes, and the API server's of pods that have them. Each line of
// its input is a Question in JSON, and each line of its output the Answer to it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	"k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/probe"
	grpcprobe "k8s.io/kubernetes/pkg/probe/grpc"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
	tcpprobe "k8s.io/kubernetes/pkg/probe/tcp"
)

// Question asks one of two things.
type Question struct {
	// Probe is to be run once against the container at the address.
	Probe     *corev1.Probe    `json:"probe,omitempty"`
	Container corev1.Container `json:"container"`
	PodIP     string           `json:"podIP,omitempty"`
	// Pod is to be validated.
	Pod *corev1.Pod `json:"pod,omitempty"`
}

// Answer is what comes of it.
type Answer struct {
	// Verdict is success, failure, or unknown if the kubelet throws the result away.
	Verdict string `json:"verdict,omitempty"`
	Message string `json:"message,omitempty"`
	// Refused are the fields that are wrong.
	Refused []string `json:"refused,omitempty"`
	// Pod is the pod with its defaults set.
	Pod *corev1.Pod `json:"pod,omitempty"`
}

func main() {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	if err := answer(json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)); err != nil {
		fmt.Fprintln(os.Stderr, "probepeer:", err)
		os.Exit(1)
	}
}

// answer answers all Questions at once, because some wait for a timeout, and writes the Answers in their order.
func answer(in *json.Decoder, out *json.Encoder) error {
	var answers []chan Answer
	few := make(chan bool, 64)
	for {
		var q Question
		if err := in.Decode(&q); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		a := make(chan Answer, 1)
		answers = append(answers, a)
		few <- true
		go func() {
			defer func() { <-few }()
			if q.Pod != nil {
				a <- validate(q.Pod)
			} else {
				a <- run(&q)
			}
		}()
	}
	for _, a := range answers {
		if err := out.Encode(<-a); err != nil {
			return err
		}
	}
	return nil
}

// run runs a probe as the kubelet does.
func run(q *Question) Answer {
	result, message, err := runOnce(q.Probe, &q.Container, q.PodIP)
	switch {
	case err != nil:
		return Answer{Verdict: "unknown", Message: err.Error()}
	case result == probe.Success, result == probe.Warning:
		return Answer{Verdict: "success", Message: message}
	}
	return Answer{Verdict: "failure", Message: message}
}

func runOnce(p *corev1.Probe, c *corev1.Container, ip string) (probe.Result, string, error) {
	timeout := time.Duration(p.TimeoutSeconds) * time.Second
	switch {
	case p.HTTPGet != nil:
		req, err := httpprobe.NewRequestForHTTPGetAction(p.HTTPGet, c, ip, "probe")
		if err != nil {
			return probe.Unknown, "", err
		}
		prober := httpprobe.New(false)
		if p.HTTPGet.Protocol != nil && *p.HTTPGet.Protocol == corev1.HTTPProtocolHTTP2 {
			return prober.ProbeH2C(req, timeout)
		}
		return prober.Probe(req, timeout)
	case p.TCPSocket != nil:
		port, err := probe.ResolveContainerPort(p.TCPSocket.Port, c)
		if err != nil {
			return probe.Unknown, "", err
		}
		host := p.TCPSocket.Host
		if host == "" {
			host = ip
		}
		return tcpprobe.New().Probe(host, port, timeout)
	case p.GRPC != nil:
		service := ""
		if p.GRPC.Service != nil {
			service = *p.GRPC.Service
		}
		options := grpcprobe.ProbeOptions{UseTLS: p.GRPC.Mode != nil && *p.GRPC.Mode == corev1.GRPCProbeModeTLS}
		return grpcprobe.New().Probe(ip, service, int(p.GRPC.Port), timeout, options)
	}
	return probe.Unknown, "", errors.New("there is nothing to ask")
}

// validate sets the defaults of a pod and validates it as an API server does that has all features on.
func validate(pod *corev1.Pod) Answer {
	legacyscheme.Scheme.Default(pod)
	internal := &core.Pod{}
	if err := legacyscheme.Scheme.Convert(pod, internal, runtime.InternalGroupVersioner); err != nil {
		return Answer{Refused: []string{err.Error()}}
	}
	a := Answer{Pod: pod}
	for _, err := range validation.ValidatePodCreate(internal, podutil.GetValidationOptionsFromPodSpecAndMeta(&internal.Spec, nil, &internal.ObjectMeta, nil)) {
		a.Refused = append(a.Refused, err.Field)
	}
	return a
}
