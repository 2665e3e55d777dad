package manifest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// maxDocuments bounds the documents of one file, since each costs memory beyond its bytes.
const maxDocuments = 200_000

// text is one document as written.
type text struct {
	line int // in its file, from 1
	data []byte
	json bool
}

// splitError says on which line a file cannot be taken apart.
type splitError struct {
	line   int
	detail string
}

// split takes a file apart into its documents, leaving out those without content.
func split(path string, data []byte) ([]text, *splitError) {
	data, ok := bytes.CutPrefix(data, []byte("\xef\xbb\xbf"))
	if !ok && (bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff"))) {
		return nil, &splitError{1, "is encoded as UTF-16; save it as UTF-8"}
	}
	var docs []text
	for _, doc := range splitYAML(data) {
		values, err := splitJSON(doc, strings.HasSuffix(path, ".json"))
		if err != nil {
			return nil, err
		}
		docs = append(docs, values...)
		if len(docs) > maxDocuments {
			return nil, &splitError{docs[maxDocuments].line, fmt.Sprintf("has more than %d documents; spread them over several files", maxDocuments)}
		}
	}
	return docs, nil
}

// splitYAML cuts at the lines "---" and "...". A document keeps its "---", so that lines count from there.
func splitYAML(data []byte) []text {
	var docs []text
	start, startLine, content, marked := 0, 1, false, false
	flush := func(end, line int) {
		if content {
			docs = append(docs, text{line: startLine, data: data[start:end]})
		}
		start, startLine, content, marked = end, line, false, false
	}
	for at, n := 0, 1; at < len(data); n++ {
		line := data[at:]
		if i := bytes.IndexByte(line, '\n'); i >= 0 {
			line = line[:i+1]
		}
		next := at + len(line)
		switch trimmed := bytes.TrimSpace(line); {
		case isMarker(line, "---"):
			if content || marked { // directives and comments before it belong to it
				flush(at, n)
			}
			marked = true
			rest := bytes.TrimSpace(trimmed[3:])
			content = len(rest) > 0 && rest[0] != '#'
		case isMarker(line, "..."):
			flush(next, n+1)
		case len(trimmed) == 0 || trimmed[0] == '#' || !content && !marked && line[0] == '%':
		default:
			content = true
		}
		at = next
	}
	flush(len(data), 0)
	return docs
}

func isMarker(line []byte, marker string) bool {
	rest, ok := bytes.CutPrefix(line, []byte(marker))
	return ok && (len(rest) == 0 || rest[0] == ' ' || rest[0] == '\t' || rest[0] == '\r' || rest[0] == '\n')
}

// splitJSON cuts a document that is a sequence of JSON values. Anything else is returned as it is, unless it has to be JSON.
func splitJSON(doc text, must bool) ([]text, *splitError) {
	body := bytes.TrimLeft(doc.data, " \t\r\n")
	if !must && (len(body) == 0 || body[0] != '{' && body[0] != '[') {
		return []text{doc}, nil
	}
	var docs []text
	dec := json.NewDecoder(bytes.NewReader(doc.data))
	line, counted := doc.line, 0
	for {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		end := int(dec.InputOffset())
		switch {
		case err == io.EOF:
			return docs, nil
		case err != nil && len(docs) == 0 && !must:
			return []text{doc}, nil
		case err != nil:
			if syntax, ok := err.(*json.SyntaxError); ok {
				end = int(syntax.Offset)
			} else {
				end = len(doc.data) // it ends too early
			}
			end = min(max(end, counted), len(doc.data))
			line += bytes.Count(doc.data[counted:end], []byte("\n"))
			return nil, &splitError{line, "not JSON: " + err.Error()}
		}
		start := end - len(raw)
		line += bytes.Count(doc.data[counted:start], []byte("\n"))
		counted = start
		docs = append(docs, text{line: line, data: doc.data[start:end], json: true})
		if len(docs) > maxDocuments {
			return docs, nil
		}
	}
}
