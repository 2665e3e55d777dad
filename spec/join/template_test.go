package join

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/endpoints"
	"weir/spec/join/jointest"
	"weir/spec/probe"
)

// templated is files with Services and templates, and a runtime with pods, joined.
type templated struct {
	*testing.T
	files, runtime *jointest.Source
	last           spec.Update
}

func newTemplated(t *testing.T, plans, runtime bool) *templated {
	w := &templated{T: t, files: jointest.NewSource(), runtime: jointest.NewSource()}
	var layers []Layer
	if runtime {
		l := Fixed("podman", w.runtime)
		l.GivesPods = true
		layers = append(layers, l)
	}
	s := New(w.files, layers...)
	if plans {
		s = s.Planned()
	}
	jointest.Watch(t, s, func(u spec.Update) { w.last = u })
	<-w.files.Started
	web := selecting("web")
	web.Object.Spec.Ports[0].TargetPort = intstr.FromString("http")
	w.files.Snapshot.Services = spec.ServicesOf(web, selecting("db"))
	w.files.Say(spec.Delta{All: true})
	if runtime {
		<-w.runtime.Started
		w.runtime.Say(spec.Delta{All: true})
	}
	return w
}

// write changes templates of the files; those without labels go.
func (w *templated) write(all ...*spec.Template) {
	b := w.files.Snapshot.Templates.Edit()
	var d spec.Delta
	for _, t := range all {
		t.Namespace = "d"
		name := dataplane.ServiceName{Namespace: "d", Name: t.Key()}
		if b.Put(name, t); t.Labels == nil {
			b.Delete(name)
		}
		d.Templates = append(d.Templates, name)
	}
	w.files.Snapshot.Templates = b.Commit()
	w.files.Say(d)
}

// play changes pods of a Source; those without labels go.
func (w *templated) play(to *jointest.Source, all ...*corev1.Pod) {
	b := to.Snapshot.Pods.Edit()
	var d spec.Delta
	for _, p := range all {
		p.Namespace = "d"
		name := dataplane.ServiceName{Namespace: "d", Name: p.Name}
		if b.Put(name, p); p.Labels == nil {
			b.Delete(name)
		}
		d.Pods = append(d.Pods, name)
	}
	to.Snapshot.Pods = b.Commit()
	to.Say(d)
}

func (w *templated) service(name string) *spec.Service {
	return w.last.Snapshot.Services.Get(dataplane.ServiceName{Namespace: "d", Name: name})
}

// is checks the endpoints of a Service with their ports and host names, and the notices about it: each has one of the texts.
func (w *templated) is(what, name, want string, notices ...string) {
	w.Helper()
	svc := w.service(name)
	var got []string
	for _, s := range svc.Slices {
		for _, e := range s.Endpoints {
			text := e.Addresses[0]
			for _, p := range s.Ports {
				text += fmt.Sprint(":", *p.Port)
			}
			if e.Hostname != nil {
				text += " " + *e.Hostname
			}
			got = append(got, text)
		}
	}
	if text := strings.Join(got, ", "); text != want {
		w.Errorf("%s: %s has endpoints %q, want %q", what, name, text, want)
	}
	all := svc.AllNotices()
	if len(all) != len(notices) {
		w.Errorf("%s: the notices about %s are %q", what, name, all)
		return
	}
	for i, n := range all {
		if text := string(n.ID()) + " " + n.Detail; !strings.Contains(text, notices[i]) {
			w.Errorf("%s: the notice about %s is %q, want %q", what, name, text, notices[i])
		}
	}
}

func (w *templated) changed(what string, names ...string) {
	w.Helper()
	var got []string
	for _, n := range w.last.Delta.Services {
		got = append(got, n.Name)
	}
	slices.Sort(got)
	if !slices.Equal(got, names) || w.last.Delta.All {
		w.Errorf("%s: %v changed (all: %v), want %v", what, got, w.last.Delta.All, names)
	}
}

func runningPod(name, address string, labels map[string]string) *corev1.Pod {
	pod := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: address}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, Reason: endpoints.ReasonRuns}}}}
	pod.Name, pod.Labels = name, labels
	return pod
}

func TestTemplatesCompletePods(t *testing.T) {
	w := newTemplated(t, false, true)
	web := map[string]string{"app": "web"}
	http := func(port int32) []corev1.ContainerPort {
		return []corev1.ContainerPort{{Name: "http", ContainerPort: port, Protocol: corev1.ProtocolTCP}}
	}
	w.is("nothing", "web", "", "W001-no-ready-endpoint selects no pod of podman; weir discover")
	w.play(w.runtime, runningPod("web-pod-0", "10.0.0.1", web))
	w.changed("a pod, which is the nearest to another selector", "db", "web")
	w.is("a pod without template", "web", "10.0.0.1", "W044-target-port-unknown")
	w.is("a pod without template", "db", "", "pod d/web-pod-0 has app=web, wanted app=db")
	w.write(&spec.Template{Kind: "Deployment", Name: "web", Labels: web, Replicas: 1, Ports: http(8080)})
	w.is("a template", "web", "10.0.0.1:8080")
	w.write(&spec.Template{Kind: "Deployment", Name: "web", Labels: web, Replicas: 1, Ports: http(8081), Hostname: "h", Subdomain: "web"})
	w.changed("another port", "web")
	w.is("another port", "web", "10.0.0.1:8081 h")
	w.write(&spec.Template{Kind: "Deployment", Name: "web-api", Labels: web, Ports: http(9090)})
	w.is("a template of another name", "web", "10.0.0.1:8081 h")
	w.play(w.runtime, runningPod("web-api-pod-0", "10.0.0.2", map[string]string{"app": "web", "more": "x"}))
	w.is("a pod of either", "web", "10.0.0.1:8081 h, 10.0.0.2:9090")
	w.write(&spec.Template{Kind: "Deployment", Name: "web-api"}, &spec.Template{Kind: "Deployment", Name: "web"},
		&spec.Template{Kind: "StatefulSet", Name: "web", Labels: web, Ports: http(1), Ordered: true, Subdomain: "web", Probed: true})
	w.is("a StatefulSet", "web", "10.0.0.2:1 web-api-pod-0, 10.0.0.1:1 web-pod-0")
	w.play(w.runtime, runningPod("web-pod-0", "", nil), runningPod("web-api-pod-0", "", nil))
	w.is("the pods gone", "web", "", "selects no pod of podman; StatefulSet d/web (0 replicas) is to make such pods;")
	w.write(&spec.Template{Kind: "StatefulSet", Name: "web"})
	w.is("all gone", "web", "", "selects no pod of podman; weir discover")
	if w.last.Snapshot.Templates.Len()+w.last.Snapshot.Pods.Len() > 0 {
		t.Error("the joined Snapshot has templates or pods")
	}
}

// TestProbesOfPods has templates with readinessProbes: they are those of the pods of which the runtime knows only that they run.
func TestProbesOfPods(t *testing.T) {
	w := newTemplated(t, false, true)
	web := map[string]string{"app": "web"}
	asking := func(port uint16, line int) []*probe.Probe {
		return []*probe.Probe{{Kind: probe.TCP, Port: probe.Port{Number: port}, Origin: probe.Origin{Form: probe.ReadinessProbe, Object: "Deployment d/web", File: "a.yaml", Line: line}}}
	}
	template := func(probes []*probe.Probe) *spec.Template {
		return &spec.Template{Kind: "Deployment", Name: "web", Labels: web, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: corev1.ProtocolTCP}}, Probes: probes}
	}
	is := func(what, want string) {
		t.Helper()
		var got []string
		svc := w.service("web")
		for _, s := range svc.Slices {
			for i := range s.Endpoints {
				e := &s.Endpoints[i]
				for _, p := range svc.Probes.Of("", s, e) {
					got = append(got, fmt.Sprintf("%s:%s", e.TargetRef.Name, p.Port))
				}
			}
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s: asked are %q, want %q", what, text, want)
		}
	}
	w.play(w.runtime, runningPod("web-0", "10.0.0.1", web), runningPod("web-1", "10.0.0.2", web))
	is("no template", "")
	w.write(template(asking(1, 5)))
	is("a template", "web-0:1 web-1:1")
	w.write(template(append(asking(1, 5), asking(2, 6)...)))
	w.changed("two containers", "web")
	is("two containers", "web-0:1 web-0:2 web-1:1 web-1:2")
	known := runningPod("web-1", "10.0.0.2", web)
	known.Status.Conditions[0].Reason = "Healthy"
	w.play(w.runtime, known)
	w.changed("a pod of which the runtime knows more", "web")
	is("a pod of which the runtime knows more", "web-0:1 web-0:2")
	w.write(template(asking(3, 5)))
	is("another probe", "web-0:3")
	w.write(template(asking(3, 7)))
	if got := w.service("web").Probes.Pods[0].Probes[0].Origin.Line; got != 7 {
		t.Errorf("the probe moved to line 7, and it is told to be at %d", got)
	}

	svc := *selecting("web")
	svc.Object.Spec.Ports[0].TargetPort = intstr.FromString("http")
	annotated := &probe.Probe{Kind: probe.TCP, Port: probe.Port{Number: 9}, Origin: probe.Origin{Form: probe.Annotation, File: "s.yaml", Line: 4}}
	svc.Probes = &spec.Probes{Ports: []spec.PortProbe{{Probe: annotated}}}
	name := dataplane.ServiceName{Namespace: "d", Name: "web"}
	w.files.Declare(name, &svc)
	w.files.Say(spec.Delta{Services: []dataplane.ServiceName{name}})
	is("an annotation too", "web-0:3 web-1:9")
	w.play(w.runtime, runningPod("web-1", "10.0.0.2", web))
	is("an annotation that no endpoint needs", "web-0:3 web-1:3")
	w.is("an annotation that no endpoint needs", "web", "10.0.0.1:80, 10.0.0.2:80", "W042-probe-not-used is not used, since the readinessProbe of Deployment d/web at a.yaml:7 tells which pods work")
	w.write(template(nil))
	is("no readinessProbe any more", "web-0:9 web-1:9")
}

// TestProbesOfEndpointsByHand has templates with readinessProbes, and a Service that selects their pods and has EndpointSlices in
// the input. Those that a control plane made have the word of its kubelets, and the others are asked.
func TestProbesOfEndpointsByHand(t *testing.T) {
	labels := map[string]string{"app": "web"}
	asking := func(port uint16) []*probe.Probe {
		return []*probe.Probe{{Kind: probe.TCP, Port: probe.Port{Number: port}, Origin: probe.Origin{Form: probe.ReadinessProbe, Object: "Deployment d/web", File: "a.yaml", Line: 5}}}
	}
	template := func(name string, probes []*probe.Probe) *spec.Template {
		return &spec.Template{Kind: "Deployment", Name: name, Labels: labels, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}, Probes: probes}
	}
	slice := func(address, maker string) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{address}}}}
		s.Name = "web-" + address
		if maker != "" {
			s.Labels = map[string]string{discoveryv1.LabelManagedBy: maker}
		}
		return s
	}
	for _, runtime := range []bool{false, true} {
		for _, plans := range []bool{false, true} {
			w := newTemplated(t, plans, runtime)
			declare := func(annotated bool, list ...*discoveryv1.EndpointSlice) {
				svc := selecting("web", list...)
				if annotated {
					svc.Probes = &spec.Probes{Ports: []spec.PortProbe{{Probe: &probe.Probe{Kind: probe.TCP, Port: probe.Port{Number: 9}, Origin: probe.Origin{Form: probe.Annotation, File: "s.yaml", Line: 4}}}}}
				}
				name := dataplane.ServiceName{Namespace: "d", Name: "web"}
				w.files.Declare(name, svc)
				w.files.Say(spec.Delta{Services: []dataplane.ServiceName{name}})
			}
			is := func(what, want, notice string) {
				t.Helper()
				var got []string
				svc := w.service("web")
				for _, s := range svc.Slices {
					for i := range s.Endpoints {
						for _, p := range svc.Probes.Of("", s, &s.Endpoints[i]) {
							got = append(got, fmt.Sprintf("%s:%s", s.Endpoints[i].Addresses[0], p.Port))
						}
					}
				}
				if text := strings.Join(got, " "); text != want {
					t.Errorf("%s: asked are %q, want %q", what, text, want)
				}
				told := ""
				for _, n := range svc.Notices {
					told += n.Detail + "\n"
				}
				if notice == "" && strings.Contains(told, "probe") || !strings.Contains(told, notice) {
					t.Errorf("%s: notices:\n%swant %q", what, told, notice)
				}
			}
			byHand, other, made := slice("10.9.0.1", ""), slice("10.9.0.2", "our-controller"), slice("10.9.0.3", spec.EndpointSliceController)
			declare(false, byHand, other, made)
			is("no template", "", "")
			w.write(template("web", asking(1)))
			is("a template", "10.9.0.1:1 10.9.0.2:1", "")
			w.write(template("web", append(asking(1), asking(2)...)))
			w.changed("two containers", "web")
			is("two containers", "10.9.0.1:1 10.9.0.1:2 10.9.0.2:1 10.9.0.2:2", "")
			declare(false, made)
			is("of a control plane", "", "")
			declare(true, made, byHand)
			is("an annotation too", "10.9.0.3:9 10.9.0.1:1 10.9.0.1:2", "is not used, since the readinessProbe of Deployment d/web at a.yaml:5 tells")
			w.write(template("canary", asking(3)))
			is("templates that differ", "10.9.0.3:9 10.9.0.1:9", "the readinessProbe of Deployment d/canary is not asked, since Deployment d/web has another or none")
			w.write(template("canary", append(asking(1), asking(2)...)))
			is("templates that agree", "10.9.0.3:9 10.9.0.1:1 10.9.0.1:2", "is not used, since the readinessProbe")
			w.write(template("canary", nil))
			is("a template without one", "10.9.0.3:9 10.9.0.1:9", "the readinessProbe of Deployment d/web is not asked, since Deployment d/canary has another or none")
			w.write(&spec.Template{Kind: "Deployment", Name: "canary"})
			if runtime {
				w.play(w.runtime, runningPod("web-0", "10.0.0.1", labels))
				is("pods that run", "10.9.0.3:9 10.9.0.1:1 10.9.0.1:2", "selects pods of podman, and the EndpointSlices in the input are used instead")
			}
			w.write(&spec.Template{Kind: "Deployment", Name: "web"})
			is("no template any more", "10.9.0.3:9 10.9.0.1:9", "")
		}
	}
}

// TestTemplatesWithoutRuntime has no runtime: templates promise, and pods may be in the files.
func TestTemplatesWithoutRuntime(t *testing.T) {
	web := map[string]string{"app": "web"}
	for _, plans := range []bool{false, true} {
		w := newTemplated(t, plans, false)
		w.is("nothing", "web", "", "selects nothing, since no controller is here to look for pods; programmed")
		w.write(&spec.Template{Kind: "Deployment", Name: "web", Labels: web, Replicas: 3, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 1}}})
		if plans {
			w.is("a template", "web", "", "W040-endpoints-promised selects pods that are promised by Deployment d/web (3 replicas);")
		} else {
			w.is("a template", "web", "", "W001-no-ready-endpoint selects nothing, since no controller is here to look for pods; Deployment d/web (3 replicas) is to make such pods;")
		}
		w.is("a template", "db", "", "Deployment d/web has app=web, wanted app=db")
		w.play(w.files, runningPod("web-0", "10.0.0.1", web))
		w.is("a pod in the files", "web", "10.0.0.1:1")
		w.is("a pod in the files", "db", "", "selects no pod of the input; pod d/web-0 has app=web, wanted app=db;")
		w.play(w.files, runningPod("web-0", "", nil))
		w.write(&spec.Template{Kind: "Deployment", Name: "web"})
		w.is("nothing again", "web", "", "selects nothing, since no controller is here to look for pods; programmed")
		w.files.Declare(dataplane.ServiceName{Namespace: "d", Name: "web"}, selecting("web", &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.9.9.9"}}}}))
		w.files.Say(spec.Delta{Services: []dataplane.ServiceName{{Namespace: "d", Name: "web"}}})
		w.is("slices", "web", "10.9.9.9")
	}
}

// TestInputPodIsTheRuntimes has the files tell of a pod that runs: the runtime knows it better.
func TestInputPodIsTheRuntimes(t *testing.T) {
	w := newTemplated(t, false, true)
	web := map[string]string{"app": "web"}
	old, now := runningPod("web-0", "10.0.0.1", web), runningPod("web-0", "10.0.0.2", web)
	old.UID, now.UID = "u", "u"
	w.play(w.files, old)
	w.is("the files", "web", "10.0.0.1", "W044-target-port-unknown")
	w.play(w.runtime, now)
	w.is("the runtime", "web", "10.0.0.2", "W044-target-port-unknown")
	if n := len(w.last.Snapshot.Found); n != 2 {
		t.Errorf("%d layers have pods", n)
	}
}
