package main

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// checkSchema checks a document against one of weir's schemas, which must know every field.
func checkSchema(t *testing.T, name string, doc []byte) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(plansDir, name))
	if err != nil {
		t.Fatal(err)
	}
	schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	closeObjects(schema)
	conforms(t, schema, doc)
}

// closeObjects makes a schema refuse fields that it does not know. For those who read a document, others may be added.
func closeObjects(schema any) {
	switch s := schema.(type) {
	case map[string]any:
		if _, ok := s["properties"].(map[string]any); ok {
			s["additionalProperties"] = false
		}
		for _, v := range s {
			closeObjects(v)
		}
	case []any:
		for _, v := range s {
			closeObjects(v)
		}
	}
}

func conforms(t *testing.T, schema any, doc []byte) {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(doc))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("mem:schema.json", schema); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("mem:schema.json")
	if err == nil {
		err = compiled.Validate(value)
	}
	if err != nil {
		t.Error(err)
	}
}

// sarifVersion is the version of SARIF that the schema below is of.
const sarifVersion = "2.1.0"

// sarifSchema returns the schema of SARIF as OASIS published it. The Go module that carries it does not export it.
func sarifSchema(t *testing.T) any {
	t.Helper()
	if v := sarif.NewReport().Version; v != sarifVersion {
		t.Fatalf("the module is for SARIF %s", v)
	}
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-f", "{{.Dir}}", "github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif").Output()
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(strings.TrimSpace(string(dir)), "schema.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var text string
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && v.Names[0].Name == "schema" {
			lit, isLit := v.Values[0].(*ast.BasicLit)
			if isLit {
				text, err = strconv.Unquote(lit.Value)
			}
		}
		return true
	})
	schema, jsonErr := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err := errors.Join(err, jsonErr); err != nil {
		t.Fatal(err)
	}
	return schema
}
