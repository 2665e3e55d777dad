package document

import (
	"reflect"
	"testing"
)

const service = `# a comment
apiVersion: v1
kind: Service
metadata:
  name: web
  annotations:
    a.b/c: x
    a: y
spec:
  ports:
  - name: http
    port: 80
  - {name: dns,
     port: 53}
  externalIPs: ["192.0.2.1",
    "192.0.2.2"]
  type: ClusterIP
  type: NodePort
`

func TestLine(t *testing.T) {
	tests := []struct {
		name, doc string
		first     int
		path      string
		want      int
	}{
		{"document", service, 1, "", 2},
		{"top-level field", service, 1, "kind", 3},
		{"offset", service, 101, "kind", 103},
		{"nested", service, 1, "spec.ports[0].port", 12},
		{"item", service, 1, "spec.ports[1]", 13},
		{"flow style", service, 1, "spec.ports[1].port", 14},
		{"flow list", service, 1, "spec.externalIPs[1]", 16},
		{"missing field gives its parent", service, 1, "spec.ports[0].protocol", 11},
		{"missing item gives the list", service, 1, "spec.ports[7].port", 10},
		{"missing everything", service, 1, "status.loadBalancer", 2},
		{"key with dots in brackets", service, 1, "metadata.annotations[a.b/c]", 7},
		{"key with dots in quotes", service, 1, `metadata.annotations["a.b/c"]`, 7},
		{"key with dots, plain", service, 1, "metadata.annotations.a.b/c", 7},
		{"key that is the start of another", service, 1, "metadata.annotations.a", 8},
		{"duplicate gives the last", service, 1, "spec.type", 18},
		{"leading dot", service, 1, ".kind", 3},
		{"JSON", "{\n \"a\": {\n  \"b\": [1,\n 2]}}", 1, "a.b[1]", 4},
		{"JSON with tabs", "{\n\t\"a\": {\n\t\t\"b\": 1}}", 1, "a.b", 3},
		{"alias", "x: &x\n  y: 1\nz: *x\n", 1, "z.y", 2},
		{"alias that is not resolved", "a: *nope\n", 4, "a", 4},
		{"self-reference", "a: &a [*a]\n", 1, "a[0][0][0]", 1},
		{"not YAML", "a: [\n", 7, "a", 7},
		{"empty", "", 7, "a", 7},
		{"scalar", "hello", 7, "a.b", 7},
		{"odd paths", service, 1, "spec.ports[-1]", 10},
		{"unclosed index", service, 1, "spec.ports[0", 10},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Parse(Text{Line: tt.first, Data: []byte(tt.doc)}).Line(tt.path); got != tt.want {
				t.Errorf("Line(%q) = %d, want %d", tt.path, got, tt.want)
			}
		})
	}
}

func TestEmbedded(t *testing.T) {
	doc := "data:\n  literal.conf: |-\n    a: 1\n    b: 2\n  quoted: \"a: 1\\nb: 2\"\n  number: 7\n"
	tests := []struct {
		path string
		want Text
		ok   bool
	}{
		{"data[literal.conf]", Text{Line: 12, Data: []byte("a: 1\nb: 2")}, true},
		{"data.quoted", Text{Line: 14, Data: []byte("a: 1\nb: 2"), OneLine: true}, true},
		{"data.number", Text{}, false},
		{"data.absent", Text{}, false},
		{"data", Text{}, false},
	}
	d := Parse(Text{Line: 10, Data: []byte(doc)})
	for _, tt := range tests {
		got, ok := d.Embedded(tt.path)
		if !reflect.DeepEqual(got, tt.want) || ok != tt.ok {
			t.Errorf("Embedded(%q) = %+v, %v, want %+v, %v", tt.path, got, ok, tt.want, tt.ok)
		}
		if text := d.String(tt.path); text != string(tt.want.Data) {
			t.Errorf("String(%q) = %q", tt.path, text)
		}
	}
}

func FuzzLine(f *testing.F) {
	f.Add([]byte(service), "spec.ports[0].port")
	f.Add([]byte("a: &a [*a]"), "a[0][0]")
	f.Add([]byte("a: &a {<<: *a, on: 1}\nb: {<<: [*a, {c: d}]}"), "b.true")
	f.Fuzz(func(t *testing.T, doc []byte, path string) {
		d := Parse(Text{Line: 1, Data: doc})
		if d.Line(path) < 1 {
			t.Error("a line before the first")
		}
		d.Embedded(path)
	})
}
