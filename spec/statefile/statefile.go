// Package statefile reads and writes the files of weir's state directory: what must outlive the process. A file is written
// atomically and can be read by its owner only. A file that another user owns, or could have written, is refused, because
// the kernel would be programmed from it.
//
// The package knows no content; spec/lastgood and reconcile/tell/status have the formats.
package statefile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// ErrUntrusted means that another user owns a file or its directory, or may write to it.
var ErrUntrusted = errors.New("is not used")

// Open opens a regular file in a state directory for reading. It follows no symlink at the end of the path, and opens
// neither FIFOs nor devices.
func Open(path string) (*os.File, error) { return open(path, os.O_RDONLY) }

func open(path string, flags int) (*os.File, error) {
	if err := CheckDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, flags|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	switch {
	case err != nil:
	case !fi.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file, so it %w; remove it", path, ErrUntrusted)
	default:
		if err = Check(path, fi, 0o022); err != nil {
			err = fmt.Errorf("%w, or remove it", err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Check returns an error unless the file is root's or this process's user's, and gives others none of the permissions.
func Check(path string, fi fs.FileInfo, permissions fs.FileMode) error {
	if uid := int(fi.Sys().(*syscall.Stat_t).Uid); !Ours(uid) {
		return fmt.Errorf("%s belongs to user %d, so it %w; chown it to the user that weir runs as", path, uid, ErrUntrusted)
	}
	return checkMode(path, fi, permissions)
}

func checkMode(path string, fi fs.FileInfo, permissions fs.FileMode) error {
	if fi.Mode().Perm()&permissions == 0 {
		return nil
	}
	return fmt.Errorf("%s has mode %04o, so that others could have changed it, and it %w; chmod go-w it", path, fi.Mode().Perm(), ErrUntrusted)
}

// Ours reports whether a user could do everything that this process does.
func Ours(uid int) bool { return uid == 0 || uid == os.Geteuid() }

// CheckDir checks a directory. Others may write to it only if its sticky bit keeps them from replacing files.
func CheckDir(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	return Check(dir, fi, replacing(fi))
}

// CheckWay checks each directory in which a path is looked up, through its symlinks, and those symlinks: the owner of one, and
// others that may write to it, can have the path lead to another file. The file itself is not checked. links are where the symlinks
// are, without other symlinks.
func CheckWay(path string) (links []string, err error) {
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	const most = 40 // as in the kernel
	dir, todo := "/", strings.Split(path, "/")
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			dir = filepath.Dir(dir)
			continue
		}
		fi, err := os.Stat(dir)
		if err == nil {
			err = checkOnWay(dir, fi, replacing(fi))
		}
		if err != nil {
			return links, err
		}
		dir = filepath.Join(dir, part)
		if fi, err = os.Lstat(dir); err != nil {
			return links, err
		}
		if fi.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if links = append(links, dir); len(links) > most {
			return links, &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
		}
		if err = checkOnWay(dir, fi, 0); err != nil {
			return links, err
		}
		text, err := os.Readlink(dir)
		if err != nil {
			return links, err
		}
		if dir = filepath.Dir(dir); filepath.IsAbs(text) {
			dir = "/"
		}
		todo = append(strings.Split(text, "/"), todo...)
	}
	return links, nil
}

// checkOnWay is Check for what leads to a file.
func checkOnWay(path string, fi fs.FileInfo, permissions fs.FileMode) error {
	if uid := int(fi.Sys().(*syscall.Stat_t).Uid); !Ours(uid) && !unmapped(uid) {
		return fmt.Errorf("%s belongs to user %d, so that what it leads to %w; have that elsewhere, such as in /etc/weir", path, uid, ErrUntrusted)
	}
	return checkMode(path, fi, permissions)
}

// unmapped reports whether a user has no number in this user namespace, as root has none in one of an ordinary user.
func unmapped(uid int) bool {
	const overflow = 65534
	users, err := os.ReadFile("/proc/self/uid_map")
	return uid == overflow && err == nil && !slices.Equal(strings.Fields(string(users)), []string{"0", "0", "4294967295"})
}

// replacing returns the permissions with which others can replace what a directory holds.
func replacing(dir fs.FileInfo) fs.FileMode {
	if dir.Mode()&fs.ModeSticky != 0 {
		return 0
	}
	return 0o022
}

// MakeDir creates a state directory if it does not exist, and checks it.
func MakeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return CheckDir(dir)
}

// Write replaces a file with what write writes, with mode 0600. After a crash or a loss of power there is the old content
// or the new one. The directory is created if it does not exist.
func Write(path string, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	if err := MakeDir(dir); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return writeError(path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriterSize(f, 64<<10)
	if err := write(w); err != nil {
		return writeError(path, err)
	}
	for _, step := range []func() error{w.Flush, f.Sync, f.Close, func() error { return os.Rename(f.Name(), path) }} {
		if err := step(); err != nil {
			return writeError(path, err)
		}
	}
	return syncDir(dir)
}

// writeError returns an error with the path of the file in place of that of the temporary one, whose name is another one
// each time, so that the same cause has the same text.
func writeError(path string, err error) error {
	var file *fs.PathError
	var link *os.LinkError
	switch {
	case errors.As(err, &link):
		err = link.Err
	case errors.As(err, &file):
		err = file.Err
	}
	return fmt.Errorf("write %s: %w", path, err)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
