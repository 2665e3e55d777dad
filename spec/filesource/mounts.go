package filesource

import (
	"context"
	"errors"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

// mountinfo is the kernel's list of mounts. It polls as exceptional after each change (proc_pid_mountinfo(5)).
const mountinfo = "/proc/self/mountinfo"

// watchMounts returns a channel that receives when something was mounted or unmounted, because inotify does not report
// mounts. It stops with ctx; wait returns when it has stopped. Without it, rescans find the same a little later.
func watchMounts(ctx context.Context, log hclog.Logger) (changed <-chan struct{}, wait func()) {
	fd, err := unix.Open(mountinfo, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		log.Debug("cannot watch mounts", "error", err)
		return nil, func() {}
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		log.Debug("cannot watch mounts", "error", err)
		_ = unix.Close(fd)
		return nil, func() {}
	}
	out, done := make(chan struct{}, 1), make(chan struct{})
	woken := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() {
		defer close(woken)
		_, _ = unix.Write(stop, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	go func() {
		defer close(done)
		if err := pollMounts(fd, stop, out); err != nil {
			log.Debug("cannot watch mounts any longer", "error", err)
		}
	}()
	return out, func() {
		<-done
		if !unhook() {
			<-woken
		}
		_ = unix.Close(fd)
		_ = unix.Close(stop)
	}
}

// pollMounts sends to out after each change, until stop is readable.
func pollMounts(fd, stop int, out chan<- struct{}) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}, {Fd: int32(stop), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if fds[1].Revents != 0 {
			return nil
		}
		if err == nil && fds[0].Revents != 0 {
			select {
			case out <- struct{}{}:
			default:
			}
		}
	}
}
