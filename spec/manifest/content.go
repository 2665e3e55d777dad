// Endpoints are deprecated, and what many people have.
//
//lint:file-ignore SA1019 see above

package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	kjson "sigs.k8s.io/json"

	"weir/backends/dataplane"
	"weir/spec"
	"weir/spec/config"
	"weir/spec/document"
)

const (
	// maxProblemsPerDocument limits the memory that the problems of a hostile document can take.
	maxProblemsPerDocument = 100
	// noKind is the name under which documents that are no Kubernetes objects are counted.
	noKind = spec.SkippedNoKind
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
	// kindGKEPolicy and kindAzurePolicy are HealthCheckPolicies of two groups.
	kindGKEPolicy
	kindAzurePolicy
)

func (k kind) String() string {
	return [...]string{kindService: "Service", kindSlice: "EndpointSlice", kindEndpoints: "Endpoints", kindNode: "Node", kindLocked: "lock", kindGKEPolicy: policyKind, kindAzurePolicy: policyKind}[k]
}

// objectID names an object. Nodes have no namespace.
type objectID struct {
	kind kind
	name dataplane.ServiceName
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

// object is one valid object of a document. Defaults are set where they depend on nothing else, and fields that
// resolving does not use are removed. It is immutable, except for service.base.
type object struct {
	id   objectID
	line int // from the beginning of its document, counted from 1

	service   *service
	slice     *discoveryv1.EndpointSlice
	sliceOf   string // the name of the slice's Service, or ""
	endpoints *corev1.Endpoints
	node      *corev1.Node
	pin       *pin
	policy    *policy
}

// configuration is a document that configures weir. At most one of proxy and weir is set.
type configuration struct {
	line  int // from the beginning of the document, counted from 1
	proxy *config.KubeProxy
	// embedded reports whether it was written in a string of a ConfigMap.
	embedded bool
	weir     *spec.WeirConfiguration
	// subnets are the service subnets of a ClusterConfiguration.
	subnets []netip.Prefix
	// kubelet is what a KubeletConfiguration says of names, or nil.
	kubelet *kubeletNames
}

// content is what one document declares. All lines count from the beginning of the document, so that content stays
// valid when the document moves within its file.
type content struct {
	size int
	hash uint64
	// body is the hash of the text without its marker and the blanks around it.
	body uint64

	objects []*object
	// ours reports whether it is of a kind that a Set reads, valid or not.
	ours bool
	*others

	// text is the document's text while its Update runs. It serves to find the lines of fields.
	text document.Text
}

// others is what few documents have besides objects. Documents without any of it share noOthers, which saves memory.
type others struct {
	config *configuration
	lock   bool // it is an AllocationLock
	chart  bool // it describes a Helm chart
	// kustomization is the kustomization that it is, or nil.
	kustomization *kustomization
	problems      []spec.Problem
	notices       []spec.Notice
	// skipped are the objects of other kinds.
	skipped []spec.Skipped
	// pods and templates are what it tells of pods.
	pods      []*corev1.Pod
	templates []*spec.Template
	// unchosen are the Services that were left out.
	unchosen []dataplane.ServiceName
	// aside are the problems of a document that is skipped because of them.
	aside []spec.Problem
}

var noOthers = &others{}

func (o *others) none() bool {
	return o.config == nil && !o.lock && !o.chart && o.kustomization == nil && len(o.problems)+len(o.notices)+len(o.skipped)+len(o.aside)+len(o.unchosen)+len(o.pods)+len(o.templates) == 0
}

// declares reports whether the document holds anything that a Set uses.
func (c *content) declares() bool { return len(c.objects) > 0 || c.config != nil || c.lock }

// decoder decodes documents. It is safe for concurrent use.
type decoder struct {
	seed   maphash.Seed
	intern *interner
	// configFile is the file named with --config, or "".
	configFile string
	// lockFile is the file named with --lock, or "".
	lockFile string
	// strict refuses documents of every kind.
	strict bool
	// namespace is the only one that is used, and that of objects that name none; "" stands for all.
	namespace string
	// selector chooses Services; nil chooses all.
	selector labels.Selector
}

// ignoreConfig reports whether configuration in the file of that path is ignored.
func (d *decoder) ignoreConfig(path string) bool { return d.configFile != "" && path != d.configFile }

// named reports whether the user named the file of that path for what it holds.
func (d *decoder) named(path string) bool {
	return d.configFile != "" && path == d.configFile || d.lockFile != "" && path == d.lockFile
}

// decoding is the decoding of one document.
type decoding struct {
	*decoder
	path string
	text document.Text
	out  *content
	// isObject reports whether the document is an object, and ours whether it is of a kind that a Set reads.
	isObject, ours bool
	// whole reports whether the document is not parsed only because it is too large.
	whole bool
	// known reports whether its kind is surely one that a Set reads, so that its fields may be named.
	known bool
	// foreignItems are the items of a List that are of other kinds.
	foreignItems []string
}

// decode decodes a document. Lines count from its own first line.
func (d *decoder) decode(path string, t document.Text, hash uint64) *content {
	t.Line = 1
	in := &decoding{decoder: d, path: path, text: t, out: &content{size: len(t.Data), hash: hash, body: maphash.Bytes(d.seed, t.Body()), others: &others{}, text: t}}
	in.decode()
	in.unrendered()
	in.setAside()
	in.out.ours = in.ours
	if in.out.none() {
		in.out.others = noOthers
	}
	return in.out
}

// header holds the fields that identify a document's kind.
type header struct {
	APIVersion json.RawMessage `json:"apiVersion"`
	Kind       json.RawMessage `json:"kind"`
	Metadata   json.RawMessage `json:"metadata"`
}

func (d *decoding) decode() {
	doc := document.Parse(d.text)
	if data := doc.JSON(); len(data) > 0 && data[0] == '{' {
		d.isObject = true
		d.object(doc, header{}, "")
	} else if data != nil {
		d.notAnObject(doc)
	} else {
		d.whole = slices.ContainsFunc(doc.Problems(), document.Problem.BeyondLimits)
	}
	if d.out.config == nil || d.out.config.embedded { // a problem in the header of a configuration was reported with it
		for _, p := range doc.Problems() {
			if !slices.ContainsFunc(d.foreignItems, func(item string) bool { return strings.HasPrefix(p.Field, item) }) {
				if !d.known || d.out.config == nil && slices.ContainsFunc(d.out.skipped, func(s spec.Skipped) bool { return s.Kind != kubeadmKind && s.Kind != kubeletKind }) {
					p.Field = "" // the keys of a document of another kind are not printed
				}
				d.problemAt(p.Line, "", p.Field, p.Detail)
			}
		}
	}
}

// setAside skips a document with problems that can be of no kind that a Set reads.
func (d *decoding) setAside() {
	o := d.out.others
	switch {
	case len(o.problems) == 0 || d.strict || d.named(d.path):
		return
	case d.isObject && d.ours, !d.isObject && mayBeOurs(d.text.Data, d.whole):
		return
	}
	first := o.problems[0]
	o.aside, o.problems = o.problems, nil
	if len(o.skipped) == 0 {
		kind := noKind
		for top := range topFields(d.text.Data, topKind, "kind") {
			kind = cmp.Or(top, noKind)
			break
		}
		d.skip(kind, first.Origin.Line)
	}
	o.skipped[0].Reason = first.Detail
	if first.Field != "" && d.known {
		o.skipped[0].Reason = first.Field + ": " + first.Detail
	}
}

func (d *decoding) notAnObject(doc *document.Document) {
	data := string(doc.JSON())
	switch {
	case data[0] == '[':
		d.skip(noKind, doc.Start())
	case bytes.HasPrefix(d.text.Data, []byte("version https://git-lfs")):
		d.problemAt(1, "", "", "is a Git LFS pointer; run git lfs pull to have the file itself")
	case data == "null":
		d.skip(noKind, doc.Start())
	default:
		d.problemAt(doc.Start(), "", "", "is not a Kubernetes object: it has no fields")
	}
}

// object takes an object, or the objects of a List. An object without a kind has the implied header.
func (d *decoding) object(at *document.Document, implied header, within string) {
	var h header
	if err := kjson.UnmarshalCaseSensitivePreserveInts(at.JSON(), &h); err != nil {
		d.problemAt(at.Start(), "", within, "is not an object: "+err.Error())
		return
	}
	if h.APIVersion == nil && h.Kind == nil {
		h.APIVersion, h.Kind = implied.APIVersion, implied.Kind
	}
	apiVersion, okVersion := unquoteJSON(h.APIVersion)
	name, okKind := unquoteJSON(h.Kind)
	if !d.strict && within == "" && okKind && apiVersion == "" && onlyNamed(name, at.JSON()) {
		d.problemAt(at.Start(), "", "", "has the kind of one of weir's, no apiVersion, and no field of such an object")
		return
	}
	ours := d.strict || okKind && isOurs(apiVersion, name) || !okKind && names(h.Kind)
	d.ours = d.ours || ours
	d.known = d.known || okKind && isOurs(apiVersion, name)
	if !ours && within != "" {
		d.foreignItems = append(d.foreignItems, within)
	}
	if !okVersion || !okKind {
		d.fault(ours, at.Start(), noKind, "", within, "apiVersion and kind must be strings")
		return
	}
	base := filepath.Base(d.path)
	switch {
	case name == "" && base == "Chart.yaml" && h.Metadata == nil:
		d.out.chart = true
		d.skip(spec.SkippedChart, at.Start())
	case within == "" && d.isKustomization(apiVersion, name):
		d.kustomization(at)
	case name == "" && within == "" && groupOf(apiVersion) != nil && groupOf(apiVersion).closed:
		d.ours = true
		d.problemAt(at.Start(), "", "kind", "is missing")
	case name == "" && h.Metadata != nil && (apiVersion != "" && groupOf(apiVersion) != nil || d.strict && (apiVersion != "" || hasName(h.Metadata))):
		d.ours = true
		d.problemAt(at.Start(), "", "kind", "is missing")
	case name == "":
		d.skip(noKind, at.Start())
	case config.IsKubeProxy(name), config.IsWeir(name):
		d.config(name, config.Doc{File: d.path, Document: at}, at, within)
	case name == spec.LockKind:
		d.lock(at, within)
	case name == kubeadmKind && strings.HasPrefix(apiVersion, kubeadmGroup+"/") && within == "":
		d.kubeadm(at)
	case name == kubeletKind && strings.HasPrefix(apiVersion, kubeletGroup+"/") && within == "":
		d.kubelet(at)
	case name == "ConfigMap" && apiVersion == "v1":
		d.configMap(at, within)
	case apiVersion == "" && isOurs("", name):
		d.fault(ours, at.Start(), name, name, "apiVersion", "is missing")
	case apiVersion == "": // of no kind that is known, so that even the kind may be a secret
		d.fault(ours, at.Start(), noKind, "", within, "has no apiVersion")
	default:
		d.byKind(apiVersion, name, h.Metadata, at, within)
	}
}

// fault reports a problem of an object that is ours, and skips any other.
func (d *decoding) fault(ours bool, line int, kind, object, field, detail string) {
	if ours {
		d.problemAt(line, object, field, detail)
		return
	}
	d.skip(kind, line)
}

func (d *decoding) byKind(apiVersion, name string, metadata json.RawMessage, at *document.Document, within string) {
	if namespaced := apiVersion+" "+name != "v1 Node"; namespaced && isOurs(apiVersion, name) && d.leaveOut(name, metadata, at.Start()) {
		return
	}
	switch apiVersion + " " + name {
	case "v1 Service":
		d.service(at)
	case "v1 Endpoints":
		d.endpoints(at)
	case "discovery.k8s.io/v1 EndpointSlice":
		d.slice(at)
	case "v1 Node":
		d.node(at)
	case gkeGroup + "/v1 " + policyKind:
		d.gkePolicy(at)
	case azureGroup + "/v1 " + policyKind:
		d.azurePolicy(at)
	case "v1 PodList":
		d.podList(at)
	case "v1 List", "v1 ServiceList", "v1 EndpointsList", "v1 NodeList", "discovery.k8s.io/v1 EndpointSliceList",
		gkeGroup + "/v1 " + policyKind + "List", azureGroup + "/v1 " + policyKind + "List":
		if within != "" {
			d.problemAt(at.Start(), name, within, "is a List within a List")
			return
		}
		d.list(at, apiVersion, name)
	default:
		if field, hint := misspelt(apiVersion, name); hint != "" {
			d.problemAt(at.Line(field), document.Printable(name), field, fmt.Sprintf("%s, kind %s: %s", document.Quote(apiVersion), document.Quote(name), hint))
			return
		}
		if !hasPods(apiVersion, name) || !d.pods(name, at) {
			d.skip(foreignKind(apiVersion, name), at.Start())
		}
	}
}

// list takes the items of a List.
func (d *decoding) list(doc *document.Document, apiVersion, name string) {
	var list struct {
		metav1.TypeMeta `json:",inline"`
		Metadata        json.RawMessage   `json:"metadata"`
		Items           []json.RawMessage `json:"items"`
	}
	for _, p := range doc.Decode(&list) {
		d.problemAt(p.Line, name, p.Field, p.Detail)
	}
	var implied header
	if name != "List" { // the API leaves out the kind of items in its own lists
		implied = header{APIVersion: quoteJSON(apiVersion), Kind: quoteJSON(strings.TrimSuffix(name, "List"))}
	}
	for i, item := range doc.Items("items") {
		if len(d.out.problems) >= maxProblemsPerDocument {
			return
		}
		within := fmt.Sprintf("items[%d]", i)
		if item.JSON()[0] != '{' {
			d.problemAt(item.Start(), name, within, "is not an object")
			continue
		}
		d.object(item, implied, within)
	}
}

func (d *decoding) config(name string, doc config.Doc, at *document.Document, within string) {
	d.ours = true
	switch {
	case d.ignoreConfig(d.path):
		d.out.notices = append(d.out.notices, spec.SettingIgnored.Notice(spec.Origin{File: d.path, Line: at.Start()}, name, "", "is ignored, since --config names another file"))
		d.skip(name, at.Start())
	case within != "":
		d.problemAt(at.Start(), name, within, "must be a document of its own, not part of a List")
	case config.IsWeir(name):
		c, errs := config.DecodeWeir(doc)
		d.out.config = &configuration{line: at.Start(), weir: &c}
		d.out.problems = append(d.out.problems, errs...)
	default:
		c, warnings, errs := config.Decode(doc)
		d.out.config = &configuration{line: at.Start(), proxy: c, embedded: doc.Document != at}
		d.out.notices = append(d.out.notices, warnings...)
		d.out.problems = append(d.out.problems, errs...)
	}
}

// configMap looks for kubeadm's ConfigMap, which holds a KubeProxyConfiguration.
func (d *decoding) configMap(at *document.Document, within string) {
	doc := config.Doc{File: d.path, Document: at}
	if within == "" && carriesConfig(d.text.Data) {
		if inner, ok := config.FromConfigMap(doc); ok {
			d.config(config.KubeProxyKind, inner, at, within)
			return
		}
		if inner, ok := config.Carried(doc); ok && !d.ignoreConfig(d.path) && d.misspeltConfig(inner) {
			return
		}
	}
	if within == "" && bytes.Contains(d.text.Data, []byte(kubeadmKind)) && at.String("metadata.name") == "kubeadm-config" {
		if text, ok := at.Embedded("data." + kubeadmKind); ok {
			inner := document.Parse(text)
			for _, p := range inner.Problems() {
				d.ours = true
				d.problemAt(p.Line, kubeadmKind, p.Field, p.Detail)
			}
			if inner.JSON() != nil {
				d.kubeadm(inner)
				return
			}
			d.skip(kubeadmKind, at.Start())
			return
		}
	}
	d.skip("ConfigMap", at.Start())
}

// misspeltConfig reports a document in a ConfigMap that is of no kind, but surely meant to be a KubeProxyConfiguration.
func (d *decoding) misspeltConfig(at config.Doc) bool {
	apiVersion, kind := at.String("apiVersion"), at.String("kind")
	own := groupOf(config.KubeProxyAPIVersion)
	switch {
	case groupOf(apiVersion) == own && kind == "" && at.JSON() != nil:
		d.problemAt(at.Start(), "ConfigMap", "kind", "is missing in "+config.ConfigMapKey+"; write "+config.KubeProxyKind)
	case groupOf(apiVersion) == own || own.nearest(kind) != "":
		_, hint := misspelt(config.KubeProxyAPIVersion, kind)
		d.problemAt(at.Line("kind"), "ConfigMap", "kind", fmt.Sprintf("%s, kind %s: %s", document.Quote(apiVersion), document.Quote(kind), hint))
	default:
		return false
	}
	d.ours = true
	return true
}

func (d *decoding) skip(kind string, line int) {
	kind = d.intern.string(kindName(kind))
	d.out.skipped = append(d.out.skipped, spec.Skipped{Origin: spec.Origin{Line: line}, Kind: kind})
}

var kindForm = regexp.MustCompile(`^[A-Z][A-Za-z0-9]{1,62}$`)

// kindName returns the kind of a document if it has the form of one. Anything else may be a secret.
func kindName(name string) string {
	if name == spec.SkippedChart || kindForm.MatchString(name) {
		return name
	}
	return noKind
}

// hasName reports whether this is the metadata of an object, which has a name.
func hasName(metadata json.RawMessage) bool {
	var m struct {
		Name *string `json:"name"`
	}
	return json.Unmarshal(metadata, &m) == nil && m.Name != nil
}

func (d *decoding) problemAt(line int, object, field, detail string) {
	switch n := len(d.out.problems); {
	case n == maxProblemsPerDocument:
		object, field, detail = "", "", "and more problems in this document"
	case n > maxProblemsPerDocument:
		return
	}
	d.out.problems = append(d.out.problems, spec.Problem{
		Origin: spec.Origin{File: d.path, Line: line}, Object: object, Field: document.Printable(field), Detail: detail,
	})
}

// unrendered replaces the problems of an unrendered template, or of an unfinished merge, by the real cause.
func (d *decoding) unrendered() {
	if len(d.out.problems) == 0 {
		return
	}
	for line, l := range d.text.Lines {
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

// isTemplate reports whether a line has the syntax of Go templates or Jinja.
func isTemplate(line []byte) bool {
	return bytes.Contains(line, []byte("{{")) || bytes.HasPrefix(bytes.TrimSpace(line), []byte("{%"))
}

// isSubstituted reports whether a line has the syntax of envsubst or ytt. Shell scripts and comments may have it too.
func isSubstituted(line []byte) bool {
	return bytes.Contains(line, []byte("${")) || bytes.Contains(line, []byte("#@ "))
}

// atFault reports whether a problem is due to this line with template syntax.
func (d *decoding) atFault(line int) bool {
	return d.blamed(line) || slices.ContainsFunc(d.out.problems, func(p spec.Problem) bool { return strings.HasPrefix(p.Detail, "not YAML") })
}

// blamed reports whether a problem is on this line.
func (d *decoding) blamed(line int) bool {
	return slices.ContainsFunc(d.out.problems, func(p spec.Problem) bool { return p.Origin.Line == line })
}

func (d *decoding) replaceProblems(line int, detail string) {
	d.out.problems = []spec.Problem{{Origin: spec.Origin{File: d.path, Line: line}, Detail: detail}}
}

func quoteJSON(s string) json.RawMessage { return json.RawMessage(strconv.Quote(s)) }

// unquoteJSON returns the string that a field holds, or "" if there is no field.
func unquoteJSON(raw json.RawMessage) (s string, ok bool) {
	if raw == nil {
		return "", true
	}
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}
