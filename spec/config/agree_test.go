package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"k8s.io/apimachinery/pkg/api/resource"

	"weir/spec"
	"weir/spec/config/schema"
	"weir/spec/seed"
)

// judge compares what the decoder says of a document with what the schema says.
type judge struct {
	version string
	schema  *schema.Schema
	checked *jsonschema.Schema
}

// judges returns a judge for each kind.
func judges(t *testing.T) map[string]judge {
	t.Helper()
	all := map[string]judge{}
	for k, s := range schemas(t) {
		text, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		c.DefaultDraft(jsonschema.Draft2020) // so that $schema counts
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err == nil {
			err = c.AddResource("mem:schema.json", doc)
		}
		checked, errCompile := c.Compile("mem:schema.json")
		if err := errors.Join(err, errCompile); err != nil {
			t.Fatal(err)
		}
		all[k] = judge{s.Properties["apiVersion"].Const.(string), s, checked}
	}
	return all
}

// decoded returns the problems that the decoder has with a document of a kind.
func decoded(kind string, doc Doc) []spec.Problem {
	if kind == WeirKind {
		_, problems := DecodeWeir(doc)
		return problems
	}
	_, _, problems := Decode(doc)
	return problems
}

// refused returns the fields that the schema refuses, by their plain paths.
func (j judge) refused(t *testing.T, data []byte) map[string]bool {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	if e := new(jsonschema.ValidationError); errors.As(j.checked.Validate(value), &e) {
		collect(e, found)
	}
	return found
}

func collect(e *jsonschema.ValidationError, found map[string]bool) {
	unknown, ok := e.ErrorKind.(*kind.AdditionalProperties)
	switch {
	case ok:
		for _, name := range unknown.Properties {
			found[strings.Join(append(slices.Clip(e.InstanceLocation), name), ".")] = true
		}
	case len(e.Causes) == 0:
		found[strings.Join(e.InstanceLocation, ".")] = true
	}
	for _, c := range e.Causes {
		collect(c, found)
	}
}

// plain returns the path of a problem with a dot before each index and key.
func plain(path string) string { return strings.NewReplacer("[", ".", "]", "").Replace(path) }

// notRefused returns the problems that are about the structure of a document, and that a schema did not find.
func notRefused(problems []spec.Problem, refused map[string]bool) (missed []spec.Problem, structures int) {
	for _, p := range problems {
		if !structural.MatchString(p.Detail) {
			continue
		}
		structures++
		if header := p.Field == "apiVersion" && refused["kind"]; !refused[plain(p.Field)] && !header {
			missed = append(missed, p)
		}
	}
	return missed, structures
}

// structural fits problems that are about the structure of a document, which a schema can know.
var structural = regexp.MustCompile(`^unknown field|^must be (an? |true )|: must be .*, kind |is not one of|is not the ID of a notice|is for Windows; use`)

// TestSchemaOfFiles holds that each good document conforms to its schema, and that the schema refuses each field of a bad one
// that the decoder refuses for its structure.
func TestSchemaOfFiles(t *testing.T) {
	all := judges(t)
	found := 0
	for _, pattern := range []string{"good/*", "bad/*"} {
		files, err := filepath.Glob(filepath.Join(testdata, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, ".golden") {
				continue
			}
			doc := docOf(filepath.Base(file), 1, readFile(t, file))
			if inner, ok := FromConfigMap(doc); ok {
				doc = inner
			}
			if doc.JSON() == nil {
				continue // no YAML
			}
			k := KubeProxyKind
			if doc.String("kind") == WeirKind {
				k = WeirKind
			}
			refused := all[k].refused(t, doc.JSON())
			if strings.HasPrefix(pattern, "good") && len(refused) > 0 {
				t.Errorf("%s: the schema refuses %v", file, refused)
			}
			missed, structures := notRefused(decoded(k, doc), refused)
			if found += structures; len(missed) > 0 {
				t.Errorf("%s: %v: the schema refuses only %v", file, missed, refused)
			}
		}
	}
	if found < 30 {
		t.Errorf("the bad documents have %d problems of structure, fewer than they had", found)
	}
}

// TestSchemaOfEachField sets each field to its default and its examples, which the decoder and the schema accept, and beside it
// a field that does not exist, which both refuse.
func TestSchemaOfEachField(t *testing.T) {
	for k, j := range judges(t) {
		accepts := func(values map[string]any, want bool) {
			t.Helper()
			data := documentWith(t, j.version, k, values)
			problems, refused := decoded(k, docOf("", 1, data)), j.refused(t, data)
			if (len(problems) == 0) != want || (len(refused) == 0) != want {
				t.Errorf("%s: accepted should be %v; the decoder says %v, and the schema refuses %v", data, want, problems, refused)
			}
		}
		for _, example := range j.schema.Examples {
			accepts(example.(map[string]any), true)
		}
		for path, s := range properties(j.schema) {
			if s.Const != nil || strings.Contains(path, "[]") {
				continue
			}
			section := path[:max(0, strings.LastIndex(path, "."))]
			for _, v := range settings(s) {
				accepts(map[string]any{path: v}, true)
				accepts(map[string]any{path: v, strings.TrimPrefix(section+".nonesuch", "."): v}, false)
			}
			if s.Type != nil {
				accepts(map[string]any{path: nil}, slices.Contains(s.Type, "null"))
			}
			if s.Properties != nil {
				accepts(map[string]any{path: map[string]any{}}, true)
				accepts(map[string]any{path: map[string]any{"nonesuch": nil}}, false)
			}
			for _, word := range s.Enum {
				if path != "detectLocalMode" { // some words need another field
					accepts(map[string]any{path: word}, true)
				}
			}
			if s.Minimum != nil {
				accepts(map[string]any{path: *s.Minimum}, true)
				accepts(map[string]any{path: *s.Minimum - 1}, false)
				accepts(map[string]any{path: *s.Maximum}, true)
				accepts(map[string]any{path: *s.Maximum + 1}, false)
			}
		}
	}
}

// TestSchemaOfRandomDocuments holds for documents with random fields of random values that the schema refuses no document which
// the decoder accepts, and refuses each field that the decoder refuses for its structure.
func TestSchemaOfRandomDocuments(t *testing.T) {
	random := seed.Rand(t)
	pool := []any{nil, "", true, 7, -1, 1.5, 1 << 40, "30s", "30", "x", "W009", "none", []any{}, []any{"x"}, []any{7}, []any{"192.0.2.0/24"}, []any{map[string]any{}},
		map[string]any{}, map[string]any{"x": "y"}, map[string]any{"x.example": []any{"192.0.2.1"}}, map[string]any{"x": true}}
	for k, j := range judges(t) {
		all := properties(j.schema)
		paths := slices.Sorted(maps.Keys(all))
		accepted := 0
		for range 3000 {
			set := map[string]any{}
			for range 1 + random.IntN(3) {
				path := paths[random.IntN(len(paths))]
				choice := append(slices.Clip(pool), settings(all[path])...)
				set[path] = choice[random.IntN(len(choice))]
			}
			data := documentWith(t, j.version, k, set)
			problems, refused := decoded(k, docOf("", 1, data)), j.refused(t, data)
			if len(problems) == 0 {
				if accepted++; len(refused) > 0 {
					t.Errorf("%s is accepted, but the schema refuses %v", data, refused)
				}
			}
			if missed, _ := notRefused(problems, refused); len(missed) > 0 {
				t.Errorf("%s: %v: the schema refuses only %v", data, missed, refused)
			}
		}
		if accepted < 100 {
			t.Errorf("%s: only %d random documents are accepted", k, accepted)
		}
	}
}

// TestSchemaPatterns holds that the patterns take what Go parses.
func TestSchemaPatterns(t *testing.T) {
	random := seed.Rand(t)
	for _, test := range []struct {
		pattern, letters string
		parse            func(string) error
	}{
		{schema.Duration, "0123.+-nuµμmshx", func(s string) error { _, err := time.ParseDuration(s); return err }},
		{schema.Quantity, "0123.+-KMnumkGTPEeix", func(s string) error {
			if !regexp.MustCompile(`^[-+]?\.?[0-9]`).MatchString(s) {
				return errors.New("a suffix without a number, which ParseQuantity takes for 0")
			}
			_, err := resource.ParseQuantity(s)
			return err
		}},
	} {
		pattern, parsed := regexp.MustCompile(test.pattern), 0
		for range 100000 {
			text := randomText(random, []rune(test.letters), random.IntN(7))
			err := test.parse(text)
			if err == nil {
				parsed++
			}
			if pattern.MatchString(text) != (err == nil) {
				t.Errorf("%q: the pattern matches: %v; parsed: %v", text, pattern.MatchString(text), err)
			}
		}
		if parsed < 1000 {
			t.Errorf("only %d texts are valid", parsed)
		}
	}
}

func randomText(random *rand.Rand, letters []rune, length int) string {
	var b strings.Builder
	for range length {
		fmt.Fprintf(&b, "%c", letters[random.IntN(len(letters))])
	}
	return b.String()
}
