package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Limits of a document. A node takes about 200 bytes of memory, and one "-" makes a node. The parser limits the nesting
// to 10,000.
const (
	maxBytes = 16 << 20
	maxNodes = 1 << 20
	maxDepth = 10_000
)

// tooLarge returns the reason why a document is not parsed, or "".
func tooLarge(data []byte) string {
	if len(data) > maxBytes {
		return fmt.Sprintf("is larger than %d MiB; spread it over several documents", maxBytes>>20)
	}
	if len(data) > maxNodes/2 && countNodes(data) > maxNodes {
		return fmt.Sprintf("has more than %d values; spread it over several documents", maxNodes)
	}
	return ""
}

// countNodes returns at least half the number of nodes of a document. It counts the characters that can begin a node,
// and parses nothing.
func countNodes(data []byte) int {
	n := 1
	aliases := bytes.IndexByte(data, '*') >= 0 || bytes.IndexByte(data, '&') >= 0 || bytes.IndexByte(data, '!') >= 0
	for i, c := range data {
		switch c {
		case '[', '{', ',':
			n++
		case '?':
			n += 2
		case '-':
			if isBlankAt(data, i+1) {
				n++
			}
		case ':':
			if aliases || isBlankAt(data, i+1) || isFlowAt(data, i+1) || isBlankAt(data, i-1) || isFlowAt(data, i-1) {
				n += 2
			}
		}
	}
	return n
}

// isBlankAt reports whether there is a blank, a line end, or nothing at i. It recognises the line ends of Unicode by
// their last or first byte.
func isBlankAt(data []byte, i int) bool {
	return i < 0 || i >= len(data) || data[i] <= ' ' || data[i] >= 0x80
}

// isFlowAt reports whether there is a flow indicator or a quote at i. After these a colon needs no blank.
func isFlowAt(data []byte, i int) bool {
	return i >= 0 && i < len(data) && strings.IndexByte("[]{},?\"'", data[i]) >= 0
}

// parseYAML returns the top node of a document, or nil if it is empty. An error comes with its line.
func parseYAML(data []byte) (root *yaml.Node, line int, err error) {
	dec := yaml.NewDecoder(bytes.NewReader(asYAML11(data)))
	var doc, more yaml.Node
	if err := dec.Decode(&doc); err == io.EOF {
		return nil, 0, nil
	} else if err != nil {
		return nil, lineOf(err), err
	}
	// The parser stops after the first document, so look for more.
	switch err := dec.Decode(&more); {
	case err == nil:
		return nil, more.Line, errors.New("a second document begins without a line ---")
	case err != io.EOF:
		line := lineOf(err)
		if strings.Contains(err.Error(), ": line ") && strings.Contains(err.Error(), "did not find expected") {
			line++ // the parser itself counts lines from 0, its scanner from 1
		}
		return nil, line, err
	}
	return doc.Content[0], 0, nil
}

var versionDirective = regexp.MustCompile(`^%YAML[ \t]+1\.([0-9]+)[ \t]*(#.*)?$`)

// asYAML11 replaces the version of a %YAML directive by 1.1, because the parser refuses every other version.
func asYAML11(data []byte) []byte {
	if bytes.IndexByte(data, '%') < 0 {
		return data
	}
	at := 0
	for line := range lines(data, false) {
		body := trimLine(line)
		if m := versionDirective.FindSubmatchIndex(body); m != nil && string(body[m[2]:m[3]]) != "1" {
			data = bytes.Clone(data)
			copy(data[at+m[2]:], "1"+strings.Repeat(" ", m[3]-m[2]-1))
			return data
		}
		if len(body) > 0 && body[0] != '%' && body[0] != '#' {
			return data
		}
		at += len(line)
	}
	return data
}

var yamlError = regexp.MustCompile(`(?s)^(?:yaml: )?(?:line (\d+): )?(.*)$`)

// lineOf returns the line that a parser error names, or the first line.
func lineOf(err error) int {
	line, bad := strconv.Atoi(yamlError.FindStringSubmatch(err.Error())[1])
	if bad != nil {
		return 1
	}
	return line
}

var unknownAnchor = regexp.MustCompile(`unknown anchor '(.+)' referenced`)

// unreadable returns the line and the words for an error of which the parser tells no line: text that is not UTF-8, a
// control character, or an alias of nothing. The line is 0 for any other error.
func unreadable(data []byte, err error) (line int, detail string) {
	alias := []byte(nil)
	if m := unknownAnchor.FindStringSubmatch(err.Error()); m != nil {
		alias = []byte("*" + m[1])
	}
	for text := range lines(data, false) {
		line++
		bad := bytes.IndexFunc(text, func(r rune) bool { return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0x7f })
		switch {
		case alias != nil && bytes.Contains(text, alias):
			return line, notYAML(err)
		case alias != nil:
		case !utf8.Valid(text):
			return line, "not YAML: is not UTF-8 text, perhaps Latin-1; save it as UTF-8"
		case bad >= 0:
			return line, fmt.Sprintf("not YAML: has a control character, %q", rune(text[bad]))
		}
	}
	return 0, ""
}

// notYAML explains a parser error.
func notYAML(err error) string {
	detail := Printable(WithoutScalars(yamlError.FindStringSubmatch(err.Error())[2]))
	if strings.Contains(detail, "cannot start any token") {
		detail += "; if it is a tab, use spaces"
	}
	if strings.Contains(detail, "expected <document start>") {
		detail += "; a second document needs a line --- before it"
	}
	return "not YAML: " + detail
}

var quoted = regexp.MustCompile("(?s)`.*`|'[^']*'|\"(?:[^\"\\\\]|\\\\.)*\"")

// WithoutScalars returns the message of a parser without the parts of the document that it quotes. A document that is not
// read as one of weir's may be anything, a password file for example, and messages reach the logs of CI systems.
func WithoutScalars(message string) string {
	return quoted.ReplaceAllStringFunc(message, func(q string) string {
		inner := q[1 : len(q)-1]
		named := strings.HasPrefix(inner, "<") && strings.HasSuffix(inner, ">") // such as <document start>
		if named || !strings.ContainsFunc(inner, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }) {
			return q
		}
		return "..."
	})
}

// parseJSON returns the tree of a JSON document. It serves to find lines.
func parseJSON(data []byte) *yaml.Node {
	p := jsonParser{data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}
	p.dec.UseNumber()
	n, _ := p.value(0)
	return n
}

type jsonParser struct {
	data    []byte
	dec     *json.Decoder
	line    int
	counted int64
}

// value returns the next value, or false at the end of a collection and after an error.
func (p *jsonParser) value(depth int) (*yaml.Node, bool) {
	token, err := p.dec.Token()
	if err != nil || depth > maxDepth {
		return nil, false
	}
	end := p.dec.InputOffset()
	p.line += countJSONLines(p.data[p.counted:end])
	p.counted = end
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: p.line}
	switch token := token.(type) {
	case string:
		n.Value, n.Tag = token, "!!str"
	case json.Delim:
		if token == ']' || token == '}' {
			return nil, false
		}
		if n.Kind = yaml.SequenceNode; token == '{' {
			n.Kind = yaml.MappingNode
		}
		for child, ok := p.value(depth + 1); ok; child, ok = p.value(depth + 1) {
			n.Content = append(n.Content, child)
		}
	}
	return n, true
}
