package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

// marker is what must not be printed.
const marker = "S3CRETmarker"

// secretFiles are documents that are not weir's, each with the marker.
const secretFiles = "testdata/secrets.txtar"

// TestNoForeignScalarIsPrinted gives each document to each command that reads manifests, and looks at all that it prints.
func TestNoForeignScalarIsPrinted(t *testing.T) {
	t.Parallel()
	archive, err := txtar.ParseFile(secretFiles)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range archive.Files {
		name, dir := f.Name, t.TempDir()
		if !strings.Contains(string(f.Data), marker) {
			t.Errorf("%s is without the marker", name)
		}
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
		commands := [][]string{
			{"reconcile", "--dry-run", "--against", "empty", "-f", dir}, {"reconcile", "--dry-run", "--against", file, "-f", "../../examples/quickstart"},
			{"validate", "-f", dir, "--strict-tree"}, {"allocate", "-f", dir}, {"validate", "-f", "../../examples/quickstart/web.yaml", "--config", file},
			{"reconcile", "--dry-run", "--against", "empty", "--api", "--kubeconfig", file, "--hostname-override", "a"},
		}
		for _, format := range []string{"text", "json", "junit", "sarif", "github"} {
			commands = append(commands, []string{"validate", "-f", dir, "-o", format})
		}
		for _, args := range commands {
			out, errOut, code := run(args...)
			if strings.Contains(out+errOut, marker) {
				t.Errorf("%s: weir %s prints it:\n%s%s", name, strings.Join(args, " "), out, errOut)
			}
			if code == exitUsage {
				t.Errorf("%s: weir %s: %s%s", name, strings.Join(args, " "), out, errOut)
			}
		}
	}
}
