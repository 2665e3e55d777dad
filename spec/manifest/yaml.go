package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	yamlv3 "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"
)

// aliasFactor and aliasFree bound what the aliases of a document expand to: so many times its size, and so many bytes
// besides. Nesting is bounded by the parsers, at 10,000 levels.
const aliasFactor, aliasFree = 10, 1 << 20

// lineProblem is a fieldProblem of which the line is known.
type lineProblem struct {
	line int
	fieldProblem
}

// toJSON converts a document to JSON. Fields that are given twice are problems that leave a result nevertheless.
func toJSON(t text) ([]byte, []lineProblem) {
	if t.json {
		return t.data, nil
	}
	if data, ok := plainToJSON(t.data); ok {
		return data, nil
	}
	if p := checkShape(t.data); p != nil {
		return nil, []lineProblem{*p}
	}
	data, err := yaml.YAMLToJSONStrict(t.data)
	var problems []lineProblem
	if te := (*yamlv2.TypeError)(nil); errors.As(err, &te) {
		for _, e := range te.Errors {
			problems = append(problems, yamlProblem(e))
		}
		data, err = yaml.YAMLToJSON(t.data)
	}
	if err != nil {
		return nil, append(problems, yamlProblem(err.Error()))
	}
	return data, problems
}

// checkShape refuses documents that are small as written and large as read.
func checkShape(data []byte) *lineProblem {
	if bytes.IndexByte(data, '&') < 0 || bytes.IndexByte(data, '*') < 0 {
		return nil
	}
	var root yamlv3.Node
	if yamlv3.Unmarshal(data, &root) != nil {
		return nil // the conversion says why
	}
	limit := aliasFactor*len(data) + aliasFree
	if size := expandedSize(&root, limit, map[*yamlv3.Node]int{}); size > limit {
		return &lineProblem{1, fieldProblem{detail: "has YAML aliases that expand to many times its size; write out what they stand for"}}
	}
	return nil
}

// expandedSize is about how many bytes a node has with all aliases replaced, as long as that is within the limit.
func expandedSize(n *yamlv3.Node, limit int, known map[*yamlv3.Node]int) int {
	if size, ok := known[n]; ok {
		return size
	}
	known[n] = limit + 1 // what contains itself has no end
	size := len(n.Value) + 2
	if n.Kind == yamlv3.AliasNode {
		size = expandedSize(n.Alias, limit, known)
	}
	for _, child := range n.Content {
		if size += expandedSize(child, limit, known); size > limit {
			return size
		}
	}
	known[n] = size
	return size
}

var (
	yamlLine  = regexp.MustCompile(`(?s)^(?:error converting YAML to JSON: )?(?:yaml: )?(?:line (\d+): )?(.*)$`)
	yamlTwice = regexp.MustCompile(`(?s)^key "?(.*?)"? already set in map$`)
)

// yamlProblem translates an error of the YAML parser.
func yamlProblem(message string) lineProblem {
	m := yamlLine.FindStringSubmatch(message)
	line, err := strconv.Atoi(m[1])
	if err != nil {
		line = 1
	}
	if key := yamlTwice.FindStringSubmatch(m[2]); key != nil {
		return lineProblem{line, fieldProblem{key[1], "is given twice"}}
	}
	detail := printable(m[2])
	if strings.Contains(detail, "cannot start any token") {
		detail += "; if it is a tab, use spaces"
	}
	return lineProblem{line, fieldProblem{detail: "not YAML: " + detail}}
}

// itemPlaces returns where the items of a list, which is a field of the document, are written.
func (d *document) itemPlaces(list string) []place {
	if d.text.json {
		return d.jsonItemPlaces(list)
	}
	var root yamlv3.Node
	if yamlv3.Unmarshal(d.text.data, &root) != nil || len(root.Content) == 0 {
		return nil
	}
	var items []*yamlv3.Node
	for i, top := 0, root.Content[0]; i+1 < len(top.Content); i += 2 {
		if top.Content[i].Value == list {
			items = top.Content[i+1].Content
		}
	}
	if len(items) == 0 {
		return nil
	}
	lines := bytes.SplitAfter(d.text.data, []byte("\n"))
	places := make([]place, len(items))
	for i, item := range items {
		end := len(lines)
		if i+1 < len(items) {
			end = items[i+1].Line - 1
		}
		places[i] = place{line: item.Line, find: func(string) int { return item.Line }}
		if start := item.Line - 1; start < end && bytes.HasPrefix(bytes.TrimSpace(lines[start]), []byte("-")) {
			places[i] = d.place(item.Line, item.Line, "[0].", bytes.Join(lines[start:end], nil))
		}
	}
	return places
}

func (d *document) jsonItemPlaces(list string) []place {
	data := d.text.data
	dec := json.NewDecoder(bytes.NewReader(data))
	if !enter(dec, list) {
		return nil
	}
	var places []place
	line, counted := 1, 0
	for dec.More() {
		var raw json.RawMessage
		if dec.Decode(&raw) != nil {
			return places
		}
		start := int(dec.InputOffset()) - len(raw)
		line += bytes.Count(data[counted:start], []byte("\n"))
		counted = start
		places = append(places, d.place(line, line, "", raw))
	}
	return places
}

// enter moves to the first item of the list that is the object's field.
func enter(dec *json.Decoder, field string) bool {
	if _, err := dec.Token(); err != nil {
		return false
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return false
		}
		if key == field {
			open, err := dec.Token()
			return err == nil && open == json.Delim('[')
		}
		var skip json.RawMessage
		if dec.Decode(&skip) != nil {
			return false
		}
	}
	return false
}
