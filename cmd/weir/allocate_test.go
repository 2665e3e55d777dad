package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run runs a command line here.
func run(args ...string) (stdout, stderr string, code int) {
	var out, errOut bytes.Buffer
	code = execute(args, strings.NewReader(""), &out, &errOut)
	return out.String(), errOut.String(), code
}

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAllocate pins what is allocated, once, and takes the file up.
func TestAllocate(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		out, errOut, code := weirCommand(t, "allocate", "-f", "open.yaml", "-o", format)
		if code != exitOK || errOut != "" {
			t.Errorf("exit code %d: %s", code, errOut)
		}
		golden(t, "allocate."+format, out)
		if format == "json" {
			checkSchema(t, "allocations.schema.json", []byte(out))
		}
	}
	dir := t.TempDir()
	text, err := os.ReadFile(filepath.Join(plansDir, "open.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	writeFiles(t, dir, map[string]string{"sub/open.yaml": string(text)})
	if _, errOut, _ := run("validate", "-f", dir); !strings.Contains(errOut, "are not pinned (6 in all)") {
		t.Errorf("validate does not tell of what is not pinned: %s", errOut)
	}
	values := valuesOf(t, dir)
	out, errOut, code := run("allocate", "-f", dir, "--write")
	lock := filepath.Join(dir, "weir.lock.yaml")
	if code != exitOK || !strings.HasSuffix(out, "written to "+lock+"\n") {
		t.Fatalf("exit code %d: %s%s", code, out, errOut)
	}
	written, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "weir.lock.golden", string(written))
	before := mtime(t, lock)
	if out, errOut, code := run("allocate", "-f", dir, "--write"); code != exitOK || strings.Contains(out, "written") || !strings.Contains(out, "6 values allocated, 6 pinned") || mtime(t, lock) != before {
		t.Errorf("again: exit code %d: %s%s", code, out, errOut)
	}
	if now := valuesOf(t, dir); now != values {
		t.Errorf("pinning changed %s to %s", values, now)
	}
	if _, errOut, code := run("validate", "-f", dir); code != exitOK || strings.Contains(errOut, "pinned") {
		t.Errorf("exit code %d: %s", code, errOut)
	}

	// A Service more: it is the one that is told of, also in a plan.
	writeFiles(t, dir, map[string]string{"new.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: new}\nspec: {ports: [{port: 80}]}\n"})
	if _, errOut, _ := run("validate", "-f", dir); strings.Count(errOut, "[W009]") != 1 || !strings.Contains(errOut, "new.yaml:1: Service default/new: spec.clusterIP: ") {
		t.Errorf("validate: %s", errOut)
	}
	if out, _, _ := run("reconcile", "--dry-run", "-f", dir, "--against", "empty"); strings.Count(out, "W009-unpinned-allocation") != 1 {
		t.Errorf("plan: %s", out)
	}
}

func valuesOf(t *testing.T, dir string) string {
	t.Helper()
	out, errOut, code := run("allocate", "-f", dir, "-o", "json")
	var doc struct {
		Allocations []struct{ Name, Field, Value string }
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != exitOK {
		t.Fatalf("%v: %s", err, errOut)
	}
	var b strings.Builder
	for _, a := range doc.Allocations {
		b.WriteString(a.Name + " " + a.Field + " " + a.Value + "\n")
	}
	return b.String()
}

func mtime(t *testing.T, file string) int64 {
	t.Helper()
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return fi.ModTime().UnixNano()
}

func TestAllocateRefuses(t *testing.T) {
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"
	const lock = "apiVersion: weir/v1alpha1\nkind: AllocationLock\nservices: []\n"
	for name, tt := range map[string]struct {
		files map[string]string
		path  string
		want  string
		code  int
	}{
		"a file":         {map[string]string{"a.yaml": service}, "a.yaml", "--write needs a directory", exitUsage},
		"two locks":      {map[string]string{"a.yaml": service, "l1.yaml": lock, "l2.yaml": lock}, "", "keep one", exitFailure},
		"mixed":          {map[string]string{"a.yaml": service + "---\n" + lock}, "", "holds more than an AllocationLock", exitFailure},
		"something else": {map[string]string{"a.yaml": service, "weir.lock.yaml": "a: 1\n"}, "", "holds more than an AllocationLock", exitFailure},
		"not valid":      {map[string]string{"a.yaml": service + "x: 1\n"}, "", "unknown field", exitFailure},
	} {
		dir := t.TempDir()
		writeFiles(t, dir, tt.files)
		_, errOut, code := run("allocate", "--write", "-f", filepath.Join(dir, tt.path))
		if code != tt.code || !strings.Contains(errOut, tt.want) {
			t.Errorf("%s: exit code %d: %s", name, code, errOut)
		}
		for file, text := range tt.files {
			if now, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(now) != text {
				t.Errorf("%s: %s is now %s", name, file, now)
			}
		}
	}
}
