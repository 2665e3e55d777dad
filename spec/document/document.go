// Package document reads YAML and JSON documents as kubectl does, and knows the line of every field. Split cuts a file
// into Texts. Parse makes a Document of one: its JSON, the line of each field, strict decoding into Go types, the items
// of a list in it. A document is parsed once. One without problems often needs no tree of nodes at all (plain.go).
//
// yaml/v2 decides what a scalar means, because it is the parser of sigs.k8s.io/yaml and so of kubectl (YAML 1.1: yes is
// a boolean, 010 is 8). The tree comes from yaml/v3, because yaml/v2 has no positions; yaml/v4 refuses some of what
// kubectl reads.
//
// The package knows no kinds of objects. Manifests and configuration are read through it; nothing else parses YAML.
package document

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v3"
)

// Text is one document as it is written.
type Text struct {
	Line int // the line of the file on which Data begins, counted from 1
	Data []byte
	JSON bool
	// OneLine reports whether all of Data is on one line of the file, as a quoted string.
	OneLine bool
}

// Problem is a fault of a document, or of one field in it.
type Problem struct {
	Line   int
	Field  string // "" means the whole document
	Detail string
	// beyond reports whether the document is not read because it exceeds a limit.
	beyond bool
}

// BeyondLimits reports whether the document is not read because it is too large, or its aliases expand to too much.
func (p Problem) BeyondLimits() bool { return p.beyond || p.TooManyAliases() }

// TooManyAliases reports whether the document is refused because its aliases expand to too much.
func (p Problem) TooManyAliases() bool { return p.Detail == tooManyAliases }

// Document is a document that was parsed, or an item of a list in one. It is not safe for concurrent use.
type Document struct {
	*source
	json []byte
	item *yaml.Node // nil for a whole document
	line int
}

// source is what a document and its items share.
type source struct {
	text     Text
	problems []Problem
	root     *yaml.Node // nil until it is needed, and if the text is not YAML
	parsed   bool
	renamed  bool // some keys have other names in JSON than in the text
}

// Parse parses a document.
func Parse(t Text) *Document {
	d := &Document{source: &source{text: t}, line: t.Start()}
	d.convert()
	return d
}

// convert makes the JSON of a document in the cheapest possible way.
func (d *Document) convert() {
	t := &d.text
	if detail := tooLarge(t.Data); detail != "" {
		d.problems = append(d.problems, Problem{Line: d.inFile(1), Detail: detail, beyond: true})
		return
	}
	if !t.JSON && isJSON(t.Data) {
		t.JSON = true
	}
	if t.JSON {
		d.json = bytes.TrimSpace(t.Data)
		return
	}
	if data, ok := plainToJSON(t.Data); ok {
		d.json = data
		return
	}
	d.convertTree()
}

// convertTree makes the JSON of a YAML document from its tree.
func (d *Document) convertTree() {
	root, line, err := parseYAML(d.text.Data)
	d.parsed = true
	if err != nil {
		if same := yamlv2.Unmarshal(d.text.Data, new(any)); same != nil { // its error has a better line
			line, err = lineOf(same), same
		}
		if at, detail := unreadable(d.text.Data, err); at > 0 {
			d.fail(at, detail)
			return
		}
		d.fail(line, notYAML(err))
		return
	}
	d.root = root
	w := newWriter(d.text.Data)
	if p := w.document(root); p != nil {
		d.fail(p.Line, p.Detail)
		return
	}
	for _, p := range w.problems {
		p.Line = d.inFile(p.Line)
		d.problems = append(d.problems, p)
	}
	d.json, d.renamed = w.out, w.renamed
}

func (d *Document) fail(line int, detail string) {
	d.problems = append(d.problems, Problem{Line: d.inFile(line), Detail: detail})
}

// isJSON reports whether to read a document as JSON. JSON may contain characters that YAML forbids, such as tabs.
func isJSON(data []byte) bool {
	data = bytes.TrimLeft(data, " \t\r\n")
	return len(data) > 0 && data[0] == '{' && json.Valid(data)
}

// inFile returns the line of the file for a line of the text.
func (s *source) inFile(line int) int {
	if s.text.OneLine {
		return s.text.Line
	}
	return s.text.Line + line - 1
}

// Problems returns the faults of the document as YAML. If it has no JSON, they say why; otherwise they are duplicate
// keys.
func (d *Document) Problems() []Problem { return d.problems }

// JSON returns the document as JSON, or nil if it is not YAML.
func (d *Document) JSON() []byte { return d.json }

// Start returns the line of the first field.
func (d *Document) Start() int { return d.line }

// Line returns the line of the field with the given path.
//
// Paths are those of Kubernetes' validation and of Decode: "spec.ports[0].port", "metadata.annotations[a.b/c]",
// "metadata.annotations.a.b/c". A missing field has the line of its nearest parent. A field that occurs more than once
// has the line of its last occurrence. In a document that is not YAML, every field has the line of the document's
// beginning.
func (d *Document) Line(path string) int {
	line, _ := d.locate(path)
	return line
}

// locate returns the line of a field and its path as written.
func (d *Document) locate(path string) (line int, written string) {
	n := d.node()
	if n == nil {
		return d.line, path
	}
	found := find(n, path)
	return d.inFile(found.line), found.path
}

// Decode decodes the document into out, as the API server does with strict field validation, but it reports all faults.
// It leaves out what it cannot decode, so that the rest can be validated as well. A problem without a Field means that
// nothing was decoded. Decode does not repeat what Problems returns.
func (d *Document) Decode(out any) []Problem { return d.DecodeField("", d.json, out) }

// DecodeField decodes the field with the given path, of which data is the JSON, into out as Decode does. The Fields of the
// problems begin with the path.
func (d *Document) DecodeField(path string, data []byte, out any) []Problem {
	problems := decodeStrict(data, out)
	for i := range problems {
		p := &problems[i]
		if path != "" {
			p.Field = strings.TrimSuffix(path+"."+p.Field, ".")
		}
		line, written := d.locate(p.Field)
		if p.Line = line; d.renamed {
			p.Field = written
		}
	}
	return problems
}

// Items returns the items of the list that is a field of the document.
func (d *Document) Items(field string) []*Document {
	var fields map[string]json.RawMessage
	var list []json.RawMessage
	if json.Unmarshal(d.json, &fields) != nil || json.Unmarshal(fields[field], &list) != nil {
		return nil
	}
	var nodes []*yaml.Node
	if n := d.node(); n != nil {
		if n = find(n, field).node; n != nil && n.Kind == yaml.SequenceNode && len(n.Content) == len(list) {
			nodes = n.Content
		}
	}
	items := make([]*Document, len(list))
	for i := range list {
		items[i] = &Document{source: d.source, json: list[i], line: d.line}
		if nodes != nil {
			items[i].item, items[i].line = nodes[i], d.inFile(nodes[i].Line)
		}
	}
	return items
}

// String returns the string that the field with the given path holds, or "".
func (d *Document) String(path string) string {
	if n := d.stringNode(path); n != nil {
		return n.Value
	}
	return ""
}

// Embedded returns the document in a string field, as ConfigMaps have it. It returns false if there is no such field.
func (d *Document) Embedded(path string) (Text, bool) {
	n := d.stringNode(path)
	if n == nil {
		return Text{}, false
	}
	t := Text{Line: d.inFile(n.Line), Data: []byte(n.Value), OneLine: d.text.OneLine}
	if n.Style&yaml.LiteralStyle == 0 {
		t.OneLine = true
	} else if !t.OneLine {
		t.Line++ // the node begins at its "|"
	}
	return t, true
}

func (d *Document) stringNode(path string) *yaml.Node {
	n := d.node()
	if n != nil {
		n = find(n, path).node
	}
	if n == nil || n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return nil
	}
	return n
}

// node returns the node of the document or item, or nil if it is not YAML.
func (d *Document) node() *yaml.Node {
	if d.item != nil {
		return d.item
	}
	if !d.parsed {
		d.parsed = true
		if d.json != nil && d.text.JSON {
			d.root = parseJSON(d.text.Data)
		} else if d.json != nil {
			d.root, _, _ = parseYAML(d.text.Data)
		}
	}
	return d.root
}

// Lines yields the lines of the text with their numbers, from 1.
func (t *Text) Lines(yield func(int, []byte) bool) {
	n := 0
	for line := range lines(t.Data, t.JSON) {
		if n++; !yield(n, line) {
			return
		}
	}
}

// Start returns the line of the file on which the first field is.
func (t *Text) Start() int {
	if t.OneLine {
		return t.Line
	}
	return t.Line + t.start() - 1
}

// Body returns the text without its "---" and the blanks around it.
func (t *Text) Body() []byte {
	return bytes.TrimSpace(bytes.TrimPrefix(bytes.TrimSpace(t.Data), []byte("---\n")))
}

// start returns the line of the first field, counted from the text's first.
func (t *Text) start() int {
	for n, line := range t.Lines {
		line = trimLine(line)
		rest, marked := cutMarker(line, "---")
		if marked {
			line = rest
		}
		if line = bytes.TrimLeft(line, " \t"); len(line) > 0 && line[0] != '#' && (line[0] != '%' || marked) {
			return n
		}
	}
	return 1
}

// pathOf joins the steps to a field.
func pathOf(steps []step) string {
	var b strings.Builder
	for _, s := range steps {
		if s.key == "" {
			b.WriteString("[" + strconv.Itoa(s.index) + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(s.key)
	}
	return b.String()
}

// step is a key, or an index if there is no key.
type step struct {
	key   string
	index int
}
