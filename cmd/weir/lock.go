package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"weir/backends/doctor"
	"weir/cmd/weir/internal/handover"
	"weir/spec/stall"
)

// lockName is an abstract socket. Such a name belongs to its network namespace, as the rules do, and goes with its process.
// It finds a weir whose runtime directory is another one, as in a container.
const lockName = "@weir/lock"

// lockParameter is a kernel parameter of the network namespace that only root and those who may administer the namespace
// can open. Its file can be locked like any other, and is the same for all processes that see the same /proc.
const lockParameter = "/proc/sys/net/ipv4/tcp_fastopen_key"

// lockPatience is how long to wait for a weir that is ending, as when one is killed and started again.
const lockPatience = 2 * time.Second

// lockInterval is how often a lock that is held is tried again meanwhile.
const lockInterval = 50 * time.Millisecond

// errNoRuntimeDir is the error of runtimeDir where there is no place for a lock.
var errNoRuntimeDir = errors.New("there is no runtime directory")

// lockNode makes sure that one weir at a time writes to this network namespace.
//
// The lock is a file that only root or this process's user can open. Two weirs with different runtime directories meet at the
// file of a kernel parameter, or, if they do not see the same /proc either, at the socket. Any user may bind the name of the
// socket, so a holder of the socket counts only if the kernel says that it is root or this process's user.
func lockNode(log hclog.Logger) (*nodeLock, error) {
	deadline := time.Now().Add(lockPatience)
	l := &nodeLock{}
	var err error
	l.file, err = stall.Do(context.Background(), lockPatience+stall.Limit, "taking the lock in the runtime directory", func() (*os.File, error) {
		return takeFile(deadline)
	})
	switch {
	case errors.Is(err, errNoRuntimeDir):
		log.Warn("no lock file can be made, so only the socket tells of another weir; give this one a RUNTIME_DIRECTORY that it can write to", "error", err)
	case err != nil:
		return nil, err
	}
	if l.parameter, err = takeParameter(deadline); err == nil {
		l.socket, err = takeSocket(deadline, log)
	}
	if err != nil {
		l.release()
		return nil, err
	}
	return l, nil
}

// nodeLock is the lock of lockNode. What could not be taken is nil.
type nodeLock struct {
	file, parameter *os.File
	socket          *net.UnixListener
}

func (l *nodeLock) release() {
	if l.socket != nil {
		l.socket.Close()
	}
	for _, f := range []*os.File{l.parameter, l.file} {
		if f != nil {
			f.Close()
		}
	}
}

// The names of the parts of the lock for a process that replaces this one. All three stay locked as long as either process has
// them.
const lockFileName, lockParameterName = "lock", "lock-parameter"

// keep has the lock handed over.
func (l *nodeLock) keep(s *handover.Sockets) {
	if l.file != nil {
		s.Keep(lockFileName, l.file)
	}
	if l.parameter != nil {
		s.Keep(lockParameterName, l.parameter)
	}
	if l.socket != nil {
		s.KeepUnix(lockName, l.socket)
	}
}

// dropLock closes the parts of a lock that were handed over by a process that has ended.
func dropLock(s *handover.Sockets) {
	l := nodeLock{file: s.File(lockFileName), parameter: s.File(lockParameterName)}
	if s.Has("unix " + lockName) {
		l.socket, _ = s.ListenUnix(lockName)
	}
	l.release()
}

// inheritLock returns the lock of the process that this one replaces.
func inheritLock(s *handover.Sockets) (*nodeLock, error) {
	l := &nodeLock{file: s.File(lockFileName), parameter: s.File(lockParameterName)}
	for _, f := range []*os.File{l.file, l.parameter} {
		if f == nil {
			continue
		}
		if err := unix.Flock(fileDescriptor(f), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			l.release()
			return nil, fmt.Errorf("the lock that was handed over is not held: %w", err)
		}
	}
	if s.Has("unix " + lockName) {
		var err error
		if l.socket, err = s.ListenUnix(lockName); err != nil {
			l.release()
			return nil, fmt.Errorf("the socket of the lock: %w", err)
		}
		go answer(l.socket)
	}
	return l, nil
}

// claim makes this process the one that others find as the holder of the lock.
func (l *nodeLock) claim() {
	if l.file != nil {
		_, _ = l.file.WriteAt(fmt.Appendf(nil, "%-20d\n", os.Getpid()), 0) // it is for messages
	}
	if l.socket == nil {
		return
	}
	if raw, err := l.socket.SyscallConn(); err == nil {
		// The kernel records the process that listened last.
		_ = raw.Control(func(fd uintptr) { _ = unix.Listen(int(fd), unix.SOMAXCONN) })
	}
}

// fileDescriptor returns the number of an open file, and leaves the file as it is.
func fileDescriptor(f *os.File) (fd int) {
	fd = -1
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int(n) })
	}
	return fd
}

// takeParameter takes the lock of the kernel parameter. A process that may not open it may not write rules either.
func takeParameter(deadline time.Time) (*os.File, error) {
	f, err := os.Open(lockParameter)
	if err != nil {
		return nil, nil
	}
	if err := await(f, deadline, func() int { return 0 }); err != nil {
		return nil, err
	}
	return f, nil
}

// await takes the lock of an open file, or closes the file. The holder is asked for if the lock is not free in time.
func await(f *os.File, deadline time.Time, holder func() int) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			return errors.Join(fmt.Errorf("cannot take the lock %s: %w", f.Name(), err), f.Close())
		case time.Now().After(deadline):
			return errors.Join(errLocked(holder()), f.Close())
		}
		time.Sleep(lockInterval)
	}
}

func errLocked(pid int) error {
	who := "another weir"
	if pid != 0 {
		who += fmt.Sprintf(" (process %d)", pid)
	}
	return fmt.Errorf("%s is running in this network namespace, and two would undo each other's work: stop it first", who)
}

// takeFile takes the lock of this network namespace in the runtime directory. The file stays when the lock is released:
// one that is removed could be locked by two processes, each by another file of the same name.
func takeFile(deadline time.Time) (*os.File, error) {
	base, err := lockBase()
	if err != nil {
		return nil, err
	}
	dir, err := openRuntimeDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name := filepath.Join(dir.Name(), base)
	fd, err := unix.Openat(int(dir.Fd()), filepath.Base(name), unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the lock %s: %w", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	// A process that can open it, if only to read, can hold it.
	if err := checkOwned(f, 0o077); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := await(f, deadline, func() int { return lockedBy(f) }); err != nil {
		return nil, err
	}
	// For the message of one that finds it held.
	_, err = f.WriteAt(fmt.Appendf(nil, "%-20d\n", os.Getpid()), 0)
	return f, err
}

// lockBase returns the name of the lock of this network namespace.
func lockBase() (string, error) {
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &ns); err != nil {
		return "", fmt.Errorf("cannot tell which network namespace this is: %w", err)
	}
	return fmt.Sprintf("net-%d.lock", ns.Ino), nil
}

// lockedBy returns the process that holds a lock file, or 0 if it has not written its number yet.
func lockedBy(f io.Reader) int {
	text, _ := io.ReadAll(io.LimitReader(f, 20))
	pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return pid
}

// running reports whether a weir holds the lock of this network namespace, and its process, which is 0 if it is not known.
// The error is why that cannot be told. Nothing is taken or written.
func running() (held bool, pid int, err error) {
	if holder, err := lockHolder(); err == nil && ours(int(holder.Uid)) {
		return true, int(holder.Pid), nil
	}
	held, pid, err = fileHeld()
	if !held && parameterHeld() {
		return true, 0, nil // with another runtime directory
	}
	return held, pid, err
}

// parameterHeld reports whether the lock of the kernel parameter is held, as far as this process may look.
func parameterHeld() bool {
	f, err := os.Open(lockParameter)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// fileHeld reports whether the lock in this process's runtime directory is held, and by whom.
func fileHeld() (held bool, pid int, err error) {
	base, err := lockBase()
	if err != nil {
		return false, 0, err
	}
	dir, err := runtimeDir()
	if errors.Is(err, errNoRuntimeDir) { // such a weir has the socket only
		return false, 0, nil
	} else if err != nil {
		return false, 0, err
	}
	f, err := os.OpenFile(filepath.Join(dir, base), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, 0, nil
	} else if err != nil {
		return false, 0, fmt.Errorf("cannot open the lock: %w", err)
	}
	defer f.Close()
	if err := checkOwned(f, 0o077); err != nil {
		return false, 0, err
	}
	// A shared lock that ends with the descriptor keeps a weir that starts meanwhile waiting for less than its patience.
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return true, lockedBy(f), nil
	case err != nil:
		return false, 0, fmt.Errorf("cannot look at the lock %s: %w", f.Name(), err)
	}
	return false, 0, nil
}

// runtimeDir returns the directory for files that must not outlive their processes.
func runtimeDir() (string, error) {
	if dirs := os.Getenv("RUNTIME_DIRECTORY"); dirs != "" { // a service manager's
		first, _, _ := strings.Cut(dirs, ":")
		return first, nil
	}
	if os.Geteuid() == 0 && doctor.InFirstUserNamespace() {
		return "/run/weir", nil
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "weir"), nil
	}
	return "", fmt.Errorf("%w: neither RUNTIME_DIRECTORY nor XDG_RUNTIME_DIR is set", errNoRuntimeDir)
}

// openRuntimeDir opens the runtime directory, and creates it if necessary.
func openRuntimeDir() (*os.File, error) {
	dir, err := runtimeDir()
	if err != nil {
		return nil, err
	}
	err = os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("%w: %w", errNoRuntimeDir, err)
	}
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open the directory of the lock: %w", err)
	}
	if err := checkOwned(f, 0o022); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// checkOwned fails unless the file is root's or this process's user's, and gives others none of the permissions.
func checkOwned(f *os.File, permissions os.FileMode) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	uid := int(fi.Sys().(*syscall.Stat_t).Uid)
	switch {
	case !fi.IsDir() && !fi.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file: remove it", f.Name())
	case !ours(uid):
		return fmt.Errorf("%s belongs to user %d, who could keep weir from running: remove it, or set RUNTIME_DIRECTORY to another directory", f.Name(), uid)
	case fi.Mode().Perm()&permissions != 0:
		return fmt.Errorf("%s has mode %04o, by which others could keep weir from running: remove it, or chmod go= it", f.Name(), fi.Mode().Perm())
	}
	return nil
}

// ours reports whether a user could write this process's rules anyhow.
func ours(uid int) bool { return uid == 0 || uid == os.Geteuid() }

// takeSocket binds the socket. It goes on without it if its holder cannot be a weir.
func takeSocket(deadline time.Time, log hclog.Logger) (*net.UnixListener, error) {
	for {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: lockName, Net: "unix"})
		if err == nil {
			go answer(ln)
			return ln, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return nil, fmt.Errorf("cannot take the lock of this network namespace: %w", err)
		}
		holder, err := lockHolder()
		counts := err == nil && ours(int(holder.Uid))
		switch {
		case !time.Now().After(deadline):
			// The one that bound it may not listen yet, or be about to end.
			time.Sleep(lockInterval)
		case counts:
			return nil, errLocked(int(holder.Pid))
		case err != nil:
			log.Warn("a process that cannot be identified holds the socket of the lock; going on without it", "error", err)
			return nil, nil
		default:
			log.Warn("an unprivileged process holds the socket of the lock; going on without it", "pid", holder.Pid, "uid", holder.Uid)
			return nil, nil
		}
	}
}

// answer accepts every connection to the socket, so that no process can fill its queue and hide its holder.
func answer(ln net.Listener) {
	for {
		c, err := ln.Accept()
		switch {
		case err == nil:
			c.Close()
		case errors.Is(err, net.ErrClosed):
			return
		default:
			time.Sleep(lockInterval)
		}
	}
}

// lockHolder returns the process that bound the name; the kernel records it when the process listens.
func lockHolder() (*unix.Ucred, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: lockName, Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, credErr)
}
