package reconcile_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestPainsAreListed finds every test and scenario that is named after a pain of this field's users, and requires that the
// list has it and that all are spelled alike.
func TestPainsAreListed(t *testing.T) {
	const list = "testdata/PAINS.md"
	root := ".."
	text, err := os.ReadFile(filepath.Join(root, list))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllSubmatch(text, -1) {
		known[pad(string(row[1]))] = true
	}
	function := regexp.MustCompile(`(?m)^func (TestPain\d\w*)\(`)
	spelled := regexp.MustCompile(`^TestPain(\d\d)_[A-Z]\w*$|^pain-(\d\d)-[a-z0-9-]+\.txtar$`)
	cited := 0
	check := func(file, name string) {
		m := spelled.FindStringSubmatch(name)
		switch {
		case m == nil:
			t.Errorf("%s: %s: a test of a pain is named TestPain01_Behaviour, a scenario pain-01-behaviour.txtar", file, name)
		case !known[m[1]+m[2]]:
			t.Errorf("%s: %s: %s has no such number", file, name, list)
		}
		cited++
	}
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && path != root && e.Name()[0] == '.':
			return filepath.SkipDir
		case regexp.MustCompile(`^pain-.*\.txtar$`).MatchString(e.Name()):
			check(path, e.Name())
		case regexp.MustCompile(`_test\.go$|^suite.*\.go$`).MatchString(e.Name()):
			source, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, f := range function.FindAllSubmatch(source, -1) {
				check(path, string(f[1]))
			}
		}
		return nil
	})
	if err != nil || len(known) == 0 || cited == 0 {
		t.Fatalf("%d pains listed, %d cited: %v", len(known), cited, err)
	}
}

// pad returns a number with two digits at least.
func pad(s string) string {
	if len(s) < 2 {
		return "0" + s
	}
	return s
}
