// Command vmexec runs test binaries in a virtual machine whose kernel has what this one may lack: IPVS, the dummy
// device, SCTP sockets. It is meant for "go test -exec":
//
//	CGO_ENABLED=0 go test -exec "$PWD/bin/vmexec" ./backends/ipvs
//
// The kernel is Debian's linux-image-cloud-amd64, downloaded and unpacked but not installed. qemu-system-x86_64 boots
// it in software. Its root file system holds the kernel's modules, the tools of this machine that tests use, the test
// binary, weir and the module's test data. Without a test binary vmexec gives a shell, or runs one command.
//
// After the output of a failed test follows the guest's kernel log. The machine ends with the process that started it,
// and at the latest after a time limit.
//
// github.com/hugelgupf/vmtest runs Go tests in QEMU too, but it does not fit. It builds its file system from u-root's
// commands, and each test has to be written for it. weir's tests also run without a virtual machine, and need Debian's
// kernel with its modules and this machine's iptables, nft and ipvsadm. Providing those would have taken most of this
// code in any case.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmexec:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run() (int, error) {
	m := machine{}
	shell := flag.Bool("shell", false, "give a shell in the machine instead of running a test")
	command := flag.String("c", "", "run a shell command in the machine instead of a test")
	limit := flag.Duration("limit", 20*time.Minute, "the most time that the machine may run; a shell's is not limited")
	add := flag.String("add", "", "a file that the guest gets too, relative to the module's root")
	flag.IntVar(&m.memory, "memory", 2048, "MiB of memory")
	flag.IntVar(&m.cpus, "cpus", runtime.NumCPU(), "number of processors")
	// Many machines that run tests are virtual themselves, and their /dev/kvm exists but does not work.
	flag.StringVar(&m.accel, "accel", "tcg,thread=multi", "qemu's -accel: software emulation, or kvm where it works")
	flag.Parse()

	root, err := moduleRoot()
	if err != nil {
		return 1, err
	}
	job, err := newJob(root, *shell, *command, *add, flag.Args())
	if err != nil {
		return 1, err
	}
	defer job.close()
	var base string
	if m.kernel, base, err = prepare(filepath.Join(root, ".cache", "vm")); err != nil {
		return 1, err
	}
	if m.initrd, err = job.image(base); err != nil {
		return 1, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if *shell {
		return 0, m.interact(ctx)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, *limit, fmt.Errorf("the machine was stopped at its time limit of %s", *limit))
	defer cancel()
	return m.run(ctx)
}

// moduleRoot finds the directory of go.mod from the current one upwards.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if exists(filepath.Join(d, "go.mod")) {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not inside a Go module", dir)
		}
	}
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// concatenate writes the base of a root file system, and then the part that overlay adds.
func concatenate(w io.Writer, base string, overlay func(*archive) error) error {
	f, err := os.Open(base)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return err
	}
	a := newArchive(w)
	if err := overlay(a); err != nil {
		return err
	}
	return a.close()
}
