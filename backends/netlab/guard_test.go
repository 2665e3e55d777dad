package netlab

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestGuardNoticesEveryUse uses a directory in each way in which a test, or a weir that it starts, could use it.
func TestGuardNoticesEveryUse(t *testing.T) {
	for name, use := range map[string]func(dir string) error{
		"nothing": nil,
		"read":    func(dir string) error { _, err := os.ReadFile(filepath.Join(dir, "applied.json")); return err },
		"write":   func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600) },
		"list":    func(dir string) error { _, err := os.ReadDir(dir); return err },
		"remove":  func(dir string) error { return os.Remove(filepath.Join(dir, "applied.json")) },
		"listen": func(dir string) error {
			l, err := net.Listen("unix", filepath.Join(dir, "s"))
			if err == nil {
				err = l.Close()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			g, err := watchUse(dir)
			if err != nil {
				t.Fatal(err)
			}
			if use != nil {
				if err := use(dir); err != nil {
					t.Fatal(err)
				}
			}
			if used := g.stop(); used != (use != nil) {
				t.Errorf("used = %v", used)
			}
		})
	}
}

// TestDefaultPathsAreTheNamespaces expects that a path that the machine may lack exists for the guard, and that the
// rest of its parent is unchanged.
func TestDefaultPathsAreTheNamespaces(t *testing.T) {
	Require(t)
	if _, err := os.Lstat(filepath.Dir(defaultStateDir) + "/dpkg"); err != nil {
		if _, err := os.Lstat("/usr/bin/dpkg"); err == nil {
			t.Error("what else is beside the state directory cannot be seen any more")
		}
	}
	if fi, err := os.Lstat(defaultStateDir); err != nil || !fi.IsDir() {
		t.Errorf("no place for the state: %v, %v", fi, err)
	}
}
