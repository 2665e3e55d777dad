package main_test

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestStatusOfDaemon asks a running weir, and the same once it is gone.
func TestStatusOfDaemon(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	ask := func(args ...string) (string, error) {
		out, err := exec.CommandContext(context.Background(), os.Getenv(binaryEnv), append(args, "--state-dir", d.state)...).Output()
		return string(out), err
	}
	if _, err := ask("status"); err == nil || err.(*exec.ExitError).ExitCode() != 3 {
		t.Errorf("without a daemon: %v", err)
	}
	d.start()
	d.awaitSync()
	out, err := ask("status", "-o", "json")
	var s struct {
		Mode     string
		Services []struct{ Name string }
	}
	if err != nil || json.Unmarshal([]byte(out), &s) != nil || s.Mode != "iptables" || len(s.Services) != 1 {
		t.Fatalf("%v: %s", err, out)
	}
	name := s.Services[0].Name
	if out, err := ask("status", name); err != nil || !strings.Contains(out, "default/"+name) {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := ask("status", "nonesuch"); err == nil || err.(*exec.ExitError).ExitCode() != 1 {
		t.Errorf("a Service that is not there: %v", err)
	}
	snapshot, err := ask("snapshot")
	file := filepath.Join(t.TempDir(), "node.json")
	if err != nil || os.WriteFile(file, []byte(snapshot), 0o600) != nil {
		t.Fatal(err)
	}
	if out, err := d.run("reconcile", "--dry-run", "--against", file, "--exit-code"); err != nil {
		t.Errorf("against what is in force: %v: %s", err, out)
	}
	if out, err := d.run("reconcile", "--dry-run", "--exit-code"); err != nil {
		t.Errorf("against the kernel: %v: %s", err, out)
	}
	d.kill()
	if again, err := ask("snapshot"); err != nil || again != snapshot {
		t.Errorf("after a crash: %v: %s", err, again)
	}
}
