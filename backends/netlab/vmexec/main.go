// Command vmexec runs a test binary in a virtual machine whose kernel has what this one may lack: IPVS, the dummy device,
// SCTP sockets. It is meant for "go test -exec", and from there a test looks as ordinary as any other:
//
//	CGO_ENABLED=0 go test -exec "$PWD/bin/vmexec" ./backends/ipvs
//
// The kernel is Debian's linux-image-cloud-amd64, downloaded and unpacked but not installed, and booted by
// qemu-system-x86_64 in software. Its root file system is made of the kernel's modules, the tools of
// this machine that tests look at the kernel with, the test binary and the module's test data. Without a test binary it
// gives a shell.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
	shell := flag.Bool("shell", false, "give a shell in the machine instead of running a test")
	limit := flag.Duration("limit", 20*time.Minute, "the most time that the machine may run")
	memory := flag.Int("memory", 2048, "MiB of memory")
	// Many of the machines that tests run on are virtual themselves, with a /dev/kvm that is there and does not work.
	accel := flag.String("accel", "tcg,thread=multi", "qemu's -accel: software emulation, or kvm where it works")
	flag.Parse()

	root, err := moduleRoot()
	if err != nil {
		return 1, err
	}
	cache := filepath.Join(root, ".cache", "vm")
	kernel, base, err := prepare(cache)
	if err != nil {
		return 1, err
	}
	job, err := newJob(root, *shell, flag.Args())
	if err != nil {
		return 1, err
	}
	initrd, err := os.CreateTemp("", "weir-vm-*.cpio")
	if err != nil {
		return 1, err
	}
	defer os.Remove(initrd.Name())
	if err := concatenate(initrd, base, job.overlay); err != nil {
		return 1, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	return boot(ctx, machine{kernel: kernel, initrd: initrd.Name(), accel: *accel, memory: *memory, shell: *shell})
}

// moduleRoot finds the directory of go.mod from the current one upwards.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is not inside a Go module", dir)
		}
	}
}

func concatenate(w io.WriteCloser, base string, overlay func(*archive) error) error {
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
	if err := a.close(); err != nil {
		return err
	}
	return w.Close()
}

type machine struct {
	kernel, initrd string
	accel          string
	memory         int
	shell          bool
}

// exitMark is the line with which the guest's init ends; the test's exit code follows.
const exitMark = "weir-vm-exit:"

// boot runs the machine until it powers off and returns the exit code that the guest reported. The first serial port is
// the kernel's log, shown only when something went wrong, the second is the test's output.
func boot(ctx context.Context, m machine) (int, error) {
	log, err := os.CreateTemp("", "weir-vm-*.log")
	if err != nil {
		return 1, err
	}
	defer os.Remove(log.Name())
	args := []string{
		"-nodefaults", "-no-reboot", "-display", "none", "-machine", "q35", "-cpu", "max", "-smp", "2", "-accel", m.accel,
		"-m", strconv.Itoa(m.memory), "-kernel", m.kernel, "-initrd", m.initrd,
		"-append", "console=ttyS0 quiet panic=-1 rdinit=/init",
		"-serial", "file:" + log.Name(),
	}
	if m.shell {
		args = append(args, "-chardev", "stdio,id=tty,signal=off", "-serial", "chardev:tty")
	} else {
		args = append(args, "-serial", "stdio")
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	cmd.Stderr = os.Stderr
	if m.shell {
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
		return 0, cmd.Run()
	}
	out := &console{w: os.Stdout, code: -1}
	cmd.Stdout = out
	err = cmd.Run()
	if out.code < 0 || out.code > 0 || err != nil {
		showLog(log.Name())
	}
	switch {
	case ctx.Err() != nil:
		return 1, fmt.Errorf("the machine was stopped at its time limit")
	case err != nil:
		return 1, err
	case out.code < 0:
		return 1, fmt.Errorf("the machine ended without the test having reported")
	}
	return out.code, nil
}

// console passes on what the guest prints, without the carriage returns of its serial line and without the exit mark.
type console struct {
	w    io.Writer
	line []byte
	code int
}

func (c *console) Write(p []byte) (int, error) {
	c.line = append(c.line, bytes.ReplaceAll(p, []byte("\r"), nil)...)
	for {
		i := bytes.IndexByte(c.line, '\n')
		if i < 0 {
			return len(p), nil
		}
		line := string(c.line[:i+1])
		c.line = c.line[i+1:]
		if rest, ok := strings.CutPrefix(line, exitMark); ok {
			c.code, _ = strconv.Atoi(strings.TrimSpace(rest))
			continue
		}
		if _, err := io.WriteString(c.w, line); err != nil {
			return 0, err
		}
	}
}

func showLog(name string) {
	data, err := os.ReadFile(name)
	if err != nil || len(data) == 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "--- the guest's kernel log ---\n%s\n", bytes.ReplaceAll(data, []byte("\r"), nil))
}
