package document

import (
	"fmt"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	tests := []struct {
		name, file, in string
		want           string // line:text of each document, newlines as |
	}{
		{"empty", "a.yaml", "", ""},
		{"one", "a.yaml", "a: 1\n", "1:a: 1|"},
		{"comments only", "a.yaml", "# x\n---\n# y\n\n", ""},
		{"two", "a.yaml", "a: 1\n---\nb: 2\n", "1:a: 1| 2:---|b: 2|"},
		{"windows lines", "a.yaml", "a: 1\r\n---\r\nb: 2\r\n", "1:a: 1\r| 2:---\r|b: 2\r|"},
		{"directive", "a.yaml", "%YAML 1.1\n---\na: 1\n", "1:%YAML 1.1|---|a: 1|"},
		{"comment before", "a.yaml", "# x\n---\na: 1\n", "1:# x|---|a: 1|"},
		{"empty ones between", "a.yaml", "---\n---\n---\na: 1\n---\n", "3:---|a: 1|"},
		{"content on the separator", "a.yaml", "--- {a: 1}\n--- # c\nb: 2", "1:--- {a: 1}| 2:--- # c|b: 2"},
		{"end marker", "a.yaml", "a: 1\n...\nb: 2\n", "1:a: 1|...| 3:b: 2|"},
		{"no separator", "a.yaml", "a: |\n  ---\n  x\n---b: 1\n", "1:a: ||  ---|  x|---b: 1|"},
		{"byte order mark", "a.yaml", "\xef\xbb\xbfa: 1\n", "1:a: 1|"},
		{"JSON", "a.json", "{\"a\":1}", `1:{"a":1}`},
		{"JSON concatenated", "a.json", "\n{\"a\":1}\n\n{\"b\":\n2} {\"c\":3}", `2:{"a":1} 4:{"b":|2} 5:{"c":3}`},
		{"JSON in YAML", "a.yaml", "---\na: 1\n---\n", "1:---|a: 1|"},
		{"flow mapping", "a.yaml", "{a: 1}\n", "1:{a: 1}|"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			docs, err := Split(tt.file, []byte(tt.in))
			if err != nil {
				t.Fatal(err.Detail)
			}
			var parts []string
			for _, d := range docs {
				parts = append(parts, fmt.Sprintf("%d:%s", d.Line, strings.ReplaceAll(string(d.Data), "\n", "|")))
			}
			if got := strings.Join(parts, " "); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}
