package manifest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"weir/backends/dataplane"
	"weir/spec"
)

func yamlService(name, rest string) string {
	return "apiVersion: v1\nkind: Service\nmetadata:\n  name: " + name + "\nspec:\n  ports:\n  - port: 80\n" + rest
}

// TestDecodedOnce moves documents about in a file and counts what is decoded again.
func TestDecodedOnce(t *testing.T) {
	s := NewSet(Options{})
	a, b, c := yamlService("a", ""), yamlService("b", ""), yamlService("c", "")
	mustUpdate(t, s, File{Path: "x.yaml", Data: []byte(a + "---\n" + b)})
	before := map[*object]bool{}
	for _, p := range s.objects {
		before[p.object] = true
	}
	snap, delta := mustUpdate(t, s, File{Path: "x.yaml", Data: []byte(c + "---\n" + b)}, File{Path: "y.yaml", Data: []byte("# moved\n" + a)})
	if got := fmt.Sprint(delta.Services); got != "[default/c]" {
		t.Errorf("changed: %s", got)
	}
	if !before[s.objects[objectID{kindService, name("b")}].object] {
		t.Error("b was decoded again")
	}
	if got := snap.Services.Get(name("a")).Origin.String(); got != "y.yaml:2" {
		t.Errorf("a is at %s", got)
	}
	_, delta = mustUpdate(t, s, File{Path: "y.yaml", Data: []byte("\n\n\n" + a)})
	if len(delta.Services) != 0 {
		t.Errorf("moving changed %v", delta.Services)
	}
	if got := s.last.Services.Get(name("a")).Origin.String(); got != "y.yaml:4" {
		t.Errorf("a is at %s", got)
	}
}

// TestRefusedIsRemembered repairs one of many documents and demands that the others are not decoded again.
func TestRefusedIsRemembered(t *testing.T) {
	s := NewSet(Options{})
	good, bad := yamlService("good", ""), yamlService("bad", "  type: Bad\n")
	_, _, err := s.Update(context.Background(), spec.Revision{}, []File{{Path: "x.yaml", Data: []byte(good + "---\n" + bad)}})
	if problems := (spec.Problems)(nil); !errors.As(err, &problems) || len(problems) != 1 {
		t.Fatal(err)
	}
	object := s.refused["x.yaml"].docs[0].objects[0]
	snap, delta := mustUpdate(t, s, File{Path: "x.yaml", Data: []byte(good + "---\n" + strings.Replace(bad, "Bad", "NodePort", 1))})
	if s.objects[objectID{kindService, name("good")}].object != object {
		t.Error("the good document was decoded again")
	}
	if snap.Services.Len() != 2 || !delta.All {
		t.Errorf("%d Services, delta %v", snap.Services.Len(), delta)
	}
}

func name(s string) dataplane.ServiceName {
	return dataplane.ServiceName{Namespace: "default", Name: s}
}

func TestSkipped(t *testing.T) {
	s := NewSet(Options{})
	snap, _ := mustUpdate(t, s,
		File{Path: "a.yaml", Data: []byte(yamlService("a", "") + "---\napiVersion: apps/v1\nkind: Deployment\n---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n")},
		File{Path: "kustomization.yaml", Data: []byte("resources: [a.yaml]\n")},
		File{Path: "values.yaml", Data: []byte("replicas: 3\n")},
		File{Path: "patch.yaml", Data: []byte("- op: add\n  path: /x\n")},
		File{Path: "Chart.yaml", Data: []byte("apiVersion: v2\nname: web\n")},
	)
	if got, want := fmt.Sprint(snap.Skipped), "map[(no kind):2 Deployment:1 Helm chart:1 Kustomization:1 Service:1]"; got != want {
		t.Errorf("skipped %s, want %s", got, want)
	}
	if len(snap.Notices) != 1 || !strings.HasPrefix(snap.Notices[0].Error(), "Chart.yaml:1: 1 Helm chart is not rendered here") || !strings.Contains(snap.Notices[0].Error(), "helm template NAME . ") {
		t.Errorf("notices: %v", snap.Notices)
	}
	snap, _ = mustUpdate(t, s, File{Path: "values.yaml"}, File{Path: "kustomization.yaml"}, File{Path: "patch.yaml"}, File{Path: "Chart.yaml"})
	if got, want := fmt.Sprint(snap.Skipped), "map[Deployment:1 Service:1]"; got != want {
		t.Errorf("skipped %s, want %s", got, want)
	}
}

func TestTrimmed(t *testing.T) {
	s := NewSet(Options{})
	snap, _ := mustUpdate(t, s, File{Path: "a.yaml", Data: []byte(`apiVersion: v1
kind: Service
metadata:
  name: a
  uid: 6f1f
  resourceVersion: "5"
  labels: {app: a, service.kubernetes.io/service-proxy-name: other}
  annotations: {weir/weight: "5", note: x, service.kubernetes.io/topology-mode: Auto}
  managedFields: [{manager: kubectl}]
spec:
  ports:
  - port: 80
    targetPort: http
`)})
	m := snap.Services.Get(name("a")).Object.ObjectMeta
	want := corev1.Service{}.ObjectMeta
	want.Name, want.Namespace = "a", "default"
	want.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	want.Annotations = map[string]string{"weir/weight": "5", "service.kubernetes.io/topology-mode": "Auto"}
	if fmt.Sprint(m) != fmt.Sprint(want) {
		t.Errorf("got %+v", m)
	}
}

func TestConfig(t *testing.T) {
	const proxy = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: "
	web := File{Path: "web.yaml", Data: []byte(yamlService("web", ""))}
	s := NewSet(Options{})
	snap, _ := mustUpdate(t, s, web)
	if snap.Config == nil || snap.ConfigOrigin != (spec.Origin{}) {
		t.Errorf("without configuration: %v at %v", snap.Config, snap.ConfigOrigin)
	}
	snap, delta := mustUpdate(t, s, File{Path: "config.yaml", Data: []byte("# proxy\n" + proxy + "nftables\n")})
	if snap.Config.Mode != "nftables" || snap.ConfigOrigin.String() != "config.yaml:2" || !delta.Config || len(delta.Services) != 0 {
		t.Errorf("mode %s at %s, delta %v", snap.Config.Mode, snap.ConfigOrigin, delta)
	}
	snap, _ = mustUpdate(t, s, File{Path: "config.yaml", Data: []byte("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: kube-proxy\ndata:\n  config.conf: |\n    " + strings.ReplaceAll(proxy, "\n", "\n    ") + "ipvs\n")})
	if snap.Config.Mode != "ipvs" {
		t.Errorf("mode %s from a ConfigMap", snap.Config.Mode)
	}
	snap, delta = mustUpdate(t, s, File{Path: "config.yaml"})
	if snap.Config.Mode == "ipvs" || !delta.Config {
		t.Errorf("mode %s, delta %v", snap.Config.Mode, delta)
	}

	s = NewSet(Options{ConfigFile: "/etc/weir.yaml"})
	snap, _ = mustUpdate(t, s, web, File{Path: "/etc/weir.yaml", Data: []byte(proxy + "nftables\n")}, File{Path: "other.yaml", Data: []byte(proxy + "wrong\n")})
	if snap.Config.Mode != "nftables" || len(snap.Notices) != 1 {
		t.Errorf("mode %s, notices %v", snap.Config.Mode, snap.Notices)
	}
	_, _, err := s.Update(context.Background(), spec.Revision{}, []File{{Path: "/etc/weir.yaml"}})
	if err == nil {
		t.Error("the file named with --config may be gone")
	}
}

func TestFlagsWin(t *testing.T) {
	s := NewSet(Options{Overrides: spec.Overrides{NodePorts: &spec.PortRange{Min: 30000, Max: 30100}}.AllowingEmpty()})
	snap, _ := mustUpdate(t, s, File{Path: "w.yaml", Data: []byte("apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nallowEmpty: false\nnodePortRange: 30000-30200\n")})
	if snap.Weir.NodePortMax != 30100 || snap.Services.Len() != 0 {
		t.Errorf("%+v", snap.Weir)
	}
}

func FuzzUpdate(f *testing.F) {
	names, err := filepath.Glob(invalidDir + "/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		if data, err := os.ReadFile(name); err == nil && len(data) < 4096 && filepath.Ext(name) != ".golden" {
			f.Add(data, filepath.Ext(name) == ".json")
		}
	}
	f.Add([]byte(serviceYAML(1, 2)), false)
	f.Add(append([]byte(yamlService("a", "  type: NodePort\n")+"---\n"), lockOf("{name: a, clusterIPs: [10.96.7.7], nodePorts: [{port: 80, nodePort: 30007}], healthCheckNodePort: 30008}").Data...), false)
	f.Fuzz(func(t *testing.T, data []byte, json bool) {
		path := map[bool]string{true: "a.json", false: "a.yaml"}[json]
		s := NewSet(allowEmpty)
		snap, _, err := s.Update(context.Background(), spec.Revision{}, []File{{Path: path, Data: data}})
		if err != nil {
			if problems := (spec.Problems)(nil); !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("refused without problems: %v", err)
			}
			if state := describeSet(s); state != "" {
				t.Fatalf("the refused update left a trace: %s", state)
			}
			return
		}
		again, delta := mustUpdate(t, s, File{Path: path, Data: data})
		if !delta.Empty() || again.Services.Len() != snap.Services.Len() {
			t.Fatalf("the same bytes again changed %v", delta)
		}
	})
}
