package manifest

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"golang.org/x/tools/txtar"

	"weir/spec"
)

var updateGolden = flag.Bool("update", false, "write the golden files")

const invalidDir = "../../testdata/invalid"

// TestInvalid reads every broken document of testdata/invalid, where each has a golden file beside it with the problems
// that must be reported. A new case is a new file: .yaml, .json, or .txtar for several files; -update writes its golden.
func TestInvalid(t *testing.T) {
	names, err := filepath.Glob(invalidDir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	for _, name := range names {
		if filepath.Ext(name) == ".golden" {
			continue
		}
		cases++
		t.Run(filepath.Base(name), func(t *testing.T) { testInvalid(t, name) })
	}
	if cases < 100 {
		t.Errorf("found %d cases", cases)
	}
}

func testInvalid(t *testing.T, name string) {
	files := readCase(t, name)
	s := NewSet(Options{})
	good := File{"good.yaml", []byte("apiVersion: v1\nkind: Service\nmetadata: {name: unharmed}\nspec: {clusterIP: None}\n")}
	if name := filepath.Base(name); !strings.HasPrefix(name, "empty.") && !strings.HasPrefix(name, "comments-only.") && !strings.HasPrefix(name, "no-service.") {
		mustUpdate(t, s, good)
	}
	before := describeSet(s)
	_, _, err := s.Update(context.Background(), spec.Revision{ID: "bad"}, files)
	var problems spec.Problems
	if !errors.As(err, &problems) {
		t.Fatalf("was not refused with problems: %v", err)
	}
	if after := describeSet(s); after != before {
		t.Errorf("the refused update left a trace:\n%s\nbefore:\n%s", after, before)
	}
	got := problems.Error() + "\n"
	if strings.ContainsFunc(got, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
		t.Errorf("a message has unprintable characters: %q", got)
	}
	golden := name + ".golden"
	if *updateGolden {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func readCase(t testing.TB, name string) []File {
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Ext(name) != ".txtar" {
		return []File{{filepath.Base(name), data}}
	}
	var files []File
	for _, f := range txtar.Parse(data).Files {
		files = append(files, File{f.Name, f.Data})
	}
	return files
}
