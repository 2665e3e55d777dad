package document

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// MaxDocuments limits the documents of one file, because each costs memory beyond its bytes.
const MaxDocuments = 200_000

var byteOrderMark = []byte("\xef\xbb\xbf")

// Split cuts a file into its documents, and leaves out empty ones. The Problem is the reason why it cannot.
func Split(path string, data []byte) ([]Text, *Problem) {
	if bytes.HasPrefix(data, []byte("\xff\xfe\x00\x00")) || bytes.HasPrefix(data, []byte("\x00\x00\xfe\xff")) {
		return nil, &Problem{Line: 1, Detail: "is encoded as UTF-32; save it as UTF-8"}
	}
	if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
		return nil, &Problem{Line: 1, Detail: "is encoded as UTF-16; save it as UTF-8"}
	}
	isJSON := filepath.Ext(path) == ".json"
	s := splitter{data: data, json: isJSON, startLine: 1}
	var docs []Text
	for _, doc := range s.split() {
		values, err := splitJSON(doc, isJSON)
		if err != nil {
			return nil, err
		}
		docs = append(docs, values...)
		if len(docs) > MaxDocuments {
			return nil, &Problem{Line: docs[MaxDocuments].Line, Detail: fmt.Sprintf("has more than %d documents; spread them over several files", MaxDocuments)}
		}
	}
	return docs, nil
}

// splitter cuts a file at the lines "---" and "...", and at byte order marks, which concatenated files may have. A
// document keeps its "---", so that its lines count from there.
type splitter struct {
	data []byte
	json bool
	docs []Text

	start, startLine int
	content          bool // the document has more than comments
	directive        bool // it has a directive
	marked           bool // it has its "---"
}

func (s *splitter) split() []Text {
	at, n := 0, 1
	for line := range lines(s.data, s.json) {
		s.line(line, at, n)
		at += len(line)
		n++
	}
	s.flush(at, n)
	return s.docs
}

func (s *splitter) line(line []byte, at, n int) {
	body := trimLine(line)
	if rest, ok := bytes.CutPrefix(body, byteOrderMark); ok && s.mayBegin(rest) {
		s.flush(at, n)
		s.start += len(byteOrderMark)
		body = rest
	}
	rest, begins := cutMarker(body, "---")
	_, ends := cutMarker(body, "...")
	switch {
	case begins:
		if s.content || s.marked { // the directives and comments before it belong to it
			s.flush(at, n)
		}
		s.marked = true
		rest = bytes.TrimLeft(rest, " \t")
		s.content = len(rest) > 0 && rest[0] != '#'
	case ends:
		s.flush(at+len(line), n+1)
	case s.content:
	case len(body) > 0 && body[0] == '%' && !s.marked:
		s.directive = true
	default:
		body = bytes.TrimLeft(body, " \t")
		s.content = len(body) > 0 && body[0] != '#'
	}
}

// mayBegin reports whether a document can begin at a line with a byte order mark. A document that has begun ends only
// at a marker.
func (s *splitter) mayBegin(line []byte) bool {
	_, begins := cutMarker(line, "---")
	return begins || s.json || !s.content
}

// flush ends a document. It keeps one that has only directives, because the parser may refuse them.
func (s *splitter) flush(end, line int) {
	if s.content || s.directive {
		s.docs = append(s.docs, Text{Line: s.startLine, Data: s.data[s.start:end]})
	}
	s.start, s.startLine = end, line
	s.content, s.directive, s.marked = false, false, false
}

// cutMarker returns what follows a marker on its line.
func cutMarker(line []byte, marker string) (rest []byte, ok bool) {
	rest, ok = bytes.CutPrefix(line, []byte(marker))
	return rest, ok && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t')
}

// splitJSON cuts a document that is a sequence of JSON values. It returns anything else unchanged, unless it must be
// JSON.
func splitJSON(doc Text, must bool) ([]Text, *Problem) {
	body := bytes.TrimLeft(doc.Data, " \t\r\n")
	if !must && (len(body) == 0 || body[0] != '{' && body[0] != '[') {
		return []Text{doc}, nil
	}
	var docs []Text
	dec := json.NewDecoder(bytes.NewReader(doc.Data))
	line, counted := doc.Line, 0
	for {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		end := int(dec.InputOffset())
		switch {
		case err == io.EOF:
			return docs, nil
		case err != nil && len(docs) == 0 && !must:
			return []Text{doc}, nil
		case err != nil:
			if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
				end = int(syntax.Offset)
			} else {
				end = len(doc.Data) // the value ends too early
			}
			end = min(max(end, counted), len(doc.Data))
			line += countJSONLines(doc.Data[counted:end])
			return nil, &Problem{Line: line, Detail: "not JSON: " + WithoutScalars(err.Error())}
		}
		start := end - len(raw)
		line += countJSONLines(doc.Data[counted:start])
		counted = start
		docs = append(docs, Text{Line: line, Data: doc.Data[start:end], JSON: true})
		if len(docs) > MaxDocuments {
			return docs, nil
		}
	}
}
