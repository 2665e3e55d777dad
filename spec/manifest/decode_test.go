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

	"weir/spec"
)

func yamlService(name, rest string) string {
	return "apiVersion: v1\nkind: Service\nmetadata:\n  name: " + name + "\nspec:\n  ports:\n  - port: 80\n" + rest
}

func TestSplit(t *testing.T) {
	tests := []struct {
		name, file, in string
		want           string // line:text of each document, newlines as |
	}{
		{"empty", "a.yaml", "", ""},
		{"one", "a.yaml", "a: 1\n", "1:a: 1|"},
		{"comments only", "a.yaml", "# x\n---\n# y\n\n", ""},
		{"two", "a.yaml", "a: 1\n---\nb: 2\n", "1:a: 1| 2:---|b: 2|"},
		{"windows lines", "a.yaml", "a: 1\r\n---\r\nb: 2\r\n", "1:a: 1\r| 2:---\r|b: 2\r|"},
		{"directive", "a.yaml", "%YAML 1.1\n---\na: 1\n", "1:%YAML 1.1|---|a: 1|"},
		{"comment before", "a.yaml", "# x\n---\na: 1\n", "1:# x|---|a: 1|"},
		{"empty ones between", "a.yaml", "---\n---\n---\na: 1\n---\n", "3:---|a: 1|"},
		{"content on the separator", "a.yaml", "--- {a: 1}\n--- # c\nb: 2", "1:--- {a: 1}| 2:--- # c|b: 2"},
		{"end marker", "a.yaml", "a: 1\n...\nb: 2\n", "1:a: 1|...| 3:b: 2|"},
		{"no separator", "a.yaml", "a: |\n  ---\n  x\n---b: 1\n", "1:a: ||  ---|  x|---b: 1|"},
		{"byte order mark", "a.yaml", "\xef\xbb\xbfa: 1\n", "1:a: 1|"},
		{"JSON", "a.json", "{\"a\":1}", `1:{"a":1}`},
		{"JSON concatenated", "a.json", "\n{\"a\":1}\n\n{\"b\":\n2} {\"c\":3}", `2:{"a":1} 4:{"b":|2} 5:{"c":3}`},
		{"JSON in YAML", "a.yaml", "---\na: 1\n---\n", "1:---|a: 1|"},
		{"flow mapping", "a.yaml", "{a: 1}\n", "1:{a: 1}|"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			docs, err := split(tt.file, []byte(tt.in))
			if err != nil {
				t.Fatal(err.detail)
			}
			var parts []string
			for _, d := range docs {
				parts = append(parts, fmt.Sprintf("%d:%s", d.line, strings.ReplaceAll(string(d.data), "\n", "|")))
			}
			if got := strings.Join(parts, " "); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// TestDecodedOnce moves documents about in a file and counts what is decoded again.
func TestDecodedOnce(t *testing.T) {
	s := NewSet(Options{})
	a, b, c := yamlService("a", ""), yamlService("b", ""), yamlService("c", "")
	mustUpdate(t, s, File{"x.yaml", []byte(a + "---\n" + b)})
	before := map[*object]bool{}
	for _, p := range s.objects {
		before[p.object] = true
	}
	snap, delta := mustUpdate(t, s, File{"x.yaml", []byte(c + "---\n" + b)}, File{"y.yaml", []byte("# moved\n" + a)})
	if got := fmt.Sprint(delta.Services); got != "[default/c]" {
		t.Errorf("changed: %s", got)
	}
	if !before[s.objects[objectID{kindService, name("b")}].object] {
		t.Error("b was decoded again")
	}
	if got := snap.Service(name("a")).Origin.String(); got != "y.yaml:2" {
		t.Errorf("a is at %s", got)
	}
	_, delta = mustUpdate(t, s, File{"y.yaml", []byte("\n\n\n" + a)})
	if len(delta.Services) != 0 {
		t.Errorf("moving changed %v", delta.Services)
	}
	if got := s.last.Service(name("a")).Origin.String(); got != "y.yaml:4" {
		t.Errorf("a is at %s", got)
	}
}

// TestRefusedIsRemembered repairs one of many documents and demands that the others are not decoded again.
func TestRefusedIsRemembered(t *testing.T) {
	s := NewSet(Options{})
	good, bad := yamlService("good", ""), yamlService("bad", "  type: Bad\n")
	_, _, err := s.Update(context.Background(), spec.Revision{}, []File{{"x.yaml", []byte(good + "---\n" + bad)}})
	if problems := (spec.Problems)(nil); !errors.As(err, &problems) || len(problems) != 1 {
		t.Fatal(err)
	}
	object := s.refused["x.yaml"].docs[0].objects[0]
	snap, delta := mustUpdate(t, s, File{"x.yaml", []byte(good + "---\n" + strings.Replace(bad, "Bad", "NodePort", 1))})
	if s.objects[objectID{kindService, name("good")}].object != object {
		t.Error("the good document was decoded again")
	}
	if snap.Len() != 2 || !delta.All {
		t.Errorf("%d Services, delta %v", snap.Len(), delta)
	}
}

func name(s string) spec.Name { return spec.Name{Namespace: "default", Name: s} }

func TestSkipped(t *testing.T) {
	s := NewSet(Options{})
	snap, _ := mustUpdate(t, s,
		File{"a.yaml", []byte(yamlService("a", "") + "---\napiVersion: apps/v1\nkind: Deployment\n---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n")},
		File{"kustomization.yaml", []byte("resources: [a.yaml]\n")},
		File{"values.yaml", []byte("replicas: 3\n")},
		File{"patch.yaml", []byte("- op: add\n  path: /x\n")},
		File{"Chart.yaml", []byte("apiVersion: v2\nname: web\n")},
	)
	if got, want := fmt.Sprint(snap.Skipped), "map[(no kind):2 Deployment:1 Helm chart:1 Kustomization:1 Service:1]"; got != want {
		t.Errorf("skipped %s, want %s", got, want)
	}
	if len(snap.Notices) != 2 || !strings.Contains(snap.Notices[0].Error(), "helm template") || !strings.Contains(snap.Notices[1].Error(), "kustomize build") {
		t.Errorf("notices: %v", snap.Notices)
	}
	snap, _ = mustUpdate(t, s, File{Path: "values.yaml"}, File{Path: "kustomization.yaml"}, File{Path: "patch.yaml"}, File{Path: "Chart.yaml"})
	if got, want := fmt.Sprint(snap.Skipped), "map[Deployment:1 Service:1]"; got != want {
		t.Errorf("skipped %s, want %s", got, want)
	}
}

func TestTrimmed(t *testing.T) {
	s := NewSet(Options{})
	snap, _ := mustUpdate(t, s, File{"a.yaml", []byte(`apiVersion: v1
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
	m := snap.Service(name("a")).Object.ObjectMeta
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
	web := File{"web.yaml", []byte(yamlService("web", ""))}
	s := NewSet(Options{})
	snap, _ := mustUpdate(t, s, web)
	if snap.Config == nil || snap.ConfigOrigin != (spec.Origin{}) {
		t.Errorf("without configuration: %v at %v", snap.Config, snap.ConfigOrigin)
	}
	snap, delta := mustUpdate(t, s, File{"config.yaml", []byte("# proxy\n" + proxy + "nftables\n")})
	if snap.Config.Mode != "nftables" || snap.ConfigOrigin.String() != "config.yaml:2" || !delta.Config || len(delta.Services) != 0 {
		t.Errorf("mode %s at %s, delta %v", snap.Config.Mode, snap.ConfigOrigin, delta)
	}
	snap, _ = mustUpdate(t, s, File{"config.yaml", []byte("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: kube-proxy\ndata:\n  config.conf: |\n    " + strings.ReplaceAll(proxy, "\n", "\n    ") + "ipvs\n")})
	if snap.Config.Mode != "ipvs" {
		t.Errorf("mode %s from a ConfigMap", snap.Config.Mode)
	}
	snap, delta = mustUpdate(t, s, File{Path: "config.yaml"})
	if snap.Config.Mode == "ipvs" || !delta.Config {
		t.Errorf("mode %s, delta %v", snap.Config.Mode, delta)
	}

	s = NewSet(Options{ConfigFile: "/etc/weir.yaml"})
	snap, _ = mustUpdate(t, s, web, File{"/etc/weir.yaml", []byte(proxy + "nftables\n")}, File{"other.yaml", []byte(proxy + "wrong\n")})
	if snap.Config.Mode != "nftables" || len(snap.Notices) != 1 {
		t.Errorf("mode %s, notices %v", snap.Config.Mode, snap.Notices)
	}
	_, _, err := s.Update(context.Background(), spec.Revision{}, []File{{Path: "/etc/weir.yaml"}})
	if err == nil {
		t.Error("the file named with --config may be gone")
	}
}

func TestFlagsWin(t *testing.T) {
	s := NewSet(Options{Weir: func(w *spec.WeirConfiguration) { w.AllowEmpty = true; w.NodePortMax = 30100 }})
	snap, _ := mustUpdate(t, s, File{"w.yaml", []byte("apiVersion: weir/v1alpha1\nkind: WeirConfiguration\nallowEmpty: false\nnodePortRange: 30000-30200\n")})
	if snap.Weir.NodePortMax != 30100 || snap.Len() != 0 {
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
		s := NewSet(Options{Weir: func(w *spec.WeirConfiguration) { w.AllowEmpty = true }})
		snap, _, err := s.Update(context.Background(), spec.Revision{}, []File{{path, data}})
		if err != nil {
			if problems := (spec.Problems)(nil); !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("refused without problems: %v", err)
			}
			if state := describeSet(s); state != "" {
				t.Fatalf("the refused update left a trace: %s", state)
			}
			return
		}
		again, delta := mustUpdate(t, s, File{path, data})
		if !delta.Empty() || again.Len() != snap.Len() {
			t.Fatalf("the same bytes again changed %v", delta)
		}
	})
}
