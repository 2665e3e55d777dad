package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// lockName is an abstract socket. Such a name belongs to its network namespace, as the rules do, and goes with its process:
// neither a crash nor another namespace with the same state directory leaves a lock behind or gets in the way.
const lockName = "@weir/lock"

// lockNode makes sure that one weir at a time writes to this network namespace.
//
// Any user may bind the name. One who could not write the rules anyhow (not root, nor the user of this process) is no second
// weir, and is not allowed to keep this one from working.
func lockNode(log hclog.Logger) (release func(), err error) {
	ln, err := listenLock()
	if err == nil {
		return func() { ln.Close() }, nil
	}
	if !errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("cannot take the lock of this network namespace: %w", err)
	}
	holder, credErr := lockHolder()
	if credErr == nil && holder.Uid != 0 && int(holder.Uid) != os.Geteuid() {
		log.Warn("an unprivileged process holds the lock of this network namespace; going on without it", "pid", holder.Pid, "uid", holder.Uid)
		return func() {}, nil
	}
	who := "another weir"
	if credErr == nil && holder.Pid != 0 {
		who += fmt.Sprintf(" (process %d)", holder.Pid)
	}
	return nil, fmt.Errorf("%s is running in this network namespace, and two would undo each other's work: stop it first", who)
}

// lockPatience is how long a weir that is about to be gone is waited for, as when one is killed and started again.
const lockPatience = 2 * time.Second

func listenLock() (*net.UnixListener, error) {
	deadline := time.Now().Add(lockPatience)
	for {
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: lockName, Net: "unix"})
		if !errors.Is(err, syscall.EADDRINUSE) || time.Now().After(deadline) {
			return ln, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// lockHolder returns who bound the name; the kernel remembers it from the moment of listening.
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
