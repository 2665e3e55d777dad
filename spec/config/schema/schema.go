// Package schema has the JSON Schemas of the two documents that configure weir, and finds and describes their fields for
// weir explain. A Kind is one of the documents, a Field what Lookup finds in it.
//
// The schema files are written from the Go types, their comments, defaults and words by a test of spec/config, which also
// holds that they accept what the decoder accepts: go test ./spec/config -run TestSchema -update. The package reads
// nothing else and decides nothing; cmd/weir imports it. Draft 7 is what editors and kubeconform understand.
package schema

import (
	"embed"
	"encoding/json"
	"maps"
	"slices"
	"sync"
)

// Draft is the version of JSON Schema that the files are written in.
const Draft = "http://json-schema.org/draft-07/schema#"

// The patterns of texts that have a type of their own in Go.
const (
	// Duration is what time.ParseDuration takes.
	Duration = `^[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$`
	// Quantity is a number as Kubernetes has it for resources, such as 64Ki.
	Quantity = `^[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E|[eE][-+]?[0-9]+)?$`
)

//go:embed WeirConfiguration.json KubeProxyConfiguration.json
var files embed.FS

// Schema is a JSON Schema, with the keywords that the files use.
type Schema struct {
	Draft       string `json:"$schema,omitempty"`
	Title       string `json:"title,omitempty"`
	Description string `json:"description,omitempty"`
	// Type is a list because nearly every field may also be null.
	Type       []string           `json:"type,omitempty"`
	Required   []string           `json:"required,omitempty"`
	Properties map[string]*Schema `json:"properties,omitempty"`
	// AdditionalProperties describes the values of a map. Of an object it is False.
	AdditionalProperties *Values   `json:"additionalProperties,omitempty"`
	Items                *Schema   `json:"items,omitempty"`
	AnyOf                []*Schema `json:"anyOf,omitempty"`
	Enum                 []any     `json:"enum,omitempty"`
	Const                any       `json:"const,omitempty"`
	Pattern              string    `json:"pattern,omitempty"`
	Minimum              *int64    `json:"minimum,omitempty"`
	Maximum              *int64    `json:"maximum,omitempty"`
	Default              any       `json:"default,omitempty"`
	Examples             []any     `json:"examples,omitempty"`
	If                   *Schema   `json:"if,omitempty"`
	Then                 *Schema   `json:"then,omitempty"`
}

// Values are what additionalProperties says: a schema, or without one that there are none.
type Values struct{ *Schema }

// MarshalJSON implements json.Marshaler.
func (v Values) MarshalJSON() ([]byte, error) {
	if v.Schema == nil {
		return []byte("false"), nil
	}
	return json.Marshal(v.Schema)
}

// UnmarshalJSON implements json.Unmarshaler.
func (v *Values) UnmarshalJSON(data []byte) error {
	if string(data) == "false" {
		return nil
	}
	return json.Unmarshal(data, &v.Schema)
}

// Kind is a kind of document that configures weir.
type Kind struct {
	// Name and Version are its kind and apiVersion.
	Name, Version string
	// Text is its schema file.
	Text []byte
	root *Schema
}

// Kinds returns the kinds, weir's own first. The result is not to be changed.
var Kinds = sync.OnceValue(func() []*Kind {
	var all []*Kind
	for _, name := range []string{"WeirConfiguration", "KubeProxyConfiguration"} {
		text, err := files.ReadFile(name + ".json")
		root := &Schema{}
		if err == nil {
			err = json.Unmarshal(text, root)
		}
		if err != nil {
			panic(err) // the files are part of the program, and a test reads them
		}
		version, _ := root.Properties["apiVersion"].Const.(string)
		all = append(all, &Kind{Name: name, Version: version, Text: text, root: root})
	}
	return all
})

// Field returns the whole document as a Field.
func (k *Kind) Field() Field { return Field{Kind: k, schema: k.root} }

// Field is a field of a document, or the document itself, whose Path is empty.
type Field struct {
	Kind   *Kind
	Path   []string
	schema *Schema
}

// Name returns the name of the field, or "" for the whole document.
func (f Field) Name() string {
	if len(f.Path) == 0 {
		return ""
	}
	return f.Path[len(f.Path)-1]
}

// Fields returns the fields of an object, or of the objects of a list, sorted by name.
func (f Field) Fields() []Field {
	s := f.schema
	if s.Items != nil {
		s = s.Items
	}
	var all []Field
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		all = append(all, Field{f.Kind, append(slices.Clip(f.Path), name), s.Properties[name]})
	}
	return all
}

// isMap reports whether the names below the field are chosen by the user.
func (f Field) isMap() bool {
	v := f.schema.AdditionalProperties
	return v != nil && v.Schema != nil
}

// Type returns the type of the field as kubectl explain writes types.
func (f Field) Type() string { return f.schema.typeName() }

func (s *Schema) typeName() string {
	switch {
	case s.Pattern == Duration:
		return "duration"
	case s.Pattern == Quantity:
		return "quantity"
	case len(s.Type) == 0:
		return "string" // the items of a list that are words or match a pattern
	case s.Items != nil:
		return "[]" + s.Items.typeName()
	case s.AdditionalProperties != nil && s.AdditionalProperties.Schema != nil:
		return "map[string]" + s.AdditionalProperties.typeName()
	case s.Type[0] == "object":
		return "Object"
	}
	return s.Type[0]
}

// Words returns the closed set of words of the field, or of the items of a list, or nil.
func (f Field) Words() []string {
	s := f.schema
	if s.Items != nil {
		s = s.Items
	}
	if len(s.AnyOf) > 0 {
		s = s.AnyOf[0]
	}
	var words []string
	for _, v := range s.Enum {
		if word, _ := v.(string); word != "" {
			words = append(words, word)
		}
	}
	return words
}
