package reconcile

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/join"
	"weir/spec/join/jointest"
)

// BenchmarkPodChanged changes one pod of 10,000 Services with five pods each, and resolves what the join sends because of it.
func BenchmarkPodChanged(b *testing.B) {
	const services, each = 10_000, 5
	files, pods := jointest.NewSource(), jointest.NewSource()
	layer := join.Fixed("podman", pods)
	layer.GivesPods = true
	var last spec.Update
	jointest.Watch(b, join.New(files, layer), func(u spec.Update) { last = u })
	<-files.Started
	declared, running := spec.Services{}.Edit(), spec.Pods{}.Edit()
	name := func(format string, args ...any) dataplane.ServiceName {
		return dataplane.ServiceName{Namespace: "default", Name: fmt.Sprintf(format, args...)}
	}
	pod := func(i, n int, ready corev1.ConditionStatus) *corev1.Pod {
		address := fmt.Sprintf("10.%d.%d.%d", i>>8, i&255, 1+n)
		return &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name("web-%d-%d", i, n).Name, Labels: map[string]string{"app": fmt.Sprint("web-", i), "team": "a"}},
			Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: address, PodIPs: []corev1.PodIP{{IP: address}},
				Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
		}
	}
	for i := range services {
		n := name("web-%d", i)
		declared.Put(n, &spec.Service{Name: n, Origin: spec.Origin{File: "web.yaml"}, Object: &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: n.Namespace, Name: n.Name},
			Spec: corev1.ServiceSpec{
				Type: corev1.ServiceTypeClusterIP, ClusterIP: fmt.Sprintf("10.96.%d.%d", i>>8, i&255), ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i>>8, i&255)},
				IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, Selector: map[string]string{"app": n.Name, "team": "a"},
				Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(8080)}},
			},
		}})
		for p := range each {
			running.Put(name("web-%d-%d", i, p), pod(i, p, corev1.ConditionTrue))
		}
	}
	files.Snapshot.Services = declared.Commit()
	files.Say(spec.Delta{All: true})
	<-pods.Started
	pods.Snapshot.Pods = running.Commit()
	pods.Say(spec.Delta{All: true})
	for i := 0; b.Loop(); i++ {
		changed := name("web-%d-0", i%services)
		edit := pods.Snapshot.Pods.Edit()
		edit.Put(changed, pod(i%services, 0, []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue}[i/services%2]))
		pods.Snapshot.Pods = edit.Commit()
		pods.Say(spec.Delta{Pods: []dataplane.ServiceName{changed}})
		if len(last.Delta.Services) != 1 {
			b.Fatalf("%v changed because of %v", last.Delta.Services, changed)
		}
		ports, _ := Resolve(last.Snapshot.Services.Get(last.Delta.Services[0]), &testNode)
		if len(ports) != 1 || len(ports[0].Endpoints) < each-1 {
			b.Fatalf("%v of %v", ports, changed)
		}
	}
}
