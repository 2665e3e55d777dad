package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// machine holds the settings of qemu. Its first serial port is the kernel's log, the second the test's output.
type machine struct {
	kernel, initrd string
	accel          string
	memory, cpus   int
}

// exitMark begins the last line of the guest's init; the exit code follows.
const exitMark = "weir-vm-exit:"

// startMark is the line that init writes once the machine is up, before it runs any command.
const startMark = "weir-vm-started"

const (
	// bootLimit bounds the time until then. It is twenty times what the boot takes on an idle machine.
	bootLimit = 90 * time.Second
	// bootAttempts bounds how often booting is tried, because an emulated machine with several processors sometimes
	// hangs.
	bootAttempts = 3
)

var errNotStarted = fmt.Errorf("the machine did not start within %s", bootLimit)

// These settings avoid the largest costs of emulation: mitigations of faults that no emulator has, clocks that are
// devices, a fifth level of page tables, string instructions that are emulated byte by byte, and pages that are cleared
// twice.
const (
	processor  = "max,la57=off,erms=off,fsrm=off"
	kernelArgs = "console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off clearcpuid=erms,fsrm,rep_good " +
		"clocksource=tsc tsc=reliable nowatchdog init_on_alloc=0 transparent_hugepage=never lsm= audit=0 rcupdate.rcu_expedited=1"
)

func (m machine) command(ctx context.Context, log string, serial ...string) *exec.Cmd {
	args := []string{
		"-nodefaults", "-no-reboot", "-display", "none", "-machine", "q35", "-cpu", processor,
		"-smp", strconv.Itoa(m.cpus), "-accel", m.accel, "-m", strconv.Itoa(m.memory),
		"-kernel", m.kernel, "-initrd", m.initrd, "-append", kernelArgs, "-serial", "file:" + log,
	}
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, serial...)...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// interact joins the machine's shell to this process's terminal.
func (m machine) interact(ctx context.Context) error {
	runtime.LockOSThread() // the parent-death signal is tied to the thread
	defer runtime.UnlockOSThread()
	cmd := m.command(ctx, os.DevNull, "-chardev", "stdio,id=tty,signal=off", "-serial", "chardev:tty")
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	return cmd.Run()
}

// run boots the machine until it has started once, lets it run until it powers off, and returns the exit code that the
// guest reported.
func (m machine) run(ctx context.Context) (code int, err error) {
	for range bootAttempts {
		if code, err = m.boot(ctx); !errors.Is(err, errNotStarted) {
			break
		}
		fmt.Fprintln(os.Stderr, "vmexec:", err)
	}
	return code, err
}

// boot makes one attempt of run.
func (m machine) boot(ctx context.Context) (int, error) {
	log, err := os.CreateTemp("", "weir-vm-*.log")
	if err != nil {
		return 1, err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(bootLimit, func() { cancel(errNotStarted) })
	defer watchdog.Stop()

	runtime.LockOSThread() // the parent-death signal is tied to the thread
	defer runtime.UnlockOSThread()
	out := &console{w: os.Stdout, code: -1, started: func() { watchdog.Stop() }}
	cmd := m.command(ctx, log.Name(), "-serial", "stdio")
	cmd.Stdout = out
	err = cmd.Run()
	if out.code != 0 || err != nil {
		showLog(log)
	}
	switch {
	case ctx.Err() != nil:
		return 1, context.Cause(ctx)
	case err != nil:
		return 1, fmt.Errorf("qemu-system-x86_64: %w", err)
	case out.code < 0:
		return 1, fmt.Errorf("the machine ended without the test having reported")
	}
	return out.code, nil
}

// console passes on the output of the guest, without the carriage returns of its serial line and without the marks.
type console struct {
	w       io.Writer
	line    []byte
	code    int
	started func()
}

func (c *console) Write(p []byte) (int, error) {
	c.line = append(c.line, bytes.ReplaceAll(p, []byte("\r"), nil)...)
	for {
		i := bytes.IndexByte(c.line, '\n')
		if i < 0 {
			return len(p), nil
		}
		line := c.line[:i+1]
		c.line = c.line[i+1:]
		if bytes.HasPrefix(line, []byte(startMark)) {
			c.started()
			continue
		}
		if rest, ok := bytes.CutPrefix(line, []byte(exitMark)); ok {
			c.code, _ = strconv.Atoi(string(bytes.TrimSpace(rest)))
			continue
		}
		if _, err := c.w.Write(line); err != nil {
			return 0, err
		}
	}
}

// logTail bounds how much of the kernel's log is shown, in bytes.
const logTail = 32 << 10

func showLog(log *os.File) {
	data, err := io.ReadAll(log)
	if err != nil || len(data) == 0 {
		return
	}
	data = bytes.ReplaceAll(data, []byte("\r"), nil)
	fmt.Fprintf(os.Stderr, "--- the guest's kernel log ---\n%s---\n", data[max(0, len(data)-logTail):])
}
