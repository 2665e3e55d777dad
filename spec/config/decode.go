package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"weir/spec"
	"weir/spec/yamlpos"
)

// document is what may be written: today's type and the fields that it had in the past.
type document struct {
	kubeproxyconfig.KubeProxyConfiguration

	Conntrack conntrack `json:"conntrack"`

	UDPIdleTimeout metav1.Duration `json:"udpIdleTimeout"`
	// UDPTimeoutMilliseconds is an older name of UDPIdleTimeout. In spite of its name it holds a duration.
	UDPTimeoutMilliseconds metav1.Duration `json:"udpTimeoutMilliseconds"`
	ResourceContainer      string          `json:"resourceContainer"`
}

type conntrack struct {
	kubeproxyconfig.KubeProxyConntrackConfiguration
	Max *int32 `json:"max"`
}

func (d *document) config() *KubeProxy {
	c := &KubeProxy{KubeProxyConfiguration: d.KubeProxyConfiguration.DeepCopy(), UDPIdleTimeout: d.UDPIdleTimeout.Duration}
	c.Conntrack = *d.Conntrack.KubeProxyConntrackConfiguration.DeepCopy()
	if c.UDPIdleTimeout == 0 {
		c.UDPIdleTimeout = d.UDPTimeoutMilliseconds.Duration
	}
	return c
}

// reporter collects the problems of one document.
type reporter struct {
	doc      Doc
	object   string
	problems []spec.Problem
}

// add reports a problem with a field.
func (r *reporter) add(field, format string, args ...any) {
	r.addAt(yamlpos.Line(r.doc.Bytes, r.doc.Line, field), field, fmt.Sprintf(format, args...))
}

func (r *reporter) addAt(line int, field, detail string) {
	if r.doc.OneLine {
		line = r.doc.Line
	}
	r.problems = append(r.problems, spec.Problem{
		Origin: spec.Origin{File: r.doc.File, Line: line}, Object: r.object, Field: field, Detail: detail,
	})
}

// sorted returns the problems in the order of their lines.
func (r *reporter) sorted() []spec.Problem {
	slices.SortStableFunc(r.problems, func(a, b spec.Problem) int { return a.Origin.Line - b.Origin.Line })
	return r.problems
}

// decodeStrict decodes the reporter's document into what out points to. It reports what it cannot decode and leaves it
// out, so that the rest can be validated as well; false means that there is no rest.
func decodeStrict[T any](r *reporter, out *T) bool {
	tree, ok := parse(r)
	if !ok {
		return false
	}
	prune(r, tree, nil, decodesTo[T])
	data, err := json.Marshal(tree)
	if err != nil {
		r.add("", "%v", err)
		return false
	}
	strict, err := kjson.UnmarshalStrict(data, out)
	if err != nil {
		r.add("", "%v", err)
		return false
	}
	for _, err := range strict {
		field := ""
		if fe, ok := err.(kjson.FieldError); ok {
			field = fe.FieldPath()
		}
		r.add(field, "unknown field")
	}
	return true
}

// parse reads the document into maps, slices and scalars. It reports fields that are given twice.
func parse(r *reporter) (map[string]any, bool) {
	data := r.doc.Bytes
	if !isJSON(data) {
		var err error
		var te *yamlv2.TypeError
		if data, err = yaml.YAMLToJSONStrict(r.doc.Bytes); errors.As(err, &te) {
			for _, e := range te.Errors {
				r.addYAML(e)
			}
			data, err = yaml.YAMLToJSON(r.doc.Bytes)
		}
		if err != nil {
			r.addYAML(err.Error())
			return nil, false
		}
	}
	var tree any
	strict, err := kjson.UnmarshalStrict(data, &tree)
	if err != nil {
		r.add("", "%v", err)
		return nil, false
	}
	for _, err := range strict {
		if fe, ok := err.(kjson.FieldError); ok {
			r.add(fe.FieldPath(), "is given twice")
		}
	}
	object, ok := tree.(map[string]any)
	if !ok {
		r.add("", "must be an object with fields, not %s", describe(tree))
	}
	return object, ok
}

// isJSON says whether a document is to be read as JSON, which may contain what YAML does not allow, such as tabs.
func isJSON(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) && json.Valid(data)
}

var (
	yamlLine  = regexp.MustCompile(`(?s)^(?:yaml: )?(?:line (\d+): )?(.*)$`)
	yamlTwice = regexp.MustCompile(`^key "?(.*?)"? already set in map$`)
)

// addYAML reports an error of the YAML parser, which has its own way of saying where.
func (r *reporter) addYAML(text string) {
	m := yamlLine.FindStringSubmatch(text)
	line, field, detail := r.doc.Line, "", "not YAML: "+m[2]
	if n, err := strconv.Atoi(m[1]); err == nil {
		line += n - 1
	}
	if key := yamlTwice.FindStringSubmatch(m[2]); key != nil {
		field, detail = key[1], "is given twice"
	}
	r.addAt(line, field, detail)
}

// decodesTo returns the error of decoding a tree into a T.
func decodesTo[T any](tree any) error {
	data, err := json.Marshal(tree)
	if err != nil {
		return err
	}
	return kjson.UnmarshalCaseSensitivePreserveInts(data, new(T))
}

// prune removes from the object at path every value that does not decode, and reports it. Decoders stop at the first such
// value, and some do not say which it is; decoding each value alone finds them all. It costs nothing if all is well.
func prune(r *reporter, object map[string]any, path []any, try func(any) error) {
	if try(wrap(path, object)) == nil {
		return
	}
	for _, key := range slices.Sorted(maps.Keys(object)) {
		p := append(slices.Clip(path), key)
		err := try(wrap(p, object[key]))
		if err == nil {
			continue
		}
		if child, ok := object[key].(map[string]any); ok && try(wrap(p, map[string]any{})) == nil {
			prune(r, child, p, try)
			continue
		}
		if list, ok := object[key].([]any); ok && try(wrap(p, []any{})) == nil {
			pruneItems(r, list, p, try)
		} else {
			r.add(pathString(p), "%s", wrongType(p, object[key], err, try))
		}
		delete(object, key)
	}
}

func pruneItems(r *reporter, list []any, path []any, try func(any) error) {
	for i, item := range list {
		p := append(slices.Clip(path), i)
		if err := try(wrap(p, item)); err != nil {
			r.add(pathString(p), "%s", wrongType(p, item, err, try))
		}
	}
}

// wrap builds a document that holds nothing but the value at path. Every list on the path has one item.
func wrap(path []any, v any) any {
	for _, p := range slices.Backward(path) {
		if key, ok := p.(string); ok {
			v = map[string]any{key: v}
		} else {
			v = []any{v}
		}
	}
	return v
}

func pathString(path []any) string {
	var b strings.Builder
	for _, p := range path {
		switch key, ok := p.(string); {
		case !ok:
			fmt.Fprintf(&b, "[%d]", p)
		case b.Len() > 0:
			b.WriteString("." + key)
		default:
			b.WriteString(key)
		}
	}
	return b.String()
}

// wrongType says why a value was refused.
func wrongType(path []any, v any, err error, try func(any) error) string {
	if probe := try(wrap(path, "?")); probe != nil && strings.HasPrefix(probe.Error(), "time: ") {
		return fmt.Sprintf(`must be a duration such as "30s", not %s`, describe(v))
	}
	var te *json.UnmarshalTypeError
	if !errors.As(err, &te) {
		return fmt.Sprintf("%s is not accepted: %v", describe(v), err)
	}
	return fmt.Sprintf("must be %s, not %s", typeName(te), describe(v))
}

func typeName(te *json.UnmarshalTypeError) string {
	switch kind := te.Type.Kind().String(); {
	case kind == "bool":
		return "true or false"
	case strings.HasPrefix(kind, "int"), strings.HasPrefix(kind, "uint"):
		return fmt.Sprintf("a whole number (%s)", kind)
	case strings.HasPrefix(kind, "float"):
		return "a number"
	case kind == "string":
		return "a string"
	case kind == "slice":
		return "a list"
	}
	return "an object with fields"
}

func describe(v any) string {
	switch v.(type) {
	case nil:
		return "nothing"
	case map[string]any:
		return "an object"
	case []any:
		return "a list"
	}
	data, err := json.Marshal(v)
	if err != nil || len(data) > 100 {
		return "what is there"
	}
	return string(data)
}
