package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	kjson "sigs.k8s.io/json"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/document"
)

// Pods and templates of pods are read for what they say about the endpoints of Services. Nothing about them but a wrong
// readinessProbe is a reason to refuse the input: one that cannot be read is left out, with a notice.

// templateKinds are the kinds with pods in them, and their groups.
var templateKinds = map[string][]string{
	"Pod": {""}, "PodList": {""}, "ReplicationController": {""},
	"Deployment": {"apps", "extensions"}, "ReplicaSet": {"apps", "extensions"}, "DaemonSet": {"apps", "extensions"}, "StatefulSet": {"apps"},
	"Job": {"batch"}, "CronJob": {"batch"},
}

// mayPromise reports whether a document of a kind may tell of pods that a Service can select: those that have labels.
func mayPromise(kind string, data []byte) bool {
	if templateKinds[kind] == nil {
		return false
	}
	if kind != "Pod" && kind != "PodList" {
		_, after, found := bytes.Cut(data, []byte("template"))
		if !found {
			_, after, _ = bytes.Cut(data, []byte("Template"))
		}
		data = after
	}
	return bytes.Contains(data, []byte("labels"))
}

// specPaths are the paths of the spec of pods, by the kind of the object.
var specPaths = map[string]string{
	"Pod": "spec", "ReplicationController": "spec.template.spec", "Deployment": "spec.template.spec", "ReplicaSet": "spec.template.spec",
	"DaemonSet": "spec.template.spec", "StatefulSet": "spec.template.spec", "Job": "spec.template.spec", "CronJob": "spec.jobTemplate.spec.template.spec",
}

// hasPods reports whether objects of that kind have pods.
func hasPods(apiVersion, kind string) bool {
	group, _, grouped := strings.Cut(apiVersion, "/")
	if !grouped {
		group = ""
	}
	return slices.Contains(templateKinds[kind], group)
}

const (
	// maxPodLabels and maxPodPorts bound what is kept of one pod.
	maxPodLabels, maxPodPorts = 128, 256
	// maxPods bounds the pods and templates of one document.
	maxPods = 20_000
)

// podSpec holds the fields of a PodSpec that Services have to do with.
type podSpec struct {
	NodeName       string         `json:"nodeName"`
	Hostname       string         `json:"hostname"`
	Subdomain      string         `json:"subdomain"`
	Containers     []podContainer `json:"containers"`
	InitContainers []podContainer `json:"initContainers"`
}

type podContainer struct {
	Name           string          `json:"name"`
	Ports          []podPort       `json:"ports"`
	ReadinessProbe json.RawMessage `json:"readinessProbe"`
	LivenessProbe  json.RawMessage `json:"livenessProbe"`
	RestartPolicy  string          `json:"restartPolicy"`
}

type podPort struct {
	Name          string          `json:"name"`
	ContainerPort int32           `json:"containerPort"`
	Protocol      corev1.Protocol `json:"protocol"`
}

type podMeta struct {
	Name              string            `json:"name"`
	GenerateName      string            `json:"generateName"`
	Namespace         string            `json:"namespace"`
	UID               string            `json:"uid"`
	Labels            map[string]string `json:"labels"`
	DeletionTimestamp *time.Time        `json:"deletionTimestamp"`
}

type podStatus struct {
	Phase      corev1.PodPhase `json:"phase"`
	PodIP      string          `json:"podIP"`
	PodIPs     []corev1.PodIP  `json:"podIPs"`
	Conditions []struct {
		Type   corev1.PodConditionType `json:"type"`
		Status corev1.ConditionStatus  `json:"status"`
	} `json:"conditions"`
}

type podTemplate struct {
	Metadata podMeta `json:"metadata"`
	Spec     podSpec `json:"spec"`
}

// podObject is an object of any kind.
type podObject struct {
	Metadata podMeta `json:"metadata"`
}

// workloadSpec is the spec of an object with a template of pods.
type workloadSpec struct {
	Replicas    *int        `json:"replicas"`
	Parallelism *int        `json:"parallelism"`
	ServiceName string      `json:"serviceName"`
	Template    podTemplate `json:"template"`
	JobTemplate struct {
		Spec struct {
			Parallelism *int        `json:"parallelism"`
			Template    podTemplate `json:"template"`
		} `json:"spec"`
	} `json:"jobTemplate"`
}

// pods takes a Pod or an object with a template of pods. It reports whether it is used.
func (d *decoding) pods(kind string, at *document.Document) bool {
	if len(d.out.pods)+len(d.out.templates) >= maxPods {
		return false
	}
	var err error
	decode := func(out any) bool {
		if err == nil {
			err = kjson.UnmarshalCaseSensitivePreserveInts(at.JSON(), out)
		}
		return err == nil
	}
	var object podObject
	used := false
	switch decode(&object); {
	case err != nil:
	case kind == "Pod":
		var pod struct {
			Spec   podSpec    `json:"spec"`
			Status *podStatus `json:"status"`
		}
		if !decode(&pod) {
			break
		}
		if s := pod.Status; s != nil && (s.Phase != "" || s.PodIP != "" || len(s.PodIPs) > 0 || len(s.Conditions) > 0) {
			used = d.runningPod(&object.Metadata, &pod.Spec, s, at)
			break
		}
		used = d.template(kind, &object.Metadata, podTemplate{object.Metadata, pod.Spec}, 1, "", at)
	default:
		var w struct {
			Spec workloadSpec `json:"spec"`
		}
		if !decode(&w) {
			break
		}
		template, replicas := w.Spec.Template, w.Spec.Replicas
		switch kind {
		case "Job":
			replicas = w.Spec.Parallelism
		case "CronJob":
			template, replicas = w.Spec.JobTemplate.Spec.Template, w.Spec.JobTemplate.Spec.Parallelism
		case "DaemonSet":
			each := spec.OnEachNode
			replicas = &each
		}
		n := 1
		if replicas != nil {
			n = max(*replicas, spec.OnEachNode)
		}
		used = d.template(kind, &object.Metadata, template, n, w.Spec.ServiceName, at)
	}
	if err != nil {
		name := cmp.Or(object.Metadata.Name, object.Metadata.GenerateName)
		if len(validation.IsDNS1123Subdomain(name)) == 0 {
			kind += " " + name
		}
		field, detail := "", err.Error()
		if m := wrongType.FindStringSubmatch(detail); m != nil {
			field, detail = m[2], "is a "+m[1]+", which it cannot be"
		}
		d.unreadPods(kind, field, document.Printable(detail)+"; nothing is known of its pods", at)
	}
	return used
}

// podList takes the pods of a list as the API returns it. Items of other kinds are left out.
func (d *decoding) podList(at *document.Document) {
	used := false
	for _, item := range at.Items("items") {
		var h metav1.TypeMeta
		if kjson.UnmarshalCaseSensitivePreserveInts(item.JSON(), &h) == nil && (h.Kind == "" || h.Kind == "Pod" && h.APIVersion == "v1") {
			used = d.pods("Pod", item) || used
		}
	}
	if !used {
		d.skip("PodList", at.Start())
	}
}

// wrongType finds the type and the field in the error of a decoder.
var wrongType = regexp.MustCompile(`cannot unmarshal (\S+) (?:\S+ )?into Go struct field \w*\.(\S+) of type`)

func (d *decoding) unreadPods(object, field, detail string, at *document.Document) {
	if len(d.out.notices) < maxProblemsPerDocument {
		d.out.notices = append(d.out.notices, spec.PodsNotRead.Notice(spec.Origin{File: d.path, Line: at.Start()}, object, document.Printable(field), detail))
	}
}

// template takes a template of pods, unless no Service can select them.
func (d *decoding) template(kind string, meta *podMeta, from podTemplate, replicas int, serviceName string, at *document.Document) bool {
	namespace, ok := d.podNamespace(meta)
	labels := d.podLabels(from.Metadata.Labels)
	name := cmp.Or(meta.Name, meta.GenerateName)
	if !ok || len(labels) == 0 || name == "" || len(name) > validation.DNS1123SubdomainMaxLength {
		return false
	}
	t := &spec.Template{
		Kind: d.intern.string(kind), Namespace: d.intern.string(namespace), Name: d.intern.string(document.Printable(name)), Labels: labels, Replicas: replicas,
		Ports: d.podPorts(&from.Spec), Hostname: label(from.Spec.Hostname), Subdomain: label(from.Spec.Subdomain),
	}
	if kind == "StatefulSet" {
		t.Ordered, t.Subdomain = true, cmp.Or(t.Subdomain, label(serviceName))
	}
	d.probes(t, &from.Spec, specPaths[kind], at)
	t.Lives = slices.ContainsFunc(from.Spec.Containers, func(c podContainer) bool { return len(c.LivenessProbe) > 0 && string(c.LivenessProbe) != "null" })
	d.out.templates = append(d.out.templates, t)
	return true
}

// runningPod takes a pod with a status, as if a runtime had told of it.
func (d *decoding) runningPod(meta *podMeta, from *podSpec, status *podStatus, at *document.Document) bool {
	namespace, ok := d.podNamespace(meta)
	if !ok || meta.Name == "" {
		return false
	}
	if len(validation.IsDNS1123Subdomain(meta.Name)) > 0 {
		d.unreadPods("Pod", "metadata.name", "is not a name; the pod is left out", at)
		return false
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: d.intern.string(namespace), Name: meta.Name, UID: types.UID(meta.UID), Labels: d.podLabels(meta.Labels)},
		Spec:       corev1.PodSpec{NodeName: d.intern.string(strings.ToLower(from.NodeName)), Hostname: label(from.Hostname), Subdomain: label(from.Subdomain)},
		Status:     corev1.PodStatus{Phase: status.Phase, PodIP: status.PodIP},
	}
	if meta.DeletionTimestamp != nil {
		pod.DeletionTimestamp = &metav1.Time{Time: *meta.DeletionTimestamp}
	}
	if ports := d.podPorts(from); len(ports) > 0 {
		pod.Spec.Containers = []corev1.Container{{Ports: ports}}
	}
	ips := status.PodIPs
	if len(ips) == 0 && status.PodIP != "" {
		ips = []corev1.PodIP{{IP: status.PodIP}}
	}
	for _, ip := range ips[:min(len(ips), 2)] { // one of each family
		a, err := netip.ParseAddr(ip.IP)
		if err != nil || a.Zone() != "" || !a.Unmap().IsGlobalUnicast() {
			d.unreadPods("Pod "+namespace+"/"+meta.Name, "status.podIPs", fmt.Sprintf("has the address %s, which no endpoint can have", document.Quote(ip.IP)), at)
			continue
		}
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: a.Unmap().String()})
	}
	pod.Status.PodIP = ""
	if len(pod.Status.PodIPs) > 0 {
		pod.Status.PodIP = pod.Status.PodIPs[0].IP
	}
	for _, c := range status.Conditions {
		if c.Type == corev1.PodReady {
			pod.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status}}
		}
	}
	d.out.pods = append(d.out.pods, pod)
	return true
}

// tells reports whether the document tells of pods, or that they cannot be read.
func (c *content) tells() bool { return len(c.pods)+len(c.templates)+len(c.notices) > 0 }

// podNamespace returns the namespace of an object, and whether it is one that is used.
func (d *decoding) podNamespace(meta *podMeta) (string, bool) {
	namespace := cmp.Or(meta.Namespace, d.namespace, metav1.NamespaceDefault)
	return namespace, len(validation.IsDNS1123Label(namespace)) == 0 && (d.namespace == "" || namespace == d.namespace)
}

// podLabels returns the labels that a selector can match.
func (d *decoding) podLabels(labels map[string]string) map[string]string {
	if len(labels) > maxPodLabels {
		return nil
	}
	out := map[string]string{}
	for k, v := range labels {
		if len(validation.IsQualifiedName(k)) == 0 && len(validation.IsValidLabelValue(v)) == 0 {
			out[d.intern.string(k)] = d.intern.string(v)
		}
	}
	return out
}

// podPorts returns the named ports of containers, and after them those of sidecars.
func (d *decoding) podPorts(from *podSpec) (ports []corev1.ContainerPort) {
	add := func(c *podContainer) {
		for _, p := range c.Ports {
			if p.Name != "" && len(p.Name) <= 63 && p.ContainerPort > 0 && p.ContainerPort < 1<<16 && len(ports) < maxPodPorts {
				ports = append(ports, corev1.ContainerPort{Name: d.intern.string(p.Name), ContainerPort: p.ContainerPort, Protocol: *sharedProtocol(&p.Protocol)})
			}
		}
	}
	for i := range from.Containers {
		add(&from.Containers[i])
	}
	for i := range from.InitContainers {
		if c := &from.InitContainers[i]; c.RestartPolicy == string(corev1.ContainerRestartPolicyAlways) {
			add(c)
		}
	}
	return ports
}

// label returns the name if it can be a label of a host name, else "".
func label(name string) string {
	if len(validation.IsDNS1123Label(name)) > 0 {
		return ""
	}
	return name
}

// told is a pod or a template, and the place of its document.
type told[V any] struct {
	value  V
	origin spec.Origin
}

// tell adds a value to those of its name, in the order of their places.
func tell[V any](u *undo, all map[dataplane.ServiceName][]told[V], name dataplane.ServiceName, v V, origin spec.Origin) {
	list := append(slices.Clone(all[name]), told[V]{v, origin})
	slices.SortStableFunc(list, func(a, b told[V]) int { return compareOrigins(a.origin, b.origin) })
	put(u, all, name, list)
}

// untell removes a value from those of its name.
func untell[V comparable](u *undo, all map[dataplane.ServiceName][]told[V], name dataplane.ServiceName, v V, origin spec.Origin) {
	list := slices.Clone(all[name])
	if i := slices.Index(list, told[V]{v, origin}); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		remove(u, all, name)
		return
	}
	put(u, all, name, list)
}

// tellPods adds the pods and templates of a document to the indexes, or removes them.
func (u *update) tellPods(d docAt, add bool) {
	for _, pod := range d.pods {
		name := dataplane.ServiceName{Namespace: pod.Namespace, Name: pod.Name}
		u.dirtyPods[name] = true
		if add {
			tell(&u.undo, u.podsTold, name, pod, d.origin())
		} else {
			untell(&u.undo, u.podsTold, name, pod, d.origin())
		}
	}
	for _, t := range d.templates {
		name := dataplane.ServiceName{Namespace: t.Namespace, Name: t.Key()}
		u.dirtyTemplates[name] = true
		if add {
			tell(&u.undo, u.templatesTold, name, t, d.origin())
		} else {
			untell(&u.undo, u.templatesTold, name, t, d.origin())
		}
	}
}

// retold returns the values after a change of some names, and the names with another value. Of several documents that tell of
// one pod or template, the first counts. placed returns a value as it is in a document that begins at a line of its file.
func retold[V any](before spec.ByName[V], all map[dataplane.ServiceName][]told[V], dirty map[dataplane.ServiceName]bool, placed func(V, int) V) (spec.ByName[V], []dataplane.ServiceName) {
	if len(dirty) == 0 {
		return before, nil
	}
	var changed []dataplane.ServiceName
	b := before.Edit()
	for name := range dirty {
		list, was := all[name], b.Get(name)
		switch {
		case len(list) == 0:
			b.Delete(name)
			changed = append(changed, name)
		default:
			if now := placed(list[0].value, list[0].origin.Line); !reflect.DeepEqual(was, now) {
				b.Put(name, now)
				changed = append(changed, name)
			}
		}
	}
	slices.SortFunc(changed, compareNames)
	return b.Commit(), changed
}
