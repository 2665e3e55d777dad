package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// job is what a machine is booted for.
type job struct {
	root   string
	shell  bool
	binary string
	args   []string
	dir    string // the package's directory, relative to the module
	weir   string // the program, built for tests that run it
}

func newJob(root string, shell bool, args []string) (*job, error) {
	j := &job{root: root, shell: shell, dir: "."}
	if shell {
		return j, j.build()
	}
	if len(args) == 0 {
		return nil, fmt.Errorf("usage: go test -exec vmexec PACKAGE, or vmexec -shell")
	}
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if j.dir, err = filepath.Rel(root, wd); err != nil {
		return nil, err
	}
	j.binary, j.args = args[0], args[1:]
	if j.dir == filepath.Join("cmd", "weir") {
		return j, j.build()
	}
	return j, nil
}

// build makes a static weir, since there is no Go in the guest.
func (j *job) build() error {
	j.weir = filepath.Join(j.root, ".cache", "vm", "weir")
	cmd := exec.Command("go", "build", "-o", j.weir, "./cmd/weir")
	cmd.Dir, cmd.Env, cmd.Stderr = j.root, append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("building weir for the guest: %w", err)
	}
	return nil
}

// overlay adds the test, its data and the init program.
func (j *job) overlay(a *archive) error {
	all := func(string) bool { return true }
	for _, dir := range []string{"testdata", "examples"} {
		if from := filepath.Join(j.root, dir); exists(from) {
			if err := a.tree("/src/"+dir, from, all); err != nil {
				return err
			}
		}
	}
	if own := filepath.Join(j.root, j.dir, "testdata"); exists(own) && j.dir != "." {
		if err := a.tree("/src/"+j.dir+"/testdata", own, all); err != nil {
			return err
		}
	}
	a.dir("/src/" + j.dir)
	if j.binary != "" {
		if err := a.file("/test.bin", j.binary); err != nil {
			return err
		}
	}
	if j.weir != "" {
		if err := a.file("/usr/sbin/weir", j.weir); err != nil {
			return err
		}
	}
	a.text("/init", j.init())
	return a.err
}

// init is the guest's first process. It loads what a kernel cannot load by itself from within a network namespace.
func (j *job) init() string {
	run := "setsid cttyhack /bin/sh"
	if !j.shell {
		run = "/test.bin " + quoted(j.args)
	}
	var env strings.Builder
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "WEIR_") {
			fmt.Fprintf(&env, "export %s\n", quoted([]string{e}))
		}
	}
	return `#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/sbin:/usr/bin:/bin HOME=/root TERM=linux WEIR_TEST_BINARY=/usr/sbin/weir
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
for m in veth dummy bridge br_netfilter nf_tables nft_compat ip_tables ip6_tables nf_conntrack nf_conntrack_netlink ip_set xt_set sctp ip_vs; do
	modprobe $m 2>/dev/null
done
ip link set lo up
` + env.String() + `cd /src/` + j.dir + `
` + run + ` </dev/ttyS1 >/dev/ttyS1 2>&1
echo "` + exitMark + `$?" >/dev/ttyS1
sleep 0.2
poweroff -f
`
}

func quoted(args []string) string {
	q := make([]string, len(args))
	for i, a := range args {
		q[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(q, " ")
}

// lockFile makes sure that only one process at a time prepares the cache.
func lockFile(name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
