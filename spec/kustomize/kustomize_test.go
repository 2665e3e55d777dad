package kustomize

import (
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/types"

	"weir/spec"
)

// disk is a Tree without bounds.
type disk struct{}

func (disk) Resolve(p string) (string, bool, error) {
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		return "", false, err
	}
	fi, err := os.Stat(real)
	return real, err == nil && fi.IsDir(), err
}

func (disk) ReadFile(p string) ([]byte, error) { return os.ReadFile(p) }

// within is a Tree that ends at a directory.
type within string

func (w within) Resolve(p string) (string, bool, error) {
	real, dir, err := disk{}.Resolve(p)
	if err == nil && real != string(w) && !strings.HasPrefix(real, string(w)+"/") {
		return "", false, ErrOutside
	}
	return real, dir, err
}

func (w within) ReadFile(p string) ([]byte, error) { return disk{}.ReadFile(p) }

// write makes a tree of files in a new directory, whose path it returns.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestBuildNamesOrigins(t *testing.T) {
	dir := write(t, map[string]string{
		"base/kustomization.yaml": "resources: [a.yaml]\n",
		"base/a.yaml":             "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\n---\n# x\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: 80\n",
		"o/kustomization.yaml":    "resources: [../base]\nnamePrefix: x-\npatchesStrategicMerge: [p.yaml]\nconfigMapGenerator:\n- name: c\n  literals: [a=b]\n",
		"o/p.yaml":                "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.9}\n",
	})
	all, err := Build(t.Context(), disk{}, filepath.Join(dir, "o"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range all {
		got = append(got, fmt.Sprintf("%s:%d", strings.TrimPrefix(o.File, dir+"/"), o.Line))
	}
	if want := []string{"base/a.yaml:1", "base/a.yaml:6", "o/kustomization.yaml:1"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if want := "apiVersion: v1\nkind: Service\nmetadata:\n  name: x-web\nspec:\n  clusterIP: 10.96.0.9\n  ports:\n  - port: 80\n"; string(all[1].Data) != want {
		t.Errorf("got\n%s", all[1].Data)
	}
}

// TestBuildRefuses has inputs that would run a program, reach the network, leave the tree, or take all memory.
func TestBuildRefuses(t *testing.T) {
	for _, test := range []struct{ name, kustomization, want string }{
		{"an address", "resources: [https://example.com/x.yaml]", "o/kustomization.yaml:1: resources[0]: \"https://example.com/x.yaml\" is not in the tree"},
		{"GitHub", "resources:\n- GitHub.com/a/b", "o/kustomization.yaml:2: resources[0]: \"GitHub.com/a/b\" is not in the tree"},
		{"ssh", "components: ['git@host:a/b']", "is not in the tree"},
		{"ssh without a colon", "components: [git@host/a/b]", "is not in the tree"},
		{"a patch from an address", "patches: [{path: 'http://h/p'}]", "patches[0].path: \"http://h/p\" is not in the tree"},
		{"a generator's address", "configMapGenerator: [{name: a, files: ['k=https://h/p']}]", "configMapGenerator[0].files[0]"},
		{"an env file's address", "secretGenerator: [{name: a, envs: ['https://h/p']}]", "secretGenerator[0].envs[0]"},
		{"a schema's address", "openapi: {path: 'https://h/p'}", "openapi.path"},
		{"a replacement's address", "replacements: [{path: 'https://h/p'}]", "replacements[0].path"},
		{"Helm", "helmCharts: [{name: a, repo: 'https://h'}]", "helmCharts: runs Helm or a plugin"},
		{"a generator", "generators: [a.yaml]", "generators: runs Helm or a plugin"},
		{"a transformer", "transformers: [a.yaml]", "transformers: runs Helm or a plugin"},
		{"a validator", "validators: [a.yaml]", "validators: runs Helm or a plugin"},
		{"an outside base", "resources: [../../outside]", "\"../../outside\" leads out of the tree"},
		{"nothing", "resources: [gone.yaml]", "o/kustomization.yaml:1: resources[0]: \"gone.yaml\" does not exist"},
		{"a plain directory", "resources: [../plain]", "o/kustomization.yaml:1: resources[0]: \"../plain\" is a directory without a kustomization.yaml"},
		{"an empty base", "resources: [../empty]", "empty/kustomization.yaml:1: is empty"},
		{"an unknown field", "resorces: [a.yaml]", "unknown field \"resorces\""},
		{"aliases", "resources: [bomb.yaml]", "o/bomb.yaml:1: has YAML aliases that expand"},
		{"copies", "resources: [a.yaml]\npatches: [{target: {kind: Service}, patch: '" + copies(40) + "'}]", "AccumulatedCopySizeLimit|accumulated"},
		{"joins", "resources: [a.yaml]\nreplacements:\n" + strings.Repeat("- {source: {kind: Service, fieldPath: metadata.name}, targets: [{select: {kind: Service}, fieldPaths: [metadata.name], options: {delimiter: x, index: 99}}]}\n", 17), "more than 16 replacements"},
		{"too many bases", "resources: [../deep0]", "uses more than 500 others|not built within 30s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := map[string]string{
				"in/o/kustomization.yaml":     test.kustomization,
				"in/o/a.yaml":                 "apiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {a: b}}\n",
				"in/o/bomb.yaml":              "apiVersion: v1\nkind: Service\nmetadata: {name: web}\na: &a [x,x,x,x,x,x,x,x,x]\n" + bomb(),
				"in/plain/a.yaml":             "kind: Service\n",
				"in/empty/kustomization.yaml": "kind: Kustomization\n",
				"outside/kustomization.yaml":  "resources: [a.yaml]",
			}
			for i := range 13 { // each reads the next twice
				files[fmt.Sprintf("in/deep%d/kustomization.yaml", i)] = fmt.Sprintf("resources: [../deep%d/a, ../deep%d/b]", i, i)
				for _, side := range []string{"a", "b"} {
					files[fmt.Sprintf("in/deep%d/%s/kustomization.yaml", i, side)] = fmt.Sprintf("resources: [../../deep%d]\nnamePrefix: %s", i+1, side)
				}
			}
			files["in/deep13/kustomization.yaml"] = "resources: [a.yaml]"
			files["in/deep13/a.yaml"] = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
			dir := write(t, files)
			_, err := Build(t.Context(), within(filepath.Join(dir, "in")), filepath.Join(dir, "in/o"))
			var problems spec.Problems
			if !errors.As(err, &problems) {
				t.Fatalf("got %v, want problems", err)
			}
			if text := strings.ReplaceAll(problems.Error(), dir+"/in/", ""); !slices.ContainsFunc(strings.Split(test.want, "|"), func(w string) bool { return strings.Contains(text, w) }) {
				t.Errorf("got  %s\nwant %s", text, test.want)
			}
		})
	}
}

// TestBuildIsQuiet builds what the library has advice about: nothing is written to standard error or to the standard logger.
func TestBuildIsQuiet(t *testing.T) {
	dir := write(t, map[string]string{
		"kustomization.yaml": "sortOptions: {order: fifo}\nresources: [a.yaml]\ncommonLabels: {a: b}\nvars: [{name: V, objref: {apiVersion: v1, kind: Service, name: web}}]\n",
		"a.yaml":             "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n",
	})
	written, err := os.Create(filepath.Join(t.TempDir(), "written"))
	if err != nil {
		t.Fatal(err)
	}
	defer written.Close()
	stderr, logger := os.Stderr, log.Writer()
	os.Stderr = written
	log.SetOutput(written)
	_, err = Build(t.Context(), disk{}, dir)
	restored := os.Stderr == written && log.Writer() == written
	os.Stderr = stderr
	log.SetOutput(logger)
	if text, readErr := os.ReadFile(written.Name()); err != nil || readErr != nil || len(text) > 0 || !restored {
		t.Errorf("%v, %v: restored %v, wrote %q", err, readErr, restored, text)
	}
}

// copies returns a JSON patch that doubles a value n times.
func copies(n int) string {
	var ops []string
	for i := range n {
		ops = append(ops, fmt.Sprintf(`{"op":"copy","from":"/metadata","path":"/metadata/x%d"}`, i))
	}
	return "[" + strings.Join(ops, ",") + "]"
}

// bomb returns YAML whose aliases expand to 9^9 values.
func bomb() string {
	var b strings.Builder
	for c := 'b'; c < 'j'; c++ {
		fmt.Fprintf(&b, "%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	return b.String()
}

// TestFieldsOfKustomizations fails when the library has a field that the check of kustomizations does not know.
func TestFieldsOfKustomizations(t *testing.T) {
	known := strings.Fields(`TypeMeta MetaData OpenAPI NamePrefix NameSuffix Namespace CommonLabels Labels CommonAnnotations PatchesStrategicMerge
		PatchesJson6902 Patches Images ImageTags Replacements Replicas Vars SortOptions Resources Components Crds Bases ConfigMapGenerator
		SecretGenerator HelmGlobals HelmCharts HelmChartInflationGenerator GeneratorOptions Configurations Generators Transformers Validators BuildMetadata`)
	for i := range reflect.TypeFor[types.Kustomization]().NumField() {
		if name := reflect.TypeFor[types.Kustomization]().Field(i).Name; !slices.Contains(known, name) {
			t.Errorf("check.go must say whether %s reads a file, runs a program or reaches the network", name)
		}
	}
}
