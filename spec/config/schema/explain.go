package schema

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// width is how wide explanations are.
const width = 80

// Explain writes what the field means, and what fields it has, as kubectl explain does.
func (f Field) Explain(w io.Writer) error {
	b := f.header()
	b.section("DESCRIPTION", f.schema.Description)
	if d := f.schema.Default; d != nil {
		b.section("DEFAULT", text(d))
	}
	b.section("ENUM", strings.Join(f.Words(), ", "))
	for _, e := range f.schema.Examples {
		b.section("EXAMPLE", text(e))
	}
	if fields := f.Fields(); len(fields) > 0 {
		b.WriteString("FIELDS:\n")
		for _, c := range fields {
			b.field(c)
		}
	}
	return b.writeTo(w)
}

// Tree writes the names and types of all fields below the field, or with depth 1 only of its own.
func (f Field) Tree(w io.Writer, depth int) error {
	b := f.header()
	b.WriteString("FIELDS:\n")
	b.tree(f, "  ", depth)
	return b.writeTo(w)
}

// page is the text of an explanation.
type page struct{ strings.Builder }

func (f Field) header() *page {
	b := &page{}
	fmt.Fprintf(b, "KIND:       %s\nVERSION:    %s\n\n", f.Kind.Name, f.Kind.Version)
	if f.Name() != "" {
		fmt.Fprintf(b, "FIELD: %s <%s>\n\n", f.Name(), f.Type())
	}
	return b
}

func (b *page) section(title, text string) {
	if text != "" {
		fmt.Fprintf(b, "%s:\n%s\n", title, wrap(text, "    "))
	}
}

// field writes a field in a list of fields.
func (b *page) field(f Field) {
	fmt.Fprintf(b, "  %s <%s>", f.Name(), f.Type())
	if f.required() {
		b.WriteString(" -required-")
	}
	b.WriteString("\n")
	if words := f.Words(); len(words) > 0 && f.schema.Items == nil {
		b.WriteString(wrap("enum: "+strings.Join(words, ", "), "  "))
	}
	about := f.schema.Description
	if d := f.schema.Default; d != nil {
		about += " Default: " + text(d) + "."
	}
	b.WriteString(wrap(about, "    ") + "\n")
}

func (b *page) tree(f Field, indent string, depth int) {
	if depth == 0 {
		return
	}
	for _, c := range f.Fields() {
		fmt.Fprintf(b, "%s%s <%s>\n", indent, c.Name(), c.Type())
		b.tree(c, indent+"  ", depth-1)
	}
}

func (b *page) writeTo(w io.Writer) error {
	_, err := fmt.Fprintln(w, strings.TrimRight(b.String(), "\n"))
	return err
}

// required reports whether a document must have the field.
func (f Field) required() bool {
	return len(f.Path) == 1 && slices.Contains(f.Kind.root.Required, f.Name())
}

// wrap returns the words of a text on lines that begin with an indentation and are not wider than they should be. A paragraph
// ends with an empty line.
func wrap(text, indent string) string {
	var b strings.Builder
	for i, paragraph := range strings.Split(text, "\n\n") {
		if i > 0 {
			b.WriteString("\n")
		}
		line := indent
		for _, word := range strings.Fields(paragraph) {
			if line != indent && len(line)+1+len(word) > width {
				b.WriteString(line + "\n")
				line = indent
			}
			if line != indent {
				line += " "
			}
			line += word
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// text returns a value as it may be written in YAML, on one line. A text is not quoted unless it is in a list or a map.
func text(v any) string {
	if s, ok := v.(string); ok {
		return s
	}
	return flow(v)
}

func flow(v any) string {
	switch v := v.(type) {
	case []any:
		var items []string
		for _, item := range v {
			items = append(items, flow(item))
		}
		return "[" + strings.Join(items, ", ") + "]"
	case map[string]any:
		var items []string
		for _, key := range slices.Sorted(maps.Keys(v)) {
			items = append(items, flow(key)+": "+flow(v[key]))
		}
		return "{" + strings.Join(items, ", ") + "}"
	}
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(data)
}
