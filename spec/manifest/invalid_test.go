package manifest

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
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

// foreignCases are the cases that can be of no kind that a Set reads. They are skipped, for the same reason, and --strict-tree
// refuses them.
var foreignCases = []string{"alias-bomb.yaml", "binary.yaml", "git-lfs.yaml", "nested-deep.yaml", "nested-deep-json.json", "scalar.yaml"}

func testInvalid(t *testing.T, name string) {
	files := readCase(t, name)
	isForeign := slices.Contains(foreignCases, filepath.Base(name))
	s := NewSet(Options{StrictTree: isForeign})
	good := File{Path: "good.yaml", Data: []byte("apiVersion: v1\nkind: Service\nmetadata: {name: unharmed}\nspec: {clusterIP: None}\n")}
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
	if isForeign {
		snap, _ := mustUpdate(t, NewSet(allowEmpty), files...)
		for skipped := range snap.SkippedDocuments.All() {
			if skipped.Reason != "" && !strings.HasPrefix(got, skipped.Origin.String()+": "+skipped.Reason+"\n") {
				t.Errorf("skipped: %+v, refused: %s", skipped, got)
			}
		}
		if snap.SkippedFiles.Others != 1 {
			t.Errorf("skipped: %+v", snap.SkippedFiles)
		}
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
		return []File{{Path: filepath.Base(name), Data: data}}
	}
	var files []File
	for _, f := range txtar.Parse(data).Files {
		files = append(files, File{Path: f.Name, Data: f.Data})
	}
	return files
}
