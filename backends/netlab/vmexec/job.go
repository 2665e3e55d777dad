package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// job is the purpose for which a machine is booted.
type job struct {
	root    string
	tmp     string // holds the files of this job alone
	command string // the command of the guest, in the shell's syntax
	binary  string // the test, or ""
	dir     string // the package's directory, relative to the module
	weir    string // the program, or "" for a test that does not need it
	add     string // another file, relative to the module, or ""
}

func newJob(root string, shell bool, command, add string, args []string) (*job, error) {
	wd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	j := &job{root: root, add: add}
	if j.dir, err = filepath.Rel(root, wd); err != nil {
		return nil, err
	}
	if j.tmp, err = os.MkdirTemp("", "weir-vm-"); err != nil {
		return nil, err
	}
	switch {
	case shell:
		j.command = "setsid -c /bin/sh -i; poweroff -f"
	case command != "":
		j.command = "/bin/sh -c " + quoted([]string{command})
	case len(args) > 0:
		j.binary = args[0]
		j.command = "/test.bin " + quoted(args[1:])
	default:
		return nil, fmt.Errorf("usage: go test -exec vmexec PACKAGE, vmexec -shell, or vmexec -c COMMAND")
	}
	if j.binary == "" || j.dir == filepath.Join("cmd", "weir") {
		err = j.build()
	}
	if err != nil {
		j.close()
		return nil, err
	}
	return j, nil
}

func (j *job) close() { os.RemoveAll(j.tmp) }

// build makes a static weir, because the guest has no Go.
func (j *job) build() error {
	j.weir = filepath.Join(j.tmp, "weir")
	cmd := exec.Command("go", "build", "-tags", "kustomize_disable_go_plugin_support,grpcnotrace", "-ldflags", "-s -w", "-o", j.weir, "./cmd/weir")
	cmd.Dir, cmd.Env, cmd.Stderr = j.root, append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("building weir for the guest: %w", err)
	}
	return nil
}

// image writes the root file system and returns its name.
func (j *job) image(base string) (string, error) {
	f, err := os.Create(filepath.Join(j.tmp, "root.cpio"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := concatenate(f, base, j.overlay); err != nil {
		return "", fmt.Errorf("making the guest's root file system: %w", err)
	}
	return f.Name(), f.Close()
}

// overlay adds the test, its data and the init program.
func (j *job) overlay(a *archive) error {
	all := func(string) bool { return true }
	for _, dir := range slices.Compact([]string{"examples", "testdata", filepath.Join(j.dir, "testdata")}) {
		if from := filepath.Join(j.root, dir); exists(from) {
			if err := a.tree("/src/"+dir, from, all); err != nil {
				return err
			}
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
	if j.add != "" {
		if err := a.file("/src/"+j.add, filepath.Join(j.root, j.add)); err != nil {
			return err
		}
	}
	a.text("/init", j.init())
	return a.err
}

// init returns the guest's first process. It loads the modules that a kernel cannot load by itself from within a
// network namespace.
func (j *job) init() string {
	var env strings.Builder
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, "WEIR_") {
			fmt.Fprintf(&env, "export %s\n", quoted([]string{e}))
		}
	}
	return `#!/bin/sh
/usr/sbin/busybox --install -s /applets
export PATH=/usr/sbin:/sbin:/usr/bin:/bin:/applets HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
modprobe -a ` + strings.Join(modules, " ") + `
ip link set lo up
` + env.String() + `# The machine is there for what a test may otherwise miss: nothing is skipped in it for want of a kernel.
export WEIR_TEST_REQUIRE=1 WEIR_TEST_REQUIRE_IPVS=1 WEIR_TEST_VM=1 WEIR_TEST_BINARY=/usr/sbin/weir
cd /src/` + j.dir + `
echo "` + startMark + `" >/dev/ttyS1
{ ` + j.command + `; } </dev/ttyS1 >/dev/ttyS1 2>&1
code=$?
[ $code = 0 ] || dmesg | sed '1,/Run .init as/d' >/dev/ttyS0
echo "` + exitMark + `$code" >/dev/ttyS1
sleep 0.2
poweroff -f
`
}

// modules are loaded in the guest before anything runs.
var modules = []string{
	"veth", "dummy", "bridge", "br_netfilter", "sctp",
	"nf_tables", "nft_compat", "nft_chain_nat", "nft_nat", "nft_masq", "nft_ct", "nft_numgen", "nft_fib_ipv4", "nft_fib_ipv6", "nft_reject_ipv4", "nft_reject_ipv6", "nft_reject_inet",
	"ip_tables", "ip6_tables", "nf_conntrack", "nf_conntrack_netlink", "ip_set", "xt_set", "ip_vs", "xt_ipvs",
}

func quoted(args []string) string {
	q := make([]string, len(args))
	for i, a := range args {
		q[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	return strings.Join(q, " ")
}
