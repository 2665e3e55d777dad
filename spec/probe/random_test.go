package probe_test

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"math/rand/v2"
	"regexp"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/seed"
)

var quiet = log.New(io.Discard, "", 0)

var templateName = dataplane.ServiceName{Namespace: "default", Name: "Pod/web"}

// randomPods returns pods with random readinessProbes, of which about half are invalid.
func randomPods(t *testing.T, n int) []*corev1.Pod {
	r := seed.Rand(t)
	pods := make([]*corev1.Pod, n)
	for i := range pods {
		pods[i] = podOf(randomProbe(r))
	}
	return pods
}

func pick[V any](r *rand.Rand, values ...V) V { return values[r.IntN(len(values))] }

func randomProbe(r *rand.Rand) (p corev1.Probe) {
	seconds := func() int32 {
		if r.IntN(30) == 0 {
			return -1
		}
		return pick[int32](r, 0, 0, 1, 2, 3600)
	}
	p.InitialDelaySeconds, p.TimeoutSeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold = seconds(), seconds(), seconds(), seconds(), seconds()
	if r.IntN(20) == 0 {
		p.TerminationGracePeriodSeconds = new(pick[int64](r, -1, 0, 30))
	}
	port := func() intstr.IntOrString {
		if r.IntN(4) == 0 {
			return intstr.FromString(pick(r, "http", "http", "a-b", "", "-a", "UPPER", "1234", "a--b", "sixteen-letters-x", "toolong-toolong-toolong"))
		}
		return intstr.FromInt32(pick[int32](r, 80, 80, 8080, 65535, 0, 65536, -1))
	}
	handlers := pick(r, 1, 1, 1, 1, 1, 1, 0, 2)
	for range handlers {
		switch r.IntN(4) {
		case 0:
			p.Exec = &corev1.ExecAction{Command: pick(r, []string{"true"}, []string{"a", ""}, []string{""}, nil)}
		case 1:
			g := &corev1.HTTPGetAction{Path: pick(r, "", "/", "x", "/a?b"), Port: port(), Scheme: pick[corev1.URIScheme](r, "", "HTTP", "HTTPS", "http"), Host: pick(r, "", "", "example.com", "a b")}
			for range r.IntN(3) {
				g.HTTPHeaders = append(g.HTTPHeaders, corev1.HTTPHeader{Name: pick(r, "Host", "X-A", "a b", "", "ä", "x_y"), Value: pick(r, "", "v", "\n")})
			}
			if r.IntN(3) == 0 {
				g.Protocol = new(pick[corev1.HTTPProtocol](r, "HTTP1", "HTTP2", "HTTP2", "http2", ""))
			}
			p.HTTPGet = g
		case 2:
			p.TCPSocket = &corev1.TCPSocketAction{Port: port(), Host: pick(r, "", "example.com", "a b")}
		case 3:
			p.GRPC = &corev1.GRPCAction{Port: pick[int32](r, 9000, 9000, 9000, 0, -1, 65536)}
			if r.IntN(2) == 0 {
				p.GRPC.Service = new(pick(r, "", "a.b", "a b"))
			}
			if r.IntN(3) == 0 {
				p.GRPC.Mode = new(pick[corev1.GRPCProbeMode](r, "TLS", "Plaintext", "tls", ""))
			}
		}
	}
	return p
}

// inHeaders finds the place of a header, which the API server does not name.
var inHeaders = regexp.MustCompile(`(httpHeaders)\[\d+\]\.name$`)

// fieldsOf returns the fields that are at fault, each once.
func fieldsOf(err error) []string {
	var fields []string
	var problems spec.Problems
	errors.As(err, &problems)
	for _, p := range problems {
		fields = append(fields, inHeaders.ReplaceAllString(p.Field, "$1"))
	}
	return sorted(fields)
}

func sorted(list []string) []string {
	list = slices.Sorted(slices.Values(list))
	return slices.Compact(list)
}

func describe(pod *corev1.Pod) string {
	data, _ := json.Marshal(pod.Spec.Containers[0].ReadinessProbe)
	return string(data)
}
