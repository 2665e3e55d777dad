package manifest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"weir/spec"
	"weir/spec/document"
)

// TestHostile reads files whose cost would be out of proportion to their size if it were not bounded. Without the bounds
// it does not end.
func TestHostile(t *testing.T) {
	item := "- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec: {port: 80}\n"
	longText := strings.Repeat("x", 1<<20)
	tests := []struct {
		name, file, data, want string
	}{
		{"a list of wrong items", "a.yaml", "apiVersion: v1\nkind: List\nitems:\n" + strings.Repeat(item, 10_000), "unknown field"},
		{"a list of wrong items in JSON", "a.json", `{"apiVersion":"v1","kind":"ServiceList","items":[` + strings.Repeat("{},\n", 100_000) + "{}]}", "is missing"},
		{"many fields that nobody knows", "a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n" + manyLines("  f%d: 1\n", 30_000), "unknown field"},
		{"many ports of the same name", "a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n" + strings.Repeat("  - {name: a, port: 1}\n", 20_000), "also used"},
		{"too many documents", "a.yaml", strings.Repeat("---\na: 1\n", document.MaxDocuments+2), "more than"},
		{"too many JSON values", "a.json", strings.Repeat("{} ", document.MaxDocuments+2), "more than"},
		{"brackets", "a.yaml", strings.Repeat("[", 1<<18), "not YAML: exceeded max depth"},
		{"dashes", "a.yaml", strings.Repeat("- ", 1<<18), "not YAML: exceeded max depth"},
		{"more brackets", "a.yaml", strings.Repeat("[", 1<<21), "more than"},
		{"more dashes", "a.yaml", strings.Repeat("- ", 1<<21), "more than"},
		{"one long string, often", "a.yaml", "a: &a " + longText + "\nb: [" + strings.Repeat("*a,", 100_000) + "]\n", "aliases"},
		{"a comment before a list", "a.yaml", strings.Repeat("#\n", 1<<20) + "apiVersion: v1\nkind: List\nitems:\n" + strings.Repeat("- 5\n", 1000), "is not an object"},
		{"a name", "a.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: " + longText + "}\n", "no more than 63"},
		{"many problems", "a.yaml", manyLines("---\napiVersion: v1\nkind: Service\nmetadata: {name: s%d}\nspec: {type: X}\n", 3000), "more problems"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := NewSet(Options{StrictTree: true}).Update(context.Background(), spec.Revision{}, []File{{Path: tt.file, Data: []byte(tt.data)}})
			var problems spec.Problems
			if !errors.As(err, &problems) || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %.300v", err)
			}
			if len(problems) > maxProblems+1 || len(err.Error()) > 1<<20 {
				t.Errorf("%d problems in %d bytes", len(problems), len(err.Error()))
			}
		})
	}
}

func manyLines(format string, n int) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s := NewSet(Options{})
	if _, _, err := s.Update(ctx, spec.Revision{}, manyFiles(3)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if snap, _ := mustUpdate(t, s, manyFiles(3)...); snap.Services.Len() != 3 {
		t.Errorf("%d Services after a cancelled update", snap.Services.Len())
	}
}
