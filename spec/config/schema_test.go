package config

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	logsapi "k8s.io/component-base/logs/api/v1"
	"sigs.k8s.io/yaml"

	"weir/spec"
	"weir/spec/config/schema"
)

// TestSchema writes the schema of each kind from the types, their comments, the defaults and the words that validation
// knows, and compares it with the file that is part of the program. -update writes the files.
func TestSchema(t *testing.T) {
	for kind, s := range schemas(t) {
		var text bytes.Buffer
		e := json.NewEncoder(&text)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		if err := e.Encode(s); err != nil {
			t.Fatal(err)
		}
		compareGolden(t, filepath.Join("schema", kind+".json"), text.String())
	}
}

// schemas returns the schemas by kind.
func schemas(t *testing.T) map[string]*schema.Schema {
	t.Helper()
	weir := generator{
		t: t, version: WeirAPIVersion, kind: WeirKind, comments: map[string]map[string]string{},
		defaults: weirDefaults(t),
		words: map[string][]string{
			"dns.pods": podNames, "dns.nodeResolver": NodeResolvers,
		},
	}
	w := weir.of(reflect.TypeFor[weirDocument](), "")
	w.Description = "WeirConfiguration has the settings that KubeProxyConfiguration has no field for. It is read from the same files as Services are, and a change takes effect without a restart. All fields may be left out. Flags of the same names have precedence."
	w.Examples = []any{map[string]any{"apiVersion": WeirAPIVersion, "kind": WeirKind, "serviceCIDRs": []any{"10.43.0.0/16"}, "dns": map[string]any{"clusterDomain": "edge.example"}}}
	w.Properties["silence"].Items = noticeIDs()
	w.Properties["podSources"].Items = podSource()
	weir.finish(w)

	proxy := generator{
		t: t, version: KubeProxyAPIVersion, kind: KubeProxyKind, comments: weir.comments,
		defaults: tree(t, Default().KubeProxyConfiguration),
		words:    map[string][]string{"mode": texts(modes), "detectLocalMode": texts(localModes), "logging.format": logFormats},
		about:    proxyFields,
		limits: map[string][2]int64{
			"oomScoreAdj": {-1000, 1000}, "iptables.masqueradeBit": {0, 31}, "logging.verbosity": {0, math.MaxInt32},
			"conntrack.maxPerCore": {0, math.MaxInt32}, "conntrack.min": {0, math.MaxInt32}, "clientConnection.burst": {0, math.MaxInt32},
		},
	}
	proxy.defaults["udpIdleTimeout"] = Default().UDPIdleTimeout.String()
	p := proxy.of(reflect.TypeFor[written](), "")
	p.Description = "KubeProxyConfiguration is kube-proxy's configuration, as weir reads it: the fields of the current version, and those of former versions that weir knows. Where a description says kube-proxy, weir does the same. All fields may be left out. As in kube-proxy, a period of 0 stands for its default."
	p.Examples = []any{map[string]any{"apiVersion": KubeProxyAPIVersion, "kind": KubeProxyKind, "mode": "nftables", "clusterCIDR": "10.244.0.0/16"}}
	p.Properties["nodePortAddresses"].Items = &schema.Schema{AnyOf: []*schema.Schema{{Enum: values(nodePortKeywords)}, {Type: []string{"string"}, Pattern: "/"}}}
	suggestScheduler(p)
	proxy.finish(p)
	proxy.addWarnings(p)
	return map[string]*schema.Schema{WeirKind: w, KubeProxyKind: p}
}

// noticeIDs returns the schema of an item of silence. Editors offer the first form.
func noticeIDs() *schema.Schema {
	var whole, short []any
	for _, k := range spec.NoticeKinds() {
		whole, short = append(whole, string(k.ID)), append(short, k.ID.Short())
	}
	return &schema.Schema{AnyOf: []*schema.Schema{{Enum: whole}, {Enum: short}}}
}

// podSource returns the schema of an item of podSources.
func podSource() *schema.Schema {
	var kinds []string
	for _, s := range spec.UsualPodSources {
		if !slices.Contains(kinds, s.Kind) {
			kinds = append(kinds, s.Kind)
		}
	}
	return &schema.Schema{Type: []string{"string"}, Pattern: "^(none|(" + strings.Join(kinds, "|") + ")=(unix://)?/.*)$"}
}

// suggestScheduler has the words of ipvs.scheduler offered, and demanded in ipvs mode: the decoder looks at the section of the
// mode only.
func suggestScheduler(p *schema.Schema) {
	s := p.Properties["ipvs"].Properties["scheduler"]
	s.AnyOf = []*schema.Schema{{Enum: values(ipvsSchedulers)}, {Type: s.Type}}
	s.Type = nil
	p.If = &schema.Schema{Required: []string{"mode"}, Properties: map[string]*schema.Schema{"mode": {Const: string(ModeIPVS)}}}
	p.Then = &schema.Schema{Properties: map[string]*schema.Schema{"ipvs": {Properties: map[string]*schema.Schema{"scheduler": {Enum: unset(ipvsSchedulers)}}}}}
}

// generator makes the schema of a kind of document.
type generator struct {
	t             *testing.T
	version, kind string
	// comments are those of struct fields, by package and TYPE.FIELD.
	comments map[string]map[string]string
	// defaults is the tree of values that are used if none is set.
	defaults map[string]any
	// words are the closed sets of words, limits the least and greatest numbers, about what else is known, by path.
	words  map[string][]string
	limits map[string][2]int64
	about  map[string]about
	found  map[string]bool // the paths of these three that were met
}

// about is what weir says of a field of kube-proxy's.
type about struct {
	says    string // in place of the comment; "" leaves that
	example any
}

// of returns the schema of a type at a path.
func (g *generator) of(t reflect.Type, path string) *schema.Schema {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t {
	case reflect.TypeFor[metav1.Duration]():
		return &schema.Schema{Type: []string{"string"}, Pattern: schema.Duration}
	case reflect.TypeFor[Path]():
		return &schema.Schema{Type: []string{"string"}, Pattern: "^/"}
	case reflect.TypeFor[logsapi.TimeOrMetaDuration]():
		return &schema.Schema{Type: []string{"string", "integer"}, Pattern: schema.Duration}
	case reflect.TypeFor[resource.QuantityValue]():
		return &schema.Schema{Type: []string{"string", "number"}, Pattern: schema.Quantity}
	}
	switch t.Kind() {
	case reflect.Struct:
		s := &schema.Schema{Type: []string{"object"}, Properties: map[string]*schema.Schema{}, AdditionalProperties: &schema.Values{}}
		g.fields(t, path, s)
		return s
	case reflect.Map:
		return &schema.Schema{Type: []string{"object"}, AdditionalProperties: &schema.Values{Schema: g.of(t.Elem(), path)}}
	case reflect.Slice:
		return &schema.Schema{Type: []string{"array"}, Items: g.of(t.Elem(), path)}
	case reflect.String:
		return &schema.Schema{Type: []string{"string"}}
	case reflect.Bool:
		return &schema.Schema{Type: []string{"boolean"}}
	case reflect.Int32:
		return g.integer(path, math.MinInt32, math.MaxInt32)
	case reflect.Uint32:
		return g.integer(path, 0, math.MaxUint32)
	case reflect.Float32:
		return &schema.Schema{Type: []string{"number"}}
	}
	g.t.Fatalf("%s: there is no schema for type %s", path, t)
	return nil
}

func (g *generator) integer(path string, least, most int64) *schema.Schema {
	if l, ok := g.limits[path]; ok {
		least, most = l[0], l[1]
		g.used(path)
	}
	return &schema.Schema{Type: []string{"integer"}, Minimum: &least, Maximum: &most}
}

// fields adds the fields of a struct. Those of embedded structs come first, because the struct's own win.
func (g *generator) fields(t reflect.Type, path string, s *schema.Schema) {
	if t == reflect.TypeFor[metav1.TypeMeta]() {
		s.Draft, s.Title, s.Required = schema.Draft, g.kind, []string{"apiVersion", "kind"}
		s.Properties["apiVersion"] = &schema.Schema{Type: []string{"string"}, Const: g.version, Description: "apiVersion is the version of the fields, always " + g.version + "."}
		s.Properties["kind"] = &schema.Schema{Type: []string{"string"}, Const: g.kind, Description: "kind is what the document is, always " + g.kind + "."}
		return
	}
	for f := range t.Fields() {
		if name, options, _ := strings.Cut(f.Tag.Get("json"), ","); f.Anonymous && (name == "" || strings.Contains(options, "inline")) {
			g.fields(f.Type, path, s)
		}
	}
	for f := range t.Fields() {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			s.Properties[name] = g.field(t, f, name, strings.TrimPrefix(path+"."+name, "."))
		}
	}
}

// field returns the schema of a struct's field. For the decoder, null is a field that is left out, if its type takes null.
func (g *generator) field(t reflect.Type, f reflect.StructField, name, path string) *schema.Schema {
	s := g.of(f.Type, path)
	if json.Unmarshal([]byte("null"), reflect.New(f.Type).Interface()) == nil {
		s.Type = append(s.Type, "null")
	}
	s.Default = valueAt(g.defaults, path)
	if words, ok := g.words[path]; ok {
		s.Enum = unset(words)
		g.used(path)
	}
	var example string
	s.Description, example = g.comment(t, f, name)
	if example != "" {
		var v any
		if err := yaml.Unmarshal([]byte(example), &v); err != nil {
			g.t.Errorf("%s: the example of the comment is no YAML: %v", path, err)
		}
		s.Examples = []any{v}
	}
	if a, ok := g.about[path]; ok {
		if a.says != "" {
			s.Description = a.says
		}
		if a.example != nil {
			s.Examples = []any{a.example}
		}
		g.used(path)
	}
	return s
}

// finish checks that each field is described, and has a default or an example, and that everything that is known about fields
// was used.
func (g *generator) finish(s *schema.Schema) {
	for path, s := range properties(s) {
		if s.Description == "" {
			g.t.Errorf("%s has no comment", path)
		}
		if s.Default == nil && s.Examples == nil && s.Const == nil && s.Properties == nil && !strings.Contains(path, "[]") {
			g.t.Errorf("%s has neither a default nor an example", path)
		}
	}
	for _, known := range []any{g.words, g.limits, g.about} {
		for _, path := range reflect.ValueOf(known).MapKeys() {
			if !g.found[path.String()] {
				g.t.Errorf("there is no field %s", path)
			}
		}
	}
}

// used notes that something was known about a field. Embedded fields that another one hides are met too.
func (g *generator) used(path string) {
	if g.found == nil {
		g.found = map[string]bool{}
	}
	g.found[path] = true
}

// exampleAtEnd is the last sentence of a comment that has an example.
var exampleAtEnd = regexp.MustCompile(`\s*Example: (.+)\.$`)

// comment returns the comment of a field without its example, and the example, which is YAML. The field has its name of the
// document.
func (g *generator) comment(t reflect.Type, f reflect.StructField, name string) (says, example string) {
	if g.comments[t.PkgPath()] == nil {
		g.comments[t.PkgPath()] = fieldComments(g.t, t.PkgPath())
	}
	var paragraphs []string
	for p := range strings.SplitSeq(g.comments[t.PkgPath()][t.Name()+"."+f.Name], "\n\n") {
		paragraphs = append(paragraphs, strings.Join(strings.Fields(p), " "))
	}
	says = strings.Join(paragraphs, "\n\n")
	if says != "" && !strings.HasSuffix(says, ".") && !strings.HasSuffix(says, ")") {
		says += "."
	}
	if m := exampleAtEnd.FindStringSubmatch(says); m != nil {
		says, example = strings.TrimSuffix(says, m[0]), m[1]
	}
	if rest, ok := strings.CutPrefix(says, f.Name+" "); ok {
		says = name + " " + rest
	}
	return says, example
}

// fieldComments returns the comments of the fields of a package's structs, by TYPE.FIELD.
func fieldComments(t *testing.T, pkg string) map[string]string {
	t.Helper()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.Dir}}", pkg).Output()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			typ, isType := n.(*ast.TypeSpec)
			if !isType {
				return true
			}
			if s, isStruct := typ.Type.(*ast.StructType); isStruct {
				for _, f := range s.Fields.List {
					for _, name := range f.Names {
						found[typ.Name.Name+"."+name.Name] = f.Doc.Text()
					}
				}
			}
			return true
		})
	}
	return found
}

// weirDefaults returns the defaults of a WeirConfiguration as users write them: the values that the settings have in the
// fields of the same names.
func weirDefaults(t *testing.T) map[string]any {
	d := spec.DefaultWeirConfiguration()
	all := defaultsOf(t, reflect.TypeFor[WeirFields](), reflect.ValueOf(d))
	all["nodePortRange"] = fmt.Sprintf("%d-%d", d.NodePortMin, d.NodePortMax)
	return all
}

func defaultsOf(t *testing.T, fields reflect.Type, settings reflect.Value) map[string]any {
	t.Helper()
	all := map[string]any{}
	for f := range fields.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		v := settings.FieldByName(f.Name)
		switch {
		case !v.IsValid() && f.Name != "NodePortRange" && f.Name != "AllowHosts": // the latter is Hosts, and nil
			t.Errorf("%s: the settings have no field of that name to take the default from", name)
		case !v.IsValid():
		case v.Kind() == reflect.Struct:
			all[name] = defaultsOf(t, f.Type.Elem(), v)
		case v.Type() == reflect.TypeFor[time.Duration]():
			all[name] = v.Interface().(time.Duration).String()
		default:
			all[name] = untyped(t, v.Interface())
		}
	}
	return all
}

// untyped returns a value as it is decoded from JSON.
func untyped(t *testing.T, v any) (out any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tree(t *testing.T, v any) map[string]any {
	t.Helper()
	return untyped(t, v).(map[string]any)
}

// valueAt returns the value at a path of a tree, or nil if it is empty or a section.
func valueAt(tree map[string]any, path string) any {
	name, rest, deeper := strings.Cut(path, ".")
	v := tree[name]
	if below, ok := v.(map[string]any); ok && deeper {
		return valueAt(below, rest)
	}
	switch v := v.(type) {
	case string:
		if v == "" {
			return nil
		}
	case []any:
		if len(v) == 0 {
			return nil
		}
	case map[string]any:
		return nil
	}
	return v
}

func texts[T ~string](words []T) (all []string) {
	for _, w := range words {
		all = append(all, string(w))
	}
	return all
}

func values(words []string) (all []any) {
	for _, w := range words {
		all = append(all, w)
	}
	return all
}

// unset returns the words, and the values that stand for a field that is left out.
func unset(words []string) []any { return append(values(words), "", nil) }

// properties returns all properties of a schema, by path. Those of the objects in a list have "[]" in it.
func properties(s *schema.Schema) map[string]*schema.Schema {
	all := map[string]*schema.Schema{}
	for name, p := range s.Properties {
		all[name] = p
		inner, infix := p, "."
		if p.Items != nil {
			inner, infix = p.Items, "[]."
		}
		for path, q := range properties(inner) {
			all[name+infix+path] = q
		}
	}
	return all
}

// addWarnings adds to the description of each field what the decoder warns of when it is set.
func (g *generator) addWarnings(s *schema.Schema) {
	all := properties(s)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		for _, v := range settings(all[path]) {
			_, warnings, _ := Decode(docOf("", 1, documentWith(g.t, KubeProxyAPIVersion, KubeProxyKind, map[string]any{path: v})))
			for _, w := range warnings {
				of, ok := all[w.Field]
				if says := w.Field + " " + w.Detail + "."; ok && w.ID() == spec.SettingIgnored && !strings.Contains(of.Description, says) {
					of.Description = strings.TrimSuffix(of.Description, ".") + ". " + says
				}
			}
		}
	}
}

// settings returns the values that a schema shows: its default and examples.
func settings(s *schema.Schema) []any {
	if s.Default == nil {
		return s.Examples
	}
	return append([]any{s.Default}, s.Examples...)
}

// documentWith returns a document that has the given values at paths.
func documentWith(t *testing.T, version, kind string, values map[string]any) []byte {
	t.Helper()
	root := map[string]any{"apiVersion": version, "kind": kind}
	for _, path := range slices.Sorted(maps.Keys(values)) {
		if strings.Contains(path, "[]") {
			continue // the list has it in its example
		}
		names, at := strings.Split(path, "."), root
		for _, name := range names[:len(names)-1] {
			below, ok := at[name].(map[string]any)
			if !ok {
				below = map[string]any{}
				at[name] = below
			}
			at = below
		}
		at[names[len(names)-1]] = untyped(t, values[path]) // a copy, into which more is written
	}
	data, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func readFile(t *testing.T, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
