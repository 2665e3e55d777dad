package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// defaultStateDir is the directory in which weir keeps its state by default. A test that uses it depends on earlier use
// of the machine, and changes it.
const defaultStateDir = "/var/lib/weir"

// guard reports every use of a directory.
type guard struct {
	fd       int      // of inotify
	events   *os.File // the same
	touched  atomic.Bool
	finished sync.WaitGroup
}

// guardDefaults mounts a private file system on weir's default state directory, and watches it.
func guardDefaults() (*guard, error) {
	if err := addMountPoint(defaultStateDir); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", defaultStateDir, "tmpfs", 0, "mode=0755"); err != nil {
		return nil, fmt.Errorf("mount a private %s: %w", defaultStateDir, err)
	}
	return watchUse(defaultStateDir)
}

// watchUse watches a directory. It makes the files that a weir would look for there, because only existing files can be
// opened.
func watchUse(dir string) (*guard, error) {
	for _, name := range []string{"applied.json", "api-snapshot", "files-snapshot"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("no test reads this\n"), 0o600); err != nil {
			return nil, err
		}
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", dir, err)
	}
	g := &guard{fd: fd, events: os.NewFile(uintptr(fd), "inotify")}
	const uses = unix.IN_OPEN | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVE | unix.IN_ATTRIB | unix.IN_MODIFY
	if _, err := unix.InotifyAddWatch(fd, dir, uses); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", dir, err), g.events.Close())
	}
	g.finished.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			if _, err := g.events.Read(buf); err != nil {
				return
			}
			if !g.touched.Swap(true) {
				fmt.Fprintf(os.Stderr, "netlab: FAIL: a test that runs now uses %s, a default path of weir's; it needs a state directory of its own\n", dir)
			}
		}
	})
	return g, nil
}

// stop ends the watch and reports whether the directory was used.
func (g *guard) stop() bool {
	_ = g.events.SetReadDeadline(time.Now())
	g.finished.Wait()
	// The last events may not have been read yet.
	if n, _ := unix.Read(g.fd, make([]byte, 4096)); n > 0 {
		g.touched.Store(true)
	}
	_ = g.events.Close()
	return g.touched.Load()
}

// addMountPoint makes a directory that exists in this mount namespace only. Its parent becomes a private file system
// with everything that the parent held.
func addMountPoint(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	old, err := os.Open(parent)
	if err != nil {
		return err
	}
	defer old.Close()
	entries, err := old.ReadDir(-1)
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", parent, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount a private %s: %w", parent, err)
	}
	for _, e := range entries {
		from, to := fmt.Sprintf("/proc/self/fd/%d/%s", old.Fd(), e.Name()), filepath.Join(parent, e.Name())
		switch {
		case e.IsDir():
			if err = os.Mkdir(to, 0o755); err == nil {
				err = unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, "")
			}
		case e.Type()&os.ModeSymlink != 0:
			var target string
			if target, err = os.Readlink(from); err == nil {
				err = os.Symlink(target, to)
			}
		default:
			continue // files directly in the parent are not needed
		}
		if err != nil {
			return fmt.Errorf("keep %s: %w", to, err)
		}
	}
	return os.Mkdir(dir, 0o755)
}
