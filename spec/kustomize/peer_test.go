package kustomize

import (
	"bytes"
	"debug/buildinfo"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"weir/spec/apisource/apitest"
	"weir/spec/document"
	"weir/spec/seed"
)

// TestPeer gives random kustomizations to Build and to the kustomize program. Both refuse the same ones, and make the
// same objects of the others.
func TestPeer(t *testing.T) {
	program := apitest.Binary(t, "kustomizepeer")
	requireSameVersion(t, program)
	random := seed.Rand(t)
	built, seen := 0, map[string]int{}
	const trees = 150
	for i := range trees {
		g := &generator{r: random, files: map[string]string{}, fields: map[string]bool{}}
		top := g.tree()
		dir := filepath.Join(write(t, g.files), top)
		want, refused := peerObjects(t, program, dir)
		objects, err := Build(t.Context(), disk{}, dir)
		if (err != nil) != (refused != nil) {
			t.Fatalf("tree %d: Build fails with %v, the program with %v\n%s", i, err, refused, g)
		}
		if err != nil {
			continue
		}
		var texts []string
		for _, o := range objects {
			texts = append(texts, canonical(t, o.Data))
		}
		slices.Sort(texts)
		if diff := cmp.Diff(want, texts); diff != "" {
			t.Fatalf("tree %d: other objects (-program +Build):\n%s\n%s", i, diff, g)
		}
		built++
		for f := range g.fields {
			seen[f]++
		}
	}
	if built < trees/3 {
		t.Errorf("only %d of %d random kustomizations can be built", built, trees)
	}
	for _, f := range randomFields {
		if seen[f.name] == 0 {
			t.Errorf("%s is in none of the kustomizations that can be built", f.name)
		}
	}
}

// requireSameVersion fails if the program is made of another version of the library than weir is.
func requireSameVersion(t *testing.T, program string) {
	t.Helper()
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	goMod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range info.Deps {
		if d.Path == "sigs.k8s.io/kustomize/api" && !strings.Contains(string(goMod), d.Path+" "+d.Version+"\n") {
			t.Fatalf("%s has %s %s, and go.mod another version: change .ci/testserver, and remove the file", program, d.Path, d.Version)
		}
	}
}

// peerObjects returns what the program builds, as a sorted list, or why it refuses.
func peerObjects(t *testing.T, program, dir string) (objects []string, refused error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "build", dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil, fmt.Errorf("%w: %s", err, stderr.Bytes())
	} else if err != nil {
		t.Fatal(err)
	}
	texts, problem := document.Split("", out)
	if problem != nil {
		t.Fatalf("%v\n%s", problem, out)
	}
	for _, text := range texts {
		objects = append(objects, canonical(t, text.Data))
	}
	slices.Sort(objects)
	return objects, nil
}

// builtWith is the version in the label managed-by, which the builder of a program sets.
var builtWith = regexp.MustCompile(`managed-by: kustomize-\S+`)

// canonical returns YAML with its keys in order.
func canonical(t *testing.T, data []byte) string {
	t.Helper()
	var v any
	err := yaml.Unmarshal(data, &v)
	text, marshalErr := yaml.Marshal(v)
	if err := errors.Join(err, marshalErr); err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	return builtWith.ReplaceAllString(string(text), "managed-by: kustomize")
}

// generator makes a random tree of kustomizations.
type generator struct {
	r      *rand.Rand
	files  map[string]string
	fields map[string]bool // of kustomizations, that it used
	names  []string        // of Services
	n      int             // for names that are used once
}

// String returns the tree, to be read by a person.
func (g *generator) String() string {
	var b strings.Builder
	names := make([]string, 0, len(g.files))
	for name := range g.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "-- %s --\n%s", name, g.files[name])
	}
	return b.String()
}

// kustomization is one that is being made, in a directory of the tree.
type kustomization struct {
	dir    string
	fields map[string]any
}

// add appends to a list of the kustomization.
func (k *kustomization) add(field string, values ...any) {
	list, _ := k.fields[field].([]any)
	k.fields[field] = append(list, values...)
}

func oneOf[T any](r *rand.Rand, values ...T) T { return values[r.IntN(len(values))] }

// tree makes up to five directories, each of which may use those before it, and returns the last.
func (g *generator) tree() string {
	var bases, components []string
	n := 1 + g.r.IntN(5)
	for i := range n {
		k := &kustomization{dir: fmt.Sprintf("d%d", i), fields: map[string]any{}}
		component := i < n-1 && g.r.IntN(4) == 0
		if component {
			k.fields["apiVersion"], k.fields["kind"] = "kustomize.config.k8s.io/v1alpha1", "Component"
		} else if g.r.IntN(3) > 0 {
			k.fields["apiVersion"], k.fields["kind"] = "kustomize.config.k8s.io/v1beta1", "Kustomization"
		}
		bases = g.use(k, "resources", bases)
		components = g.use(k, "components", components)
		if !component || g.r.IntN(2) == 0 {
			g.resources(k)
		}
		for range g.r.IntN(4) {
			f := oneOf(g.r, randomFields...)
			f.add(g, k)
			g.fields[f.name] = true
		}
		g.put(k)
		if component {
			components = append(components, k.dir)
		} else {
			bases = append(bases, k.dir)
		}
	}
	return fmt.Sprintf("d%d", n-1)
}

// use has a kustomization use some of the directories. It returns the others, and now and then all.
func (g *generator) use(k *kustomization, field string, dirs []string) (left []string) {
	for _, d := range dirs {
		if g.r.IntN(3) == 0 {
			left = append(left, d)
			continue
		}
		k.add(field, oneOf(g.r, "../", "./../")+d)
		g.fields[field] = true
		if g.r.IntN(12) == 0 {
			left = append(left, d) // used twice: kustomize refuses what is declared twice
		}
	}
	return left
}

// put writes a kustomization, under one of the names that kustomize looks for.
func (g *generator) put(k *kustomization) {
	data, err := yaml.Marshal(k.fields)
	if err != nil {
		panic(err)
	}
	g.write(k, oneOf(g.r, "kustomization.yaml", "kustomization.yaml", "kustomization.yml", "Kustomization"), string(data))
}

// write writes a file, now and then as an editor of another system would.
func (g *generator) write(k *kustomization, name, text string) {
	switch g.r.IntN(30) {
	case 0, 1, 2:
		text = strings.ReplaceAll(text, "\n", "\r\n")
	case 3:
		text = "\ufeff" + text
	case 4:
		text = "---\n" + text + "---\n"
	case 5:
		text = strings.TrimSuffix(text, "\n")
	}
	g.files[filepath.Join(k.dir, name)] = text
}

// file writes a file of a new name, which it returns.
func (g *generator) file(k *kustomization, name, text string) string {
	g.n++
	name = fmt.Sprintf("%s-%d.yaml", name, g.n)
	g.write(k, name, text)
	return name
}

// resources writes files of objects.
func (g *generator) resources(k *kustomization) {
	for range 1 + g.r.IntN(2) {
		var docs []string
		for range 1 + g.r.IntN(3) {
			docs = append(docs, g.object())
		}
		k.add("resources", g.file(k, "objects", strings.Join(docs, "---\n")))
	}
	g.fields["resources"] = true
}

var (
	objectNames = []string{"web", "web-2", "db", "a"}
	namespaces  = []string{"", "", "one", "two"}
)

// service returns the name of a Service that is there, or now and then any name.
func (g *generator) service() string {
	if len(g.names) > 0 && g.r.IntN(8) > 0 {
		return oneOf(g.r, g.names...)
	}
	return oneOf(g.r, objectNames...)
}

// object returns a document of a kind that weir reads, or of one that such a document depends on.
func (g *generator) object() string {
	name := oneOf(g.r, objectNames...)
	if g.r.IntN(3) > 0 { // else it may be declared twice
		g.n++
		name = fmt.Sprintf("%s-%d", name, g.n)
	}
	meta := fmt.Sprintf("metadata: {name: %s, labels: {app: %s, tier: %s}", name, name, oneOf(g.r, "front", `"1"`, "back"))
	if ns := oneOf(g.r, namespaces...); ns != "" && g.r.IntN(3) == 0 {
		meta += ", namespace: " + ns
	}
	if g.r.IntN(8) == 0 {
		meta += `, annotations: {config.kubernetes.io/local-config: "true"}`
	}
	meta += "}\n"
	service := "apiVersion: v1\nkind: Service\n" + meta + "spec:\n  selector: {app: " + name + "}\n  ports:\n  - {name: http, port: 80, targetPort: web}\n  - {name: dns, port: 53, protocol: UDP}\n"
	switch g.r.IntN(9) {
	case 0:
		return "apiVersion: v1\nkind: Endpoints\n" + meta + "subsets:\n- addresses: [{ip: 10.244.0.1, nodeName: n1}]\n  ports: [{name: http, port: 8080}]\n"
	case 1:
		return "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n" + meta + "addressType: IPv4\nendpoints: [{addresses: [10.244.0.1]}]\nports: [{name: http, port: 8080}]\n"
	case 2:
		return "apiVersion: apps/v1\nkind: Deployment\n" + meta + "spec:\n  selector: {matchLabels: {app: " + name + "}}\n  template:\n    metadata: {labels: {app: " + name + "}}\n    spec:\n      containers: [{name: c, image: nginx, envFrom: [{configMapRef: {name: settings}}]}]\n"
	case 3:
		return "apiVersion: v1\nkind: ConfigMap\n" + meta + "data: {host: " + name + ", port: \"80\"}\n"
	case 4:
		return "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(strings.TrimSuffix(service, "\n"), "\n", "\n  ") + "\n"
	case 5:
		return `{"apiVersion":"v1","kind":"Service","metadata":{"name":"` + name + `"},"spec":{"clusterIP":"None","ports":[{"port":1}]}}` + "\n"
	case 6:
		return "# a comment\n" + strings.Replace(service, "spec:\n", "spec:\n  type: NodePort\n  externalIPs: [192.0.2.1]\n", 1)
	}
	g.names = append(g.names, name)
	return service
}

// randomField is a field of kustomizations that changes objects, and what adds it to one.
type randomField struct {
	name string
	add  func(g *generator, k *kustomization)
}

// value returns a field that has one of some values.
func value(name string, values ...any) randomField {
	return randomField{name, func(g *generator, k *kustomization) { k.fields[name] = oneOf(g.r, values...) }}
}

// entry returns a field with a list, to which one of some values is added.
func entry(name string, values ...any) randomField {
	return randomField{name, func(g *generator, k *kustomization) { k.add(name, oneOf(g.r, values...)) }}
}

type object = map[string]any

var randomFields = []randomField{
	value("namespace", "one", "two", "three"),
	value("namePrefix", "x-", "y-", "1"),
	value("nameSuffix", "-x", "-y", ".z"),
	value("commonLabels", object{"app": "all"}, object{"team": "t", "on": "y"}),
	value("commonAnnotations", object{"a": "b"}, object{"weir/weights": "10.244.0.1=3"}),
	value("sortOptions", object{"order": "legacy"}, object{"order": "fifo"}),
	value("generatorOptions", object{"disableNameSuffixHash": true}, object{"labels": object{"made": "yes"}, "annotations": object{"c": "d"}}),
	value("buildMetadata", []string{"managedByLabel"}, []string{"transformerAnnotations"}),
	entry("labels", object{"pairs": object{"team": "t"}}, object{"pairs": object{"app": "mine"}, "includeSelectors": true},
		object{"pairs": object{"a": "b"}, "includeTemplates": true}, object{"pairs": object{"s": "t"}, "fields": []object{{"path": "spec/selector", "kind": "Service", "create": true}}}),
	entry("images", object{"name": "nginx", "newTag": "1.2"}, object{"name": "nginx", "newName": "other", "digest": "sha256:abc"}),
	{"replicas", func(g *generator, k *kustomization) {
		k.add("replicas", object{"name": "scaled", "count": 3})
		k.add("resources", g.file(k, "scaled", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: scaled}\nspec: {replicas: 1}\n"))
	}},
	entry("secretGenerator", object{"name": "s", "literals": []string{"a=b"}, "type": "Opaque"}),
	{"configMapGenerator", (*generator).configMap},
	{"patches", (*generator).patch},
	{"patchesStrategicMerge", (*generator).oldPatch},
	{"patchesJson6902", (*generator).oldJSONPatch},
	{"replacements", (*generator).replacement},
	{"vars", func(g *generator, k *kustomization) {
		k.add("vars", object{"name": "HOST", "objref": object{"apiVersion": "v1", "kind": "Service", "name": g.service()}})
		k.add("resources", g.file(k, "var", "apiVersion: v1\nkind: Service\nmetadata: {name: of-var, annotations: {host: $(HOST)}}\nspec: {type: ExternalName, externalName: $(HOST)}\n"))
	}},
	{"configurations", func(g *generator, k *kustomization) {
		k.add("configurations", g.file(k, "configuration", "namePrefix:\n- {path: metadata/name, kind: Service}\ncommonLabels:\n- {path: spec/selector, create: true, kind: Service}\nnameReference:\n- kind: Service\n  fieldSpecs: [{path: metadata/annotations/host, kind: Service}]\n"))
	}},
}

func (g *generator) configMap(k *kustomization) {
	g.n++
	m := object{"name": oneOf(g.r, "settings", "web", "more")}
	switch g.r.IntN(4) {
	case 0:
		m["literals"] = []string{"a=b", "c=\"d\"", "host=x"}
	case 1:
		g.files[filepath.Join(k.dir, "a.env")] = "A=1\nB=two words\n# none\n"
		m["envs"] = []string{"a.env"}
	case 2:
		m["files"] = []string{g.file(k, "data", "any: text\n"), "key=" + g.file(k, "data", "\x00\xff")}
	case 3:
		m["literals"], m["behavior"] = []string{"a=new"}, oneOf(g.r, "merge", "replace", "create")
	}
	if g.r.IntN(3) == 0 {
		m["namespace"] = oneOf(g.r, "one", "two")
	}
	k.add("configMapGenerator", m)
}

// merge returns a strategic merge patch.
func (g *generator) merge() string {
	name := g.service()
	head := "apiVersion: v1\nkind: Service\nmetadata:\n  name: " + name + "\n"
	if ns := oneOf(g.r, namespaces...); ns != "" && g.r.IntN(4) == 0 {
		head += "  namespace: " + ns + "\n"
	}
	return head + oneOf(g.r,
		"spec: {clusterIP: 10.96.0.9}\n",
		"spec:\n  ports:\n  - {port: 80, nodePort: 30080}\n",
		"spec:\n  ports:\n  - {port: 53, protocol: UDP, $patch: delete}\n",
		"spec:\n  $patch: replace\n  ports: [{port: 81}]\n",
		"spec: {selector: null, type: ExternalName, externalName: example.org}\n",
		"$patch: delete\n",
		"spec: {externalIPs: [192.0.2.2]}\n")
}

// operations returns a JSON patch.
func (g *generator) operations() string {
	return oneOf(g.r,
		`[{"op":"replace","path":"/spec/ports/0/port","value":8080}]`,
		"- op: add\n  path: /spec/clusterIP\n  value: 10.96.0.8\n",
		"- op: remove\n  path: /spec/selector\n",
		"- {op: add, path: /spec/ports/-, value: {name: more, port: 82}}\n",
		"- {op: replace, path: /metadata/name, value: renamed}\n",
		"- {op: test, path: /spec/type, value: NodePort}\n- {op: add, path: /metadata/labels/is, value: node-port}\n")
}

// target returns what a patch is for.
func (g *generator) target() object {
	return oneOf(g.r,
		object{"kind": "Service"},
		object{"kind": "Service", "name": g.service()},
		object{"kind": "Service", "name": "web.*"},
		object{"kind": "Service|Endpoints", "labelSelector": "tier=front"},
		object{"labelSelector": "app in (web, a)", "version": "v1"},
		object{"annotationSelector": "a=b"},
		object{"namespace": "one"})
}

func (g *generator) patch(k *kustomization) {
	p := object{}
	text := g.merge()
	if g.r.IntN(2) == 0 {
		text = g.operations()
		p["target"] = g.target()
	} else if g.r.IntN(2) == 0 {
		p["target"] = g.target()
	}
	if g.r.IntN(2) == 0 {
		p["path"] = g.file(k, "patch", text)
	} else {
		p["patch"] = text
	}
	if g.r.IntN(5) == 0 {
		p["options"] = object{"allowNameChange": true, "allowKindChange": true}
	}
	k.add("patches", p)
}

func (g *generator) oldPatch(k *kustomization) {
	if g.r.IntN(2) == 0 {
		k.add("patchesStrategicMerge", g.merge())
		return
	}
	k.add("patchesStrategicMerge", g.file(k, "patch", g.merge()))
}

func (g *generator) oldJSONPatch(k *kustomization) {
	p := object{"target": object{"version": "v1", "kind": "Service", "name": g.service()}}
	if g.r.IntN(2) == 0 {
		p["path"] = g.file(k, "patch", g.operations())
	} else {
		p["patch"] = g.operations()
	}
	k.add("patchesJson6902", p)
}

func (g *generator) replacement(k *kustomization) {
	source := object{"kind": "Service", "name": g.service(), "fieldPath": oneOf(g.r, "metadata.name", "spec.ports.0.port", "spec.ports.[name=dns].port", "metadata.labels.app")}
	if g.r.IntN(3) == 0 {
		source["options"] = object{"delimiter": "-", "index": 0}
	}
	target := object{
		"select":     oneOf(g.r, object{"kind": "Service"}, object{"kind": "Endpoints"}, object{"kind": "EndpointSlice"}, object{"name": "web"}),
		"fieldPaths": []string{oneOf(g.r, "metadata.name", "metadata.annotations.of", "spec.ports.0.targetPort", "spec.selector.app", "metadata.labels.[app]")},
	}
	if g.r.IntN(2) == 0 {
		target["options"] = object{"create": true}
	} else if g.r.IntN(3) == 0 {
		target["options"] = object{"delimiter": "-", "index": 1}
	}
	if g.r.IntN(3) == 0 {
		target["reject"] = []object{{"name": "db"}}
	}
	r := object{"source": source, "targets": []object{target}}
	if g.r.IntN(3) == 0 {
		text, err := yaml.Marshal(r)
		if err != nil {
			panic(err)
		}
		r = object{"path": g.file(k, "replacement", string(text))}
	}
	k.add("replacements", r)
}
