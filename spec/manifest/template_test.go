package manifest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

const oneService = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}\n"

// TestTemplates reads documents with pods beside a Service, and expects the templates and pods that are known then.
func TestTemplates(t *testing.T) {
	const pod = "metadata: {labels: {app: web}}, spec: {hostname: h, subdomain: s, containers: [{name: c, ports: [{name: http, containerPort: 8080}, {containerPort: 1}], readinessProbe: {tcpSocket: {port: http}}}], " +
		"initContainers: [{name: i, ports: [{name: setup, containerPort: 2}]}, {name: j, restartPolicy: Always, ports: [{name: dns, containerPort: 53, protocol: UDP}]}]}"
	workload := func(apiVersion, kind, fields string) string {
		return fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: web, namespace: shop}\nspec: {%s template: {%s}}\n", apiVersion, kind, fields, pod)
	}
	const of = " app=web [http/8080/TCP dns/53/UDP] h.s probed"
	const running = "status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}], conditions: [{type: Ready, status: 'True'}]}\n"
	tests := []struct{ name, data, want string }{
		{"a Deployment", workload("apps/v1", "Deployment", "replicas: 3,"), "Deployment shop/web (3 replicas)" + of},
		{"a Deployment without replicas", workload("apps/v1", "Deployment", ""), "Deployment shop/web (1 replica)" + of},
		{"a ReplicaSet", workload("apps/v1", "ReplicaSet", "replicas: 0,"), "ReplicaSet shop/web (0 replicas)" + of},
		{"a DaemonSet", workload("apps/v1", "DaemonSet", ""), "DaemonSet shop/web (one on each node)" + of},
		{"a Job", workload("batch/v1", "Job", "parallelism: 2,"), "Job shop/web (2 replicas)" + of},
		{"a StatefulSet", strings.Replace(workload("apps/v1", "StatefulSet", "serviceName: db,"), "subdomain: s, ", "", 1), "StatefulSet shop/web (1 replica)" + strings.Replace(of, "h.s", "h.db", 1) + " ordered"},
		{"a CronJob", "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: web, namespace: shop}\nspec: {jobTemplate: {spec: {template: {" + pod + "}}}}\n", "CronJob shop/web (1 replica)" + of},
		{"a Pod", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec: {containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}\n", "Pod default/web app=web [http/8080/TCP] ."},
		{"a Pod with a liveness probe", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec: {containers: [{name: c, livenessProbe: {tcpSocket: {port: 1}}}, {name: d}]}\n", "Pod default/web app=web [] . lives"},
		{"a Pod with both probes", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec: {containers: [{name: c, livenessProbe: {tcpSocket: {port: 1}}}, {name: d, readinessProbe: {tcpSocket: {port: 1}}}]}\n", "Pod default/web app=web [] . lives probed"},
		{"a Pod that was created and has no status yet", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec: {}\nstatus: {}\n", "Pod default/web app=web [] ."},
		{"a Pod that runs", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}, deletionTimestamp: '2026-01-02T03:04:05Z'}\nspec: {nodeName: n1, hostname: h, subdomain: s, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}\n" + running,
			"pod default/web app=web [http/8080/TCP] h.s on n1 Running 10.0.0.1 fd00::1 Ready=True deleted"},
		{"Pods in a List", "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, labels: {app: web}}\n  spec: {}\n  " + running + "- apiVersion: v1\n  kind: Pod\n  metadata: {name: b, labels: {app: web}}\n  spec: {}\n  " + running,
			"pod default/a app=web [] . on  Running 10.0.0.1 fd00::1 Ready=True; pod default/b app=web [] . on  Running 10.0.0.1 fd00::1 Ready=True"},
		{"a PodList", "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a, labels: {app: web}}\n  spec: {}\n  " + running, "pod default/a app=web [] . on  Running 10.0.0.1 fd00::1 Ready=True"},
		{"another group", workload("example.com/v1", "Deployment", ""), ""},
		{"no labels", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web, labels: {app: web}}\nspec: {template: {spec: {}}}\n", ""},
		{"a patch", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 4}\n", ""},
		{"bad labels", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {metadata: {labels: {'a b': c, d: 'e f'}}}}\n", ""},
		{"labels of another type", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {metadata: {labels: [a]}}}\n", "notice W039: Deployment web"},
		{"a port of another type", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{ports: [{containerPort: http}]}]}}}\n", "notice W039: Deployment web"},
		{"a list in a List that is not one", "apiVersion: v1\nkind: PodList\nitems: {a: {labels: {}}}\n", ""},
		{"an item that is no object", "apiVersion: v1\nkind: PodList\nitems: [5, {metadata: {labels: {}}}]\n", ""},
		{"no YAML", "apiVersion: apps/v1\nkind: Deployment\nspec: {template: {metadata: {labels: {{ toYaml . }}}}}\n", ""},
		{"a name of another type", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: [{}]}\nspec: {template: {metadata: {labels: {a: b}}}}\n", "notice W039: Deployment"},
		{"an address that is none", "apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {app: web}}\nspec: {}\nstatus: {phase: Running, podIP: 127.0.0.1}\n", "pod default/web app=web [] . on  Running; notice W039: Pod default/web"},
	}
	for _, tt := range tests {
		for _, file := range []struct{ name, before string }{{"a file of its own", ""}, {"the Service's file", oneService + "---\n"}} {
			t.Run(tt.name+" in "+file.name, func(t *testing.T) {
				s := NewSet(Options{})
				files := []File{{Path: "pods.yaml", Data: []byte(file.before + tt.data)}}
				if file.before == "" {
					files = append(files, File{Path: "web.yaml", Data: []byte(oneService)})
				}
				snap, _ := mustUpdate(t, s, files...)
				if got := toldIn(snap); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
				if snap.Services.Len() != 1 {
					t.Errorf("%d Services", snap.Services.Len())
				}
				again, delta := mustUpdate(t, s, File{Path: "pods.yaml", Data: []byte(file.before + "#\n")})
				if again.Pods.Len()+again.Templates.Len() > 0 || len(delta.Pods) != snap.Pods.Len() || len(delta.Templates) != snap.Templates.Len() {
					t.Errorf("without the documents there is %q, and the Delta is %+v", toldIn(again), delta)
				}
			})
		}
	}
}

// toldIn writes down the templates, the pods and the notices of a Snapshot.
func toldIn(snap *spec.Snapshot) string {
	var all []string
	labels := func(m map[string]string) string {
		return strings.TrimSuffix(strings.TrimPrefix(fmt.Sprint(m), "map["), "]")
	}
	ports := func(list []corev1.ContainerPort) string {
		var out []string
		for _, p := range list {
			out = append(out, fmt.Sprint(p.Name, "/", p.ContainerPort, "/", p.Protocol))
		}
		return fmt.Sprint(out)
	}
	for m := range snap.Templates.All() {
		text := fmt.Sprintf("%s %s %s %s.%s", m.Promise(), strings.Replace(labels(m.Labels), ":", "=", 1), ports(m.Ports), m.Hostname, m.Subdomain)
		if m.Lives {
			text += " lives"
		}
		if m.Probed {
			text += " probed"
		}
		if m.Ordered {
			text += " ordered"
		}
		all = append(all, text)
	}
	for p := range snap.Pods.All() {
		var list []corev1.ContainerPort
		for _, c := range p.Spec.Containers {
			list = append(list, c.Ports...)
		}
		text := fmt.Sprintf("pod %s/%s %s %s %s.%s on %s %s", p.Namespace, p.Name, strings.Replace(labels(p.Labels), ":", "=", 1), ports(list), p.Spec.Hostname, p.Spec.Subdomain, p.Spec.NodeName, p.Status.Phase)
		for _, ip := range p.Status.PodIPs {
			text += " " + ip.IP
		}
		for _, c := range p.Status.Conditions {
			text += fmt.Sprintf(" %s=%s", c.Type, c.Status)
		}
		if p.DeletionTimestamp != nil {
			text += " deleted"
		}
		all = append(all, text)
	}
	for _, n := range snap.Notices {
		all = append(all, fmt.Sprintf("notice %s: %s", n.ID().Short(), n.Object))
	}
	return strings.Join(all, "; ")
}

// TestTemplateTwice has two files tell of one Deployment: the first counts, and the other when that is gone.
func TestTemplateTwice(t *testing.T) {
	s := NewSet(Options{})
	text := func(replicas int) []byte {
		return fmt.Appendf(nil, "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: %d, template: {metadata: {labels: {a: b}}}}\n", replicas)
	}
	key := dataplane.ServiceName{Namespace: "default", Name: "Deployment/web"}
	snap, _ := mustUpdate(t, s, File{Path: "b.yaml", Data: text(2)}, File{Path: "c.yaml", Data: []byte(oneService)})
	if n := snap.Templates.Get(key).Replicas; n != 2 {
		t.Errorf("%d replicas", n)
	}
	snap, delta := mustUpdate(t, s, File{Path: "a.yaml", Data: text(1)})
	if n := snap.Templates.Get(key).Replicas; n != 1 || !slices.Equal(delta.Templates, []dataplane.ServiceName{key}) {
		t.Errorf("%d replicas, %+v", n, delta)
	}
	if _, _, err := s.Update(context.Background(), spec.Revision{}, []File{{Path: "a.yaml"}, {Path: "c.yaml", Data: []byte("apiVersion: v1\nkind: Service\n")}}); err == nil {
		t.Fatal("a Service without a name is accepted")
	}
	snap, delta = mustUpdate(t, s, File{Path: "c.yaml", Data: []byte(oneService + "#\n")})
	if n := snap.Templates.Get(key).Replicas; n != 1 || len(delta.Templates) > 0 {
		t.Errorf("after a refusal %d replicas, %+v", n, delta)
	}
	snap, _ = mustUpdate(t, s, File{Path: "a.yaml"})
	if n := snap.Templates.Get(key).Replicas; n != 2 {
		t.Errorf("%d replicas", n)
	}
}
