package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unique"

	"weir/spec"
	"weir/spec/config"
	"weir/spec/document"
)

// group is an API group with kinds that a Set reads.
type group struct {
	name    string
	version string // the apiVersion to write
	reads   []string
	// others are kinds of the group that are no misspelling of one that is read.
	others []string
	// aliases are what kubectl takes for a kind, in lower case.
	aliases map[string]string
	// closed reports whether every other kind of the group is a mistake.
	closed bool
}

// groups are all groups with kinds that a Set reads.
var groups = []group{
	{
		name: "", version: "v1",
		reads: []string{"Service", "Endpoints", "Node", "List", "ServiceList", "EndpointsList", "NodeList"},
		others: []string{"Binding", "ComponentStatus", "ConfigMap", "Config", "Event", "LimitRange", "Namespace", "PersistentVolume",
			"PersistentVolumeClaim", "Pod", "PodTemplate", "ReplicationController", "ResourceQuota", "Secret", "ServiceAccount", "Status",
			"ConfigMapList", "EventList", "LimitRangeList", "NamespaceList", "PersistentVolumeList", "PersistentVolumeClaimList", "PodList",
			"PodTemplateList", "ReplicationControllerList", "ResourceQuotaList", "SecretList", "ServiceAccountList",
			// OpenShift had its kinds in v1.
			"BuildConfig", "DeploymentConfig", "ImageStream", "Project", "Role", "RoleBinding", "Route", "SecurityContextConstraints", "Template"},
		aliases: map[string]string{"svc": "Service", "ep": "Endpoints", "po": "Pod", "pod": "Pod", "pods": "Pod"},
	},
	{name: "discovery.k8s.io", version: "discovery.k8s.io/v1", reads: []string{"EndpointSlice", "EndpointSliceList"}},
	{ // of any version
		name: kubeadmGroup, reads: []string{kubeadmKind},
		others: []string{"ClusterStatus", "InitConfiguration", "JoinConfiguration", "ResetConfiguration", "UpgradeConfiguration"},
	},
	{name: kubeletGroup, version: kubeletGroup + "/v1beta1", reads: []string{kubeletKind}, others: []string{"CredentialProviderConfig", "SerializedNodeConfigSource"}},
	{name: "kubeproxy.config.k8s.io", version: config.KubeProxyAPIVersion, reads: []string{config.KubeProxyKind}, closed: true},
	{
		name: "weir", version: config.WeirAPIVersion, reads: []string{config.WeirKind, spec.LockKind}, closed: true,
		others: []string{"Allocations", "NodeSnapshot", "Outcome", "Plan", "Status", "Validation"}, // what weir itself prints
	},
	{name: gkeGroup, version: gkeGroup + "/v1", reads: []string{policyKind, policyKind + "List"}},
	{name: azureGroup, version: azureGroup + "/v1", reads: []string{policyKind, policyKind + "List"}},
}

// groupOf returns the group of an apiVersion, or nil if a Set reads nothing of it. Any version counts.
func groupOf(apiVersion string) *group {
	name, version, grouped := strings.Cut(apiVersion, "/")
	if !grouped || version == "" && coreVersion.MatchString(name) {
		name = ""
	}
	if i := slices.IndexFunc(groups, func(g group) bool { return g.name == name }); i >= 0 {
		return &groups[i]
	}
	return nil
}

var (
	coreVersion    = regexp.MustCompile(`^v[0-9]`)
	groupedVersion = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*/[a-z0-9]+$`)
)

// foreignKind returns the kind of an object that no Set reads, or noKind if it is not complete: in a group that a Set reads,
// an unknown kind may be cut off.
func foreignKind(apiVersion, kind string) string {
	if g := groupOf(apiVersion); g != nil && !slices.Contains(g.others, kind) || g == nil && !groupedVersion.MatchString(apiVersion) {
		return noKind
	}
	return kindName(kind)
}

// isOurs reports whether a document is of a kind that a Set reads, whatever its version is, or is meant to be. Without an
// apiVersion, only the very name of a kind counts, in any case.
func isOurs(apiVersion, kind string) bool {
	if apiVersion == "" {
		return slices.ContainsFunc(groups, func(g group) bool {
			return slices.ContainsFunc(g.reads, func(known string) bool { return strings.EqualFold(known, kind) })
		})
	}
	if g := groupOf(apiVersion); g != nil && (slices.Contains(g.reads, kind) || g.nearest(kind) != "" || g.closed && !slices.Contains(g.others, kind)) {
		return true
	}
	return elsewhere(apiVersion, kind) != nil
}

// kubernetesGroups are the groups of Kubernetes itself with no kind that a Set reads, and "core", which people write for v1.
var kubernetesGroups = []string{
	"admissionregistration.k8s.io", "apiextensions.k8s.io", "apiregistration.k8s.io", "apps", "authentication.k8s.io",
	"authorization.k8s.io", "autoscaling", "batch", "certificates.k8s.io", "coordination.k8s.io", "core", "discovery",
	"events.k8s.io", "extensions", "flowcontrol.apiserver.k8s.io", "networking.k8s.io", "node.k8s.io", "policy",
	"rbac.authorization.k8s.io", "resource.k8s.io", "scheduling.k8s.io", "storage.k8s.io",
}

// elsewhere returns the group that has the kind, or one that is a smaller misspelling away than any of the apiVersion's own
// group, if the kind is surely a mistake there; else nil. The groups of other projects may have a Service of their own.
func elsewhere(apiVersion, kind string) *group {
	name, _, grouped := strings.Cut(apiVersion, "/")
	own := groupOf(apiVersion)
	switch {
	case own == nil && !(grouped && slices.Contains(kubernetesGroups, name)) && kind != "EndpointSlice":
		return nil
	case own != nil && (own.closed || slices.Contains(own.reads, kind) || slices.Contains(own.others, kind)):
		return nil
	}
	var best *group
	least := 3
	if own != nil {
		least = own.distance(kind)
	}
	for i := range groups {
		g := &groups[i]
		if g.name == kubeadmGroup || g.name == kubeletGroup {
			continue
		}
		if d := g.distance(kind); d < least {
			best, least = g, d
		}
	}
	return best
}

// distance returns how far the kind is from the nearest that the group has, at most 3.
func (g *group) distance(kind string) int {
	if slices.Contains(g.reads, kind) {
		return 0
	}
	if near := g.nearest(kind); near != "" {
		return document.Distance(strings.ToLower(kind), strings.ToLower(near), 3)
	}
	return 3
}

// objectFields are the fields that an object of Kubernetes has at its top, besides its kind and its apiVersion.
var objectFields = []string{"metadata", "spec", "status", "subsets", "endpoints", "addressType", "items"}

// onlyNamed reports whether an object without an apiVersion has a field named kind with the value of one of Kubernetes',
// and no field of such an object, as a program's own data may have. An object without any other field may be cut off.
func onlyNamed(kind string, data []byte) bool {
	if !slices.ContainsFunc(groups[:2], func(g group) bool {
		return slices.ContainsFunc(g.reads, func(known string) bool { return strings.EqualFold(known, kind) })
	}) {
		return false
	}
	var fields map[string]json.RawMessage
	if json.Unmarshal(data, &fields) != nil {
		return false
	}
	delete(fields, "kind")
	delete(fields, "apiVersion")
	for key := range fields {
		if slices.ContainsFunc(objectFields, func(known string) bool {
			limit := min(3, len(known)/2-1)
			return document.Distance(strings.ToLower(key), strings.ToLower(known), limit) < limit
		}) {
			return false
		}
	}
	return len(fields) > 0
}

// mayBeMeant reports whether a kind is a misspelling away from one that a Set reads, in any group.
func mayBeMeant(kind string) bool {
	return slices.ContainsFunc(groups, func(g group) bool { return g.nearest(kind) != "" })
}

// names reports whether a value that is no string has the name of a kind that a Set reads in it.
func names(kind []byte) bool {
	return slices.ContainsFunc(bytes.FieldsFunc(kind, func(r rune) bool { return !unicode.IsLetter(r) }), func(word []byte) bool {
		return isOurs("", string(word))
	})
}

// nearest returns the kind of the group that is a misspelling away, or "".
func (g *group) nearest(kind string) string {
	if kind == "" || slices.Contains(g.others, kind) || slices.Contains(g.reads, kind) {
		return ""
	}
	if known := g.aliases[strings.ToLower(kind)]; known != "" {
		return known
	}
	best, least := "", 3
	for _, known := range g.reads {
		limit := 3
		switch sameFirst := strings.EqualFold(kind[:1], known[:1]); {
		case !sameFirst && len(known) < 6:
			continue
		case !sameFirst || len(known) < 6:
			limit = 2
		}
		if len(kind)-len(known) >= limit || len(known)-len(kind) >= limit {
			continue // most kinds
		}
		if d := document.Distance(strings.ToLower(kind), strings.ToLower(known), limit); d < limit && d < least {
			best, least = known, d
		}
	}
	return best
}

// misspelt returns what is wrong with a kind that is surely a mistake for one that a Set reads, and the field at fault.
func misspelt(apiVersion, kind string) (field, hint string) {
	g := groupOf(apiVersion)
	switch {
	case kind == "EndpointSlice" && strings.HasPrefix(apiVersion, "discovery.k8s.io/v1beta"):
		return "apiVersion", "is an old version; write discovery.k8s.io/v1 and move each endpoint's topology to its nodeName and zone"
	case elsewhere(apiVersion, kind) != nil:
		g = elsewhere(apiVersion, kind)
		if near := g.nearest(kind); near != "" {
			return "apiVersion", fmt.Sprintf("there is no such kind there; did you mean apiVersion %s, kind %s?", g.version, near)
		}
		return "apiVersion", "must be apiVersion " + g.version
	case g == nil:
		return "", ""
	case slices.Contains(g.reads, kind) && apiVersion != g.version && g.version != "":
		return "apiVersion", "must be apiVersion " + g.version
	}
	near := g.nearest(kind)
	if near == "" && g.closed && !slices.Contains(g.others, kind) {
		near = slices.MinFunc(g.reads, func(a, b string) int {
			return cmp.Compare(document.Distance(kind, a, 100), document.Distance(kind, b, 100))
		})
	}
	if near == "" {
		return "", ""
	}
	return "kind", fmt.Sprintf("there is no such kind in %s; did you mean %s?", apiVersion, near)
}

var (
	kindField = regexp.MustCompile(`(?:^|[\s,{"'-])["']?kind["']?\s*:\s*["']?([A-Za-z][A-Za-z0-9]*)`)
	// topKind and topVersion find fields that are not indented. The value of topKind is "" unless it is one plain word.
	topKind    = regexp.MustCompile(`(?m)^(?:---[ \t]+)?["']?kind["']?[ \t]*:[ \t]*(?:["']?([A-Za-z][A-Za-z0-9]*)["']?[ \t]*(?:#.*)?\r?$)?`)
	topVersion = regexp.MustCompile(`(?m)^(?:---[ \t]+)?["']?apiVersion["']?[ \t]*:[ \t]*["']?([^\s"'#]*)`)
)

// mayBeOurs reports whether a document that cannot be parsed may be of a kind that a Set reads. Kinds that are not
// indented decide, and where there are none, any kind in the text. In a whole document, one that is only too large to be
// parsed, the kind at its top decides.
func mayBeOurs(data []byte, whole bool) bool {
	text := data
	if bytes.IndexByte(data, 0) >= 0 { // UTF-16 and UTF-32 have ASCII with zeros between
		text = bytes.ReplaceAll(data, []byte{0}, nil)
	}
	text = bytes.TrimPrefix(bytes.TrimPrefix(text, []byte("\xff\xfe")), []byte("\xfe\xff"))
	tops := slices.Collect(topFields(text, topKind, "kind"))
	versions := slices.Collect(topFields(text, topVersion, "apiVersion"))
	foreign := len(versions) == 1 && versions[0] != "" && groupOf(versions[0]) == nil
	for _, kind := range tops {
		if !foreign && isOurs("", kind) && kind != "List" || kind == "ConfigMap" && carriesConfig(text) {
			return true
		}
	}
	switch {
	case len(tops) > 0 && !slices.Contains(tops, "List"):
		return false
	case len(tops) == 0 && whole:
		if kind, ok := nestedTop(text); ok {
			return isOurs("", kind) && (kind != "List" || namesOurs(text))
		}
	}
	return namesOurs(text)
}

// namesOurs reports whether a text has a field kind, however deep, with one that a Set reads.
func namesOurs(text []byte) bool {
	for kind := range kindsIn(text) {
		if kind != "List" && isOurs("", kind) {
			return true
		}
	}
	return false
}

// kindsIn yields the values of all fields of that name in a text. It matches only where the name is, because the expression
// is slow on all of a large document.
func kindsIn(text []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		for at := 0; ; at += len("kind") {
			i := bytes.Index(text[at:], []byte("kind"))
			if i < 0 {
				return
			}
			at += i
			m := kindField.FindSubmatch(text[max(at-2, 0):min(at+200, len(text))])
			if m != nil && !yield(string(m[1])) {
				return
			}
		}
	}
}

// topFields yields the values that a field has on lines which are not indented.
func topFields(text []byte, form *regexp.Regexp, field string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for at := 0; ; {
			i := bytes.Index(text[at:], []byte(field))
			if i < 0 {
				return
			}
			start := bytes.LastIndexByte(text[:at+i], '\n') + 1
			line, _, _ := bytes.Cut(text[start:], []byte("\n"))
			before := text[start : at+i]
			at = start + len(line)
			if len(before) > 0 && bytes.IndexByte([]byte(`-"'`), before[0]) < 0 {
				continue
			}
			if m := form.FindSubmatch(line); m != nil && !yield(string(m[1])) {
				return
			}
		}
	}
}

var (
	flowKind = regexp.MustCompile(`^\s*["']?kind["']?\s*:\s*["']?([A-Za-z][A-Za-z0-9]*)`)
	// prologue is what comes before the first node of a document.
	prologue = regexp.MustCompile(`^(?:\xef\xbb\xbf)?(?:(?:[ \t]*(?:#.*)?|%.*|---[ \t]*)\r?\n)*(?:---[ \t]+)?`)
)

// nestedTop returns the kind at the top of a document that has none on a line which is not indented: because all of it is
// indented, because it is written in braces, or because it has none. It is not ok if the kind may come by other ways.
func nestedTop(text []byte) (kind string, ok bool) {
	body := text[len(prologue.Find(text)):]
	indent := len(body) - len(bytes.TrimLeft(body, " "))
	switch body = body[indent:]; {
	case len(body) == 0, body[0] == '[', body[0] == '-' && len(body) > 1 && body[1] <= ' ':
		return "", true
	case body[0] == '{':
		return inBraces(body), true
	case bytes.IndexByte([]byte("?&*!|>"), body[0]) >= 0, bytes.Contains(text, []byte("\n?")), bytes.Contains(text, []byte("<<")):
		return "", false
	case indent == 0:
		return "", true
	}
	margin := append([]byte("\n"), text[len(text)-len(body)-indent:len(text)-len(body)]...)
	for kind := range topFields(bytes.ReplaceAll(text[len(text)-len(body):], margin, []byte("\n")), topKind, "kind") {
		return kind, true
	}
	return "", true
}

// inBraces returns the value of the field kind of a mapping that is written in braces, or "".
func inBraces(data []byte) string {
	depth := 0
	for i := 0; i < len(data); i++ {
		switch data[i] {
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return ""
			}
		case '"':
			for i++; i < len(data) && data[i] != '"'; i++ {
				if data[i] == '\\' {
					i++
				}
			}
		}
		if depth == 1 && i < len(data) && (data[i] == '{' || data[i] == ',') {
			if m := flowKind.FindSubmatch(data[i+1 : min(i+1000, len(data))]); m != nil {
				return string(m[1])
			}
		}
	}
	return ""
}

// carriesConfig reports whether a ConfigMap may carry a configuration, maybe with its kind misspelt.
func carriesConfig(data []byte) bool {
	if bytes.Contains(data, []byte(config.KubeProxyKind)) {
		return true
	}
	if !bytes.Contains(data, []byte(config.ConfigMapKey)) {
		return false
	}
	if bytes.Contains(data, []byte("kubeproxy.config.k8s.io")) {
		return true
	}
	for kind := range kindsIn(data) {
		if groupOf(config.KubeProxyAPIVersion).nearest(kind) != "" {
			return true
		}
	}
	return false
}

// foreign returns the kind of a document that is surely of no kind that a Set reads, without parsing it. It returns
// false for most unusual forms of writing. FuzzForeign holds it to what parsing finds.
func foreign(name string, data []byte) (kind string, ok bool) {
	switch path.Base(name) {
	case "Chart.yaml", "kustomization.yaml", "kustomization.yml", "Kustomization":
		return "", false
	}
	if !bytes.Contains(data, []byte("kind")) {
		obscure := bytes.IndexByte(data, '\\') >= 0 || bytes.Contains(data, []byte("!!binary"))
		return noKind, !obscure && !bytes.Contains(data, []byte("apiVersion")) && !bytes.HasPrefix(data, []byte("version https://git-lfs"))
	}
	body := bytes.TrimLeft(data, "-# \t\r\n")
	if len(body) == 0 || bytes.IndexByte([]byte(`{[?&*!"'|>`), body[0]) >= 0 {
		return "", false
	}
	for _, special := range []string{"\n?", "<<", "\\", "!!binary", "weir/", "kubeproxy.config.k8s.io", "\r", "\u0085", "\u2028", "\u2029"} {
		if bytes.Contains(data, []byte(special)) {
			return "", false
		}
	}
	kind, ok = onlyTopKind(data)
	if !ok {
		return "", false
	}
	if isOurs("", kind) || mayBeMeant(kind) || kind == "Kustomization" || kind == "ConfigMap" && (carriesConfig(data) || bytes.Contains(data, []byte(kubeadmKind))) {
		return "", false
	}
	if !bytes.Contains(data, []byte("apiVersion")) {
		return noKind, true // not even the kind may be printed
	}
	kind = foreignKind(plainTopVersion(data), kind)
	return kind, kind != noKind
}

// plainTopVersion returns the apiVersion that a line which is not indented gives. It returns "" for unusual forms.
func plainTopVersion(data []byte) string {
	const field = "apiVersion:"
	rest, found := bytes.CutPrefix(data, []byte(field))
	if !found {
		_, rest, found = bytes.Cut(data, []byte("\n"+field))
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	line, _, _ = bytes.Cut(line, []byte(" #"))
	if !found {
		return ""
	}
	return strings.Trim(string(line), "\"' \t")
}

// onlyTopKind returns the value of the only match of topKind, unless there is none or several, or it has no value.
func onlyTopKind(data []byte) (kind string, ok bool) {
	for top := range topFields(data, topKind, "kind") {
		if ok || top == "" {
			return "", false
		}
		kind, ok = top, true
	}
	return kind, ok
}

// ignoreMark is the comment at the head of a file that leaves the file out.
const ignoreMark = "# weir:ignore"

// ignored returns the file as skipped if one of the comments before its first document is ignoreMark, else nil.
func ignored(name string, data []byte) []spec.Skipped {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	for n := 1; len(data) > 0; n++ {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		data, line = rest, bytes.TrimSpace(line)
		if string(line) == ignoreMark {
			return []spec.Skipped{{Origin: spec.Origin{File: name, Line: n}, Kind: spec.SkippedFile, Reason: "has " + ignoreMark}}
		}
		if len(line) > 0 && line[0] != '#' && line[0] != '%' && string(line) != "---" {
			return nil
		}
	}
	return nil
}

// Skim returns what a file holds if it is surely nothing that a Set reads, without parsing it; else nil.
func Skim(name string, data []byte) []spec.Skipped {
	if isEmpty(data) {
		return nil
	}
	if skipped := ignored(name, data); skipped != nil {
		return skipped
	}
	texts, fault := document.Split(name, data)
	if fault != nil || len(texts) == 0 {
		return nil
	}
	all := make([]spec.Skipped, len(texts))
	for i, t := range texts {
		kind, ok := foreign(name, t.Data)
		if !ok || mayPromise(kind, t.Data) {
			return nil
		}
		all[i] = spec.Skipped{Origin: spec.Origin{File: name, Line: t.Start()}, Kind: unique.Make(kind).Value()}
	}
	return all
}
