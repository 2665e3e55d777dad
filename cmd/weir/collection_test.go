package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// TestCollections does what a new user would, with directories as public repositories have them, untouched: each command
// is of use or says why not. A new collection is a new file in testdata/collections; -update-plans writes its golden.
func TestCollections(t *testing.T) {
	files, err := filepath.Glob("../../testdata/collections/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			dir := t.TempDir()
			contents := map[string]string{}
			for _, f := range archive.Files {
				contents["repo/"+f.Name] = string(f.Data)
			}
			writeFiles(t, dir, contents)
			var got strings.Builder
			for _, command := range []string{
				"weir validate -f repo",
				"weir allocate -f repo",
				"weir reconcile -f repo --dry-run --against empty",
			} {
				out, errOut, code := inDirectory(t, dir, strings.Fields(command)[1:]...)
				fmt.Fprintf(&got, "$ %s\n%s%s[exit code %d]\n\n", command, out, errOut, code)
				if out+errOut == "" || regexp.MustCompile(`panic|goroutine|\.go:\d`).MatchString(out+errOut) {
					t.Errorf("%s: exit code %d: %s%s", command, code, out, errOut)
				}
			}
			golden(t, "../collections/"+strings.TrimSuffix(filepath.Base(file), ".txtar")+".golden", got.String())
		})
	}
}

// inDirectory runs a command line in another directory.
func inDirectory(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	back, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chdir(dir); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Chdir(back); err != nil {
			t.Fatal(err)
		}
	}()
	return run(args...)
}
