// Endpoints are deprecated, and what many people have.
//
//lint:file-ignore SA1019 see above

package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"weir/spec"
	"weir/spec/config"
	"weir/spec/yamlpos"
)

const (
	// maxProblemsPerDocument keeps a hostile document from filling the memory with what is wrong with it.
	maxProblemsPerDocument = 100
	// noKind is how documents that are no Kubernetes objects are counted.
	noKind = "(no kind)"
	// maxLookedUp bounds the bytes of a document that are searched for the lines of fields, since each search parses anew.
	maxLookedUp = 4 << 20
	// template is reported once for a file.
	template = "is a template that has not been rendered; give weir what it renders to (helm template, envsubst, ...), or keep it elsewhere"
)

// kind is one of the kinds that a Set understands.
type kind uint8

const (
	kindService kind = iota
	kindSlice
	kindEndpoints
	kindNode
	// kindLocked is an entry of an AllocationLock.
	kindLocked
)

func (k kind) String() string {
	return [...]string{kindService: "Service", kindSlice: "EndpointSlice", kindEndpoints: "Endpoints", kindNode: "Node", kindLocked: "lock"}[k]
}

// objectID names an object. Nodes have no namespace.
type objectID struct {
	kind kind
	name spec.Name
}

func (id objectID) String() string {
	switch id.kind {
	case kindNode:
		return fmt.Sprintf("%s %s", id.kind, id.name.Name)
	case kindLocked:
		return "lock of Service " + id.name.String()
	}
	return fmt.Sprintf("%s %s", id.kind, id.name)
}

// object is one valid object of a document, with its defaults set as far as they depend on nothing else, and without what
// resolving has no use for. It is immutable, but for service.base.
type object struct {
	id   objectID
	line int // counted from the beginning of its document, from 1

	service   *service
	slice     *discoveryv1.EndpointSlice
	sliceOf   string // the name of the slice's Service, or ""
	endpoints *corev1.Endpoints
	node      *corev1.Node
	pin       *pin
}

// configuration is a document that configures weir. At most one of proxy and weir is set.
type configuration struct {
	line  int // counted from the beginning of the document, from 1
	proxy *config.KubeProxy
	weir  *spec.WeirConfiguration
}

// content is what one document declares. All lines count from the beginning of the document, so that it stays valid
// when the document moves within its file.
type content struct {
	size int
	hash uint64

	objects []*object
	*others

	// raw is the document itself while an Update that brought it runs, for finding the lines of fields.
	raw []byte
}

// others is what few documents have besides objects. Those that have none of it share noOthers, which saves memory.
type others struct {
	config   *configuration
	lock     bool // it is an AllocationLock
	problems []spec.Problem
	notices  []spec.Problem
	// skipped counts objects of other kinds; nil for none.
	skipped map[string]int
}

var noOthers = &others{}

func (o *others) none() bool {
	return o.config == nil && !o.lock && len(o.problems)+len(o.notices)+len(o.skipped) == 0
}

// decoder decodes documents. It is safe for concurrent use.
type decoder struct {
	seed   maphash.Seed
	intern *interner
	// ignoreConfig says, for a path, that configuration in that file does not count.
	ignoreConfig func(path string) bool
}

// document decodes one document.
type document struct {
	*decoder
	path string
	text text
	out  *content
	// lookedUp counts the bytes that were searched for the lines of fields.
	lookedUp int
}

func (d *decoder) decode(path string, t text, hash uint64) *content {
	doc := &document{decoder: d, path: path, text: t, out: &content{size: len(t.data), hash: hash, others: &others{}, raw: t.data}}
	doc.decode()
	doc.unrendered()
	if doc.out.none() {
		doc.out.others = noOthers
	}
	return doc.out
}

// header is what tells documents apart.
type header struct {
	APIVersion json.RawMessage `json:"apiVersion"`
	Kind       json.RawMessage `json:"kind"`
	Metadata   json.RawMessage `json:"metadata"`
}

func (d *document) decode() {
	data, problems := toJSON(d.text)
	for _, p := range problems {
		d.problemAt(p.line, "", p.field, p.detail)
	}
	if data == nil {
		return
	}
	if data[0] != '{' {
		d.notAnObject(data)
		return
	}
	d.object(data, d.place(d.firstLine(), 1, "", d.text.data), "")
}

func (d *document) notAnObject(data []byte) {
	switch {
	case data[0] == '[':
		d.skip(noKind)
	case bytes.HasPrefix(d.text.data, []byte("version https://git-lfs")):
		d.problemAt(1, "", "", "is a Git LFS pointer; run git lfs pull to have the file itself")
	case string(data) != "null":
		d.problemAt(d.firstLine(), "", "", "is not a Kubernetes object: it has no fields, only "+quote(strings.Trim(string(data), `"`)))
	}
}

// firstLine is the line of the document's first field.
func (d *document) firstLine() int {
	n := 0
	for line := range bytes.Lines(d.text.data) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' && line[0] != '%' && !(isMarker(line, "---") && len(bytes.TrimSpace(bytes.TrimLeft(line, "-"))) == 0) {
			return n
		}
	}
	return 1
}

// place says where in its document an object is written.
type place struct {
	line int
	find func(field string) int
}

// place returns the place of an object that begins on a line. Its fields are to be looked for, below prefix, in text that
// begins on textLine.
func (d *document) place(line, textLine int, prefix string, text []byte) place {
	return place{line: line, find: func(field string) int {
		if d.lookedUp += len(text); d.lookedUp > maxLookedUp {
			return line
		}
		return yamlpos.Line(text, textLine, prefix+field)
	}}
}

// object takes in an object, or the objects of a List.
func (d *document) object(data []byte, at place, within string) {
	var h header
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &h); err != nil {
		d.problemAt(at.line, "", within, "is not an object: "+err.Error())
		return
	}
	apiVersion, okVersion := unquoteJSON(h.APIVersion)
	name, okKind := unquoteJSON(h.Kind)
	if !okVersion || !okKind {
		d.problemAt(at.line, "", within, "apiVersion and kind must be strings")
		return
	}
	base := filepath.Base(d.path)
	switch {
	case name == "" && base == "Chart.yaml" && h.Metadata == nil:
		d.notRendered(at.line, "Helm chart", "is not rendered here, and its templates are not read: give weir what helm template makes of it")
	case name == "Kustomization" || base == "kustomization.yaml" || base == "kustomization.yml":
		d.notRendered(at.line, "Kustomization", "is not built here, and what it refers to is read as it is: give weir what kustomize build makes of it if it changes Services")
	case name == "" && (apiVersion != "" && h.Metadata != nil || hasName(h.Metadata)):
		d.problemAt(at.line, "", "kind", "is missing")
	case name == "":
		d.skip(noKind)
	case config.IsKubeProxy(name), config.IsWeir(name):
		d.config(name, config.Doc{File: d.path, Line: 1, Bytes: d.text.data}, at, within)
	case name == spec.LockKind:
		d.lock(data, at, within)
	case name == "ConfigMap" && apiVersion == "v1":
		d.configMap(at, within)
	case apiVersion == "":
		d.problemAt(at.line, printable(name), "apiVersion", "is missing")
	default:
		d.byKind(data, apiVersion, name, at, within)
	}
}

func (d *document) byKind(data []byte, apiVersion, name string, at place, within string) {
	switch apiVersion + " " + name {
	case "v1 Service":
		d.service(data, at)
	case "v1 Endpoints":
		d.endpoints(data, at)
	case "discovery.k8s.io/v1 EndpointSlice":
		d.slice(data, at)
	case "v1 Node":
		d.node(data, at)
	case "v1 List", "v1 ServiceList", "v1 EndpointsList", "v1 NodeList", "discovery.k8s.io/v1 EndpointSliceList":
		if within != "" {
			d.problemAt(at.line, name, within, "is a List within a List")
			return
		}
		d.list(data, apiVersion, name)
	default:
		if hint := mistaken(apiVersion, name); hint != "" {
			d.problemAt(at.find("apiVersion"), printable(name), "apiVersion", fmt.Sprintf("%s, kind %s: %s", quote(apiVersion), quote(name), hint))
			return
		}
		d.skip(name)
	}
}

// mistaken says what is wrong with a kind that was surely meant to be one of those understood, or "".
func mistaken(apiVersion, name string) string {
	group, _, grouped := strings.Cut(apiVersion, "/")
	if !grouped {
		group = ""
	}
	for _, known := range []struct{ group, version, kind string }{
		{"", "v1", "Service"}, {"", "v1", "Endpoints"}, {"", "v1", "Node"}, {"", "v1", "List"},
		{"discovery.k8s.io", "v1", "EndpointSlice"},
	} {
		version := known.version
		if known.group != "" {
			version = known.group + "/" + known.version
		}
		switch {
		case known.kind == "EndpointSlice" && name == known.kind && strings.HasPrefix(apiVersion, "discovery.k8s.io/v1beta"):
			return "is an old version; write discovery.k8s.io/v1 and move each endpoint's topology to its nodeName and zone"
		case name == known.kind && known.kind == "EndpointSlice" && apiVersion != version, name == known.kind && group == "" && apiVersion != version:
			return "must be apiVersion " + version
		case name != known.kind && strings.EqualFold(name, known.kind) && apiVersion == version:
			return "must be kind " + known.kind
		}
	}
	return ""
}

// list takes in the items of a List.
func (d *document) list(data []byte, apiVersion, name string) {
	var list struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        json.RawMessage   `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	whole := d.place(d.firstLine(), 1, "", d.text.data)
	for _, p := range decodeStrict(data, &list) {
		d.problemAt(whole.find(p.field), name, p.field, p.detail)
	}
	if len(list.Items) == 0 {
		return
	}
	places := d.itemPlaces("items")
	for i, item := range list.Items {
		if len(d.out.problems) >= maxProblemsPerDocument {
			return
		}
		within := fmt.Sprintf("items[%d]", i)
		at := whole
		if i < len(places) {
			at = places[i]
		}
		if len(item) == 0 || item[0] != '{' {
			d.problemAt(at.line, name, within, "is not an object")
			continue
		}
		if name != "List" { // the API leaves the kind out of the items of its own lists
			item = withKind(item, apiVersion, strings.TrimSuffix(name, "List"))
		}
		d.object(item, at, within)
	}
}

// withKind gives an object an apiVersion and kind, if it has no kind.
func withKind(item []byte, apiVersion, name string) []byte {
	var meta metav1.TypeMeta
	if kjson.UnmarshalCaseSensitivePreserveInts(item, &meta) != nil || meta.Kind != "" || meta.APIVersion != "" {
		return item
	}
	head := fmt.Sprintf(`{"apiVersion":%q,"kind":%q`, apiVersion, name)
	rest := bytes.TrimSpace(item[1:])
	if len(rest) > 0 && rest[0] != '}' {
		head += ","
	}
	return append([]byte(head), rest...)
}

func (d *document) config(name string, doc config.Doc, at place, within string) {
	switch {
	case d.ignoreConfig(d.path):
		d.notice(at.line, name, "is ignored, since --config names another file")
		d.skip(name)
	case within != "":
		d.problemAt(at.line, name, within, "must be a document of its own, not part of a List")
	case config.IsWeir(name):
		c, errs := config.DecodeWeir(doc)
		d.out.config = &configuration{line: at.line, weir: &c}
		d.out.problems = append(d.out.problems, errs...)
	default:
		c, warnings, errs := config.Decode(doc)
		d.out.config = &configuration{line: at.line, proxy: c}
		d.out.notices = append(d.out.notices, warnings...)
		d.out.problems = append(d.out.problems, errs...)
	}
}

// configMap looks for kubeadm's ConfigMap, which holds a KubeProxyConfiguration.
func (d *document) configMap(at place, within string) {
	doc := config.Doc{File: d.path, Line: 1, Bytes: d.text.data}
	if within == "" && bytes.Contains(d.text.data, []byte(config.KubeProxyKind)) {
		if inner, ok := config.FromConfigMap(doc); ok {
			d.config(config.KubeProxyKind, inner, at, within)
			return
		}
	}
	d.skip("ConfigMap")
}

func (d *document) skip(name string) {
	if d.out.skipped == nil {
		d.out.skipped = map[string]int{}
	}
	d.out.skipped[printable(name)]++
}

// notRendered skips a document that says how manifests are made.
func (d *document) notRendered(line int, what, detail string) {
	d.out.notices = append(d.out.notices, spec.Problem{Origin: spec.Origin{File: d.path, Line: line}, Object: what, Detail: detail, Code: spec.CodeNotRendered})
	d.skip(what)
}

// hasName says whether this is the metadata of an object.
func hasName(metadata json.RawMessage) bool {
	var m struct {
		Name *string `json:"name"`
	}
	return json.Unmarshal(metadata, &m) == nil && m.Name != nil
}

func (d *document) notice(line int, object, detail string) {
	d.out.notices = append(d.out.notices, spec.Problem{Origin: spec.Origin{File: d.path, Line: line}, Object: object, Detail: detail})
}

func (d *document) problemAt(line int, object, field, detail string) {
	switch n := len(d.out.problems); {
	case n == maxProblemsPerDocument:
		object, field, detail = "", "", "and more problems in this document"
	case n > maxProblemsPerDocument:
		return
	}
	d.out.problems = append(d.out.problems, spec.Problem{
		Origin: spec.Origin{File: d.path, Line: line}, Object: object, Field: printable(field), Detail: detail,
	})
}

// unrendered replaces what is wrong with a template that nobody rendered, or with a merge that nobody finished, by what is
// really wrong with it.
func (d *document) unrendered() {
	if len(d.out.problems) == 0 {
		return
	}
	line := 0
	for l := range bytes.Lines(d.text.data) {
		line++
		switch {
		case bytes.HasPrefix(l, []byte("<<<<<<< ")):
			d.replaceProblems(line, "has the conflict markers of a Git merge that was not finished")
			return
		case isTemplate(l) && d.atFault(line), isSubstituted(l) && d.blamed(line):
			d.replaceProblems(line, template)
			return
		}
	}
}

// isTemplate says whether a line has the syntax of Go templates or Jinja.
func isTemplate(line []byte) bool {
	return bytes.Contains(line, []byte("{{")) || bytes.HasPrefix(bytes.TrimSpace(line), []byte("{%"))
}

// isSubstituted says whether a line has the syntax of envsubst or ytt, which is also that of shell scripts and comments.
func isSubstituted(line []byte) bool {
	return bytes.Contains(line, []byte("${")) || bytes.Contains(line, []byte("#@ "))
}

// atFault says whether a line with template syntax is what a problem is about.
func (d *document) atFault(line int) bool {
	return d.blamed(line) || slices.ContainsFunc(d.out.problems, func(p spec.Problem) bool { return strings.HasPrefix(p.Detail, "not YAML") })
}

// blamed says whether a problem is on a line.
func (d *document) blamed(line int) bool {
	return slices.ContainsFunc(d.out.problems, func(p spec.Problem) bool { return p.Origin.Line == line })
}

func (d *document) replaceProblems(line int, detail string) {
	d.out.problems = []spec.Problem{{Origin: spec.Origin{File: d.path, Line: line}, Detail: detail}}
}

// unquoteJSON returns the string that a field holds, "" if there is no field.
func unquoteJSON(raw json.RawMessage) (s string, ok bool) {
	if raw == nil {
		return "", true
	}
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}
