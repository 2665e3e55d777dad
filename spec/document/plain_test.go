package document

import (
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"weir/spec/seed"

	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// checkPlain expects that what is taken for plain means the same to the library.
func checkPlain(t *testing.T, doc []byte) bool {
	t.Helper()
	fast, ok := plainToJSON(doc)
	if !ok {
		return false
	}
	slow, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		t.Fatalf("%q is taken for plain, and the library says: %v", doc, err)
	}
	var got, want any
	twice, err := kjson.UnmarshalStrict(fast, &got)
	if err != nil || len(twice) > 0 {
		t.Fatalf("%q becomes %s: %v, %v", doc, fast, err, twice)
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(slow, &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%q\nbecomes  %s\nrather than %s", doc, fast, slow)
	}
	return true
}

// TestPlain reads every manifest there is in the repository's examples and test data.
func TestPlain(t *testing.T) {
	plain, all := 0, 0
	for _, root := range []string{"../../testdata", "../../examples"} {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".yaml") && !strings.HasSuffix(path, ".txtar") {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return nil // some are unreadable on purpose
			}
			for _, part := range strings.Split(string(data), "\n-- ") {
				if strings.HasSuffix(path, ".txtar") {
					_, part, _ = strings.Cut(part, "\n")
				}
				for _, doc := range (&splitter{data: []byte(part), startLine: 1}).split() {
					if all++; checkPlain(t, doc.Data) {
						plain++
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if t.Logf("%d of %d documents are plain", plain, all); plain < all/2 {
		t.Errorf("only %d of %d documents are plain", plain, all)
	}
}

// TestNotPlain lists what looks plain and is not.
func TestNotPlain(t *testing.T) {
	for _, doc := range []string{
		"", "a", "- a", "a: yes", "a: 0x10", "a: 010", "a: 1.5", "a: 1e3", "a: ~", "a: null", "a: 2001-01-01", "a: 1_000", "a: .inf", "a: -1",
		"a: b: c", "a: b:", "a:b", "a: b\n  c", "a: b\n c: d", "a: |\n  b", "a: >\n  b", "a: &x b", "a: *x", "a: !!str 1", "a: 'it''s'",
		"a: \"x\\ny\"", "a: \"x\n  y\"", "a: [b\n  , c]", "a: [b: c]", "a: [b,]", "a: [,]", "a: {b}", "a: {b: }", "a: {b: c", "a: {b: [c}]}",
		"a: {b: c} d", "a: \"b\" c", "a: 'b'c", "a: {b: fd00::1}", "a: b #c\n\td: e", "a:\tb", "a: b\r", "yes: a", "1: a", "a: 1\na: 2",
		"a: {b: 1, b: 2}", "a:\n- b\n c: d", "a:\n - b\n- c", "a:\n  b: c\n  - d", "a:\n- - b", "a: b\n---\nc: d", "a: b\n...", "%YAML 1.1\n---\na: b",
		"--- a: b", "<<: {a: b}", "a: @b", "a: `b`", "a: b, c", "\"a\": b", "a: é", "? a\n: b", "a: =", "a: {b: c}\n  d: e", "a: [b]\n - c",
	} {
		if out, ok := plainToJSON([]byte(doc)); ok {
			t.Errorf("%q is taken for plain: %s", doc, out)
		}
	}
	deep, long := strings.Repeat("a: ", 100), strings.Repeat("k", 1024)
	for _, doc := range []string{"a: " + strings.Repeat("[", 100) + strings.Repeat("]", 100), deep, long + ": 1", "- " + long + ": 1", "a: {" + long + ": 1}", "a:\n  " + long + ":\n  - b"} {
		if _, ok := plainToJSON([]byte(doc)); ok {
			t.Errorf("%.20q is taken for plain", doc)
		}
	}
}

// TestRandomPlain puts together what YAML is made of.
func TestRandomPlain(t *testing.T) {
	parts := []string{
		"a", "b", "cd", "a: ", "b: ", "c:", "d:\n", "- ", "-", " ", "  ", "    ", "\n", "\n", "\n  ", "\n    ", "\n- ", "\n  - ", "'", "\"", "'x y'", "\"x: y\"",
		"{", "}", "[", "]", ",", ", ", ":", ": ", "#", " # c", "1", "0", "012", "1.5", "yes", "true", "null", "fd00::1", "10.0.0.1/8", "1:2:3",
		"|", ">", "&a ", "*a", "!", "---", "---\n", "...", "a: {b: c, d: [e, 1]}", "a: [b, 'c']\n", "e:\n- f: 1\n  g: h\n", "@", "/x", "x/y:80", "=", "_",
	}
	rng := seed.Rand(t)
	plain, count := 0, 100_000
	if n, err := strconv.Atoi(os.Getenv("WEIR_RANDOM_PLAIN")); err == nil {
		count = n
	}
	var doc []byte
	for range count {
		// Of few parts more comes that is plain.
		rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		palette := parts[:2+rng.IntN(8)]
		doc = doc[:0]
		for range 1 + rng.IntN(14) {
			doc = append(doc, palette[rng.IntN(len(palette))]...)
		}
		if checkPlain(t, doc) {
			plain++
		}
	}
	if t.Logf("%d of %d were plain", plain, count); plain < count/100 {
		t.Errorf("only %d of %d were plain", plain, count)
	}
}

func FuzzPlain(f *testing.F) {
	f.Add([]byte(service))
	for _, doc := range []string{
		"---\n# c\na: b # c\nb:\n- c: 1\n  d: [e, 10.96.0.1, 'f g']\n-  x:\n   - y\nc:\n  d: \"e f\"\ne: # c\nf: {}\n", "a: fd00::1\nb: {c: true, d: [], e: {f: g/h}}",
		"a: on\nb: 1:2:3\nc: 0.0.0", strings.Repeat("k", 1023) + ": " + strings.Repeat("v", 2000), "a: {" + strings.Repeat("k", 1024) + ": 1}", "a:\n\n  b:\n  c: 2001:db8::\n", "a: \"\"\nb: 'x: y'", "a: '#'\nb: x/y:80",
	} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		if len(doc) < 1<<12 {
			checkPlain(t, doc)
		}
	})
}
