// Package yamlpos finds the line of a field in a YAML or JSON document. Decoders lose positions; a problem needs one. The
// document is parsed anew for that, which costs nothing as long as there are no problems.
package yamlpos

import (
	"bytes"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Line returns the line, in the file, of the field with the given path. The document begins at firstLine of its file.
//
// Paths are those of Kubernetes' validation and strict decoding: "spec.ports[0].port", "metadata.annotations[a.b/c]",
// "metadata.annotations.a.b/c". A field that is not there gives the line of its nearest parent; one that is there more
// than once, the last. A document that is not YAML gives firstLine.
func Line(doc []byte, firstLine int, fieldPath string) int {
	root := parse(doc)
	if root == nil {
		return firstLine
	}
	line, _ := find(root, root.Line, fieldPath)
	return firstLine + line - 1
}

// Text is the value of a string field and where it is written.
type Text struct {
	Value string
	// Line is the line, in the file, of the first line of Value.
	Line int
	// Literal says that each line of Value is a line of the file ("|"). Otherwise Value has no lines of its own there.
	Literal bool
}

// String returns the string field with the given path, or false if there is none.
func String(doc []byte, firstLine int, fieldPath string) (Text, bool) {
	root := parse(doc)
	if root == nil {
		return Text{}, false
	}
	_, n := find(root, root.Line, fieldPath)
	if n == nil || n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		return Text{}, false
	}
	t := Text{Value: n.Value, Line: firstLine + n.Line - 1, Literal: n.Style&yaml.LiteralStyle != 0}
	if t.Literal {
		t.Line++ // the node begins at its "|"
	}
	return t, true
}

// parse returns the top node, or nil if the document is empty or not YAML. Aliases are not expanded. JSON may be indented
// by tabs, which YAML forbids.
func parse(doc []byte) *yaml.Node {
	if bytes.HasPrefix(bytes.TrimSpace(doc), []byte("{")) {
		doc = bytes.ReplaceAll(doc, []byte("\t"), []byte(" "))
	}
	var n yaml.Node
	if yaml.Unmarshal(doc, &n) != nil || len(n.Content) == 0 {
		return nil
	}
	return n.Content[0]
}

// find walks down the path from a node that was introduced on the given line. It returns the line of the last field on
// the path that exists, and the node at the end of the path or nil.
func find(n *yaml.Node, line int, path string) (int, *yaml.Node) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	path = strings.TrimPrefix(path, ".")
	if path == "" {
		return line, n
	}
	child, childLine, rest := step(n, path)
	if child == nil {
		return line, nil
	}
	return find(child, childLine, rest)
}

// step takes the longest key, or the index, that the path begins with.
func step(n *yaml.Node, path string) (child *yaml.Node, line int, rest string) {
	switch n.Kind {
	case yaml.MappingNode:
		longest := -1
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			if after, ok := cutKey(path, key.Value); ok && len(key.Value) >= longest {
				longest = len(key.Value)
				child, line, rest = n.Content[i+1], key.Line, after
			}
		}
	case yaml.SequenceNode:
		index, after, ok := cutIndex(path)
		if ok && index < len(n.Content) {
			child, line, rest = n.Content[index], n.Content[index].Line, after
		}
	}
	return child, line, rest
}

// cutKey removes a key from the start of a path, where it can be plain, in brackets, or quoted in brackets.
func cutKey(path, key string) (rest string, ok bool) {
	for _, form := range []string{"[" + key + "]", `["` + key + `"]`} {
		if rest, ok = strings.CutPrefix(path, form); ok {
			return rest, true
		}
	}
	if key == "" {
		return "", false
	}
	rest, ok = strings.CutPrefix(path, key)
	return rest, ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

func cutIndex(path string) (index int, rest string, ok bool) {
	inner, ok := strings.CutPrefix(path, "[")
	if !ok {
		return 0, "", false
	}
	digits, rest, ok := strings.Cut(inner, "]")
	index, err := strconv.Atoi(digits)
	return index, rest, ok && err == nil && index >= 0
}
