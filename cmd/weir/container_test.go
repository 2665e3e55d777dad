package main_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// containerEnv is set in a test binary that is to become a container: it holds the container in JSON.
const containerEnv = "WEIR_TEST_CONTAINER"

// container is what a container runtime, or systemd for a hardened unit, makes of a process: a root that cannot be written
// to but for what is mounted in it, and few capabilities.
type container struct {
	Root         string // "/" for the host's own
	Mounts       []mount
	Capabilities []int
	Args         []string // the program's path is in the container
	Env          []string
}

// mount is a file or directory of the host's in a container. What is not read-only keeps the host's files writable.
type mount struct {
	Source, Target string
	ReadOnly       bool
}

// run becomes the container. It returns only if that fails.
func (c *container) run() error {
	runtime.LockOSThread() // capabilities are those of a thread
	for _, f := range []func() error{c.mount, c.enter, c.confine} {
		if err := f(); err != nil {
			return err
		}
	}
	return fmt.Errorf("run %s: %w", c.Args[0], unix.Exec(c.Args[0], c.Args, c.Env))
}

func (c *container) mount() error {
	for _, m := range append([]mount{{Source: c.Root, Target: "/"}}, c.Mounts...) {
		target := filepath.Join(c.Root, m.Target)
		_, err := os.Stat(target)
		if err != nil {
			err = os.MkdirAll(target, 0o755)
		}
		if err == nil {
			err = unix.Mount(m.Source, target, "", unix.MS_BIND|unix.MS_REC, "")
		}
		if err == nil && m.ReadOnly {
			err = remountReadOnly(target)
		}
		if err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.Source, m.Target, err)
		}
	}
	return remountReadOnly(c.Root)
}

func remountReadOnly(target string) error {
	return unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
}

func (c *container) enter() error {
	return errors.Join(unix.Chroot(c.Root), unix.Chdir("/"))
}

// confine drops all other capabilities, for ever.
func (c *container) confine() error {
	var kept uint32
	for n := 0; unix.Prctl(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0) == nil; n++ {
		if slices.Contains(c.Capabilities, n) {
			kept |= 1 << n
		} else if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: kept, Permitted: kept, Inheritable: kept}}
	return errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), unix.Capset(&header, &data[0]))
}

// becomeContainer is for TestMain. It does not return if the process is to be a container.
func becomeContainer() {
	text := os.Getenv(containerEnv)
	if text == "" {
		return
	}
	var c container
	err := json.Unmarshal([]byte(text), &c)
	if err == nil {
		err = c.run()
	}
	fmt.Fprintln(os.Stderr, "become a container:", err)
	os.Exit(1)
}

// startContainer runs a container in the network namespace of a node, where a pod with hostNetwork is.
func (d *daemon) startContainer(c *container) {
	d.t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		d.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := d.lab.Node().Command(context.Background(), exe)
	cmd.Env = append(cmd.Env, containerEnv+"="+string(text))
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNS
	d.launch(cmd)
}
