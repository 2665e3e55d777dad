// Package netlab is a packet lab for tests: a node, its pods, a client outside and another node. Each is a network
// namespace, and veth pairs join them. Connections are real, and a test sees which host answered and which source
// address it saw. The key types are Lab and Host.
//
// A test binary that uses the lab calls Main from its TestMain. Main runs the binary again in new namespaces, so that
// nothing on the host changes, and no root is needed if user namespaces are allowed.
//
// The package knows nothing of backends. Only tests import it.
package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// insideEnv is set in the process that runs in the new namespaces.
	insideEnv = "WEIR_NETLAB"
	// RequireEnv names the environment variable that turns "cannot make namespaces here" from a skip into a failure.
	RequireEnv = "WEIR_TEST_REQUIRE"
	// RequireIPVSEnv does the same for "no IPVS here". If it is not set, these tests are expected to run in a virtual
	// machine: see vmexec.
	RequireIPVSEnv = "WEIR_TEST_REQUIRE_IPVS"
	// VMEnv is set if the whole machine belongs to the test, so that the test may load and unload modules.
	VMEnv = "WEIR_TEST_VM"
)

// errSetup is the reason why the lab cannot be used in this process. Enter sets it.
var errSetup = errors.New("TestMain has to call netlab.Main")

// Main runs the tests in new namespaces and exits with their status. Without root it makes a user namespace as well. If
// the kernel allows neither, the tests that need no lab run even so, and the others are skipped.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for a TestMain that has to clean up: it returns the status to exit with.
func Run(m *testing.M) int {
	inside, status, err := Enter()
	if err != nil {
		fmt.Fprintf(os.Stderr, "netlab: SKIPPING all packet tests: %v\n", err)
	}
	errSetup = err
	if !inside {
		if err != nil {
			return m.Run()
		}
		return status
	}
	guard, err := guardDefaults()
	if err != nil {
		fmt.Fprintf(os.Stderr, "netlab: keep tests from the default paths: %v\n", err)
		return 1
	}
	status = m.Run()
	if guard.stop() && status == 0 {
		status = 1
	}
	return status
}

// Enter runs this program again, with the same arguments, in new namespaces, and returns its exit status. In that
// second process inside is true. The error says why no namespaces could be made.
func Enter() (inside bool, status int, err error) {
	if Inside() {
		errSetup = prepare()
		return true, 0, errSetup
	}
	status, err = reexec()
	return false, status, err
}

// Inside reports whether this process already runs in the lab's namespaces. A TestMain that has to prepare something
// outside, such as building a program, does so if Inside is false, before it calls Main.
func Inside() bool { return os.Getenv(insideEnv) != "" }

// Require skips the test if the lab cannot be used, or fails it if WEIR_TEST_REQUIRE is set.
func Require(t testing.TB) {
	t.Helper()
	if errSetup != nil {
		Missing(t, "no packet lab: %v", errSetup)
	}
}

// Missing skips the test for what this machine lacks, or fails it if WEIR_TEST_REQUIRE is set, because make test provides that.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(RequireEnv) != "" {
		t.Fatalf(format+" ("+RequireEnv+" is set)", args...)
	}
	t.Skipf(format, args...)
}

// RequireFull skips the test in the quick run (go test -short, which make check uses). Tests and test helpers call it
// if they run a whole program for seconds, or need an API server, a container runtime or a virtual machine.
func RequireFull(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("make test runs it; -short is set")
	}
}

// RequireProgram skips the test if a program is not installed, or fails it if WEIR_TEST_REQUIRE is set, because make
// test installs missing programs.
func RequireProgram(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		Missing(t, "%v", err)
	}
}

// RequireRoot skips the test unless root here is root of the system, and not of a user namespace only. why is what only that
// root can do. make test has no way to become it.
func RequireRoot(t testing.TB, why string) {
	t.Helper()
	ids, err := os.ReadFile("/proc/self/uid_map")
	first := err != nil || strings.Join(strings.Fields(string(ids)), " ") == "0 0 4294967295"
	if os.Geteuid() != 0 || !first {
		t.Skip("only root of the system can " + why)
	}
}

// RequireIPVS skips the test if missing is an error, or fails it if WEIR_TEST_REQUIRE_IPVS is set. missing is the
// reason why the kernel has no IPVS.
func RequireIPVS(t testing.TB, missing error) {
	t.Helper()
	if missing == nil {
		return
	}
	if os.Getenv(RequireIPVSEnv) != "" {
		t.Fatalf("%s is set: %v", RequireIPVSEnv, missing)
	}
	t.Skipf("to run it in a virtual machine: make vm-test: %v", missing)
}

// InNamespace moves the test into a new network namespace, in which lo is up. The test stays on its thread, and the
// namespace ends with the thread.
func InNamespace(t testing.TB) {
	t.Helper()
	Require(t)
	runtime.LockOSThread() // and never unlocked
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	if err := loopbackUp(); err != nil {
		t.Fatal(err)
	}
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring up loopback interface: %w", err)
	}
	return nil
}

// reexec runs this binary again with the same arguments, and returns its exit status. The error says why no namespaces
// could be made.
func reexec() (int, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	// The parent-death signal is tied to the thread that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	var errs []error
	for _, flags := range namespaceFlags() {
		cmd := exec.Command(exe, os.Args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), insideEnv+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
		if flags&syscall.CLONE_NEWUSER != 0 {
			cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
		if err := cmd.Start(); err != nil {
			errs = append(errs, fmt.Errorf("make namespaces (flags %#x): %w", flags, err))
			continue
		}
		err := cmd.Wait()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() < 0 {
			return 2, nil // killed by a signal, which the child has reported
		}
		return cmd.ProcessState.ExitCode(), nil
	}
	return 0, errors.Join(errs...)
}

// namespaceFlags lists the namespaces to try: without a user namespace if root, and with one.
func namespaceFlags() []uintptr {
	const private = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS
	if os.Geteuid() == 0 {
		return []uintptr{private, private | syscall.CLONE_NEWUSER}
	}
	return []uintptr{private | syscall.CLONE_NEWUSER}
}

// prepare makes the namespaces of this process usable: mounts that do not propagate, a /run for the xtables lock, and a
// loopback interface that is up.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a private /run: %w", err)
	}
	return loopbackUp()
}
