package kustomize

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestExplainNamesTheCause builds kustomizations that fail. The error names the file and what is wrong in it, however deep it
// is, on one line, and nothing that a document of another kind says.
func TestExplainNamesTheCause(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"
	const secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: hidden, namespace: hidden}\nstringData: {hidden: hidden}\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"deep": {map[string]string{
			"top/kustomization.yaml":                                   "resources: [../one]\n",
			"one/kustomization.yaml":                                   "resources: [with/a/long/path]\n",
			"one/with/a/long/path/kustomization.yaml":                  "resources: [to/another/place]\n",
			"one/with/a/long/path/to/another/place/kustomization.yaml": "resources: [svc.yaml]\n",
			"one/with/a/long/path/to/another/place/svc.yaml":           "kind: Service\nmetadata: {name: x\nspec: y\n",
		}, []string{"MalformedYAMLError: yaml: line 1: did not find expected ',' or '}' in File: svc.yaml", "/one"}},
		"very deep": {map[string]string{
			"top/kustomization.yaml":                                                          "resources: [../" + strings.Repeat("d", 200) + "]\n",
			strings.Repeat("d", 200) + "/kustomization.yaml":                                  "resources: [" + strings.Repeat("e", 200) + "]\n",
			strings.Repeat("d", 200) + "/" + strings.Repeat("e", 200) + "/kustomization.yaml": "resources: [svc.yaml]\n",
			strings.Repeat("d", 200) + "/" + strings.Repeat("e", 200) + "/svc.yaml":           "kind: Service\nmetadata: {name: x\nspec: y\n",
		}, []string{"accumulating resources: ", " ... ", "in File: svc.yaml"}},
		"patch of a Secret": {map[string]string{
			"top/kustomization.yaml": "resources: [svc.yaml]\npatches:\n- patch: |\n    apiVersion: v1\n    kind: Secret\n    metadata: {name: hidden}\n",
			"top/svc.yaml":           service,
		}, []string{`no resource matches strategic merge patch "Secret.v1.[noGrp]/..."`}},
		"patch of a Deployment": {map[string]string{
			"top/kustomization.yaml": "resources: [svc.yaml]\npatches:\n- patch: |\n    apiVersion: apps/v1\n    kind: Deployment\n    metadata: {name: hidden}\n",
			"top/svc.yaml":           service,
		}, []string{`"Deployment.v1.apps/..."`}},
		"patch of a Service": {map[string]string{
			"top/kustomization.yaml": "resources: [svc.yaml]\npatches:\n- patch: |\n    apiVersion: v1\n    kind: Service\n    metadata: {name: other}\n",
			"top/svc.yaml":           service,
		}, []string{`"Service.v1.[noGrp]/other.[noNs]"`}},
		"patch that is none": {map[string]string{
			"top/kustomization.yaml": "resources: [svc.yaml]\npatches:\n- patch: |\n    - op: replace\n    x: hidden\n  target: {kind: Secret, name: hidden}\n",
			"top/svc.yaml":           service,
		}, []string{"unable to parse SM or JSON patch"}},
		"a Secret twice": {map[string]string{
			"top/kustomization.yaml": "resources: [svc.yaml, a.yaml, b.yaml]\n", "top/svc.yaml": service, "top/a.yaml": secret, "top/b.yaml": secret,
		}, []string{"'b.yaml': may not add resource with an already registered id: Secret.v1.[noGrp]/..."}},
		"a Secret without a name": {map[string]string{
			"top/kustomization.yaml": "resources: [a.yaml]\n", "top/a.yaml": strings.Replace(secret, "name: hidden, ", "", 1),
		}, []string{"'a.yaml': missing metadata.name in object {v1 Secret}"}},
		"an unknown anchor": {map[string]string{
			"top/kustomization.yaml": "resources: [a.yaml]\n", "top/a.yaml": "kind: Secret\ndata: *hidden\n",
		}, []string{"unknown anchor"}},
		"a literal": {map[string]string{
			"top/kustomization.yaml": "resources: [svc.yaml]\nsecretGenerator: [{name: hidden, literals: [hidden]}]\n", "top/svc.yaml": service,
		}, []string{"a literal source is not key=value"}},
		"a field of a Secret": {map[string]string{
			"top/kustomization.yaml": "resources: [svc.yaml, a.yaml]\nreplacements:\n- source: {kind: Secret, name: hidden, fieldPath: data.hidden}\n  targets: [{select: {kind: Service}, fieldPaths: [metadata.name]}]\n",
			"top/svc.yaml":           service, "top/a.yaml": secret,
		}, []string{"is missing for replacement source Secret."}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := write(t, c.files)
			_, err := Build(t.Context(), disk{}, filepath.Join(dir, "top"))
			if err == nil {
				t.Fatal("it is built")
			}
			got := strings.ReplaceAll(err.Error(), dir, "")
			for _, want := range c.want {
				if !strings.Contains(got, want) {
					t.Errorf("got %q, want %q in it", got, want)
				}
			}
			if strings.Contains(got, "hidden") || strings.Contains(got, "\n") || len(got) > maxDetail+100 {
				t.Errorf("got %q", got)
			}
		})
	}
}
