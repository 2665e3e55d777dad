package filesource

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"weir/backends/netlab"
)

// again runs the test in a process of its own, with other rights, and reports whether this is that process.
func again(t *testing.T, attr *syscall.SysProcAttr) bool {
	t.Helper()
	if os.Getenv("WEIR_TEST_AGAIN") == t.Name() {
		return true
	}
	dir, err := os.MkdirTemp("", "weir")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o777))
	exe, err := os.Executable()
	must(t, err)
	// The directory that the go command builds in is closed to others.
	program, err := os.ReadFile(exe)
	must(t, err)
	must(t, os.WriteFile(dir+"/test", program, 0o755))
	cmd := exec.Command(dir+"/test", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = []string{"WEIR_TEST_AGAIN=" + t.Name(), "TMPDIR=" + dir}
	cmd.SysProcAttr = attr
	out, err := cmd.CombinedOutput()
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EINVAL) {
		netlab.Missing(t, "the kernel does not allow it: %v", err)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "--- SKIP") {
		netlab.Missing(t, "%s", out)
	}
	return false
}

func TestUnreadable(t *testing.T) {
	attr := &syscall.SysProcAttr{}
	if os.Getuid() == 0 {
		attr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	}
	if !again(t, attr) {
		return
	}
	d := t.TempDir()
	write(t, d+"/a.yaml", "1")
	write(t, d+"/sub/b.yaml", "1")
	h := start(t, Options{Paths: []string{d}})
	h.awaitFiles(d+"/a.yaml", "1", d+"/sub/b.yaml", "1")
	for _, f := range []string{d + "/a.yaml", d + "/sub", d} {
		fi, err := os.Stat(f)
		must(t, err)
		must(t, os.Chmod(f, 0))
		h.awaitErr(f, "permission denied")
		must(t, os.Chmod(f, fi.Mode()))
		h.awaitFiles(d+"/a.yaml", "1", d+"/sub/b.yaml", "1")
	}
}

func TestMounts(t *testing.T) {
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}}
	if !again(t, attr) {
		return
	}
	top := t.TempDir()
	d := top + "/d"
	write(t, d+"/a.yaml", "below")
	write(t, top+"/src/a.yaml", "mounted")
	write(t, top+"/src/b.yaml", "1")
	h := start(t, Options{Paths: []string{d}})
	h.awaitFiles(d+"/a.yaml", "below")
	for range 2 {
		if err := syscall.Mount(top+"/src", d, "", syscall.MS_BIND, ""); err != nil {
			netlab.Missing(t, "cannot mount: %v", err)
		}
		h.awaitFiles(d+"/a.yaml", "mounted", d+"/b.yaml", "1")
		must(t, syscall.Unmount(d, syscall.MNT_DETACH))
		h.awaitFiles(d+"/a.yaml", "below")
	}
	must(t, os.Remove(d+"/a.yaml"))
	h.awaitErr("no Service")
	must(t, syscall.Mount("tmpfs", d, "tmpfs", 0, ""))
	write(t, d+"/t.yaml", "1")
	h.awaitFiles(d+"/t.yaml", "1")
	must(t, syscall.Unmount(d, syscall.MNT_DETACH))
	h.awaitErr("no Service")
	must(t, syscall.Mount(top+"/src", d, "", syscall.MS_BIND, ""))
	h.awaitFiles(d+"/a.yaml", "mounted", d+"/b.yaml", "1")
	write(t, top+"/src/a.yaml", "again")
	h.awaitFiles(d+"/a.yaml", "again", d+"/b.yaml", "1")
	must(t, syscall.Unmount(d, syscall.MNT_DETACH))
}
