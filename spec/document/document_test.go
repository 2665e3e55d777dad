package document

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	yamlv3 "go.yaml.in/yaml/v3"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"weir/spec/seed"
)

func parse(text string) *Document { return Parse(Text{Line: 1, Data: []byte(text)}) }

// TestMeaning lists what YAML means beyond the plain, as kubectl reads it.
func TestMeaning(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"booleans of YAML 1.1", "a: yes\nb: Off\nc: y\nd: 'yes'\ne: !!str on", `{"a":true,"b":false,"c":true,"d":"yes","e":"on"}`},
		{"numbers", "a: 010\nb: 0x10\nc: 1_000\nd: -1\ne: 1.5\nf: 1e3\ng: 0b11\nh: 18446744073709551615", `{"a":8,"b":16,"c":1000,"d":-1,"e":1.5,"f":1000,"g":3,"h":18446744073709551615}`},
		{"what looks like a number", "a: 1.2.3\nb: 1:2\nc: 2001-01-01\nd: ...x\ne: '-'\nf: 1 2\ng: [-1.2.3, .]", "a"},
		{"nothing", "a: ~\nb:\nc: null\nd: ''", `{"a":null,"b":null,"c":null,"d":""}`},
		{"tags", "a: !!int '5'\nb: !!float 1\nc: !!binary aGk=\nd: !x 5\ne: !!null ''\nf: !!str 5", `{"a":5,"b":1,"c":"hi","d":"5","e":null,"f":"5"}`},
		{"keys of YAML 1.1", "on: 1\n1: 2\n0x10: 3\n1.5: 4", `{"true":1,"1":2,"16":3,"1.5":4}`},
		{"merge overridden before", "x: &x {a: 1, b: 2}\nw: {<<: *x, b: 3, c: 4}", `{"x":{"a":1,"b":2},"w":{"b":3,"c":4,"a":1}}`},
		{"merge overridden after", "x: &x {a: 1, b: 2}\nw: {b: 3, <<: *x}", `{"x":{"a":1,"b":2},"w":{"b":3,"a":1}}`},
		{"merge of a list", "x: &x {a: 1, b: 2}\nw: &w {b: 3, c: 4}\nz:\n  <<: [*x, *w, {d: 5, a: 6}]", `{"x":{"a":1,"b":2},"w":{"b":3,"c":4},"z":{"a":1,"b":2,"c":4,"d":5}}`},
		{"merge of a merge", "x: &x {a: 1}\nw: &w {<<: *x, b: 2}\nz: {<<: *w, b: 3}", `{"x":{"a":1},"w":{"b":2,"a":1},"z":{"b":3,"a":1}}`},
		{"merge written out", "a: {<<: {b: 1}}", `{"a":{"b":1}}`},
		{"no merge", "a: {'<<': 1}", `{"a":{"<<":1}}`},
		{"another version", "# x\n%YAML 1.2 # y\n---\na: yes", `{"a":true}`},
		{"a version to come", "%YAML 1.19\n---\na: é", `{"a":"é"}`},
		{"the version that is read", "%YAML 1.1\n%TAG !e! tag:e.org,2000:\n---\na: !e!x 5", `{"a":"5"}`},
		{"text", "a: |\n  b\n   c\nd: >-\n  e\n  f\ng: \"\\u00e9\\n<\"", `{"a":"b\n c\n","d":"e f","g":"é\n<"}`},
		{"an alias as a key", "a: &a b\n*a : c", `{"a":"b","b":"c"}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := parse(tt.in)
			if len(d.Problems()) > 0 {
				t.Fatal(d.Problems())
			}
			if tt.want == "a" { // the library's word is enough
				return
			}
			if !sameJSON(t, d.JSON(), []byte(tt.want)) {
				t.Errorf("got  %s\nwant %s", d.JSON(), tt.want)
			}
			want, err := yaml.YAMLToJSON(asYAML11([]byte(tt.in)))
			if tt.name != "merge overridden after" && (err != nil || !sameJSON(t, d.JSON(), want)) {
				t.Errorf("the library has %s, %v", want, err)
			}
		})
	}
}

// TestRefused lists what is told of documents that mean nothing, or not one thing.
func TestRefused(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"given twice", "a:\n  b: 1\n  c: 2\n  b: 3", `4: a.b: is given twice`},
		{"given twice beside a merge", "x: &x {a: 1}\ny:\n  <<: *x\n  a: 1\n  a: 2", `5: y.a: is given twice`},
		{"given twice in what is merged", "x: &x {a: 1, a: 2}\ny: {<<: *x}\nz: *x", `1: x.a: is given twice`},
		{"two names of one key", "a:\n- on: 1\n  true: 2", `3: a[0].true: is given twice`},
		{"a number and a string", "1: a\n'1': b", `2: 1: is given twice`},
		{"two merges", "x: &x {a: 1}\n<<: *x\n<<: *x", `3: <<: is given twice`},
		{"a merge of a string", "a:\n  <<: b", `2: : not YAML: << takes a mapping or a list of mappings`},
		{"a merge of itself", "a: &a\n  <<: *a", `1: : ` + tooManyAliases},
		{"part of itself", "a: &a [*a]", `1: : ` + tooManyAliases},
		{"a list as a key", "a: 1\n? [b]\n: c", `2: : not YAML: a key must be a string, not a list or a mapping`},
		{"nothing as a key", "~: c", `1: : not YAML: a key must be a string, not nothing`},
		{"no number", "a: [1, .inf]", `1: a[1]: ".inf" is no number in JSON; put it in quotes if it is a string`},
		{"a wrong tag", "a:\n- !!int x", "2: : not YAML: cannot decode !!str ... as a !!int"},
		{"a version that differs", "%YAML 2.0\n---\na: b", `1: : not YAML: found incompatible YAML document`},
		{"left over after a string", "\"a\" \"b\"", `1: : not YAML: did not find expected <document start>; a second document needs a line --- before it`},
		{"left over after a list", "[a]\nb: c", `2: : not YAML: did not find expected <document start>; a second document needs a line --- before it`},
		{"left over after an indented field", "  a: 1\nb: 2", `2: : not YAML: did not find expected <document start>; a second document needs a line --- before it`},
		{"a second document", "a: 1\n---\nb: 2", `2: : not YAML: a second document begins without a line ---`},
		{"many merges", "a: &a {" + manyFields9() + "}\nb: {<<: [" + strings.Repeat("*a,", 10_000) + "]}", `1: : ` + tooManyAliases},
		{"deep aliases", "a: &a " + nested("1") + "\nb: &b " + nested("*a") + "\nc: " + nested("*b"), `1: : not YAML: exceeded max depth of 10000`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range parse(tt.in).Problems() {
				got = append(got, fmt.Sprintf("%d: %s: %s", p.Line, p.Field, p.Detail))
			}
			if strings.Join(got, "\n") != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func nested(s string) string { return strings.Repeat("[", 6000) + s + strings.Repeat("]", 6000) }

func manyFields9() string {
	var b strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&b, "f%d: 1, ", i)
	}
	return b.String()
}

// TestNamedAsWritten expects a problem to name a key as it is in the file, though YAML 1.1 reads another.
func TestNamedAsWritten(t *testing.T) {
	d := parse("a: 1\nlist:\n- name: x\n- on: 1\n  n: 2\n  0x1f: {no: 3}\nbase: &b {off: 1}\nother: {<<: *b}")
	var out struct {
		A    int
		List []struct {
			Name string `json:"name"`
		} `json:"list"`
		Base  struct{}       `json:"base"`
		Other map[string]int `json:"other"`
	}
	var got []string
	for _, p := range d.Decode(&out) {
		got = append(got, fmt.Sprintf("%d: %s: %s", p.Line, p.Field, p.Detail))
	}
	want := []string{"1: a: unknown field; did you mean A?", "6: list[1].0x1f: unknown field", "5: list[1].n: unknown field", "4: list[1].on: unknown field", "7: base.off: unknown field"}
	for _, w := range want[1:] {
		if !strings.Contains(strings.Join(got, "\n"), w) {
			t.Errorf("%q is not among %q", w, got)
		}
	}
	if line := d.Line("other.false"); line != 7 {
		t.Errorf("a merged field is on line %d", line)
	}
}

// TestMisplaced has fields that belong elsewhere in a document. A name that many objects have is no help, and gets no hint.
func TestMisplaced(t *testing.T) {
	type timing struct {
		SyncPeriod string `json:"syncPeriod"`
		Common     string `json:"common"`
	}
	type port struct {
		TargetPort string `json:"targetPort"`
		Next       *port  `json:"next"`
		Common     string `json:"common"`
	}
	var out struct {
		IPTables timing            `json:"iptables"`
		IPVS     *timing           `json:"ipvs"`
		Labels   map[string]string `json:"labels"`
		Spec     struct {
			Ports  []port `json:"ports"`
			Deeper struct {
				SyncPeriod string `json:"syncPeriod"`
				Common     string `json:"common"`
			} `json:"deeper"`
		} `json:"spec"`
		Third struct {
			Common string `json:"common"`
		} `json:"third"`
		Fourth struct {
			Common string `json:"common"`
		} `json:"fourth"`
	}
	d := parse("syncPeriod: 1s\nspec: {targetPort: x, iptables: {}, syncPeriods: 1, deeper: {syncPeriods: x, labels: {}, targetPort: 1}, ports: [{iptables: 1}]}\ncommon: x\nipvs: {nonesuch: 1}")
	var got []string
	for _, p := range d.Decode(&out) {
		got = append(got, p.Field+": "+p.Detail)
	}
	want := []string{
		"common: unknown field", "ipvs.nonesuch: unknown field",
		"spec.deeper.labels: unknown field; it belongs at the top level",
		"spec.deeper.syncPeriods: unknown field; did you mean syncPeriod?", "spec.deeper.targetPort: unknown field",
		"spec.iptables: unknown field; it belongs at the top level", "spec.ports[0].iptables: unknown field; it belongs at the top level",
		"spec.syncPeriods: unknown field", "spec.targetPort: unknown field; it belongs in spec.ports[]",
		"syncPeriod: unknown field; it belongs in iptables, or ipvs",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestItems expects the lines of items in every style.
func TestItems(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"block", "kind: List\nitems:\n- a: 1\n  b: 2\n\n-\n  a: 1\n  b: 2\n", "3/4 7/8 "},
		{"not plain", "kind: List\nitems:\n- a: 1\n  b: \"\\t\"\n- a: 1\n  b: 2\n", "3/4 5/6 "},
		{"flow", "items: [{a: 1,\n  b: 2}, {a: 1,\n b: 2}]", "1/2 2/3 "},
		{"JSON", "{\"items\": [{\"a\": 1,\n \"b\": 2},\n\n {\"a\": 1, \"b\": 2}]}", "1/2 4/4 "},
		{"aliases", "x: &x {a: 1,\n  b: 2}\nitems:\n- *x\n", "4/2 "},
		{"carriage returns", "kind: List\ritems:\r- a: 1\r  b: 2\r", "3/4 "},
		{"none", "a: 1\n", ""},
	} {
		got := ""
		for _, item := range parse(tt.in).Items("items") {
			got += fmt.Sprintf("%d/%d ", item.Start(), item.Line("b"))
		}
		if got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

func sameJSON(t *testing.T, a, b []byte) bool {
	t.Helper()
	var x, y any
	for _, v := range []struct {
		data []byte
		out  *any
	}{{a, &x}, {b, &y}} {
		if err := kjson.UnmarshalCaseSensitivePreserveInts(v.data, v.out); err != nil {
			t.Fatalf("%s: %v", v.data, err)
		}
	}
	return reflect.DeepEqual(x, y)
}

// stream returns the values of all documents in a file as the YAML parser reads them, apart from the empty ones, or false if
// anything is wrong with them. It is the oracle for splitting.
func stream(data []byte) (values []string, ok bool) {
	dec := yamlv3.NewDecoder(bytes.NewReader(data))
	for {
		var n yamlv3.Node
		switch err := dec.Decode(&n); {
		case err == io.EOF:
			return values, true
		case err != nil:
			return nil, false
		}
		w := newWriter(data)
		if w.document(n.Content[0]) != nil || len(w.problems) > 0 {
			return nil, false
		}
		if string(w.out) != "null" {
			values = append(values, string(w.out))
		}
	}
}

// checkFile expects that nothing of a file is lost: it has the documents that the parser finds, or a problem.
func checkFile(t *testing.T, data []byte) (documents int) {
	t.Helper()
	texts, broken := Split("a.yaml", data)
	var got []string
	bad := broken != nil
	for _, text := range texts {
		d := Parse(text)
		if bad = bad || len(d.Problems()) > 0; d.JSON() != nil && string(d.JSON()) != "null" {
			got = append(got, string(d.JSON()))
		}
	}
	want, ok := stream(data)
	refused := !ok
	if refused {
		want, ok = stream(withoutBlanks(data))
	}
	json := bytes.ContainsAny(data, "{[") // of which values may follow each other, and must not be broken
	switch {
	case bad && !refused && !json:
		t.Fatalf("%q is refused, and the parser reads %q", data, want)
	case !bad && !ok && (json || bytes.Contains(data, []byte("..."))): // the parser wants one of these to end something
	case !bad && !ok:
		t.Fatalf("%q is read as %q, and the parser refuses it", data, got)
	case !bad && fmt.Sprint(canonical(t, got)) != fmt.Sprint(canonical(t, want)):
		t.Fatalf("%q\nis read as    %q\nrather than %q", data, got, want)
	}
	return len(got)
}

// withoutBlanks empties the lines that have nothing but blanks or a comment: the parser minds a tab in them.
func withoutBlanks(data []byte) (out []byte) {
	for line := range lines(data, false) {
		body := trimLine(line)
		if blank := bytes.Trim(body, " \t"); len(blank) == 0 || blank[0] == '#' {
			line = line[len(body):]
		}
		out = append(out, line...)
	}
	return out
}

func canonical(t *testing.T, values []string) []any {
	all := make([]any, len(values))
	for i, v := range values {
		if err := json.Unmarshal([]byte(v), &all[i]); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// bareTag is the tag "!", which makes a string of anything. The tree does not tell it from none.
var bareTag = regexp.MustCompile(`!([^0-9A-Za-z!]|$)`)

// checkMeaning expects that a document without merges means the same to kubectl's library, and returns whether it is one.
func checkMeaning(t *testing.T, data []byte) bool {
	t.Helper()
	d := Parse(Text{Line: 1, Data: data})
	if root, _, err := parseYAML(data); err == nil && root != nil && countTree(root) > 2*countNodes(data) {
		t.Fatalf("%q has %d nodes, and %d were counted", data, countTree(root), countNodes(data))
	}
	if bytes.Contains(data, []byte("<<")) || bareTag.Match(data) {
		return false
	}
	want, err := yaml.YAMLToJSON(data)
	if err != nil {
		if len(d.Problems()) == 0 && !bytes.ContainsRune(data, '\t') { // it minds a tab before a comment
			t.Fatalf("%q is %s, and the library says %v", data, d.JSON(), err)
		}
		return false
	}
	if _, _, err := parseYAML(data); err != nil {
		if len(d.Problems()) == 0 {
			t.Fatalf("%q is %s: %v", data, d.JSON(), err)
		}
		return false
	}
	if len(d.Problems()) > 0 {
		_, strict := yaml.YAMLToJSONStrict(data)
		if detail := d.Problems()[0].Detail; strict == nil && detail != "is given twice" {
			t.Fatalf("%q is refused: %v", data, d.Problems())
		}
		return false
	}
	if !sameJSON(t, d.JSON(), want) {
		t.Fatalf("%q\nis          %s\nrather than %s", data, d.JSON(), want)
	}
	return true
}

func countTree(n *yamlv3.Node) int {
	count := 1
	for _, child := range n.Content {
		count += countTree(child)
	}
	return count
}

var yamlParts = []string{
	"a", "b", "cd", "a: ", "b: ", "c:", "d:\n", "- ", "-", " ", "  ", "\n", "\n", "\n  ", "\n    ", "\n- ", "\n  - ", "'", "\"", "'x y'", "\"x: y\"",
	"{", "}", "[", "]", ",", ", ", ":", ": ", "#", " # c\n", "1", "0", "012", "1.5", "-1", "+1", "1e+3", "0x1F", "0o7", "0b1", "1_0", ".5", "1.", "yes", "Off", "y", "true", "~",
	"null", ".inf", "fd00::1", "2001-01-01", "1:2:3", "|\n", ">\n", "&a ", "*a", "*a : ", "!!str ", "!!int ", "!x ", "---\n", "--- ", "...\n", "a: {b: c, d: [e, 1]}\n",
	"e:\n- f: 1\n  g: h\n", "? ", "=", "\t", "\r", "\r\n", "\u0085", "\u2028", "\u2029", "é", "\u00a0", "\\", "%a\n", "<<: ",
}

// randomYAML puts together what YAML is made of. Of few parts more comes that means anything.
func randomYAML(rng *rand.Rand) []byte {
	palette := make([]string, 2+rng.IntN(8))
	for i := range palette {
		palette[i] = yamlParts[rng.IntN(len(yamlParts))]
	}
	var doc []byte
	for range 1 + rng.IntN(14) {
		doc = append(doc, palette[rng.IntN(len(palette))]...)
	}
	return doc
}

func TestRandomMeaning(t *testing.T) {
	rng := seed.Rand(t)
	read, files := 0, 0
	for range seed.Steps(15_000) {
		doc := randomYAML(rng)
		if checkMeaning(t, doc) {
			read++
		}
		if checkFile(t, doc) > 1 {
			files++
		}
	}
	if t.Logf("%d documents, %d files of several", read, files); read < seed.Steps(1000) || files < seed.Steps(100) {
		t.Errorf("only %d documents, %d files of several", read, files)
	}
}

func FuzzMeaning(f *testing.F) {
	f.Add([]byte(service))
	f.Add([]byte("a: &a {b: yes}\nc: *a\n? x\n: 0x1\r---\u2028d: [1.5, .5, 012]\n...\n# x\n--- |\n y\n"))
	f.Add([]byte("%YAML 1.1\n---\n\"a\": !!int '1'\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Text that is not UTF-8 is refused here, and the library refuses long keys.
		if len(data) < 1<<9 && utf8.Valid(data) && !bytes.Contains(data, []byte("%YAML")) && !bytes.Contains(data, byteOrderMark) {
			checkMeaning(t, data)
			checkFile(t, data)
		}
	})
}

// TestRandomMerges compares mappings that merge others with what yaml/v3 makes of them.
func TestRandomMerges(t *testing.T) {
	rng := seed.Rand(t)
	for range seed.Steps(3000) {
		var b strings.Builder
		n := 2 + rng.IntN(5)
		for i := range n {
			fmt.Fprintf(&b, "m%d: &m%d\n", i, i)
			merge := ""
			switch {
			case i == 0:
			case rng.IntN(3) == 0:
				merge = fmt.Sprintf("  <<: [*m%d, {a: %d, z: 1}, *m%d]\n", rng.IntN(i), i, rng.IntN(i))
			case rng.IntN(2) == 0:
				merge = fmt.Sprintf("  <<: *m%d\n", rng.IntN(i))
			}
			fields := []string{merge}
			for _, key := range []string{"a", "b", "c", "on", "7"} {
				if rng.IntN(2) == 0 {
					fields = append(fields, fmt.Sprintf("  %s: %d\n", key, 10*i))
				}
			}
			rng.Shuffle(len(fields), func(i, j int) { fields[i], fields[j] = fields[j], fields[i] })
			b.WriteString(strings.Join(fields, "") + "  own: 1\n")
		}
		var want map[string]map[string]int
		if err := yamlv3.Unmarshal([]byte(strings.NewReplacer(" on:", ` "true":`, " 7:", ` "7":`).Replace(b.String())), &want); err != nil {
			t.Fatal(err)
		}
		text, _ := json.Marshal(want)
		d := parse(b.String())
		if len(d.Problems()) > 0 || !sameJSON(t, d.JSON(), text) {
			t.Fatalf("%s\nis          %s %v\nrather than %s", &b, d.JSON(), d.Problems(), text)
		}
	}
}

// TestRandomFiles writes files of several documents with all line ends, byte order marks, comments and markers there are, and
// expects every document, and every field on the line where it was written.
func TestRandomFiles(t *testing.T) {
	rng := seed.Rand(t)
	breaks := []string{"\n", "\r\n", "\r", "\u0085", "\u2028", "\u2029"}
	for range seed.Steps(5000) {
		var b strings.Builder
		line := 1
		newline := breaks[rng.IntN(len(breaks))]
		write := func(text string) {
			if rng.IntN(10) == 0 {
				newline = breaks[rng.IntN(len(breaks))]
			}
			end := newline
			if strings.HasSuffix(b.String(), "\r") && end == "\n" && text == "" {
				end = "\r" // which would be the rest of the last one
			}
			b.WriteString(text + end)
			line++
		}
		n := 1 + rng.IntN(5)
		want := make([][2]int, n)
		for i := range n {
			kind := rng.IntN(4)
			if kind == 0 && i > 0 {
				write("...")
			}
			if rng.IntN(3) == 0 {
				b.WriteString("\ufeff")
			}
			switch kind {
			case 0:
				write("%YAML 1." + fmt.Sprint(1+rng.IntN(2)))
			case 1:
				if i > 0 {
					write("---")
				}
				write("# comment")
			case 2:
				write("--- # comment")
				write("")
			}
			write([]string{"---", "---\t", "--- "}[rng.IntN(3)])
			want[i][0] = line
			write(fmt.Sprintf("a: %d", i))
			if rng.IntN(2) == 0 {
				write("t: |")
				write("  --- x")
				write("   # y")
			}
			want[i][1] = line
			write("b: \"é\"")
		}
		texts, broken := Split("a.yaml", []byte(b.String()))
		if broken != nil || len(texts) != n {
			t.Fatalf("%q: %d documents, %v", b.String(), len(texts), broken)
		}
		for i, text := range texts {
			d := Parse(text)
			var v struct{ A int }
			if err := json.Unmarshal(d.JSON(), &v); err != nil || v.A != i || len(d.Problems()) > 0 {
				t.Fatalf("%q: document %d is %s: %v", b.String(), i, d.JSON(), d.Problems())
			}
			if got := [2]int{d.Start(), d.Line("b")}; got != want[i] {
				t.Fatalf("%q: document %d is on the lines %v, not %v", b.String(), i, got, want[i])
			}
		}
	}
}

// TestBounded holds the memory down that a document can take, which is parsed only if it is within bounds.
func TestBounded(t *testing.T) {
	for _, tt := range []struct {
		name string
		data []byte
		want string
		most uint64 // MiB that are allocated, and given back
	}{
		{"dashes", bytes.Repeat([]byte("-\n"), 8<<20), "more than", 1},
		{"words in braces", append([]byte("{"), bytes.Repeat([]byte("a,"), 4<<20)...), "more than", 1},
		{"fields", bytes.Repeat([]byte("a:\n"), 1<<20), "more than", 1},
		{"JSON", []byte("[" + strings.Repeat("{},", 1<<20) + "{}]"), "more than", 1},
		{"one string", bytes.Repeat([]byte("a"), 17<<20), "larger than", 1},
		{"as many dashes as may be", bytes.Repeat([]byte("-\n"), maxNodes-2), "", 300},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		d := Parse(Text{Line: 1, Data: tt.data})
		runtime.ReadMemStats(&after)
		detail := fmt.Sprint(d.Problems())
		if (tt.want == "") != (len(d.Problems()) == 0) || !strings.Contains(detail, tt.want) {
			t.Errorf("%s: %.200s", tt.name, detail)
		}
		if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > tt.most {
			t.Errorf("%s: %d MiB were allocated", tt.name, took)
		} else {
			t.Logf("%s: %d MiB", tt.name, took)
		}
	}
}

// BenchmarkParse tells what the short way saves (plain.go).
func BenchmarkParse(b *testing.B) {
	text := Text{Line: 1, Data: []byte(strings.NewReplacer("  type: NodePort\n", "", "a: y", "a: z", "1\",\n    \"192", "1\", \"192", "dns,\n     port", "dns, port").Replace(service))}
	if _, ok := plainToJSON(text.Data); !ok {
		b.Fatalf("%s is not plain", text.Data)
	}
	b.Run("plain", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Parse(text)
		}
	})
	b.Run("tree", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			(&Document{source: &source{text: text}}).convertTree()
		}
	})
	b.Run("sigs.k8s.io/yaml", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := yaml.YAMLToJSONStrict(text.Data); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestNearest(t *testing.T) {
	names := []string{"kind", "ipvs", "dns", "port", "ports", "readinessProbe", "uid"}
	for misspelt, want := range map[string]string{
		"dsn": "dns", "dn": "dns", "DNS": "dns", "prot": "port", "prots": "ports", "readinessProb": "readinessProbe", "udi": "uid",
		"qps": "", "min": "", "id": "uid", "readyProbe": "", "x": "", "": "",
	} {
		if got := Nearest(misspelt, names); got != want {
			t.Errorf("%q may mean %q, want %q", misspelt, got, want)
		}
	}
}
