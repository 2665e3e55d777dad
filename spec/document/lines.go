package document

import (
	"bytes"
	"iter"
)

// The YAML parser ends a line at a line feed, a carriage return, both together, and at three characters of Unicode. A
// splitter that knows fewer of them loses documents, and its line numbers differ from the parser's.
var unicodeBreaks = [][]byte{[]byte("\u0085"), []byte("\u2028"), []byte("\u2029")}

// lines yields the lines of data with their line ends. In JSON only line feeds and carriage returns end a line.
func lines(data []byte, json bool) iter.Seq[[]byte] {
	rare := bytes.IndexByte(data, '\r') >= 0
	for _, b := range unicodeBreaks {
		rare = rare || !json && bytes.Contains(data, b)
	}
	return func(yield func([]byte) bool) {
		for len(data) > 0 {
			n := bytes.IndexByte(data, '\n') + 1
			if n == 0 {
				n = len(data)
			}
			if rare {
				n = lineLength(data[:n], json)
			}
			if !yield(data[:n]) {
				return
			}
			data = data[n:]
		}
	}
}

// lineLength returns the length of the first line, including its end.
func lineLength(data []byte, json bool) int {
	for i, c := range data {
		switch {
		case c == '\r' && i+1 < len(data) && data[i+1] == '\n':
			return i + 2
		case c == '\r' || c == '\n':
			return i + 1
		case json || c < 0x80:
			continue
		}
		for _, b := range unicodeBreaks {
			if bytes.HasPrefix(data[i:], b) {
				return i + len(b)
			}
		}
	}
	return len(data)
}

// trimLine removes the end of a line.
func trimLine(line []byte) []byte {
	for _, b := range unicodeBreaks {
		if rest, ok := bytes.CutSuffix(line, b); ok {
			return rest
		}
	}
	return bytes.TrimRight(line, "\r\n")
}

// countJSONLines counts the line ends of a part of a JSON text.
func countJSONLines(data []byte) int {
	return bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")) - bytes.Count(data, []byte("\r\n"))
}
