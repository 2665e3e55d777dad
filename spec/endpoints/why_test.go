package endpoints

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir/spec"
)

func TestWhyNone(t *testing.T) {
	pod := func(name string, phase corev1.PodPhase, code int32) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name}, Status: corev1.PodStatus{Phase: phase}}
		if code >= 0 {
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}}
		}
		return p
	}
	for _, test := range []struct {
		pods []*corev1.Pod
		want string
	}{
		{[]*corev1.Pod{pod("a", corev1.PodPending, -1)}, "pod d/a has these labels, and no address"},
		{[]*corev1.Pod{pod("a", corev1.PodFailed, 137)}, "pod d/a has these labels, and is not running (exit code 137)"},
		{[]*corev1.Pod{pod("a", corev1.PodSucceeded, 0)}, "pod d/a has these labels, and is not running (exit code 0)"},
		{[]*corev1.Pod{pod("a", corev1.PodFailed, -1)}, "pod d/a has these labels, and is not running"},
		{[]*corev1.Pod{pod("a", corev1.PodFailed, 1), pod("b", corev1.PodRunning, -1)}, "pod d/b has these labels, and no address; 1 more has them too"},
		{[]*corev1.Pod{pod("a", corev1.PodFailed, 1), pod("b", corev1.PodFailed, 2), pod("c", corev1.PodFailed, 2)}, "pod d/a has these labels, and is not running (exit code 1); 2 more have them too"},
	} {
		if got := WhyNone(test.pods); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

func TestUnknownPort(t *testing.T) {
	port := func(target intstr.IntOrString) *corev1.ServicePort {
		return &corev1.ServicePort{Protocol: corev1.ProtocolTCP, TargetPort: target}
	}
	http := port(intstr.FromString("http"))
	pod := func(name string, ports ...corev1.ContainerPort) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: ports}}}}
	}
	of := func(ports ...corev1.ContainerPort) []*spec.Template {
		return []*spec.Template{{Kind: "Deployment", Namespace: "d", Name: "web", Ports: ports}}
	}
	named := func(name string, p corev1.Protocol) corev1.ContainerPort {
		return corev1.ContainerPort{Name: name, ContainerPort: 1, Protocol: p}
	}
	for what, test := range map[string]struct {
		port      *corev1.ServicePort
		pods      []*corev1.Pod
		templates []*spec.Template
		want      string
	}{
		"nothing is known":          {http, nil, nil, ""},
		"a number":                  {port(intstr.FromInt32(80)), nil, of(), ""},
		"the template has it":       {http, nil, of(named("http", "")), ""},
		"the template lacks it":     {http, nil, of(named("web", "")), `is "http" (TCP), and no container of Deployment d/web has a port of that name; they have web (TCP)`},
		"of another protocol":       {http, nil, of(named("http", "UDP")), `is "http" (TCP), and no container of Deployment d/web has a port of that name; they have http (UDP)`},
		"the template has no port":  {http, nil, of(), `is "http" (TCP), and no container of Deployment d/web has a port of that name; name one there, or give the number`},
		"one of two pods has it":    {http, []*corev1.Pod{pod("a"), pod("b", named("http", "TCP"))}, nil, ""},
		"no pod has it":             {http, []*corev1.Pod{pod("a"), pod("b", named("x", "TCP"))}, of(named("http", "")), `is "http" (TCP), and no container of pod d/a, pod d/b has a port of that name; they have x (TCP)`},
		"of pods nothing is known":  {http, []*corev1.Pod{pod("a")}, nil, `is "http" (TCP), and no container of pod d/a has a port of that name; podman and docker tell no names of ports: add what the pods were made of to the input, or give the number`},
		"many pods, and many ports": {http, []*corev1.Pod{pod("a", named("1", ""), named("2", ""), named("3", "")), pod("b", named("4", ""), named("5", "")), pod("c"), pod("d"), pod("e")}, nil, `is "http" (TCP), and no container of pod d/a, pod d/b, pod d/c, others has a port of that name; they have 1 (TCP), 2 (TCP), 3 (TCP), others`},
	} {
		if got := UnknownPort(test.port, test.pods, test.templates); got != test.want {
			t.Errorf("%s: %q, want %q", what, got, test.want)
		}
	}
}

// TestLivenessIsNotReadiness has a pod whose health check fails, and templates with probes.
func TestLivenessIsNotReadiness(t *testing.T) {
	pod := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse, Reason: ReasonUnhealthy}}}}
	for _, test := range []struct {
		t    *spec.Template
		want bool
	}{{nil, false}, {&spec.Template{}, false}, {&spec.Template{Probed: true}, false}, {&spec.Template{Lives: true}, true}} {
		if got := Ready(Completed(pod, test.t)); got != test.want {
			t.Errorf("with the template %+v it is ready: %t", test.t, got)
		}
	}
	if Ready(pod) {
		t.Error("the pod itself was changed")
	}
	pod.Status.Conditions[0].Reason = ""
	if Ready(Completed(pod, &spec.Template{Lives: true})) {
		t.Error("a pod that does not run is ready")
	}
}
