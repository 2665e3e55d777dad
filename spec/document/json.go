package document

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

// aliasFactor and aliasFree limit the expansion of the aliases in a document: aliasFactor times its size, plus
// aliasFree bytes.
const aliasFactor, aliasFree = 10, 1 << 20

const tooManyAliases = "has YAML aliases that expand to many times its size; write out what they stand for"

// writer writes the JSON of a tree of nodes.
type writer struct {
	out      []byte
	problems []Problem
	renamed  bool

	at       []step
	budget   int // remaining bytes to write, and merged keys to look at
	expanded map[*yaml.Node]bool
	told     map[*yaml.Node]bool // keys that were already reported
}

func newWriter(data []byte) *writer {
	return &writer{
		out: make([]byte, 0, len(data)+len(data)/4+64), budget: aliasFactor*len(data) + aliasFree,
		expanded: map[*yaml.Node]bool{}, told: map[*yaml.Node]bool{},
	}
}

// document writes the JSON of a document; nil is an empty one. If it returns a Problem, there is no JSON.
func (w *writer) document(root *yaml.Node) *Problem {
	if root == nil {
		w.out = append(w.out, "null"...)
		return nil
	}
	return w.value(root)
}

func (w *writer) value(n *yaml.Node) *Problem {
	switch {
	case len(w.at) > maxDepth:
		return &Problem{Line: n.Line, Detail: fmt.Sprintf("not YAML: exceeded max depth of %d", maxDepth)}
	case len(w.out) > w.budget:
		return &Problem{Line: 1, Detail: tooManyAliases}
	}
	switch n.Kind {
	case yaml.AliasNode:
		return w.within(n.Alias, func() *Problem { return w.value(n.Alias) })
	case yaml.MappingNode:
		return w.mapping(n)
	case yaml.SequenceNode:
		return w.sequence(n)
	}
	v, err := scalar(n)
	if err != nil {
		return &Problem{Line: n.Line, Detail: notYAML(err)}
	}
	if f, ok := v.(float64); ok && (math.IsInf(f, 0) || math.IsNaN(f)) {
		w.problem(n.Line, Quote(n.Value)+" is no number in JSON; put it in quotes if it is a string")
		v = nil
	}
	w.append(v)
	return nil
}

// within expands an alias. It refuses an alias that contains itself.
func (w *writer) within(anchor *yaml.Node, expand func() *Problem) *Problem {
	if w.expanded[anchor] {
		return &Problem{Line: 1, Detail: tooManyAliases}
	}
	w.expanded[anchor] = true
	defer delete(w.expanded, anchor)
	return expand()
}

func (w *writer) append(v any) {
	if s, ok := v.(string); ok && isSimple(s) {
		w.out = append(append(append(w.out, '"'), s...), '"')
		return
	}
	data, _ := json.Marshal(v) // JSON has every such scalar
	w.out = append(w.out, data...)
}

// isSimple reports whether a string needs no escapes in JSON.
func isSimple(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

func (w *writer) problem(line int, detail string) {
	if len(w.problems) < maxProblems {
		w.problems = append(w.problems, Problem{Line: line, Field: pathOf(w.at), Detail: detail})
	}
}

func (w *writer) sequence(n *yaml.Node) *Problem {
	w.out = append(w.out, '[')
	w.at = append(w.at, step{})
	last := len(w.at) - 1
	for i, item := range n.Content {
		if i > 0 {
			w.out = append(w.out, ',')
		}
		w.at[last].index = i
		if p := w.value(item); p != nil {
			return p
		}
	}
	w.at = w.at[:last]
	w.out = append(w.out, ']')
	return nil
}

func (w *writer) mapping(n *yaml.Node) *Problem {
	fields, p := w.fields(n)
	if p != nil {
		return p
	}
	w.out = append(w.out, '{')
	w.at = append(w.at, step{})
	last := len(w.at) - 1
	for i, f := range fields.all {
		if i > 0 {
			w.out = append(w.out, ',')
		}
		w.append(f.name)
		w.out = append(w.out, ':')
		w.at[last].key = target(f.key).Value
		if p := w.value(f.value); p != nil {
			return p
		}
	}
	w.at = w.at[:last]
	w.out = append(w.out, '}')
	return nil
}

// field is a field of a mapping with its name in JSON.
type field struct {
	name       string
	key, value *yaml.Node
}

// fields are the fields of one mapping, each name once.
type fields struct {
	all []field
	at  map[string]int // the index of each name in all, once there are many
}

// manyFields is the number of fields up to which they are searched one by one.
const manyFields = 16

func (f *fields) find(name string) (int, bool) {
	if f.at != nil {
		i, ok := f.at[name]
		return i, ok
	}
	for i := range f.all {
		if f.all[i].name == name {
			return i, true
		}
	}
	return 0, false
}

func (f *fields) add(new field) {
	f.all = append(f.all, new)
	if f.at == nil && len(f.all) > manyFields {
		f.at = map[string]int{}
		for i := range f.all {
			f.at[f.all[i].name] = i
		}
	} else if f.at != nil {
		f.at[new.name] = len(f.all) - 1
	}
}

// fields returns the fields of a mapping. The mapping's own fields win over merged ones. In a list of merges the
// earlier wins. A duplicate key is a problem, and the last one wins.
func (w *writer) fields(n *yaml.Node) (*fields, *Problem) {
	f := &fields{all: make([]field, 0, len(n.Content)/2)}
	var merged *yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if isMerge(key) {
			if merged != nil {
				w.twice(key)
			}
			merged = value
			continue
		}
		name, err := keyName(key)
		if err != nil {
			return nil, &Problem{Line: key.Line, Detail: notYAML(err)}
		}
		w.renamed = w.renamed || name != target(key).Value
		if at, ok := f.find(name); ok {
			w.twice(key)
			f.all[at].key, f.all[at].value = key, value
			continue
		}
		f.add(field{name, key, value})
	}
	if merged == nil {
		return f, nil
	}
	return f, w.merge(f, merged)
}

// twice reports a duplicate key once, even if its mapping is expanded often.
func (w *writer) twice(key *yaml.Node) {
	if w.told[key] {
		return
	}
	w.told[key] = true
	w.at = append(w.at, step{key: target(key).Value})
	w.problem(key.Line, "is given twice")
	w.at = w.at[:len(w.at)-1]
}

// merge adds the fields that a "<<" names to those of a mapping.
func (w *writer) merge(f *fields, merged *yaml.Node) *Problem {
	sources, ok := mergedMappings(merged)
	if !ok {
		return &Problem{Line: merged.Line, Detail: "not YAML: << takes a mapping or a list of mappings"}
	}
	for _, source := range sources {
		p := w.within(source, func() *Problem {
			more, p := w.fields(source)
			if p != nil {
				return p
			}
			for _, m := range more.all {
				if _, ok := f.find(m.name); !ok {
					f.add(m)
				}
			}
			if w.budget -= len(more.all); len(w.out) > w.budget {
				return &Problem{Line: 1, Detail: tooManyAliases}
			}
			return nil
		})
		if p != nil {
			return p
		}
	}
	return nil
}

// isMerge reports whether a key merges the fields of other mappings.
func isMerge(key *yaml.Node) bool {
	return key.Kind == yaml.ScalarNode && key.Value == "<<" && key.ShortTag() == "!!merge"
}

// mergedMappings returns the mappings that the value of a "<<" names, or false if the value is anything else.
func mergedMappings(value *yaml.Node) ([]*yaml.Node, bool) {
	if value.Kind == yaml.SequenceNode {
		all := make([]*yaml.Node, len(value.Content))
		for i, item := range value.Content {
			if all[i] = target(item); all[i].Kind != yaml.MappingNode {
				return nil, false
			}
		}
		return all, true
	}
	n := target(value)
	return []*yaml.Node{n}, n.Kind == yaml.MappingNode
}

// target returns the node that an alias refers to, and any other node unchanged.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// keyName returns the name of a key in JSON.
func keyName(key *yaml.Node) (string, error) {
	key = target(key)
	if key.Kind != yaml.ScalarNode {
		return "", fmt.Errorf("a key must be a string, not a list or a mapping")
	}
	v, err := scalar(key)
	if err != nil {
		return "", err
	}
	switch v := v.(type) {
	case string:
		return v, nil
	case bool:
		return strconv.FormatBool(v), nil
	case int:
		return strconv.Itoa(v), nil
	case float64: // as sigs.k8s.io/yaml does
		switch s := strconv.FormatFloat(v, 'g', -1, 32); s {
		case "+Inf":
			return ".inf", nil
		case "-Inf":
			return "-.inf", nil
		case "NaN":
			return ".nan", nil
		default:
			return s, nil
		}
	}
	return "", fmt.Errorf("a key must be a string, not %s", describe(v))
}

const textStyles = yaml.DoubleQuotedStyle | yaml.SingleQuotedStyle | yaml.LiteralStyle | yaml.FoldedStyle

// scalar returns the value of a scalar: nil, a bool, a number or a string.
func scalar(n *yaml.Node) (any, error) {
	if n.Style&yaml.TaggedStyle != 0 {
		return tagged(n)
	}
	if n.Style&textStyles != 0 {
		return n.Value, nil
	}
	return plainScalar(n.Value), nil
}

// plainScalar returns the value of a scalar without quotes or tag. It asks yaml/v2 unless the type is obvious.
func plainScalar(s string) any {
	if s == "" {
		return nil
	}
	word := []byte(s)
	switch c := s[0]; {
	case isNumber(word):
		n, _ := strconv.Atoi(s)
		return n
	case isLetter(c) && !isReserved(word), strings.IndexByte("+-.~", c) < 0 && (c < '0' || c > '9') && !isLetter(c), isPlainAddress(word):
		return s
	case strings.ContainsAny(s, " \t\n,[]{}#"):
		return s // neither a number nor a word
	}
	var list []any
	if yamlv2.Unmarshal([]byte("["+s+"]"), &list) != nil || len(list) != 1 {
		return s
	}
	switch v := list[0].(type) {
	case []any, map[any]any, string:
		return s
	default:
		return v
	}
}

// tagged returns the value of a scalar with a tag. A tag that YAML does not define makes a string.
func tagged(n *yaml.Node) (v any, err error) {
	switch tag := n.ShortTag(); tag {
	case "!!null", "!!bool", "!!int", "!!float", "!!timestamp", "!!binary":
		text, _ := json.Marshal(n.Value)
		err = yamlv2.Unmarshal(append([]byte(tag+" "), text...), &v)
		return v, err
	}
	return n.Value, nil
}
