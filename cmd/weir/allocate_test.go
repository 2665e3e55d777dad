package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"weir/backends/dataplane"
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

// TestAllocateReadsOnlyAFile has in the place of the lock what never ends, or is too large, named by --lock and found in the
// directory. Each is refused at once and left as it is.
func TestAllocateReadsOnlyAFile(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"FIFO": func(path string) error { return syscall.Mkfifo(path, 0o644) },
		"symlink to a FIFO": func(path string) error {
			return errors.Join(syscall.Mkfifo(path+".fifo", 0o644), os.Symlink(path+".fifo", path))
		},
		"symlink to device":  func(path string) error { return os.Symlink("/dev/null", path) },
		"directory":          func(path string) error { return os.Mkdir(path, 0o755) },
		"large":              func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, 65<<20)) },
		"symlink to nothing": func(path string) error { return os.Symlink("nowhere", path) },
	} {
		for _, given := range []string{"--lock", "-f"} {
			dir := t.TempDir()
			writeFiles(t, dir, map[string]string{"d/a.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"})
			args := []string{"allocate", "-f", filepath.Join(dir, "d"), "--write"}
			lock := filepath.Join(dir, "d", "weir.lock.yaml")
			if given == "--lock" {
				lock = filepath.Join(dir, "lock.yaml")
				args = append(args, "--lock", lock)
			}
			if err := make(lock); err != nil {
				t.Fatal(err)
			}
			before, _ := os.Lstat(lock)
			done := time.AfterFunc(time.Minute, func() { panic(name + ": weir allocate does not come back") })
			_, errOut, code := run(args...)
			done.Stop()
			want, what := exitFailure, lock+": "
			if name == "directory" && given == "--lock" {
				want, what = exitUsage, "--lock "+lock+" is a directory"
			}
			if code != want || !strings.Contains(errOut, what) {
				t.Errorf("%s, %s: exit code %d: %s", name, given, code, errOut)
			}
			if after, err := os.Lstat(lock); err != nil || !os.SameFile(before, after) {
				t.Errorf("%s, %s: it is replaced: %v", name, given, err)
			}
		}
	}
}

// TestLockFlag keeps the lock outside of the tree: it need not exist, is written in one step, is read by every command, and
// goes when nothing is left to pin.
func TestLockFlag(t *testing.T) {
	dir := t.TempDir()
	tree, lock := filepath.Join(dir, "tree"), filepath.Join(dir, "locks.yaml")
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"
	writeFiles(t, tree, map[string]string{"web.yaml": service, "kustomization.yaml": "resources: [web.yaml]\n"})
	clusterIP := func(args ...string) string {
		t.Helper()
		out, errOut, code := run(append([]string{"allocate"}, args...)...)
		if code != exitOK {
			t.Fatalf("%v: %s", args, errOut)
		}
		_, rest, _ := strings.Cut(out, "spec.clusterIP")
		return strings.Join(strings.Fields(rest)[:2], " ")
	}
	if _, errOut, code := run("allocate", "-k", tree, "--write"); code != exitUsage || !strings.Contains(errOut, "--lock") {
		t.Errorf("a kustomization without --lock: exit code %d: %s", code, errOut)
	}
	first := clusterIP("-f", tree, "--lock", lock, "--write")
	if _, err := os.Stat(filepath.Join(tree, "weir.lock.yaml")); err == nil {
		t.Error("a lock is in the tree too")
	}
	text, err := os.ReadFile(lock)
	if err != nil {
		t.Fatal(err)
	}
	moved := bytes.ReplaceAll(text, []byte(strings.Fields(first)[0]), []byte("10.96.7.7"))
	writeFiles(t, dir, map[string]string{"locks.yaml": string(moved)})
	for _, args := range [][]string{{"-f", tree}, {"-k", tree}} {
		if got := clusterIP(append(args, "--lock", lock)...); got != "10.96.7.7 yes" {
			t.Errorf("%v: %s, want what is pinned", args, got)
		}
		plan, errOut, code := run(append([]string{"reconcile", "--dry-run", "--against", "empty", "--lock", lock}, args...)...)
		if code != exitOK || !strings.Contains(plan, "10.96.7.7") {
			t.Errorf("%v: the plan has not what is pinned: exit code %d: %s%s", args, code, plan, errOut)
		}
	}
	writeFiles(t, tree, map[string]string{"web.yaml": strings.Replace(service, "{ports", "{clusterIP: 10.96.0.9, ports", 1)})
	out, errOut, code := run("allocate", "-f", tree, "--lock", lock, "--write")
	if _, err := os.Stat(lock); err == nil || code != exitOK || !strings.Contains(out, "removed "+lock) {
		t.Errorf("an empty lock: exit code %d: %s%s", code, out, errOut)
	}
	if out, errOut, code := run("allocate", "-f", tree, "--lock", lock, "--write"); code != exitOK || strings.Contains(out, "removed") {
		t.Errorf("nothing to pin: exit code %d: %s%s", code, out, errOut)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestLockFlagLive follows a lock outside of the tree as validate and weir run do: what it pins holds as soon as it is written,
// what is wrong with it is told with its line, and without it the values are those that the names give.
func TestLockFlagLive(t *testing.T) {
	dir := t.TempDir()
	r := &repository{t: t, dir: dir, flags: []string{"-f", filepath.Join(dir, "tree"), "--lock", filepath.Join(dir, "locks.yaml")}}
	writeFiles(t, filepath.Join(dir, "tree"), map[string]string{"web.yaml": "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 80}]}\n"})
	lock := func(ip string) string {
		return "apiVersion: weir/v1alpha1\nkind: AllocationLock\nservices:\n- namespace: default\n  name: web\n  clusterIPs: [" + ip + "]\n"
	}
	w := r.start()
	defer w.stop()
	update := func() (ip, problem string) {
		t.Helper()
		u, err := next(w.updates, w.done)
		switch {
		case err != nil:
			t.Fatal(err)
		case u.Err != nil:
			return "", strings.Join(problemLines(u.Err), "\n")
		}
		return u.Snapshot.Services.Get(dataplane.ServiceName{Namespace: "default", Name: "web"}).Object.Spec.ClusterIP, ""
	}
	first, _ := update()
	for _, step := range []struct{ lock, ip, problem string }{
		{lock("10.96.7.7"), "10.96.7.7", ""},
		{lock("10.96.7.8"), "10.96.7.8", ""},
		{lock("x"), "", "locks.yaml:6: lock of Service default/web: clusterIPs[0]"},
		{"", first, ""},
	} {
		writeFiles(t, dir, map[string]string{".new": step.lock})
		change := func() error { return os.Rename(filepath.Join(dir, ".new"), filepath.Join(dir, "locks.yaml")) }
		if step.lock == "" {
			change = func() error { return os.Remove(filepath.Join(dir, "locks.yaml")) }
		}
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if ip, problem := update(); ip != step.ip || !strings.Contains(problem, step.problem) || step.problem == "" && problem != "" {
			t.Errorf("with the lock %q: %s, %s; want %s, %s", step.lock, ip, problem, step.ip, step.problem)
		}
		out, errOut, code := run(append([]string{"validate"}, r.flags...)...)
		if (code == exitOK) != (step.problem == "") || !strings.Contains(errOut, step.problem) {
			t.Errorf("with the lock %q: validate: exit code %d: %s%s", step.lock, code, out, errOut)
		}
		if unpinned := strings.Contains(errOut, "W009"); unpinned != (step.lock == "") {
			t.Errorf("with the lock %q: validate tells of values that are not pinned: %v: %s", step.lock, unpinned, errOut)
		}
	}
}
