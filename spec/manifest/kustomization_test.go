package manifest

import (
	"strings"
	"testing"

	"weir/spec"
)

const kustomizedPatch = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 80}]}\n"

// TestKustomizationsInATree tells of kustomizations that change what is read as it is written, and of no others.
func TestKustomizationsInATree(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, kustomization, want string }{
		{"a list of resources", "resources: [a.yaml]\nimages: [{name: x, newTag: y}]\ncommonAnnotations: {a: b}\n", ""},
		{"a namespace", "resources: [a.yaml]\nnamespace: prod\n", "namespace"},
		{"the namespace that is written", "resources: [a.yaml]\nnamespace: default\n", ""},
		{"a prefix and a suffix", "resources: [a.yaml]\nnamePrefix: x-\nnameSuffix: -y\n", "namePrefix, nameSuffix"},
		{"a prefix of nothing of weir's", "resources: [d.yaml]\nnamePrefix: x-\n", ""},
		{"a patch", "resources: [a.yaml]\npatches: [{path: patch.yaml}]\n", "patches"},
		{"an inline patch", "resources: [a.yaml]\npatches:\n- patch: |\n    kind: Service\n    metadata: {name: a}\n", "patches"},
		{"an old patch", "resources: [a.yaml]\npatchesStrategicMerge: [patch.yaml]\n", "patches"},
		{"a patch of a Deployment", "resources: [a.yaml]\npatches:\n- patch: |\n    kind: Deployment\n    metadata: {name: a}\n", ""},
		{"a patch for a Deployment", "resources: [a.yaml]\npatches: [{target: {kind: Deployment}, patch: '[]'}]\n", ""},
		{"a patch for everything", "resources: [a.yaml]\npatches: [{target: {name: a}, patch: '[]'}]\n", "patches"},
		{"a base", "resources: [sub]\n", ""},
		{"a prefix of a base", "resources: [sub]\nnamePrefix: x-\n", "namePrefix"},
		{"a component", "resources: [a.yaml]\ncomponents: [part]\n", "patches"},
		{"Helm", "helmCharts: [{name: x}]\n", "Helm charts"},
		{"Flux", "apiVersion: kustomize.toolkit.fluxcd.io/v1\nkind: Kustomization\nmetadata: {name: x}\nspec: {targetNamespace: prod}\n", ""},
		{"no kustomization", "resources: {a: b}\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snap, _ := mustUpdate(t, NewSet(Options{}),
				File{Path: "k/kustomization.yaml", Data: []byte(tt.kustomization)},
				File{Path: "k/a.yaml", Data: []byte(yamlService("a", ""))},
				File{Path: "k/d.yaml", Data: []byte("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\n")},
				File{Path: "k/patch.yaml", Data: []byte(strings.ReplaceAll(kustomizedPatch, "name: a", "name: patched"))},
				File{Path: "k/sub/kustomization.yaml", Data: []byte("resources: [b.yaml]\n")},
				File{Path: "k/sub/b.yaml", Data: []byte(yamlService("b", ""))},
				File{Path: "k/part/kustomization.yaml", Data: []byte("apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\npatches: [{path: p.yaml}]\n")},
				File{Path: "k/part/p.yaml", Data: []byte("kind: Service\napiVersion: v1\nmetadata: {name: a}\nspec: {unknown: x}\n")},
			)
			got := ""
			for _, n := range snap.Notices {
				if n.ID() == spec.KustomizationNotBuilt {
					_, rest, _ := strings.Cut(n.Error(), "k/kustomization.yaml:1: Kustomization: changes objects that are read here as they are written (")
					got, _, _ = strings.Cut(rest, ")")
				}
			}
			if got != tt.want {
				t.Errorf("told of %q, want %q", got, tt.want)
			}
			if (tt.name == "a patch" || tt.name == "an old patch") != (snap.Services.Get(name("patched")) == nil) {
				t.Error("a file counts as an object if, and only if, no kustomization names it as a patch")
			}
		})
	}
}

// TestPatchesComeAndGo makes a file a patch, and an object again, while it stays as it is.
func TestPatchesComeAndGo(t *testing.T) {
	t.Parallel()
	s := NewSet(Options{})
	mustUpdate(t, s, File{Path: "a.yaml", Data: []byte(yamlService("a", ""))})
	patch := File{Path: "p.yaml", Data: []byte(kustomizedPatch + "---\n{{ broken\n")}
	k := File{Path: "kustomization.yaml", Data: []byte("resources: [a.yaml]\npatches: [{path: p.yaml}]\n")}
	refused := func(what string, files ...File) {
		t.Helper()
		if _, _, err := s.Update(t.Context(), spec.Revision{}, files); err == nil || !strings.Contains(err.Error(), "is declared already at a.yaml:1") {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("a second object of one name", patch)
	snap, _ := mustUpdate(t, s, patch, k)
	if n := snap.Services.Len(); n != 1 || snap.Services.Get(name("a")).Origin.File != "a.yaml" {
		t.Errorf("%d Services, %v", n, snap.Services.Get(name("a")))
	}
	refused("the kustomization goes", File{Path: "kustomization.yaml"})
	snap, delta := mustUpdate(t, s, File{Path: "a.yaml"}, File{Path: "b.yaml", Data: []byte(yamlService("b", ""))}, File{Path: "kustomization.yaml"})
	if svc := snap.Services.Get(name("a")); svc == nil || svc.Object.Spec.ClusterIP != "10.96.0.9" {
		t.Errorf("what was a patch is the object now: %v, %v", svc, delta)
	}
	snap, _ = mustUpdate(t, s, k, File{Path: "a.yaml", Data: []byte(yamlService("a", ""))})
	if svc := snap.Services.Get(name("a")); svc.Origin.File != "a.yaml" {
		t.Errorf("what is a patch again is the object: %v", svc.Origin)
	}
}
