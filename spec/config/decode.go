package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"

	yamlv2 "go.yaml.in/yaml/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxyconfig "k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"

	"weir/spec"
	"weir/spec/strict"
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
	// undecoded are the fields whose values were left out, and are not judged any further.
	undecoded map[string]bool
}

// add reports a problem with a field.
func (r *reporter) add(field, format string, args ...any) {
	if r.undecoded[field] {
		return
	}
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
func decodeStrict(r *reporter, out any) bool {
	data, ok := toJSON(r)
	if !ok {
		return false
	}
	r.undecoded = map[string]bool{}
	for _, p := range strict.Decode(data, out) {
		r.add(p.Field, "%s", p.Detail)
		r.undecoded[p.Field] = true
	}
	return !r.undecoded[""]
}

// toJSON converts the document. It reports fields that YAML gives twice.
func toJSON(r *reporter) ([]byte, bool) {
	if isJSON(r.doc.Bytes) {
		return r.doc.Bytes, true
	}
	data, err := yaml.YAMLToJSONStrict(r.doc.Bytes)
	if te := (*yamlv2.TypeError)(nil); errors.As(err, &te) {
		for _, e := range te.Errors {
			r.addYAML(e)
		}
		data, err = yaml.YAMLToJSON(r.doc.Bytes)
	}
	if err != nil {
		r.addYAML(err.Error())
	}
	return data, err == nil
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
