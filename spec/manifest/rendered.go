package manifest

import (
	"bytes"
	"fmt"

	"weir/spec/document"
)

// A File that a kustomization rendered has no bytes of its own on disk: its documents come from a file, and each has the
// line of that file on which it begins there. RenderedPath and RenderedData make such a File. A path has no zero byte.

// RenderedPath returns the Path of the File with the documents that a kustomization makes of the file at path.
func RenderedPath(path, kustomization string) string { return path + "\x00" + kustomization }

// RenderedData returns the Data of a File with these documents.
func RenderedData(docs []document.Text) []byte {
	var b bytes.Buffer
	for _, d := range docs {
		fmt.Fprintf(&b, "%d %d\n", d.Line, len(d.Data))
		b.Write(d.Data)
	}
	return b.Bytes()
}

// renderedTexts returns the documents that RenderedData has put together.
func renderedTexts(data []byte) (texts []document.Text) {
	for len(data) > 0 {
		var line, size int
		head, rest, _ := bytes.Cut(data, []byte("\n"))
		if n, err := fmt.Sscanf(string(head), "%d %d", &line, &size); n != 2 || err != nil || size > len(rest) {
			return texts
		}
		texts = append(texts, document.Text{Line: line, OneLine: true, Data: rest[:size]})
		data = rest[size:]
	}
	return texts
}
