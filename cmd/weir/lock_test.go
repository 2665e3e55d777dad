package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weir/backends/netlab"
)

// lockLab is a node on which commands are run that take the lock.
type lockLab struct {
	node    *netlab.Host
	runtime string
}

func newLockLab(t *testing.T) *lockLab {
	netlab.RequireFull(t)
	return &lockLab{node: netlab.New(t, netlab.Topology{}).Node(), runtime: filepath.Join(t.TempDir(), "runtime")}
}

func (l *lockLab) command(runtime string) *exec.Cmd {
	cmd := l.node.Command(context.Background(), os.Getenv(binaryEnv), "cleanup", "--state-dir", filepath.Dir(l.runtime))
	cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+runtime)
	return cmd
}

// take returns what a command says that takes the lock, if it may.
func (l *lockLab) take(runtime string) (said string, err error) {
	cmd := l.command(runtime)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := l.node.Start(cmd); err != nil {
		return "", err
	}
	err = cmd.Wait()
	return out.String(), err
}

// bind binds the name of the socket. The kernel tells who did it only if it is listened on.
func (l *lockLab) bind(t *testing.T, listen bool) {
	t.Helper()
	fd := -1
	err := l.node.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@weir/lock"})
		if listen {
			err = errors.Join(err, unix.Listen(fd, 1024))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
}

// TestLockThief: a name that any user can bind keeps no weir from starting.
func TestLockThief(t *testing.T) {
	t.Parallel()
	l := newLockLab(t)
	l.bind(t, false)
	if said, err := l.take(l.runtime); err != nil || !strings.Contains(said, "a process that cannot be identified holds the socket") {
		t.Errorf("%v: %s", err, said)
	}
}

// TestLockTwoDirectories: where another user has bound the name of the socket, a second weir is refused all the same, although
// its runtime directory is another one.
func TestLockTwoDirectories(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	l := &lockLab{node: d.lab.Node(), runtime: filepath.Join(t.TempDir(), "runtime")}
	l.bind(t, false)
	d.start()
	d.awaitRunning()
	if said, err := l.take(l.runtime); err == nil || !strings.Contains(said, "another weir is running in this network namespace") {
		t.Errorf("%v: %s", err, said)
	}
	cmd := d.lab.Node().Command(context.Background(), os.Getenv(binaryEnv), "status", "--state-dir", filepath.Join(t.TempDir(), "other"))
	cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+l.runtime)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := d.lab.Node().Start(cmd); err != nil {
		t.Fatal(err)
	}
	if _ = cmd.Wait(); !strings.Contains(out.String(), "runs as weir in this network namespace") {
		t.Errorf("status: %s", out.String())
	}
	d.kill()
	if said, err := l.take(l.runtime); err != nil {
		t.Errorf("after a crash: %v: %s", err, said)
	}
}

// TestLockOtherDirectory: a weir in another mount namespace has another runtime directory, and is found all the same.
func TestLockOtherDirectory(t *testing.T) {
	t.Parallel()
	l := newLockLab(t)
	l.bind(t, true)
	if said, err := l.take(l.runtime); err == nil || !strings.Contains(said, "another weir (process ") {
		t.Errorf("%v: %s", err, said)
	}
}

// TestLockHeld: a second weir is refused, and starts once the first has ended, however it ended.
func TestLockHeld(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	l := &lockLab{node: d.lab.Node(), runtime: filepath.Join(t.TempDir(), "runtime")}
	line := d.line(d.args("run")...)
	cmd := d.lab.Node().Command(context.Background(), line[0], line[1:]...)
	cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+l.runtime)
	d.launch(cmd)
	d.awaitRunning()
	if said, err := l.take(l.runtime); err == nil || !strings.Contains(said, "another weir (process ") {
		t.Errorf("beside another: %v: %s", err, said)
	}
	d.kill()
	if said, err := l.take(l.runtime); err != nil {
		t.Errorf("after a crash: %v: %s", err, said)
	}
}

// TestLockDirectoryUnsafe: what others could lock, or replace, is no lock.
func TestLockDirectoryUnsafe(t *testing.T) {
	t.Parallel()
	l := newLockLab(t)
	if said, err := l.take(l.runtime); err != nil || strings.Contains(said, "WARN") {
		t.Fatalf("%v: %s", err, said)
	}
	locks, err := filepath.Glob(filepath.Join(l.runtime, "net-*.lock"))
	if err != nil || len(locks) != 1 {
		t.Fatalf("locks: %v, %v", locks, err)
	}
	lock := locks[0]
	for _, tc := range []struct {
		name string
		do   func() error
		want string
	}{
		{"a lock that others can read", func() error { return os.Chmod(lock, 0o644) }, lock + " has mode 0644"},
		{"a lock of another user", func() error { return errors.Join(os.Chmod(lock, 0o600), os.Chown(lock, 65534, -1)) }, lock + " belongs to user 65534"},
		{"a link", func() error { return errors.Join(os.Remove(lock), os.Symlink("elsewhere", lock)) }, "cannot open the lock " + lock},
		{"a pipe", func() error { return errors.Join(os.Remove(lock), unix.Mkfifo(lock, 0o600)) }, lock + " is not a regular file"},
		{"a directory that others can write to", func() error { return os.Chmod(l.runtime, 0o777) }, l.runtime + " has mode 0777"},
	} {
		if err := tc.do(); err != nil {
			t.Logf("%s: %v", tc.name, err) // in a user namespace there are no other users
			continue
		}
		if said, err := l.take(l.runtime); err == nil || !strings.Contains(said, tc.want) {
			t.Errorf("%s: %v: %s", tc.name, err, said)
		}
	}
}

// TestLockTells asks weir status and weir snapshot whether a weir runs whose socket is missing: beside the one that holds the
// lock, beside one that has only the file, because another process has bound the name, without any, and where the lock cannot
// be read.
func TestLockTells(t *testing.T) {
	t.Parallel()
	d := newRunDaemon(t)
	runtime := filepath.Join(t.TempDir(), "runtime")
	l := &lockLab{node: d.lab.Node(), runtime: runtime}
	ask := func(when, want string, exit int) {
		t.Helper()
		for _, sub := range []string{"status", "snapshot"} {
			cmd := d.lab.Node().Command(context.Background(), os.Getenv(binaryEnv), sub, "--state-dir", filepath.Join(t.TempDir(), "other"))
			cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+runtime)
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := d.lab.Node().Start(cmd); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != exit || !strings.Contains(out.String(), want) {
				t.Errorf("%s: weir %s: exit %d, want %d with %q: %s", when, sub, code, exit, want, out.String())
			}
		}
	}
	start := func() {
		t.Helper()
		line := d.line(d.args("run")...)
		cmd := d.lab.Node().Command(context.Background(), line[0], line[1:]...)
		cmd.Env = append(cmd.Env, "RUNTIME_DIRECTORY="+runtime)
		d.launch(cmd)
		d.awaitRunning()
	}
	const absent = "no weir run is listening"
	ask("before the start", absent, 3)
	start()
	ask("running", fmt.Sprintf("process %d runs as weir in this network namespace but cannot be reached: its socket is not there", d.cmd.Process.Pid), 1)
	d.kill()
	ask("after a crash", absent, 3)
	l.bind(t, false)
	ask("the name is bound by another", absent, 3)
	start()
	ask("running without the name", fmt.Sprintf("process %d runs as weir in this network namespace", d.cmd.Process.Pid), 1)
	d.kill()
	locks, err := filepath.Glob(filepath.Join(runtime, "net-*.lock"))
	if err == nil && len(locks) == 1 {
		err = os.Chmod(locks[0], 0o644)
	}
	if err != nil || len(locks) != 1 {
		t.Fatal(locks, err)
	}
	ask("a lock that others can hold", "whether a weir runs all the same cannot be told: "+locks[0]+" has mode 0644", 1)
}
